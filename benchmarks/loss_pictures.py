"""The pictures of docs/loss.md: python -m benchmarks.loss_pictures [--out docs/images].

Nothing in them is drawn by hand: gaps, probabilities and distances come from the library, times from the results.
"""

from __future__ import annotations

import argparse
import html
import io
import itertools
import json
import math
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import structloss
from benchmarks.plots import page, text
from structloss.losses import distance_to_right, pathway_loss, ramp, structural_gap
from structloss.trees import innermost_nodes

STUDENT = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return total\n"
TEACHER = (
    "def f(xs):\n    total = 0\n    for x in xs:\n        if x % 2 == 0:\n            total += x\n    return total\n"
)
CANDIDATES = {
    "return sum(xs)": True,
    "total = 0\nfor x in xs:\n    total += x\nreturn total": True,
    "total = 0\nfor x in xs:\n    total = x\nreturn total": False,
    "return max(xs)": False,
}
BLUE, ORANGE, GREY, BLACK = "#0072b2", "#d55e00", "#666666", "#222222"
CHARACTER, LINE = 7.3, 19


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the SVG files")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of loss_step.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "loss_gap": gap_picture(STUDENT, TEACHER),
        "loss_weights": weight_picture(),
        "loss_mappings": mappings_picture(),
        "loss_pathways": pathway_picture(CANDIDATES),
        "loss_step": step_picture(json.loads((options.results / "loss_step.json").read_text())),
    }
    for name, picture in pictures.items():
        (options.out / f"{name}.svg").write_text(picture)


def gap_picture(student: str, teacher: str) -> str:
    """Both programs; the teacher's words on a ground as dark as their node is missing from the student's."""
    trees = [structloss.TreeBatch.from_sources([source]) for source in (student, teacher)]
    gap = structural_gap(*trees)[0]
    words = list(words_of(teacher))
    spans = torch.tensor([span for _, _, _, span in words]).numpy()
    nodes = innermost_nodes(structloss.parse(teacher), spans)
    shapes = [text(16, 20, "the student's own code", GREY), text(310, 20, "the teacher's code", GREY)]
    for (line, column, word, _), node in zip(words, nodes.tolist(), strict=True):
        x, y = 310 + CHARACTER * column, 42 + LINE * line
        shapes.append(
            f'<rect x="{x - 2:.1f}" y="{y - 13}" width="{CHARACTER * len(word) + 4:.1f}" height="17" rx="3" '
            f'fill="{ORANGE}" opacity="{0.0 if node < 0 else 0.75 * gap[node].item():.2f}"/>'
        )
        shapes.append(monospace(x, y, word))
    shapes += [
        monospace(16 + CHARACTER * column, 42 + LINE * line, word) for line, column, word, _ in words_of(student)
    ]
    top = 42 + LINE * (teacher.count("\n") + 0.6)
    for step, shade in enumerate((0.0, 0.5, 1.0)):
        x = 310 + 75 * step
        box = f'x="{x}" y="{top - 12:.0f}" width="16" height="16" stroke="{GREY}" stroke-width="0.5"'
        shapes.append(f'<rect {box} fill="{ORANGE}" fill-opacity="{0.75 * shade:.2f}"/>')
        shapes.append(text(x + 22, top + 1, f"gap {shade:g}", GREY))
    return page(620, top + 18, shapes)


