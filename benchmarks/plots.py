"""Figures as SVG, written by hand: small, and a new measurement is a readable difference.

`draw_all` draws what the results hold, and the picture of a mapping, which is computed on the spot.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structloss
from structloss.tree_alignment.reference import preorder
from structloss.trees import Tree, kind_names

Row = dict[str, Any]
HARD = {
    "zss": "#999999",
    "apted": "#009e73",
    "x-ted": "#d55e00",
    "align_trees": "#56b4e9",
    "tree_edit_distance": "#0072b2",
}
SOFT = {0.1: "#7f0000", 0.25: "#d73027", 0.5: "#f46d43", 1.0: "#fdae61", None: "#999999"}

FIRST = "def f(x):\n    return x + 1"
SECOND = "def f(x):\n    y = x + 2\n    return y"
LINE = 20  # height of a line of the picture


def draw_all(report: dict[str, Any] | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tree_mapping.svg").write_text(mapping_picture(FIRST, SECOND))
    if report is not None:
        (folder / "tree_alignment_cost.svg").write_text(cost_by_size(report))


@dataclass(frozen=True)
class Panel:
    """A plot with logarithmic axes: where it is on the page, and the range of both axes."""

    left: float
    sizes: Sequence[float]
    lowest: int  # powers of ten of milliseconds
    highest: int
    top: float = 30
    width: float = 215
    height: float = 220

    def x(self, size: float) -> float:
        first, last = math.log(self.sizes[0]), math.log(self.sizes[-1])
        return self.left + self.width * (math.log(size) - first) / ((last - first) or 1)

    def y(self, milliseconds: float) -> float:
        share = (math.log10(milliseconds) - self.lowest) / (self.highest - self.lowest)
        return self.top + self.height * (1 - share)

    def frame(self, title: str) -> list[str]:
        bottom, right = self.top + self.height, self.left + self.width
        shapes = [
            text(self.left, self.top - 12, title, "#222222"),
            text(self.left, bottom + 32, "nodes a tree", "#666666"),
        ]
        for power in range(self.lowest, self.highest + 1):
            y = self.y(10**power)
            shapes.append(f'<path d="M{self.left} {y:.1f} H{right}" stroke="#dddddd" stroke-width="1"/>')
            shapes.append(text(self.left - 6, y + 4, f"{10.0**power:g} ms", "#666666", "end"))
        shapes += [text(self.x(size), bottom + 16, f"{size}", "#666666", "middle") for size in self.sizes]
        return shapes

    def curve(self, rows: Sequence[Row], label: str, colour: str, label_y: float) -> list[str]:
        """Medians joined by a line, quartiles as bars, the label at the height `label_y`."""
        points = [(self.x(row["size"]), self.y(row["median_ms"]), row) for row in rows]
        shapes = [f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)}" fill="none" stroke="{colour}"/>']
        for x, y, row in points:
            bar = f"M{x:.1f} {self.y(row['p25_ms']):.1f} V{self.y(row['p75_ms']):.1f}"
            shapes.append(f'<path d="{bar}" stroke="{colour}" stroke-width="5" opacity="0.4"/>')
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
        shapes.append(text(points[-1][0] + 8, label_y + 4, label, colour))
        return shapes


def cost_by_size(report: dict[str, Any]) -> str:
    """Milliseconds a pair over nodes, one thread, unrelated functions: the distance left, the soft value right."""
    hard, soft = (
        [row for row in report.get(study, ()) if row["threads"] == 1 and row["set"] == "unrelated"]
        for study in ("hard", "soft")
    )
    soft = [row for row in soft if row["posterior"]]
    everything = [*hard, *soft]
    sizes = sorted({row["size"] for row in everything})
    lowest = math.floor(math.log10(min(row["p25_ms"] for row in everything)))
    highest = math.ceil(math.log10(max(row["p75_ms"] for row in everything)))
    left, right = (Panel(x, sizes, lowest, highest) for x in (70, 480))
    names = {t: "floor: a copy" if t is None else f"temperature {t:g}" for t in SOFT}
    shapes = left.frame("distance or mapping") + right.frame("soft value and posterior")
    shapes += curves(left, [([r for r in hard if r["variant"] == name], name, colour) for name, colour in HARD.items()])
    shapes += curves(right, [([r for r in soft if r["temperature"] == t], names[t], c) for t, c in SOFT.items()])
    return page(840, 290, shapes)


def curves(panel: Panel, found: Sequence[tuple[Sequence[Row], str, str]]) -> list[str]:
    """The curves from the slowest down, their labels kept a line apart."""
    shapes: list[str] = []
    free = -math.inf
    drawn = [(sorted(rows, key=lambda row: row["size"]), label, colour) for rows, label, colour in found if rows]
    for rows, label, colour in sorted(drawn, key=lambda curve: -curve[0][-1]["median_ms"]):
        free = max(panel.y(rows[-1]["median_ms"]), free + 14)
        shapes += panel.curve(rows, label, colour, free)
    return shapes


def page(width: float, height: float, shapes: Sequence[str]) -> str:
    view = f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12" stroke-width="2"'
    white = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {view}>', white, *shapes, "</svg>\n"])


def mapping_picture(first: str, second: str, temperature: float = 0.25) -> str:
    """Two trees as indented lists, a line between nodes that may match, as dark as the match is probable."""
    trees = [structloss.parse(source) for source in (first, second)]
    a, b = (structloss.TreeBatch.from_trees([tree]) for tree in trees)
    posterior = structloss.soft_tree_edit_distance(a, b, temperature=temperature, return_posterior=True)[1][0]
    unmatched = [1 - posterior.sum(1), 1 - posterior.sum(0)]
    rows = [{node: k for k, node in enumerate(preorder(tree.leftmost.tolist()))} for tree in trees]
    shapes = []
    for i, j in (posterior >= 0.02).nonzero().tolist():
        chance = posterior[i, j].item()
        start, end = (LINE * (rows[0][i] + 1.7), LINE * (rows[1][j] + 1.7))
        shapes.append(f'<path d="M200 {start:.0f} L300 {end:.0f}" stroke="#0072b2" opacity="{chance:.2f}"/>')
        if chance < 0.98:
            shapes.append(text(306, end + 4, f"{chance:.2f}", "#0072b2"))
    for tree, row, missing, left in zip(trees, rows, unmatched, (16, 346), strict=True):
        shapes.append(text(left, LINE, "student" if left == 16 else "teacher", "#666666"))
        source = (first, second)[left > 16].encode()
        for node in range(tree.size):
            colour = "#d55e00" if missing[node] > 0.5 else "#222222"
            label = caption(tree, node, source)
            shapes.append(text(left + 11 * depth(tree, node), LINE * (row[node] + 1.7) + 4, label, colour))
    return page(540, LINE * (max(len(row) for row in rows) + 2), shapes)


def text(x: float, y: float, words: str, colour: str, anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}"' + ("" if anchor == "start" else f' text-anchor="{anchor}"')
    return f'<text {where} fill="{colour}">{html.escape(words)}</text>'


def caption(tree: Tree, node: int, source: bytes) -> str:
    """Leaves by their text, other nodes by their kind."""
    start, end = tree.byte_span[node]
    return source[start:end].decode() if tree.leftmost[node] == node else kind_names()[tree.kind[node]]


def depth(tree: Tree, node: int) -> int:
    parent = int(tree.parent[node])
    return 0 if parent < 0 else 1 + depth(tree, parent)
