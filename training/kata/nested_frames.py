"""Nested loops: pairs in a list, a grid, a triangle, two lists, the rows of a matrix."""

from __future__ import annotations

from collections.abc import Callable

from training.kata.frame import MUST, NESTED, TWO_LISTS, Variants, hard_frame
from training.kata.operations import RANGES
from training.kata.render import INDENT, Parts, body, indented, loops, negated, one_liner, skipping_loops


def _double(*spellings: tuple[tuple[str, ...], str, str]) -> Callable[[Parts], Variants]:
    """Two loops around pairs; the first spelling also gives the one-liner and the loop with `continue`."""

    def build(parts: Parts) -> Variants:
        headers, x, y = spellings[0]
        headers = tuple(header.replace("{a}", str(parts.a)) for header in headers)
        variants: Variants = {
            "loop": loops(parts, headers, x, y),
            "line": one_liner(parts, headers, x, y),
            "skip": skipping_loops(parts, headers, x, y),
        }
        for headers, x, y in spellings[1:]:
            variants["index"] = loops(parts, headers, x, y)
        return variants

    return build


def _row_totals(parts: Parts) -> Variants:
    inner = [*parts.init(), "for x in row:", *indented(parts.guarded_update())]
    inner.append(f"out.append({parts.finish().removeprefix('return ')})")
    variants: Variants = {"loop": body(["out = []", "for row in rows:", *indented(inner), "return out"])}
    line = parts.one_line("for x in row")
    if line is not None:
        total = line.removeprefix("return ")
        variants["line"] = body(["out = []", "for row in rows:", f"{INDENT}out.append({total})", "return out"])
    condition = parts.condition()
    if condition:
        inner = [*parts.init(), "for x in row:", INDENT + f"if {negated(condition)}:", INDENT * 2 + "continue"]
        inner += [*indented(parts.update()), f"out.append({parts.finish().removeprefix('return ')})"]
        variants["skip"] = body(["out = []", "for row in rows:", *indented(inner), "return out"])
    return variants


NESTED_FRAMES = [
    hard_frame(
        "pairs",
        NESTED,
        "for all x before y in xs",
        _double(
            (("for i in range(len(xs)):", "for j in range(i + 1, len(xs)):"), "xs[i]", "xs[j]"),
            (("for i, x in enumerate(xs):", "for y in xs[i + 1:]:"), "x", "y"),
        ),
        element="pair",
        filters=MUST,
    ),
    hard_frame(
        "grid",
        NESTED,
        "for all x below n and y below m",
        _double((("for x in range(n):", "for y in range(m):"), "x", "y")),
        element="pair",
        domain=RANGES,
        arguments=(("n", "small"), ("m", "small")),
        filters=MUST,
    ),
    hard_frame(
        "triangle",
        NESTED,
        "for all x from {a} to n and y below x",
        _double((("for x in range({a}, n + 1):", "for y in range(x):"), "x", "y")),
        element="pair",
        domain=RANGES,
        arguments=(("n", "small"),),
        parameters=("few",),
        filters=MUST,
    ),
    hard_frame(
        "cross",
        NESTED,
        "for all x in xs and y in ys",
        _double(
            (("for x in xs:", "for y in ys:"), "x", "y"),
            (("for i in range(len(xs)):", "for j in range(len(ys)):"), "xs[i]", "ys[j]"),
        ),
        element="pair",
        arguments=TWO_LISTS,
        filters=MUST,
    ),
    hard_frame(
        "rows",
        NESTED,
        "go over each x of each row in rows",
        _double((("for row in rows:", "for x in row:"), "x", "")),
        arguments=(("rows", "rows"),),
        filters=MUST,
    ),
    hard_frame(
        "row_totals",
        NESTED,
        "for each row in rows go over it",
        _row_totals,
        arguments=(("rows", "rows"),),
        filters=MUST,
        reductions=("sum", "product", "largest", "smallest", "count", "subtract_from", "fold"),
        posts=False,
        ending="for each row",
    ),
]
