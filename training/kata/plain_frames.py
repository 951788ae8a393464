"""Plain walks: one list, string or range, each element once."""

from __future__ import annotations

from collections.abc import Callable

from training.kata.frame import Frame, Variants
from training.kata.operations import LISTS, RANGES, STRINGS
from training.kata.render import Parts, body, indented, loops, one_liner, skipping_loops, two_steps


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


PLAIN_FRAMES = [
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
