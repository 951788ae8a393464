"""Early exit: the walk ends before its end, or nobody knows beforehand how long it is."""

from __future__ import annotations

from collections.abc import Callable

from training.kata.frame import EARLY_EXIT, MUST, NEVER, SIMPLE, Variants, hard_frame
from training.kata.operations import RANGES, STRINGS
from training.kata.render import INDENT, Parts, body, indented, negated


def _position(name: str, x: str) -> Callable[[Parts], Variants]:
    def build(parts: Parts) -> Variants:
        item, missing = f"{name}[i]", f"return {parts.a}"
        found = [f"if {parts.condition(item)}:", INDENT + "return i"]
        named = [f"if {parts.condition(x)}:", INDENT + "return i"]
        top = f"for i in range(len({name})):"
        return {
            "loop": body([top, *indented(found), missing]),
            "line": body([f"return next((i {top[:-1]} if {parts.condition(item)}), {parts.a})"]),
            "index": body([f"for i, {x} in enumerate({name}):", *indented(named), missing]),
            "while": body(["i = 0", f"while i < len({name}):", *indented([*found, "i += 1"]), missing]),
        }

    return build


def _until(name: str, x: str) -> Callable[[Parts], Variants]:
    def build(parts: Parts) -> Variants:
        item = f"{name}[i]"
        stop = [f"if {parts.condition(x)}:", INDENT + "break"]
        walking = f"i < len({name}) and {negated(parts.condition(item))}"
        return {
            "loop": body([*parts.init(), f"for {x} in {name}:", *indented([*stop, *parts.update(x)]), parts.finish()]),
            "while": body(
                [
                    *parts.init(),
                    "i = 0",
                    f"while {walking}:",
                    *indented([*parts.update(item), "i += 1"]),
                    parts.finish(),
                ]
            ),
        }

    return build


def _budget(counted: bool) -> Callable[[Parts], Variants]:
    def build(parts: Parts) -> Variants:
        start = ["total = 0", *(["count = 0"] if counted else [])]
        add = [f"total += {parts.value()}", *(["count += 1"] if counted else [])]
        result = "count" if counted else "total"
        stop = f"if total > {parts.a}:"
        walking = f"while i < len(xs) and total <= {parts.a}:"
        item = [f"total += {parts.value('xs[i]')}", "i += 1"]
        final = "return i" if counted else "return total"
        return {
            "loop": body([*start, "for x in xs:", *indented([*add, stop, INDENT + "break"]), f"return {result}"]),
            "return": body(
                [*start, "for x in xs:", *indented([*add, stop, INDENT + f"return {result}"]), f"return {result}"]
            ),
            "while": body(["total = 0", "i = 0", walking, *indented(item), final]),
        }

    return build


def _quota(parts: Parts) -> Variants:
    take = [*parts.update(), "left -= 1", "if left == 0:", INDENT + "break"]
    keep = [f"if {parts.condition()}:", *indented(take)]
    skip = [f"if {negated(parts.condition())}:", INDENT + "continue", *take]
    start = [*parts.init(), f"left = {parts.a}", "for x in xs:"]
    line = parts.one_line(f"for x in kept[:{parts.a}]", condition="")
    steps = [f"kept = [x for x in xs if {parts.condition()}]", line or ""]
    return {
        "loop": body([*start, *indented(keep), parts.finish()]),
        "skip": body([*start, *indented(skip), parts.finish()]),
        "steps": body(steps) if line else None,
    }


def _search(parts: Parts) -> Variants:
    value = parts.value()
    return {
        "while": body([f"x = {parts.a}", f"while {value} <= n:", INDENT + "x += 1", "return x"]),
        "loop": body(
            [f"x = {parts.a}", "while True:", INDENT + f"if {value} > n:", INDENT * 2 + "return x", INDENT + "x += 1"]
        ),
    }


EARLY_EXIT_FRAMES = [
    hard_frame(
        "position",
        EARLY_EXIT,
        "go over xs",
        _position("xs", "x"),
        parameters=("bound",),
        filters=MUST,
        filter_words="look for",
        maps=NEVER,
        reductions=(),
        ending="return the position of the first or {a} if none",
    ),
    hard_frame(
        "position_text",
        EARLY_EXIT,
        "go over s",
        _position("s", "c"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"),),
        parameters=("bound",),
        filters=MUST,
        filter_words="look for",
        maps=NEVER,
        reductions=(),
        ending="return the position of the first or {a} if none",
    ),
    hard_frame(
        "until",
        EARLY_EXIT,
        "go over xs",
        _until("xs", "x"),
        filters=MUST,
        filter_words="stop at",
        reductions=SIMPLE,
    ),
    hard_frame(
        "until_text",
        EARLY_EXIT,
        "go over s",
        _until("s", "c"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"),),
        filters=MUST,
        filter_words="stop at",
        reductions=("join", "join_by", "count", "list", "sum"),
    ),
    hard_frame(
        "budget_sum",
        EARLY_EXIT,
        "go over xs",
        _budget(False),
        parameters=("tens",),
        filters=NEVER,
        maps=MUST,
        reductions=(),
        ending="add up, stop once the sum is above {a}, return the sum",
    ),
    hard_frame(
        "budget_count",
        EARLY_EXIT,
        "go over xs",
        _budget(True),
        parameters=("tens",),
        filters=NEVER,
        maps=MUST,
        reductions=(),
        ending="add up, stop once the sum is above {a}, return how many were used",
    ),
    hard_frame(
        "quota",
        EARLY_EXIT,
        "go over xs and stop after {a} kept",
        _quota,
        parameters=("few",),
        filters=MUST,
        reductions=("sum", "product", "largest", "smallest", "subtract_from", "fold"),
    ),
    hard_frame(
        "search",
        EARLY_EXIT,
        "go up from x = {a}",
        _search,
        domain=RANGES,
        arguments=(("n", "size"),),
        parameters=("bound",),
        filters=NEVER,
        maps=MUST,
        maps_named=("square_add", "scale_add", "add_scale", "times_more"),
        reductions=(),
        ending="return the first x where it is above n",
    ),
]
