"""State: what the loop does depends on what it has seen."""

from __future__ import annotations

from collections.abc import Callable

from training.kata.frame import MUST, NEVER, SIMPLE, STATE, UNORDERED, Variants, hard_frame, pair_walk
from training.kata.operations import RANGES, STRINGS
from training.kata.render import INDENT, Parts, body, indented, loops, negated, one_liner


def _previous(parts: Parts) -> Variants:
    line = one_liner(parts, [f"for x, y in zip(xs, [{parts.a}] + xs):"])
    return {"loop": loops(parts, ["for x in xs:"], "x", "y", [f"y = {parts.a}"], ["y = x"]), "line": line}


def _record(listed: bool) -> Callable[[Parts], Variants]:
    def build(parts: Parts) -> Variants:
        value = parts.value()
        start = [f"best = {parts.a}", "out = []" if listed else "total = 0"]
        after = "out.append(best)" if listed else "total += 1"
        final = "return out" if listed else "return total"
        named = [f"v = {value}", "if v > best:", INDENT + "best = v"]
        if listed:
            direct = [f"best = max(best, {value})", after]
            return {
                "loop": body([*start, "for x in xs:", *indented(direct), final]),
                "compare": body([*start, "for x in xs:", *indented([*named, after]), final]),
            }
        skip = [f"v = {value}", "if v <= best:", INDENT + "continue", "best = v", after]
        return {
            "loop": body([*start, "for x in xs:", *indented([*named, INDENT + after]), final]),
            "skip": body([*start, "for x in xs:", *indented(skip), final]),
        }

    return build


def _run(name: str, x: str) -> Callable[[Parts], Variants]:
    def build(parts: Parts) -> Variants:
        condition = parts.condition(x)
        grow = [f"if {condition}:", INDENT + "run += 1", INDENT + "best = max(best, run)"]
        reset = ["else:", INDENT + "run = 0"]
        start = ["run = 0", f"best = {parts.a}", f"for {x} in {name}:"]
        first = [f"if {negated(condition)}:", INDENT + "run = 0", INDENT + "continue"]
        return {
            "loop": body([*start, *indented([*grow, *reset]), "return best"]),
            "skip": body([*start, *indented([*first, "run += 1", "best = max(best, run)"]), "return best"]),
        }

    return build


def _runs(parts: Parts) -> Variants:
    condition = parts.condition()
    count = ["run += 1", f"if run == {parts.a}:", INDENT + "total += 1"]
    start = ["run = 0", "total = 0", "for x in xs:"]
    grow = [f"if {condition}:", *indented(count), "else:", INDENT + "run = 0"]
    first = [f"if {negated(condition)}:", INDENT + "run = 0", INDENT + "continue", *count]
    return {
        "loop": body([*start, *indented(grow), "return total"]),
        "skip": body([*start, *indented(first), "return total"]),
    }


def _toggle(parts: Parts) -> Variants:
    flip = [f"if {parts.condition()}:", INDENT + "on = not on"]
    start = [*parts.init(), "on = False", "for x in xs:"]
    guarded = [*flip, "if on:", *indented(parts.update())]
    skip = [*flip, "if not on:", INDENT + "continue", *parts.update()]
    return {
        "loop": body([*start, *indented(guarded), parts.finish()]),
        "skip": body([*start, *indented(skip), parts.finish()]),
    }


def _counts(many: bool) -> Callable[[Parts], Variants]:
    def build(parts: Parts) -> Variants:
        value = parts.value()
        if many:
            final = f"return sum(v >= {parts.a} for v in counts.values())"
        else:
            final = f"return max([{parts.a}] + list(counts.values()))"
        get = [f"k = {value}", "counts[k] = counts.get(k, 0) + 1"]
        test = [f"k = {value}", "if k in counts:", INDENT + "counts[k] += 1", "else:", INDENT + "counts[k] = 1"]
        return {
            "loop": body(["counts = {}", "for x in xs:", *indented(get), final]),
            "compare": body(["counts = {}", "for x in xs:", *indented(test), final]),
        }

    return build


def _alternate(parts: Parts) -> Variants:
    start = [f"total = {parts.a}", "sign = 1", "for x in xs:"]
    flagged = ["if plus:", f"{INDENT}total += {parts.value()}", "else:", f"{INDENT}total -= {parts.value()}"]
    return {
        "loop": body([*start, *indented([f"total += sign * {parts.factor()}", "sign = -sign"]), "return total"]),
        "compare": body([start[0], "plus = True", start[2], *indented([*flagged, "plus = not plus"]), "return total"]),
    }


def _running(parts: Parts) -> Variants:
    add = [f"total += {parts.value()}", "out.append(total)"]
    start = [f"total = {parts.a}", "out = []", "for x in xs:"]
    condition = parts.condition()
    skip = [f"if {negated(condition)}:", INDENT + "continue", *add]
    return {
        "loop": body([*start, *indented([f"if {condition}:", *indented(add)]), "return out"]),
        "skip": body([*start, *indented(skip), "return out"]),
    }


