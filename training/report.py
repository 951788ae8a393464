"""The report: one table over arms and seeds, loss curves, samples to look at; one self-contained HTML page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from training.config import RunConfig
from training.evaluate import BASELINES
from training.evaluation.summary import STRUCTURE, conditions_line
from training.jsonl import read_jsonl
from training.runs import RunFolder, read_json, write_json

matplotlib.use("Agg")

TEMPLATE = Path(__file__).with_name("report.html.jinja")
LABELS = {
    "untrained": "untrained student",
    "nearest": "copy of the nearest training solution",
    "cross_entropy": "plain cross-entropy",
    "structure_aware": "structure-aware loss",
}
CURVES = {
    "loss": "loss",
    "loss_token": "token term",
    "loss_align": "alignment term",
    "code_accuracy": "accuracy on code tokens",
    "gap_mean": "mean structural gap",
}


def rows_of(run: RunFolder, config: RunConfig) -> list[dict[str, Any]]:
    """A row for each arm or baseline and split that was evaluated."""
    environment = read_json(run.environment_path)
    rows = []
    for arm in (*BASELINES, *config.arms):
        path = run.arm(arm) / "results.json"
        if not path.is_file():
            continue
        trained = run.arm(arm) / "train.json"
        training = read_json(trained) if trained.is_file() else {}
        for split, result in read_json(path).items():
            rows.append(
                {"run": run.root.name, "seed": config.seed, "arm": arm, "split": split}
                | result
                | {"tokens": training.get("tokens"), "train_seconds": training.get("seconds")}
                | {"commit": training.get("commit", environment["commit"])}
            )
    return rows


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The result table as text: pass@1 with its 95 % interval, structure metrics, all in percent."""
    header = ["arm", "seed", "split", "problems", "n", "pass@1 [95 %]", "syntax", "data flow", "TSED"]
    body = [
        [
            LABELS.get(row["arm"], row["arm"]),
            str(row["seed"]),
            row["split"],
            str(row["problems"]),
            str(row["n"]),
            f"{percent(row['pass@1'])} [{percent(row['low'])}, {percent(row['high'])}]",
            *(percent(row[name]["mean"]) for name in STRUCTURE),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *body]]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def print_results(run: RunFolder, config: RunConfig) -> None:
    print("\n" + "\n".join(f"   {line}" for line in table_lines(rows_of(run, config))))


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element, and nothing of matplotlib's left open."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def curves_svg(logs: dict[str, list[dict[str, Any]]]) -> str:
    """Loss curves of all arms over tokens as an SVG element."""
    shown = [name for name in CURVES if any(name in row for rows in logs.values() for row in rows)]
    if not shown:
        return ""
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.0), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], shown, strict=True):
        for number, (arm, rows) in enumerate(logs.items()):
            points = [(row["tokens"], row[name]) for row in rows if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=LABELS.get(arm, arm), color=f"C{number}", linewidth=1.4)
        axis.set_title(CURVES[name], fontsize=10)
        axis.set_xlabel("tokens", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    return to_svg(figure)


def pass_svg(rows: list[dict[str, Any]]) -> str:
    """pass@1 of every arm by split, with intervals, as an SVG element."""
    splits = sorted({row["split"] for row in rows})
    figure, axes = plt.subplots(1, len(splits), figsize=(5.2 * len(splits), 2.6), squeeze=False, layout="constrained")
    for axis, split in zip(axes[0], splits, strict=True):
        chosen = [row for row in rows if row["split"] == split]
        several = len({row["run"] for row in chosen}) > 1
        names = [LABELS.get(row["arm"], row["arm"]) + (f" ({row['run']})" if several else "") for row in chosen]
        values = [100 * row["pass@1"] for row in chosen]
        errors = [
            [100 * (row["pass@1"] - row["low"]) for row in chosen],
            [100 * (row["high"] - row["pass@1"]) for row in chosen],
        ]
        axis.barh(range(len(chosen)), values, xerr=errors, color="#4c78a8", ecolor="#333333", capsize=3, height=0.6)
        axis.set_yticks(range(len(chosen)), names)
        axis.set_xlim(0, 100)
        axis.invert_yaxis()
        axis.set_title(f"pass@1 in percent, {split}", fontsize=10)
        axis.tick_params(labelsize=8)
    return to_svg(figure)


def sample_rows(run: RunFolder, config: RunConfig, each: int = 4) -> list[dict[str, Any]]:
    """A few solved and unsolved problems of the last arm, beside the reference."""
    problems = {problem["id"]: problem for problem in read_jsonl(run.problems_path)}
    arm = list(config.arms)[-1]
    chosen = []
    for path in sorted(run.arm(arm).glob("samples-*.jsonl")):
        samples = list(read_jsonl(path))
        for solved in (True, False):
            matching = [sample for sample in samples if (sample["status"] == "passed") == solved][:each]
            chosen += [
                sample | {"arm": arm, "split": path.stem.removeprefix("samples-"), "problem": problems[sample["id"]]}
                for sample in matching
            ]
    return chosen


def write_report(run: RunFolder, config: RunConfig) -> Path:
    """Write `results.json` and `report.html` into the run folder; returns the page's path."""
    rows = rows_of(run, config)
    write_json(run.root / "results.json", rows)
    logs = {
        arm: list(read_jsonl(run.arm(arm) / "log.jsonl"))
        for arm in config.arms
        if (run.arm(arm) / "log.jsonl").is_file()
    }
    page = render(
        title=f"{config.name}, seed {config.seed}",
        rows=rows,
        curves=curves_svg(logs),
        samples=sample_rows(run, config),
        environment=read_json(run.environment_path),
        data=read_json(run.data_summary_path),
        verified=read_json(run.verified_summary_path) if run.verified_summary_path.is_file() else None,
        timings=read_json(run.timings_path) if run.timings_path.is_file() else {},
        configuration=run.config_path.read_text(),
    )
    run.report_path.write_text(page)
    return run.report_path


def compare_runs(runs: list[tuple[RunFolder, RunConfig]], out: Path) -> list[dict[str, Any]]:
    """One table over several runs (seeds): JSON at `out`, the page beside it."""
    rows = [row for run, config in runs for row in rows_of(run, config)]
    rows.sort(
        key=lambda row: (
            row["split"],
            (*BASELINES, *runs[0][1].arms).index(row["arm"]) if row["arm"] in (*BASELINES, *runs[0][1].arms) else 99,
            row["seed"],
        )
    )
    environment = read_json(runs[0][0].environment_path)
    out = out.with_suffix(".json")
    write_json(out, {"environment": environment, "rows": rows})
    page = render(
        title="Comparison of runs", rows=rows, curves="", samples=[], environment=environment, data=None,
        verified=None, timings={}, configuration=runs[0][0].config_path.read_text(),
    )  # fmt: skip
    out.with_suffix(".html").write_text(page)
    return rows


def render(*, rows: list[dict[str, Any]], environment: dict[str, Any], **values: Any) -> str:
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text())
    return template.render(
        rows=rows, environment=environment, labels=LABELS, metrics=STRUCTURE, percent=percent,
        conditions=conditions_line, chart=pass_svg(rows) if rows else "",
        to_json=lambda value: json.dumps(value, indent=1), **values,
    )  # fmt: skip
