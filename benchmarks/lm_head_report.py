"""Tables and the plot of the LM-head studies, and the page that shows them (markers as in tree_report.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import page as svg_page
from benchmarks.plots import text
from benchmarks.tree_report import conditions, fill, markdown, timed

Row = dict[str, Any]
_COLOURS = {
    "structloss": "#0072b2",
    "eager": "#999999",
    "eager, x[keep]": "#555555",
    "F.linear_cross_entropy, 256-row chunks": "#e69f00",
    "F.linear_cross_entropy, 256-row chunks, x[keep]": "#d55e00",
    "floor": "#009e73",
}


def publish(results: Path, folder: Path | None, document: Path | None) -> None:
    """The SVG file into `folder`, tables into `document`, from lm_head.json and lm_head_device.json in `results`."""
    report, device = (
        json.loads((results / name).read_text()) if (results / name).is_file() else {}
        for name in ("lm_head.json", "lm_head_device.json")
    )
    if folder is not None and "sweep" in report:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lm_head_masked.svg").write_text(by_masked_share(report["sweep"]["rows"]))
    if document is not None:
        document.write_text(
            fill(document.read_text(), tables(report) | ({"device": device_table(device)} if device else {}))
        )


def tables(report: Row) -> dict[str, str]:
    """Every table that the report has the rows for."""
    makers = {"shapes": shapes, "sweep": sweep, "options": options, "accuracy": accuracy, "topk": topk}
    made = {}
    for name, make in makers.items():
        if name in report:
            threads = report["arguments"]["threads"]
            around = f"{conditions(report[name])} Threads: {threads}."
            made[name] = f"{make(report[name]['rows'])}\n\n{around if name != 'accuracy' else ''}".rstrip()
    return made


def _shape(row: Row) -> str:
    head = "frozen" if row["frozen"] else "trained"
    return f"N={row['tokens']}, D={row['width']}, V={row['vocab']:,}, {row['dtype']}, {head}"


def shapes(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if "refused" in row:
            lines.append([_shape(row), row["variant"], f"no time: {row['refused']}", "", "", ""])
            continue
        peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        error = f"{max(row['relative_errors']):.0e}" if "relative_errors" in row else ""
        lines.append([_shape(row), f"`{row['variant']}`", timed(row), f"{row['times_the_floor']:.2f}", peak, error])
    return markdown(["shape, half ignored", "call", "ms", "x floor", "peak, MiB", "worst error"], lines)


def sweep(rows: Sequence[Row]) -> str:
    """Times the floor by the share of ignored tokens."""
    masks = sorted({row["masked"] for row in rows})
    lines = []
    for frozen in (True, False):
        names = list(dict.fromkeys(row["variant"] for row in rows if row["frozen"] == frozen))
        for name in names:
            found = {r["masked"]: r for r in rows if r["frozen"] == frozen and r["variant"] == name}
            cells = [
                "" if r is None else r.get("refused") or f"{r['times_the_floor']:.2f}" for r in map(found.get, masks)
            ]
            lines.append(["frozen" if frozen else "trained", f"`{name}`", *cells])
    return markdown(["head", "x floor, ignored share", *(f"{m:.0%}" for m in masks)], lines)


def options(rows: Sequence[Row]) -> str:
    lines = [
        [f"`{r['variant']}`", *(["", r["refused"]] if "refused" in r else [timed(r), f"{r['times_plain']:.2f}"])]
        for r in rows
    ]
    return markdown(["call", "ms", "x plain"], lines)


def accuracy(rows: Sequence[Row]) -> str:
    names = ("loss", "d_input", "d_weight", "d_bias")
    lines = [
        [r["dtype"], r["variant"] + (f" ({r['refused']})" if "refused" in r else "")]
        + [f"{r[name]:.1e}" if name in r else "" for name in names]
        for r in rows
    ]
    return markdown(["type", "relative error against float64", "loss", "dX", "dW", "db"], lines)


def topk(rows: Sequence[Row]) -> str:
    lines = [
        [f"`{r['variant']}`", timed(r), f"{r['times_cross_entropy']:.2f}"]
        + [f"{r[name]:.1e}" if name in r else "" for name in ("error", "error_of_rounded_logits")]
        for r in rows
    ]
    return markdown(["call", "ms", "x cross-entropy", "error of dX", "with logits rounded to bfloat16"], lines)


def by_masked_share(rows: Sequence[Row]) -> str:
    """Milliseconds and MiB by the share of ignored tokens, frozen head left, trained head right."""
    shapes_drawn: list[str] = []
    for row_of_panels, (key, title) in enumerate((("median_ms", "milliseconds"), ("peak_mib", "peak memory, MiB"))):
        for column, frozen in enumerate((True, False)):
            found = [r for r in rows if r["frozen"] == frozen and key in r]
            left, top, width, height = 60 + 330 * column, 40 + 250 * row_of_panels, 260, 180
            highest = max(r[key] for r in found)
            shapes_drawn.append(text(left, top - 14, f"{title}, {'frozen' if frozen else 'trained'} head", "#000000"))
            for share in (0.0, 0.5, 1.0):
                y = top + height * (1 - share)
                shapes_drawn.append(f'<path d="M{left} {y:.1f}H{left + width}" stroke="#dddddd"/>')
                shapes_drawn.append(text(left - 6, y + 4, f"{share * highest:.0f}", "#555555", "end"))
            for mask in sorted({r["masked"] for r in found}):
                shapes_drawn.append(text(left + width * mask, top + height + 16, f"{mask:.0%}", "#555555", "middle"))
            for name in dict.fromkeys(r["variant"] for r in found):
                points = [(r["masked"], r[key]) for r in found if r["variant"] == name]
                way = "L".join(f"{left + width * m:.1f} {top + height * (1 - v / highest):.1f}" for m, v in points)
                shapes_drawn.append(f'<path d="M{way}" fill="none" stroke="{_colour(name)}" stroke-width="2"/>')
    names = list(dict.fromkeys(r["variant"].partition(":")[0] for r in rows))
    for place, name in enumerate(names):
        shapes_drawn.append(text(60 + 330 * (place % 2), 535 + 18 * (place // 2), name, _colour(name)))
    return svg_page(740, 545 + 18 * ((len(names) + 1) // 2), shapes_drawn)


def _colour(name: str) -> str:
    return _COLOURS.get(name.partition(":")[0], "#000000")


def device_table(report: Row) -> str:
    """What lm_head_device.py measured."""
    given = report["arguments"]
    lines = []
    for row in report["rows"]:
        key = [f"{row['masked']:.0%}", "frozen" if row["frozen"] else "trained", f"`{row['variant']}`"]
        if "refused" in row:
            lines.append([*key, f"no time: {row['refused']}", "", "", ""])
            continue
        peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        error = f"{max(row['relative_errors']):.0e}" if "relative_errors" in row else ""
        lines.append([*key, timed(row), f"{row['times_the_floor']:.2f}", peak, error])
    shape = f"N={given['tokens']}, D={given['width']}, V={given['vocab']:,}, {given['dtype']} on {report['device']}"
    calls = markdown(["ignored", "head", "call", "ms", "x floor", "peak, MiB", "worst error"], lines)
    alone = markdown(
        ["row pass alone", "ms", "GB/s of one read and one write"],
        [
            [row["variant"], f"no time: {row['refused']}", ""]
            if "refused" in row
            else [f"{row['variant']}, {row['rows']} rows", timed(row), f"{row['gb_per_s']:.0f}"]
            for row in report["row_pass"]
        ],
    )
    return f"{shape}\n\n{calls}\n\n{alone}\n\n{conditions(report)}"