def words_of(source: str) -> Any:
    """(line, column, word, byte span) of every word that can be seen."""
    starts = [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip():
            (line, column), end = token.start, starts[token.end[0] - 1] + token.end[1]
            yield line - 1, column, token.string, (starts[line - 1] + column, end)


def monospace(x: float, y: float, words: str, colour: str = BLACK) -> str:
    width = f'textLength="{CHARACTER * len(words):.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-family="monospace" {width} fill="{colour}">{html.escape(words)}</text>'


def weight_picture() -> str:
    """Left u over the student's probability by gap, right the ramps."""
    shapes = []
    titles = ("weight u of a token (alpha = 1)", "a(progress)")
    for left, title, under in zip((60, 400), titles, ("p, the student's probability", "progress"), strict=True):
        shapes.append(text(left, 22, title, BLACK))
        shapes.append(f'<path d="M{left} 40 V190 H{left + 200}" fill="none" stroke="#aaaaaa" stroke-width="1"/>')
        shapes += [text(left + 200 * share, 206, f"{share:g}", GREY, "middle") for share in (0.0, 0.5, 1.0)]
        shapes.append(text(left + 100, 224, under, GREY, "middle"))
    for value in (1, 2):
        shapes.append(text(52, 194 - 75 * value, f"{value}", GREY, "end"))
    shapes += [text(392, 194 - 150 * share, f"{share:g}", GREY, "end") for share in (0, 1)]
    for gap in (0.0, 0.5, 1.0):
        start, end = (190 - 75 * (1 + gap * (1 - p)) for p in (0.0, 1.0))
        shapes.append(f'<path d="M60 {start:.1f} L260 {end:.1f}" stroke="{ORANGE}" opacity="{0.3 + 0.7 * gap}"/>')
        shapes.append(text(66, start - 5, f"gap {gap:g}", GREY))
    for shape, colour in (("linear", BLUE), ("cosine", ORANGE)):
        points = [(400 + 2 * k, 190 - 150 * ramp(k / 100, shape=shape, end=0.5)) for k in range(101)]
        shapes.append(f'<path d="M{" L".join(f"{x} {y:.1f}" for x, y in points)}" fill="none" stroke="{colour}"/>')
        shapes.append(text(*((404, 90) if shape == "linear" else (452, 150)), shape, colour))
    return page(640, 236, shapes)


# --- L_align -----------------------------------------------------------------------------------------------------

# A call below a return, as the student's hidden states see the two nodes: probabilities of kinds and blank.
KINDS = ("return", "call", "name", "blank")
SEEN = torch.tensor([[0.05, 0.70, 0.15, 0.10], [0.60, 0.10, 0.05, 0.25]])
WANTED = (1, 0)  # the teacher's nodes in post-order: call, return
RHO = 0.1


def mappings() -> list[tuple[tuple[tuple[int, int], ...], float]]:
    """Every mapping of the two chains, likeliest first, with its probability."""
    found = []
    pairs = [(i, j) for i in range(2) for j in range(2)]
    for chosen in itertools.chain.from_iterable(itertools.combinations(pairs, size) for size in range(3)):
        increasing = all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.combinations(chosen, 2))
        if not increasing:
            continue
        chance = math.prod(SEEN[i, WANTED[j]].item() * (1 - RHO) for i, j in chosen)
        chance *= math.prod(SEEN[i, 3].item() for i in range(2) if i not in {i for i, _ in chosen})
        chance *= RHO ** (2 - len(chosen))
        found.append((chosen, chance))
    return sorted(found, key=lambda pair: -pair[1])


