"""Two evaluations on the same problems: the difference of every metric with its interval and p-value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structloss import metrics
from training.config import ConfigError
from training.evaluation.summary import STRUCTURE, Tally, conditions_line
from training.jsonl import read_jsonl
from training.runs import read_json

Row = dict[str, Any]

# What must be equal, or the difference is one of the measurements and not of the models.
SAME = {
    "set": "the benchmark",
    "version": "the version of the set",
    "problems_sha256": "the problems' prompts and tests",
    "n": "samples a problem",
    "extractor": "how programs are taken out of answers",
}
# What may differ, because it can be what is compared; a difference is said aloud.
TOLD = ("prompt", "temperature", "max_new_tokens", "isolation")


@dataclass(frozen=True)
class Evaluation:
    """One evaluated split: its results, and the file with a verdict for each sample."""

    name: str
    split: str
    results: Row
    rows: Path


def find_evaluations(path: Path) -> list[Evaluation]:
    """The evaluations at `path`: a folder of graded samples, a samples file that was graded, an arm of a run, or a
    run folder (all its arms).

    Raises ConfigError where there is none.
    """
    if path.is_file() and path.name == "samples.jsonl" and (path.parent / "verdicts.jsonl").is_file():
        path = path.parent
    elif path.is_file():
        graded = sorted(path.parent.glob(f"{samples_stem(path)}.*/results.json"))
        if len(graded) != 1:
            found = f"is graded in {len(graded)} folders, name one of them" if graded else "is not graded yet"
            raise ConfigError(
                f"{path} {found}; `python -m training evaluate --samples {path} --benchmark NAME` makes one"
            )
        path = graded[0].parent
    if (path / "verdicts.jsonl").is_file():
        if not (path / "results.json").is_file():
            raise ConfigError(f"{path}: grading has not ended; give the command that began it again")
        results = read_json(path / "results.json")
        return [Evaluation(path.name, results["set"], results, path / "verdicts.jsonl")]
    arms = sorted(path.glob("arms/*/results.json"))
    if not (path / "config.yaml").is_file():
        arms += sorted(path.glob("results.json"))
    found_arms = [
        Evaluation(file.parent.name, split, results, file.with_name(f"samples-{split}.jsonl"))
        for file in arms
        for split, results in read_json(file).items()
        if file.with_name(f"samples-{split}.jsonl").is_file()
    ]
    if not found_arms:
        raise ConfigError(f"{path}: wants a run folder, an arm's folder or graded samples, and holds no results.json")
    return found_arms


def samples_stem(path: Path) -> str:
    """The name of a samples file without `.jsonl` or `.jsonl.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def pairs(first: list[Evaluation], second: list[Evaluation]) -> Iterator[tuple[Evaluation, Evaluation]]:
    """What to compare: the two, or the same arm and split on both sides where there are several."""
    splits = {evaluation.split for evaluation in first} & {evaluation.split for evaluation in second}
    one_arm = len({e.name for e in first}) == len({e.name for e in second}) == 1
    found = False
    for a in first:
        for b in second:
            if a.split == b.split and (one_arm or a.name == b.name):
                found = True
                yield a, b
    if not found and len(first) == len(second) == 1:
        yield first[0], second[0]
    elif not found:
        shared = f"splits on both sides: {', '.join(sorted(splits)) or 'none'}"
        raise ConfigError(
            f"nothing to compare: A holds {_names(first)}; B holds {_names(second)}; {shared}. "
            "Name one arm on each side"
        )


def _names(evaluations: list[Evaluation]) -> str:
    return ", ".join(f"{e.name}/{e.split}" for e in evaluations)


def compare(a: Evaluation, b: Evaluation) -> list[Row]:
    """One row a metric: {"metric", "a", "b", "value", "low", "high", "p", "test", "problems"}; a and b with intervals.

    Raises ConfigError where the two were not measured in the same way on the same problems.
    """
    for name, meaning in SAME.items():
        if a.results.get(name) != b.results.get(name):
            raise ConfigError(
                f"{name} differs, {meaning}: {a.results.get(name)!r} in {a.rows.parent}, "
                f"{b.results.get(name)!r} in {b.rows.parent}"
            )
    first, second = Tally(read_jsonl(a.rows)), Tally(read_jsonl(b.rows))
    if first.samples != second.samples:
        only = sorted(dict(first.samples.items() ^ second.samples.items()))
        raise ConfigError(f"the problems differ, or their numbers of samples: {', '.join(only[:5])} (of {len(only)})")
    rows = []
    for k in first.ks():
        for base in (False, True) if first.has_base and second.has_base else (False,):
            name = f"{'base ' if base else ''}pass@{k}"
            once = max(first.samples.values()) == 1
            rows.append(_difference(name, first.pass_at_k(k, base=base), second.pass_at_k(k, base=base), verdicts=once))
    for metric in STRUCTURE:
        left, right = first.structure(metric), second.structure(metric)
        if both := left.keys() & right.keys():
            order = [name for name in left if name in both]
            rows.append(_difference(metric, {n: left[n] for n in order}, {n: right[n] for n in order}))
    return rows


def _difference(name: str, left: dict[str, float], right: dict[str, float], *, verdicts: bool = False) -> Row:
    a, b = list(left.values()), [right[problem] for problem in left]
    paired = metrics.paired_bootstrap(a, b)
    row: Row = {"metric": name, "problems": len(a), "value": paired.value, "low": paired.low, "high": paired.high}
    for side, values in (("a", a), ("b", b)):
        low, high = (
            metrics.wilson_interval(int(sum(values)), len(values)) if verdicts else metrics.bootstrap_interval(values)
        )
        row[side] = {"value": sum(values) / len(values), "low": low, "high": high}
    if not verdicts:
        return row | {"p": paired.p, "test": "bootstrap"}
    exact = metrics.mcnemar_exact([value == 1 for value in a], [value == 1 for value in b])
    return row | {"p": exact.p, "test": "McNemar", "only_a": exact.only_a, "only_b": exact.only_b}


def comparison_lines(a: Evaluation, b: Evaluation, rows: list[Row]) -> list[str]:
    """The table as text, in percent, with the conditions of both sides under it."""
    header = ["metric", "A [95 %]", "B [95 %]", "B - A [95 %]", "p", "test", "problems"]
    body = [
        [
            row["metric"],
            *(_interval(row[side]["value"], row[side]["low"], row[side]["high"]) for side in ("a", "b")),
            _interval(row["value"], row["low"], row["high"], sign="+"),
            f"{row['p']:.4f}" if row["p"] >= 1e-4 else f"{row['p']:.0e}",
            row["test"] + (f", only A {row['only_a']}, only B {row['only_b']}" if "only_a" in row else ""),
            str(row["problems"]),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [header, *body]]
    notes = [f"A: {a.rows.parent}: {conditions_line(a.results)}", f"B: {b.rows.parent}: {conditions_line(b.results)}"]
    notes += [
        f"note: {name} differs: {a.results.get(name)!r} and {b.results.get(name)!r}"
        for name in TOLD
        if a.results.get(name) != b.results.get(name)
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:], "", *notes]


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
