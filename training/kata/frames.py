"""Frames: where the elements of a problem come from and how the program walks over them.

Three families are plain pipelines (lists, strings, ranges); four are structurally harder (nested loops, early
exit, two inputs, state). A frame's builder returns the same program in several equivalent structures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.kata.operations import LISTS, RANGES, STRINGS, Operation
from training.kata.render import (
    INDENT,
    Parts,
    body,
    indented,
    loops,
    negated,
    one_liner,
    skipping_loops,
    two_steps,
)

NESTED, EARLY_EXIT, TWO_INPUTS, STATE = "nested", "early_exit", "two_inputs", "state"
PLAIN_FAMILIES = (LISTS, STRINGS, RANGES)
HARD_FAMILIES = (NESTED, EARLY_EXIT, TWO_INPUTS, STATE)

Variants = dict[str, "str | None"]
_MAYBE, _MUST, _NEVER = "maybe", "must", "never"


@dataclass(frozen=True)
class Frame(Operation):
    """An operation of role "source" that also holds the signature and the builder.

    `arguments` are (name, input kind) pairs, see `inputs.py`. `filters` and `maps` say whether such a step may,
    must or must never be there; `reductions` names the allowed ones (None: all that fit, empty: the frame has its
    own ending). `maps_named`, if not empty, restricts the maps. `filter_words` leads in the filter's noun phrase.
    """

    family: str = ""
    arguments: tuple[tuple[str, str], ...] = (("xs", "ints"),)
    filters: str = _MAYBE
    maps: str = _MAYBE
    reductions: tuple[str, ...] | None = None
    maps_named: tuple[str, ...] = ()
    posts: bool = True
    ordered_only: bool = False
    filter_words: str = "keep"
    ending: str = ""
    build: Callable[[Parts], Variants] = lambda parts: {}


_UNORDERED = ("sum", "product", "largest", "smallest", "count", "count_above", "subtract_from", "exists")
_SIMPLE = ("sum", "product", "list", "largest", "smallest", "count", "fold")


def _walk(
    header: str, start: tuple[str, ...] = (), condition: str = "", item: str = "", step: str = ""
) -> Callable[[Parts], Variants]:
    """A single walk over one iterable; the four strings, if given, spell it as a while loop."""
    x = header.split()[1]

    def build(parts: Parts) -> Variants:
        def put(text: str) -> str:
            return text.replace("{a}", str(parts.a)).replace("{b}", str(parts.b))

        top = put(header)
        variants = {
            "loop": loops(parts, [top], x),
            "line": one_liner(parts, [top], x),
            "skip": skipping_loops(parts, [top], x),
            "steps": two_steps(parts, top, x),
        }
        if condition:
            inner = [*([item] if item else []), *parts.guarded_update(x), put(step)]
            lines = [*parts.init(), *map(put, start), f"while {put(condition)}:", *indented(inner)]
            variants["while"] = body([*lines, parts.finish()])
        return variants

    return build


def _plain(
    name: str,
    family: str,
    phrase: str,
    build: Callable[[Parts], Variants],
    *,
    parameters: tuple[str, ...] = (),
    element: str = "int",
    ordered_only: bool = False,
) -> Frame:
    arguments = {LISTS: ("xs", "ints"), RANGES: ("n", "size")}.get(
        family, ("s", "text" if element == "char" else "words")
    )
    return Frame(
        name,
        "source",
        (family,),
        phrase,
        parameters=parameters,
        takes=element,
        gives=element,
        family=family,
        arguments=(arguments,),
        ordered_only=ordered_only,
        build=build,
    )


def _indexed(name: str, variable: str, start: str, condition: str, step: str) -> tuple:
    return (start,), condition, f"{variable} = {name}[i]", step


_PLAIN = [
    _plain("xs", LISTS, "go over xs", _walk("for x in xs:", *_indexed("xs", "x", "i = 0", "i < len(xs)", "i += 1"))),
    _plain(
        "xs_from",
        LISTS,
        "go over xs from position {a}",
        _walk("for x in xs[{a}:]:", *_indexed("xs", "x", "i = {a}", "i < len(xs)", "i += 1")),
        parameters=("few",),
    ),
    _plain(
        "xs_until",
        LISTS,
        "go over the first {a} of xs",
        _walk("for x in xs[:{a}]:", *_indexed("xs", "x", "i = 0", "i < len(xs) and i < {a}", "i += 1")),
        parameters=("few",),
    ),
    _plain(
        "xs_step",
        LISTS,
        "go over xs in steps of {a}",
        _walk("for x in xs[::{a}]:", *_indexed("xs", "x", "i = 0", "i < len(xs)", "i += {a}")),
        parameters=("few",),
    ),
    _plain(
        "xs_backwards",
        LISTS,
        "go over xs backwards",
        _walk("for x in xs[::-1]:", *_indexed("xs", "x", "i = len(xs) - 1", "i >= 0", "i -= 1")),
        ordered_only=True,
    ),
    _plain("xs_sorted", LISTS, "go over xs in ascending order", _walk("for x in sorted(xs):"), ordered_only=True),
    _plain(
        "s",
        STRINGS,
        "go over s",
        _walk("for c in s:", *_indexed("s", "c", "i = 0", "i < len(s)", "i += 1")),
        element="char",
    ),
    _plain(
        "s_from",
        STRINGS,
        "go over s from position {a}",
        _walk("for c in s[{a}:]:", *_indexed("s", "c", "i = {a}", "i < len(s)", "i += 1")),
        parameters=("few",),
        element="char",
    ),
    _plain(
        "s_step",
        STRINGS,
        "go over s in steps of {a}",
        _walk("for c in s[::{a}]:", *_indexed("s", "c", "i = 0", "i < len(s)", "i += {a}")),
        parameters=("few",),
        element="char",
    ),
    _plain(
        "s_backwards",
        STRINGS,
        "go over s backwards",
        _walk("for c in s[::-1]:", *_indexed("s", "c", "i = len(s) - 1", "i >= 0", "i -= 1")),
        element="char",
        ordered_only=True,
    ),
    _plain("words", STRINGS, "go over the words of s", _walk("for w in s.split():"), element="word"),
    _plain(
        "words_from",
        STRINGS,
        "go over the words of s from position {a}",
        _walk("for w in s.split()[{a}:]:"),
        parameters=("few",),
        element="word",
    ),
    _plain(
        "words_backwards",
        STRINGS,
        "go over the words of s backwards",
        _walk("for w in s.split()[::-1]:"),
        element="word",
        ordered_only=True,
    ),
    _plain(
        "below_n", RANGES, "go over numbers below n", _walk("for x in range(n):", ("x = 0",), "x < n", "", "x += 1")
    ),
    _plain(
        "to_n",
        RANGES,
        "go over {a} to n",
        _walk("for x in range({a}, n + 1):", ("x = {a}",), "x <= n", "", "x += 1"),
        parameters=("digit",),
    ),
    _plain(
        "below_n_step",
        RANGES,
        "go over numbers below n in steps of {a}",
        _walk("for x in range(0, n, {a}):", ("x = 0",), "x < n", "", "x += {a}"),
        parameters=("few",),
    ),
    _plain(
        "to_n_step",
        RANGES,
        "go over {a} to n in steps of {b}",
        _walk("for x in range({a}, n + 1, {b}):", ("x = {a}",), "x <= n", "", "x += {b}"),
        parameters=("digit", "few"),
    ),
    _plain(
        "down_from_n",
        RANGES,
        "go from n down to {a}",
        _walk("for x in range(n, {a} - 1, -1):", ("x = n",), "x >= {a}", "", "x -= 1"),
        parameters=("digit",),
    ),
    _plain(
        "times_n",
        RANGES,
        "go over numbers below {a} times n",
        _walk("for x in range({a} * n):", ("x = 0",), "x < {a} * n", "", "x += 1"),
        parameters=("few",),
    ),
]


# ---- nested loops


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


_PAIR_INPUT = (("xs", "ints"), ("ys", "ints"))


def _hard(name: str, family: str, phrase: str, build: Callable[[Parts], Variants], **fields: object) -> Frame:
    element = str(fields.pop("element", "int"))
    domain = fields.pop("domain", LISTS)
    return Frame(
        name,
        "source",
        (str(domain),),
        phrase,
        takes=element,
        gives=element,
        family=family,
        build=build,
        **fields,  # type: ignore[arg-type]
    )


_NESTED = [
    _hard(
        "pairs",
        NESTED,
        "for all x before y in xs",
        _double(
            (("for i in range(len(xs)):", "for j in range(i + 1, len(xs)):"), "xs[i]", "xs[j]"),
            (("for i, x in enumerate(xs):", "for y in xs[i + 1:]:"), "x", "y"),
        ),
        element="pair",
        filters=_MUST,
    ),
    _hard(
        "grid",
        NESTED,
        "for all x below n and y below m",
        _double((("for x in range(n):", "for y in range(m):"), "x", "y")),
        element="pair",
        domain=RANGES,
        arguments=(("n", "small"), ("m", "small")),
        filters=_MUST,
    ),
    _hard(
        "triangle",
        NESTED,
        "for all x from {a} to n and y below x",
        _double((("for x in range({a}, n + 1):", "for y in range(x):"), "x", "y")),
        element="pair",
        domain=RANGES,
        arguments=(("n", "small"),),
        parameters=("few",),
        filters=_MUST,
    ),
    _hard(
        "cross",
        NESTED,
        "for all x in xs and y in ys",
        _double(
            (("for x in xs:", "for y in ys:"), "x", "y"),
            (("for i in range(len(xs)):", "for j in range(len(ys)):"), "xs[i]", "ys[j]"),
        ),
        element="pair",
        arguments=_PAIR_INPUT,
        filters=_MUST,
    ),
    _hard(
        "rows",
        NESTED,
        "go over each x of each row in rows",
        _double((("for row in rows:", "for x in row:"), "x", "")),
        arguments=(("rows", "rows"),),
        filters=_MUST,
    ),
    _hard(
        "row_totals",
        NESTED,
        "for each row in rows go over it",
        _row_totals,
        arguments=(("rows", "rows"),),
        filters=_MUST,
        reductions=("sum", "product", "largest", "smallest", "count", "subtract_from", "fold"),
        posts=False,
        ending="for each row",
    ),
]


# ---- early exit


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


_EARLY_EXIT = [
    _hard(
        "position",
        EARLY_EXIT,
        "go over xs",
        _position("xs", "x"),
        parameters=("bound",),
        filters=_MUST,
        filter_words="look for",
        maps=_NEVER,
        reductions=(),
        ending="return the position of the first or {a} if none",
    ),
    _hard(
        "position_text",
        EARLY_EXIT,
        "go over s",
        _position("s", "c"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"),),
        parameters=("bound",),
        filters=_MUST,
        filter_words="look for",
        maps=_NEVER,
        reductions=(),
        ending="return the position of the first or {a} if none",
    ),
    _hard(
        "until",
        EARLY_EXIT,
        "go over xs",
        _until("xs", "x"),
        filters=_MUST,
        filter_words="stop at",
        reductions=_SIMPLE,
    ),
    _hard(
        "until_text",
        EARLY_EXIT,
        "go over s",
        _until("s", "c"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"),),
        filters=_MUST,
        filter_words="stop at",
        reductions=("join", "join_by", "count", "list", "sum"),
    ),
    _hard(
        "budget_sum",
        EARLY_EXIT,
        "go over xs",
        _budget(False),
        parameters=("tens",),
        filters=_NEVER,
        maps=_MUST,
        reductions=(),
        ending="add up, stop once the sum is above {a}, return the sum",
    ),
    _hard(
        "budget_count",
        EARLY_EXIT,
        "go over xs",
        _budget(True),
        parameters=("tens",),
        filters=_NEVER,
        maps=_MUST,
        reductions=(),
        ending="add up, stop once the sum is above {a}, return how many were used",
    ),
    _hard(
        "quota",
        EARLY_EXIT,
        "go over xs and stop after {a} kept",
        _quota,
        parameters=("few",),
        filters=_MUST,
        reductions=("sum", "product", "largest", "smallest", "subtract_from", "fold"),
    ),
    _hard(
        "search",
        EARLY_EXIT,
        "go up from x = {a}",
        _search,
        domain=RANGES,
        arguments=(("n", "size"),),
        parameters=("bound",),
        filters=_NEVER,
        maps=_MUST,
        maps_named=("square_add", "scale_add", "add_scale", "times_more"),
        reductions=(),
        ending="return the first x where it is above n",
    ),
]


# ---- two inputs


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


def _single(header: str, x: str, y: str, index: tuple[str, str, str] | None = None) -> Callable[[Parts], Variants]:
    """One loop that gives pairs; `index` spells it with positions."""

    def build(parts: Parts) -> Variants:
        variants: Variants = {
            "loop": loops(parts, [header], x, y),
            "line": one_liner(parts, [header], x, y),
            "skip": skipping_loops(parts, [header], x, y),
        }
        if index is not None:
            variants["index"] = loops(parts, [index[0]], index[1], index[2])
        return variants

    return build


_TWO_INPUTS = [
    _hard(
        "zip",
        TWO_INPUTS,
        "go over x in xs and y in ys side by side",
        _single("for x, y in zip(xs, ys):", "x", "y", ("for i in range(min(len(xs), len(ys))):", "xs[i]", "ys[i]")),
        element="pair",
        arguments=_PAIR_INPUT,
    ),
    _hard(
        "with_number",
        TWO_INPUTS,
        "go over x in xs with y",
        _single("for x in xs:", "x", "y", ("for i in range(len(xs)):", "xs[i]", "y")),
        element="pair",
        arguments=(("xs", "ints"), ("y", "number")),
    ),
    _hard(
        "members",
        TWO_INPUTS,
        "go over xs, keep those in ys",
        _members("xs", "ys", "x", "in"),
        arguments=_PAIR_INPUT,
        filters=_NEVER,
        maps=_MUST,
    ),
    _hard(
        "outsiders",
        TWO_INPUTS,
        "go over xs, keep those not in ys",
        _members("xs", "ys", "x", "not in"),
        arguments=_PAIR_INPUT,
        filters=_NEVER,
        maps=_MUST,
    ),
    _hard(
        "lookup",
        TWO_INPUTS,
        "for each valid position in ys take that of xs",
        _lookup,
        arguments=(("xs", "ints"), ("ys", "positions")),
        filters=_NEVER,
        maps=_MUST,
    ),
    _hard(
        "common",
        TWO_INPUTS,
        "go over s, keep those in t",
        _members("s", "t", "c", "in"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"), ("t", "text")),
        filters=_NEVER,
        maps=_MUST,
    ),
]


# ---- state


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


_STATE = [
    _hard(
        "previous",
        STATE,
        "go over x in xs with the previous y, at first {a}",
        _previous,
        element="pair",
        parameters=("bound",),
    ),
    _hard(
        "adjacent",
        STATE,
        "go over x in xs with the next y",
        _single("for x, y in zip(xs, xs[1:]):", "x", "y", ("for i in range(len(xs) - 1):", "xs[i]", "xs[i + 1]")),
        element="pair",
        filters=_MUST,
    ),
    _hard(
        "record_count",
        STATE,
        "go over xs",
        _record(False),
        parameters=("bound",),
        filters=_NEVER,
        maps=_MUST,
        reductions=(),
        ending="count the new records, the first record is {a}",
    ),
    _hard(
        "record_list",
        STATE,
        "go over xs",
        _record(True),
        parameters=("bound",),
        filters=_NEVER,
        maps=_MUST,
        reductions=(),
        ending="list the running maximum, at first {a}",
    ),
    _hard(
        "run",
        STATE,
        "go over xs",
        _run("xs", "x"),
        parameters=("bound",),
        filters=_MUST,
        filter_words="find runs of",
        maps=_NEVER,
        reductions=(),
        ending="return the longest length or {a} if longer",
    ),
    _hard(
        "run_text",
        STATE,
        "go over s",
        _run("s", "c"),
        element="char",
        domain=STRINGS,
        arguments=(("s", "text"),),
        parameters=("bound",),
        filters=_MUST,
        filter_words="find runs of",
        maps=_NEVER,
        reductions=(),
        ending="return the longest length or {a} if longer",
    ),
    _hard(
        "runs",
        STATE,
        "go over xs",
        _runs,
        parameters=("few",),
        filters=_MUST,
        filter_words="find runs of",
        maps=_NEVER,
        reductions=(),
        ending="count those with length at least {a}",
    ),
    _hard(
        "toggle",
        STATE,
        "go over xs with a switch that is off",
        _toggle,
        filters=_MUST,
        filter_words="flip it at",
        reductions=_SIMPLE,
    ),
    _hard(
        "counts_many",
        STATE,
        "go over xs",
        _counts(True),
        parameters=("few",),
        filters=_NEVER,
        maps=_MUST,
        maps_named=("modulo", "divide", "add_modulo", "distance", "cap", "raise", "replace_above"),
        reductions=(),
        ending="count the values seen at least {a} times",
    ),
    _hard(
        "counts_most",
        STATE,
        "go over xs",
        _counts(False),
        parameters=("bound",),
        filters=_NEVER,
        maps=_MUST,
        maps_named=("modulo", "divide", "add_modulo", "distance", "cap", "raise", "replace_above"),
        reductions=(),
        ending="return the largest number of times a value is seen or {a} if larger",
    ),
    _hard(
        "alternate",
        STATE,
        "go over xs",
        _alternate,
        parameters=("bound",),
        filters=_NEVER,
        maps=_MUST,
        reductions=(),
        ending="start at {a}, add and subtract in turn",
    ),
    _hard(
        "running",
        STATE,
        "go over xs",
        _running,
        parameters=("bound",),
        filters=_MUST,
        reductions=(),
        ending="list the running sum from {a}",
    ),
    _hard(
        "reset",
        STATE,
        "go over xs",
        _reset,
        parameters=("tens",),
        filters=_NEVER,
        maps=_MUST,
        reductions=(),
        ending="add up, reset the sum to 0 when above {a}, return the sum",
    ),
    _hard(
        "digits",
        STATE,
        "go over the digits of n",
        _digits,
        domain=RANGES,
        arguments=(("n", "digits"),),
        filters=_MUST,
        reductions=_UNORDERED,
    ),
]

FRAMES: dict[str, Frame] = {frame.name: frame for frame in [*_PLAIN, *_NESTED, *_EARLY_EXIT, *_TWO_INPUTS, *_STATE]}