def mappings_picture() -> str:
    """The likelihood of the teacher's tree as a sum over mappings."""
    chain = structloss.TreeBatch.from_parents([[0, 1]], [[1, -1]])
    kinds = torch.tensor([WANTED])
    nll = structloss.tree_nll(SEEN.log().unsqueeze(0), chain, chain, kinds=kinds, rho=RHO).item()
    every = mappings()
    assert math.isclose(sum(chance for _, chance in every), math.exp(-nll), rel_tol=1e-5), "the library disagrees"
    shapes = [text(16, 20, "what the student's states say", GREY)]
    for node, name in ((1, "node 2, above"), (0, "node 1, below")):
        top = 44 + 100 * (1 - node)
        shapes.append(text(16, top, name, BLACK))
        for row, (kind, chance) in enumerate(zip(KINDS, SEEN[node].tolist(), strict=True)):
            y = top + 18 * (row + 1)
            shapes.append(text(78, y, kind, GREY, "end"))
            shapes.append(f'<rect x="84" y="{y - 10}" width="{110 * chance:.1f}" height="11" fill="{BLUE}"/>')
            shapes.append(text(90 + 110 * chance, y, f"{chance:.2f}", GREY))
    shapes.append(text(270, 20, "every way in which it could be the teacher's tree", GREY))
    for number, (chosen, chance) in enumerate(every):
        left, top = 270 + 105 * (number % 3), 48 + 105 * (number // 3)
        for side, x in ((0, left), (1, left + 55)):
            shapes.append(f'<path d="M{x} {top} V{top + 36}" stroke="#aaaaaa" stroke-width="1"/>')
            for node in range(2):
                matched = node in {pair[side] for pair in chosen}
                fill = BLUE if matched else "white"
                dot = f'cx="{x}" cy="{top + 36 * (1 - node)}" r="5" stroke="{BLUE if matched else ORANGE}"'
                shapes.append(f'<circle {dot} fill="{fill}"/>')
        for i, j in chosen:
            shapes.append(f'<path d="M{left} {top + 36 * (1 - i)} L{left + 55} {top + 36 * (1 - j)}" stroke="{BLUE}"/>')
        shapes.append(text(left - 8, top + 60, f"{chance:.4f}", BLACK))
    total = sum(chance for _, chance in every)
    shapes.append(text(270, 250, f"sum {total:.4f} = exp(-TED_soft),  L_align = {nll:.2f} / 2 nodes", BLACK))
    return page(620, 266, shapes)


# --- L_path and the step -------------------------------------------------------------------------------------------


def pathway_picture(candidates: dict[str, bool]) -> str:
    """Four candidates, right or wrong, their distance to the nearest right one, and the margin that they get."""
    margin, per_distance = 0.5, 2.0
    trees = structloss.TreeBatch.from_sources(list(candidates))
    passed = torch.tensor(list(candidates.values()))
    groups = torch.zeros(len(candidates), dtype=torch.int64)
    delta = distance_to_right(trees, groups, passed)
    logprob = torch.full((len(candidates),), -0.3, requires_grad=True)
    loss, _ = pathway_loss(logprob, groups, passed, delta, margin=margin, margin_per_distance=per_distance)
    loss.backward()
    assert logprob.grad is not None
    shapes = [
        text(x, 20, words, GREY)
        for x, words in ((16, "candidate"), (262, "tests"), (322, "distance"), (402, "margin"), (524, "pull"))
    ]
    top = 44.0
    for source, right, far, pull in zip(
        candidates, passed.tolist(), delta.tolist(), logprob.grad.tolist(), strict=True
    ):
        colour = BLUE if right else ORANGE
        for number, line in enumerate(source.split("\n")):
            indent = len(line) - len(line.lstrip())
            shapes.append(monospace(16 + CHARACTER * indent, top + 16 * number, line.lstrip()))
        shapes.append(text(262, top, "pass" if right else "fail", colour))
        if not right:
            shapes.append(text(322, top, f"{far:.2f}", BLACK))
            shapes.append(text(402, top, f"{margin + per_distance * far:.2f}", BLACK))
        length, barb = -8.0 * pull, math.copysign(5.0, -pull)
        arrow = f"M540 {top - 4} h{length:.1f} m{-barb} -4 l{barb} 4 l{-barb} 4"
        shapes.append(f'<path d="{arrow}" fill="none" stroke="{colour}"/>')
        top += 16 * (source.count("\n") + 1) + 14
    return page(620, top - 4, shapes)


def step_picture(results: dict[str, Any]) -> str:
    """A bar a student: the parts of a step, the structural ones named."""
    colours = {
        "trunk, forward": "#dddddd",
        "backward": "#bbbbbb",
        "LM head and cross-entropy": "#56b4e9",
        "read the student's own code": "#f0b27a",
        "gap: align the trees": ORANGE,
        "L_align, forward": "#a04000",
    }
    shapes = []
    for row, (name, report) in enumerate(results.items()):
        y, x = 30 + 74 * row, 16.0
        step = sum(part["median_ms"] for part in report["parts"])
        words = f"{name}: {report['parameters'] / 1e6:.0f} M parameters, {report['tokens']:,} tokens, {step:,.0f} ms"
        shapes.append(text(16, y - 8, words, BLACK))
        for part in report["parts"]:
            width = 590 * part["share"]
            fill = colours.get(part["part"], "#eeeeee")
            shapes.append(f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.2):.1f}" height="26" fill="{fill}"/>')
            x += width
    top = 30 + 74 * len(results) - 14
    shapes += legend(list(colours.items()), top)
    return page(620, top + 44, shapes)


def legend(entries: Sequence[tuple[str, str]], top: float) -> list[str]:
    shapes = []
    for number, (name, colour) in enumerate(entries):
        x, y = 16 + 200 * (number % 3), top + 20 * (number // 3)
        shapes.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        shapes.append(text(x + 18, y, name, GREY))
    return shapes


if __name__ == "__main__":
    main()
