"""Tables of the tree studies as Markdown, and the page that shows them.

A page has places for tables:

    <!-- begin hard: the command that measures it -->
    <!-- end hard -->

`publish` fills every place from the JSON files of a folder, or says that it was not measured yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots

Row = dict[str, Any]
FILES = ("tree_alignment.json", "tree_alignment_cuda.json", "tree_alignment_accuracy.json")
_PLACE = re.compile(r"(<!-- begin (?P<name>[\w-]+): (?P<command>.*?) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def publish(results: Path, folder: Path | None, page: Path | None) -> None:
    """SVG files into `folder`, tables into `page`, both from the JSON files in `results`."""
    reports = {name: json.loads((results / name).read_text()) for name in FILES if (results / name).is_file()}
    if folder is not None:
        plots.draw_all(reports.get(FILES[0]), folder)
    if page is not None:
        found: dict[str, str] = {}
        for report in reports.values():
            found |= tables(report)
        page.write_text(fill(page.read_text(), found))


def fill(text: str, found: dict[str, str]) -> str:
    """The text with every place filled. Raises ValueError for a begin without its end."""
    begins, places = re.findall(r"<!-- begin ([\w-]+):", text), [m["name"] for m in _PLACE.finditer(text)]
    if begins != places:
        raise ValueError(f"markers: begin {begins}, but complete are {places}")

    def filled(match: re.Match[str]) -> str:
        table = found.get(match["name"], "Not measured yet.")
        return f"{match[1]}{table}\n\n`{match['command']}`\n{match[4]}"

    return _PLACE.sub(filled, text)


def tables(report: Row) -> dict[str, str]:
    """Every table that this report has the rows for."""
    makers = {"hard": hard, "soft": soft, "memory": memory, "device": device, "accuracy": accuracy, "large": large}
    makers |= {"textbook": textbook}
    made = {name: make(report[name]) for name, make in makers.items() if report.get(name)}
    for name in ("hard", "soft", "device"):
        if name in made:
            made[name] += f"\n\n{conditions(report)}"
    return made


def conditions(report: Row) -> str:
    around = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items() if version)
    return (
        f"Milliseconds, median [quartiles]. {around['machine']}, {around['cores']} cores; Python {around['python']}, "
        f"{versions}; commit {around['commit']}, {around['date'][:10]}, load {around['load_average']:.1f} at the start."
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def digits(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def timed(row: Row) -> str:
    return f"{digits(row['median_ms'])} [{digits(row['p25_ms'])}, {digits(row['p75_ms'])}]"


def _pick(rows: Sequence[Row], **wanted: Any) -> Row | None:
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def _distinct(rows: Sequence[Row], *keys: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row.get(key) for key in keys) for row in rows))


def hard(rows: Sequence[Row]) -> str:
    """A line a tool, a column a size, and how many times the time of `tree_edit_distance` with as many threads."""
    sizes = [size for (size,) in _distinct(rows, "size")]
    lines = []
    for kind, variant, threads in _distinct(rows, "set", "variant", "threads"):
        cells, ratios = [], []
        for size in sizes:
            row = _pick(rows, set=kind, variant=variant, threads=threads, size=size)
            ours = _pick(rows, set=kind, variant="tree_edit_distance", threads=threads, size=size)
            if row is None:
                cells.append("")
                continue
            few = "" if ours is None or row["pairs"] == ours["pairs"] else f" ({row['pairs']} pairs)"
            cells.append(timed(row) + few)
            if ours is not None:
                ratios.append(row["median_ms"] / ours["median_ms"])
        call = re.sub(r"\w+_\w+", r"`\g<0>`", variant)
        ratio = " to ".join(dict.fromkeys(digits(x) for x in (min(ratios), max(ratios)))) if ratios else ""
        lines.append([kind, call, str(threads), *cells, ratio])
    return markdown(["pairs", "call", "threads", *(f"{size} nodes" for size in sizes), "x ours"], lines)


def soft(rows: Sequence[Row]) -> str:
    """Value and posterior on the fewest threads, and beside it what else the rows say, each at the largest size."""
    sizes = [size for (size,) in _distinct(rows, "size")]
    threads = sorted({row["threads"] for row in rows})
    lines = []
    for kind, temperature in _distinct(rows, "set", "temperature"):
        key = {"set": kind, "temperature": temperature, "posterior": True, "threads": threads[0]}
        full = [row for size in sizes if (row := _pick(rows, **key, size=size))]
        if temperature is None:
            lines.append([kind, "floor: copy", *map(timed, full), "", "", "", ""])
            continue
        last = full[-1]
        others = key | {"size": last["size"]}
        value = _pick(rows, **others | {"posterior": False})
        more = _pick(rows, **others | {"threads": threads[-1]})
        lines.append(
            [kind, f"{temperature:g}", *map(timed, full), digits(last["ns_per_cell"])]
            + [f"{other['median_ms'] / last['median_ms']:.2f}" if other else "" for other in (value, more)]
            + [f"{max(row['posterior_error'] for row in full):.0e}"]
        )
    header = ["pairs", "temperature", *(f"{size} nodes" for size in sizes), "ns a cell", "value alone / both"]
    return markdown([*header, f"{threads[-1]} threads / {threads[0]}", "largest error of a posterior"], lines)


def memory(rows: Sequence[Row]) -> str:
    lines = [
        [
            *(row["set"], " and ".join(map(str, row["nodes"])), f"{row['cells']:,}"),
            *(_kib(row[name]) for name in ("posterior_bytes", "peak_bytes")),
        ]
        for row in rows
    ]
    return markdown(["pair", "nodes", "cells", "posterior, KiB", "rise of the process's peak, KiB"], lines)


def _kib(size: int | None) -> str:
    return "" if size is None else f"{size / 1024:,.0f}"


def device(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        key = [str(row["batch"]), f"{row['temperature']:g}", row["backend"]]
        if "refused" in row:
            lines.append([*key, "", f"no time: {row['refused'].splitlines()[0]}", ""])
            continue
        if "threads" in row:
            key[-1] += f", {row['threads']} threads"
        peak = row.get("peak_bytes")
        lines.append([*key, row["call"], timed(row), "" if peak is None else f"{peak / 2**20:.0f}"])
    names = sorted({row["device"] for row in rows if "device" in row})
    header = ["pairs", "temperature", "backend", "call", "ms a batch", "peak, MiB"]
    return f"{', '.join(names)}\n\n{markdown(header, lines)}"


def accuracy(rows: Sequence[Row]) -> str:
    """One line an error, one column a temperature."""
    header = ["largest error, temperature", *(f"{row['temperature']:g}" for row in rows)]
    names = [name for name in rows[0] if name != "temperature"]
    return markdown(header, [[name.replace("_", " "), *(f"{row[name]:.1e}" for row in rows)] for name in names])


def large(rows: Sequence[Row]) -> str:
    lines = [[row["case"], row["nodes"], f"{row['temperature']:g}", row["what"], f"{row['error']:.1e}"] for row in rows]
    return markdown(["case", "nodes", "temperature", "what", "error"], lines)


def textbook(rows: Sequence[Row]) -> str:
    header = ["trees", "mappings", "counted", "counted by the textbook", "soft distance", "by the textbook"]
    lines = [
        [row["case"], str(row["mappings"]), f"{row['counted']:.6g}", f"{row['textbook_counted']:.6g}"]
        + [f"{row[name]:.4f}" for name in ("soft_distance", "textbook_soft_distance")]
        for row in rows
    ]
    return markdown(header, lines)
