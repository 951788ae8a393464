"""The tables of docs/evaluation_agreement.md, from the stored results: python -m benchmarks.evalplus_report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OUTCOMES = ("both pass", "both fail", "only we pass", "only EvalPlus passes")


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Markdown tables by name, from the JSON files in `results`."""
    scores = json.loads((results / "reference_scores.json").read_text())
    report = json.loads((results / "evalplus_agreement.json").read_text())
    leaks = json.loads((results / "leaks.json").read_text())
    found = {"reference scores": reference_table(scores), "leaks": leak_table(leaks)}
    for name, study in report["agreement"].items():
        found[f"agreement {name}"] = agreement_table(study)
        found[f"causes {name}"] = cause_table(study)
    found["throughput"] = throughput_table(report["throughput"])
    return found


def reference_table(scores: dict[str, Any]) -> str:
    rows = [[s["set"], s["version"], f"{s['passed']} of {s['problems']}"] for s in scores["sets"]]
    return _table(["set", "version", "references that pass"], rows)


def agreement_table(study: dict[str, Any]) -> str:
    """A row for each kind of solution, and one for all."""
    total: Counter[str] = Counter()
    rows = []
    for kind, counts in study["table"].items():
        total.update(counts)
        rows.append([kind, str(study["kinds"][kind]), *(str(counts.get(outcome, 0)) for outcome in OUTCOMES)])
    rows.append(["all", str(study["samples"]), *(str(total[outcome]) for outcome in OUTCOMES)])
    return _table(["kind of solution", "n", *OUTCOMES], rows)


def cause_table(study: dict[str, Any]) -> str:
    rows = [[cause, str(count)] for cause, count in sorted(study["causes"].items(), key=lambda item: -item[1])]
    return _table(["cause of a disagreement", "n"], rows)


def throughput_table(study: dict[str, Any]) -> str:
    rows = []
    for name, row in study.items():
        rate = row["samples_a_second"]
        rows.append(
            [
                name,
                str(row["tasks"]),
                f"{rate['ours']:.1f}",
                f"{rate['evalplus']:.1f}",
                f"{rate['ours'] / rate['evalplus']:.1f}",
            ]
        )
    return _table(["set", "tasks", "ours, samples/s", "EvalPlus, samples/s", "ratio"], rows)


def leak_table(leaks: dict[str, Any]) -> str:
    rows = []
    for name in ("problems", "traces"):
        rows += [[f"{name}, {rule}", str(count)] for rule, count in leaks[name]["dropped"].items()]
        rows.append([f"{name}, kept", f"{leaks[name]['kept']} of {leaks[name]['rows']}"])
    return _table(["rule (benchmark)", "rows"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for title, text in tables().items():
        print(f"{title}\n\n{text}\n")
