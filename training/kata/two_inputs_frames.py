"""Two inputs: side by side, with a number, members of a second list, look-up by positions."""

from __future__ import annotations

from collections.abc import Callable

from training.kata.frame import MUST, NEVER, TWO_INPUTS, TWO_LISTS, Variants, hard_frame, pair_walk
from training.kata.operations import STRINGS
from training.kata.render import INDENT, Parts, body, indented


def _members(name: str, other: str, x: str, word: str) -> Callable[[Parts], Variants]:
    def build(parts: Parts) -> Variants:
        top, condition = f"for {x} in {name}:", f"{x} {word} {other}"
        skip = f"{x} in {other}" if word == "not in" else f"{x} not in {other}"
        line = parts.one_line(top[:-1], x, condition=condition)
        keep = [f"if {condition}:", *indented(parts.update(x))]
        leave = [f"if {skip}:", INDENT + "continue", *parts.update(x)]
        return {
            "loop": body([*parts.init(), top, *indented(keep), parts.finish()]),
            "skip": body([*parts.init(), top, *indented(leave), parts.finish()]),
            "line": body([line]) if line else None,
        }

    return build


def _lookup(parts: Parts) -> Variants:
    inside = "0 <= i < len(xs)"
    keep = [f"if {inside}:", *indented(parts.update("xs[i]"))]
    skip = ["if i < 0 or i >= len(xs):", INDENT + "continue", *parts.update("xs[i]")]
    line = parts.one_line("for i in ys", "xs[i]", condition=inside)
    return {
        "loop": body([*parts.init(), "for i in ys:", *indented(keep), parts.finish()]),
        "skip": body([*parts.init(), "for i in ys:", *indented(skip), parts.finish()]),
        "line": body([line]) if line else None,
    }


TWO_INPUT_FRAMES = [
    hard_frame(
        "zip",
        TWO_INPUTS,
        "go over x in xs and y in ys side by side",
        pair_walk("for x, y in zip(xs, ys):", "x", "y", ("for i in range(min(len(xs), len(ys))):", "xs[i]", "ys[i]")),
        element="pair",
        arguments=TWO_LISTS,
    ),
    hard_frame(
        "with_number",
        TWO_INPUTS,
        "go over x in xs with y",
        pair_walk("for x in xs:", "x", "y", ("for i in range(len(xs)):", "xs[i]", "y")),
        element="pair",
        arguments=(("xs", "ints"), ("y", "number")),
    ),
    hard_frame(
        "members",
        TWO_INPUTS,
        "go over xs, keep those in ys",
        _members("xs", "ys", "x", "in"),
        arguments=TWO_LISTS,
        filters=NEVER,
        maps=MUST,
    ),
    hard_frame(
        "outsiders",
        TWO_INPUTS,
        "go over xs, keep those not in ys",
        _members("xs", "ys", "x", "not in"),
        arguments=TWO_LISTS,
        filters=NEVER,
        maps=MUST,
    ),
    hard_frame(
        "lookup",
        TWO_INPUTS,
        "for each valid position in ys take that of xs",
        _lookup,
        arguments=(("xs", "ints"), ("ys", "positions")),
        filters=NEVER,
        maps=MUST,
    ),
    hard_frame(
        "common",
        TWO_INPUTS,
        "go over s, keep those in t",
        _members("s", "t", "c", "in"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"), ("t", "text")),
        filters=NEVER,
        maps=MUST,
    ),
]
