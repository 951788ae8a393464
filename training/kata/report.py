"""Figures about the data set: counts, lengths, the kill rate of the hidden tests, the nearest-neighbour baseline."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from training.kata.dataset import KataData, Row, make_kata
from training.kata.execution import passes
from training.kata.hidden_tests import kill_rate
from training.kata.problems import OPERATIONS, all_shapes
from training.nearest import nearest_solutions

# Roughly what a byte-pair encoding of 1,024 entries makes of the texts, if it keeps digits and line breaks apart.
_TOKEN = re.compile(r"\n *|\d| ?[A-Za-z_]{1,8}| ?[^\w\s]{1,2}")


def count_tokens(text: str) -> int:
    """Approximate number of tokens of a small student's tokenizer.

    >>> count_tokens("    return total + 12")
    5
    """
    return len(_TOKEN.findall(text))


def copy_nearest(problems: Sequence[Row], train: Sequence[Row]) -> int:
    """How many problems are solved by the code of the training problem with the most similar prompt."""
    copied = nearest_solutions(problems, train)
    return sum(
        passes(row["code_prefix"] + source["reference"], row["tests"])
        for row, source in zip(problems, copied, strict=True)
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _kill_sample(data: KataData, sample: int) -> list[Row]:
    """Up to `sample` problems with selected tests, spread over families and splits."""
    groups: dict[str, list[Row]] = {}
    for split in ("test_unseen", "test_composition", "validation"):
        for row in data.problems[split]:
            groups.setdefault(row["family"], []).append(row)
    rounds = max((len(rows) for rows in groups.values()), default=0)
    spread = [rows[number] for number in range(rounds) for rows in groups.values() if number < len(rows)]
    return spread[:sample]


def report(num_train: int, num_validation: int, num_test: int, seed: int, kill_sample: int) -> dict[str, Any]:
    """All figures of a data set made with these numbers."""
    started = time.process_time()
    data = make_kata(num_train, num_validation, num_test, seed)
    seconds = time.process_time() - started
    shapes = all_shapes()
    killed = different = 0
    rows = _kill_sample(data, kill_sample)
    for row in rows:
        dead, alive = kill_rate(row)
        killed, different = killed + dead, different + alive
    parts = {
        "prompt": [trace["prompt"] for trace in data.traces],
        "reasoning": [trace["reasoning"] for trace in data.traces],
        "code": [trace["code"] for trace in data.traces],
    }
    lengths = {
        name: {
            "characters": sum(map(len, texts)) / max(1, len(texts)),
            "tokens": sum(map(count_tokens, texts)) / max(1, len(texts)),
        }
        for name, texts in parts.items()
    }
    return {
        "numbers": {"num_train": num_train, "num_validation": num_validation, "num_test": num_test, "seed": seed},
        "generation_cpu_seconds": seconds,
        "operations": len(OPERATIONS),
        "operations_with_parameters": sum(bool(operation.parameters) for operation in OPERATIONS.values()),
        "operations_by_domain": dict(
            Counter(domain for operation in OPERATIONS.values() for domain in operation.domains)
        ),
        "operations_with_parameters_by_domain": dict(
            Counter(domain for operation in OPERATIONS.values() if operation.parameters for domain in operation.domains)
        ),
        "shapes": len(shapes),
        "shapes_by_family": dict(Counter(shape.family for shape in shapes)),
        "shapes_in_training": len({row["shape"] for row in data.problems["train"]}),
        "problems_by_family": {
            split: dict(Counter(row["family"] for row in rows)) for split, rows in data.problems.items()
        },
        "lengths": lengths,
        "kill_rate": {
            "problems": len(rows),
            "non_equivalent_mutants": different,
            "killed": killed,
            "share": _share(killed, different),
        },
        "copy_nearest": {
            split: {
                "n": len(data.problems[split]),
                "solved": (solved := copy_nearest(data.problems[split], data.problems["train"])),
                "share": _share(solved, len(data.problems[split])),
            }
            for split in ("test_unseen", "test_composition")
        },
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def as_table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    kills, nearest, lengths = figures["kill_rate"], figures["copy_nearest"], figures["lengths"]
    rows = [
        ("operations", f"{figures['operations']}, {figures['operations_with_parameters']} with parameters"),
        ("operations by domain", _listed(figures["operations_by_domain"])),
        ("with parameters, by domain", _listed(figures["operations_with_parameters_by_domain"])),
        ("distinct shapes", f"{figures['shapes']:,}"),
        ("shapes by family", _listed(figures["shapes_by_family"])),
        ("shapes in training", str(figures["shapes_in_training"])),
        *((f"problems, {split}", _listed(counts)) for split, counts in figures["problems_by_family"].items()),
        *(
            (f"{name}, mean", f"{length['characters']:.0f} characters, about {length['tokens']:.0f} tokens")
            for name, length in lengths.items()
        ),
        (
            "non-equivalent mutants killed",
            f"{_percent(kills['share'])} ({kills['killed']:,} of {kills['non_equivalent_mutants']:,}, "
            f"{kills['problems']} problems)",
        ),
        *(
            (f"copying the nearest, {split}", f"{_percent(found['share'])} ({found['solved']} of {found['n']})")
            for split, found in nearest.items()
        ),
        ("generation", f"{figures['generation_cpu_seconds']:.1f} s of one core"),
    ]
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