def _reset(parts: Parts) -> Variants:
    value = parts.value()
    start = ["total = 0", "for x in xs:"]
    after = [f"total += {value}", f"if total > {parts.a}:", INDENT + "total = 0"]
    step = f"total + ({value})" if " if " in value else f"total + {value}"
    return {
        "loop": body([*start, *indented(after), "return total"]),
        "compare": body([*start, *indented([f"v = {step}", f"total = v if v <= {parts.a} else 0"]), "return total"]),
    }


def _digits(parts: Parts) -> Variants:
    inner = ["x = n % 10", *parts.guarded_update(), "n //= 10"]
    variants: Variants = {"while": body([*parts.init(), "while n > 0:", *indented(inner), parts.finish()])}
    inner = ["x = int(c)", *parts.guarded_update()]
    variants["loop"] = body([*parts.init(), "for c in str(n):", *indented(inner), parts.finish()])
    return variants


STATE_FRAMES = [
    hard_frame(
        "previous",
        STATE,
        "go over x in xs with the previous y, at first {a}",
        _previous,
        element="pair",
        parameters=("bound",),
    ),
    hard_frame(
        "adjacent",
        STATE,
        "go over x in xs with the next y",
        pair_walk("for x, y in zip(xs, xs[1:]):", "x", "y", ("for i in range(len(xs) - 1):", "xs[i]", "xs[i + 1]")),
        element="pair",
        filters=MUST,
    ),
    hard_frame(
        "record_count",
        STATE,
        "go over xs",
        _record(False),
        parameters=("bound",),
        filters=NEVER,
        maps=MUST,
        reductions=(),
        ending="count the new records, the first record is {a}",
    ),
    hard_frame(
        "record_list",
        STATE,
        "go over xs",
        _record(True),
        parameters=("bound",),
        filters=NEVER,
        maps=MUST,
        reductions=(),
        ending="list the running maximum, at first {a}",
    ),
    hard_frame(
        "run",
        STATE,
        "go over xs",
        _run("xs", "x"),
        parameters=("bound",),
        filters=MUST,
        filter_words="find runs of",
        maps=NEVER,
        reductions=(),
        ending="return the longest length or {a} if longer",
    ),
    hard_frame(
        "run_text",
        STATE,
        "go over s",
        _run("s", "c"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"),),
        parameters=("bound",),
        filters=MUST,
        filter_words="find runs of",
        maps=NEVER,
        reductions=(),
        ending="return the longest length or {a} if longer",
    ),
    hard_frame(
        "runs",
        STATE,
        "go over xs",
        _runs,
        parameters=("few",),
        filters=MUST,
        filter_words="find runs of",
        maps=NEVER,
        reductions=(),
        ending="count those with length at least {a}",
    ),
    hard_frame(
        "toggle",
        STATE,
        "go over xs with a switch that is off",
        _toggle,
        filters=MUST,
        filter_words="flip it at",
        reductions=SIMPLE,
    ),
    hard_frame(
        "counts_many",
        STATE,
        "go over xs",
        _counts(True),
        parameters=("few",),
        filters=NEVER,
        maps=MUST,
        maps_named=("modulo", "divide", "add_modulo", "distance", "cap", "raise", "replace_above"),
        reductions=(),
        ending="count the values seen at least {a} times",
    ),
    hard_frame(
        "counts_most",
        STATE,
        "go over xs",
        _counts(False),
        parameters=("bound",),
        filters=NEVER,
        maps=MUST,
        maps_named=("modulo", "divide", "add_modulo", "distance", "cap", "raise", "replace_above"),
        reductions=(),
        ending="return the largest number of times a value is seen or {a} if larger",
    ),
    hard_frame(
        "alternate",
        STATE,
        "go over xs",
        _alternate,
        parameters=("bound",),
        filters=NEVER,
        maps=MUST,
        reductions=(),
        ending="start at {a}, add and subtract in turn",
    ),
    hard_frame(
        "running",
        STATE,
        "go over xs",
        _running,
        parameters=("bound",),
        filters=MUST,
        reductions=(),
        ending="list the running sum from {a}",
    ),
    hard_frame(
        "reset",
        STATE,
        "go over xs",
        _reset,
        parameters=("tens",),
        filters=NEVER,
        maps=MUST,
        reductions=(),
        ending="add up, reset the sum to 0 when above {a}, return the sum",
    ),
    hard_frame(
        "digits",
        STATE,
        "go over the digits of n",
        _digits,
        domain=RANGES,
        arguments=(("n", "digits"),),
        filters=MUST,
        reductions=UNORDERED,
    ),
]
