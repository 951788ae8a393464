"""The operations that kata problems are composed of: filters, maps, reductions and finishing steps.

Code templates use `{x}` (and `{y}` for pairs) for the element, `{a}` and `{b}` for the parameters, `{e}` for the
mapped value. Frames, which say where the elements come from, are operations too; see `frames.py`.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

LETTERS = "abcdeilnorst"

# What a parameter may be. Single digits nearly always: a small student copies them token by token.
PARAMETER_VALUES: dict[str, tuple[int | str, ...]] = {
    "digit": tuple(range(1, 10)),
    "bound": tuple(range(0, 10)),
    "factor": tuple(range(2, 10)),
    "few": (2, 3, 4, 5),
    "tens": tuple(range(10, 41)),
    "letter": tuple(LETTERS),
    "mark": ("-", "+", ":", "/", "."),
}

LISTS, STRINGS, RANGES = "lists", "strings", "ranges"
NUMERIC = (LISTS, RANGES)


@dataclass(frozen=True)
class Fold:
    """How a reduction is written: as accumulator statements and, where Python has it, as one expression.

    `one` holds `{g}`, which stands for "element clauses" of a generator; `element` is what that generator yields.
    An empty `result` means that the update returns from the function and that `otherwise` is the last line.
    """

    init: tuple[str, ...]
    update: tuple[str, ...]
    result: str
    one: str = ""
    element: str = "{e}"
    otherwise: str = ""
    ordered: bool = False


@dataclass(frozen=True)
class Operation:
    """A building block. `takes` and `gives` are element or result types that decide what composes with what."""

    name: str
    role: str  # "source", "filter", "map", "reduce" or "post"
    domains: tuple[str, ...]
    phrase: str
    code: str = ""
    parameters: tuple[str, ...] = ()
    rule: str = ""  # relation between the two parameters: "a>b", "a<b" or "a!=b"
    takes: str = "int"
    gives: str = "int"
    fold: Fold | None = None

    def draw(self, rng: random.Random) -> list[int | str]:
        """Parameter values that respect the rule."""
        while True:
            values = [rng.choice(PARAMETER_VALUES[kind]) for kind in self.parameters]
            if _allowed(self.rule, values):
                return values

    def count_parameter_values(self) -> int:
        """Number of parameter settings that respect the rule."""
        settings = itertools.product(*(PARAMETER_VALUES[kind] for kind in self.parameters))
        return sum(_allowed(self.rule, list(values)) for values in settings)


def _allowed(rule: str, values: list[int | str]) -> bool:
    if not rule:
        return True
    a, b = values
    if rule == "a!=b":
        return a != b
    smaller, larger = (b, a) if rule == "a>b" else (a, b)
    return int(smaller) < int(larger)


def _filters(takes: str, domains: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[Operation]:
    return [
        Operation(name, "filter", domains, phrase, code, tuple(kinds.split()), rule, takes)
        for name, phrase, code, kinds, rule in rows
    ]


def _maps(takes: str, gives: str, domains: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[Operation]:
    return [
        Operation(name, "map", domains, phrase, code, tuple(kinds.split()), rule, takes, gives)
        for name, phrase, code, kinds, rule in rows
    ]


# name, noun phrase, condition, parameter kinds, rule
_INT_FILTERS = _filters(
    "int",
    NUMERIC,
    [
        ("above", "numbers above {a}", "{x} > {a}", "bound", ""),
        ("below", "numbers below {a}", "{x} < {a}", "digit", ""),
        ("at_least", "numbers of at least {a}", "{x} >= {a}", "digit", ""),
        ("at_most", "numbers of at most {a}", "{x} <= {a}", "bound", ""),
        ("multiple", "multiples of {a}", "{x} % {a} == 0", "factor", ""),
        ("indivisible", "numbers not divisible by {a}", "{x} % {a} != 0", "factor", ""),
        ("remainder", "numbers with {x} % {a} equal to {b}", "{x} % {a} == {b}", "factor digit", "a>b"),
        ("other_than", "numbers other than {a}", "{x} != {a}", "bound", ""),
        ("between", "numbers from {a} to {b}", "{a} <= {x} <= {b}", "bound digit", "a<b"),
        ("outside", "numbers below {a} or above {b}", "{x} < {a} or {x} > {b}", "bound digit", "a<b"),
        ("square_above", "numbers with a square above {a}", "{x} * {x} > {a}", "tens", ""),
        ("last_digit", "numbers with last digit {a}", "{x} % 10 == {a}", "bound", ""),
        ("even_above", "even numbers above {a}", "{x} % 2 == 0 and {x} > {a}", "bound", ""),
        ("odd_below", "odd numbers below {a}", "{x} % 2 == 1 and {x} < {a}", "digit", ""),
        ("far", "numbers more than {b} away from {a}", "abs({x} - {a}) > {b}", "digit few", ""),
        ("near", "numbers within {b} of {a}", "abs({x} - {a}) <= {b}", "digit few", ""),
        ("even", "even numbers", "{x} % 2 == 0", "", ""),
        ("odd", "odd numbers", "{x} % 2 == 1", "", ""),
    ],
)

_INT_MAPS = _maps(
    "int",
    "int",
    NUMERIC,
    [
        ("add", "add {a} to each", "{x} + {a}", "digit", ""),
        ("subtract", "subtract {a} from each", "{x} - {a}", "digit", ""),
        ("multiply", "multiply each by {a}", "{x} * {a}", "factor", ""),
        ("divide", "divide each by {a} rounding down", "{x} // {a}", "factor", ""),
        ("modulo", "take each modulo {a}", "{x} % {a}", "factor", ""),
        ("square", "square each", "{x} * {x}", "", ""),
        ("square_add", "square each and add {a}", "{x} * {x} + {a}", "digit", ""),
        ("scale_add", "multiply each by {a} and add {b}", "{x} * {a} + {b}", "factor digit", ""),
        ("add_scale", "add {a} to each and multiply by {b}", "({x} + {a}) * {b}", "digit factor", ""),
        ("add_modulo", "add {a} to each and take it modulo {b}", "({x} + {a}) % {b}", "digit factor", "a<b"),
        ("from", "subtract each from {a}", "{a} - {x}", "bound", ""),
        ("distance", "take the distance of each to {a}", "abs({x} - {a})", "digit", ""),
        ("cap", "limit each to at most {a}", "min({x}, {a})", "digit", ""),
        ("raise", "limit each to at least {a}", "max({x}, {a})", "bound", ""),
        ("times_more", "multiply each by itself plus {a}", "{x} * ({x} + {a})", "digit", ""),
        ("replace_above", "replace those above {a} by {b}", "{b} if {x} > {a} else {x}", "digit bound", ""),
        ("negate", "negate each", "-{x}", "", ""),
    ],
)

_CHAR_FILTERS = _filters(
    "char",
    (STRINGS,),
    [
        ("vowel", "vowels", '{x} in "aeiou"', "", ""),
        ("no_vowel", "letters that are no vowels", '{x} not in "aeiou"', "", ""),
        ("other_letter", 'letters other than "{a}"', '{x} != "{a}"', "letter", ""),
        ("before", 'letters before "{a}"', '{x} < "{a}"', "letter", ""),
        ("from_on", 'letters from "{a}" on', '{x} >= "{a}"', "letter", ""),
        ("either", 'letters in "{a}{b}"', '{x} in "{a}{b}"', "letter letter", "a!=b"),
        ("neither", 'letters not in "{a}{b}"', '{x} not in "{a}{b}"', "letter letter", "a!=b"),
        ("digit", "digits", "{x}.isdigit()", "", ""),
        ("upper_case", "upper case letters", "{x}.isupper()", "", ""),
        ("lower_case", "lower case letters", "{x}.islower()", "", ""),
    ],
)

_CHAR_MAPS = _maps(
    "char",
    "text",
    (STRINGS,),
    [
        ("upper", "make each upper case", "{x}.upper()", "", ""),
        ("lower", "make each lower case", "{x}.lower()", "", ""),
        ("repeat", "repeat each {a} times", "{x} * {a}", "few", ""),
        ("suffix", 'put "{a}" after each', '{x} + "{a}"', "letter", ""),
        ("prefix", 'put "{a}" before each', '"{a}" + {x}', "letter", ""),
        ("exchange", 'replace "{a}" by "{b}"', '{x}.replace("{a}", "{b}")', "letter letter", "a!=b"),
    ],
) + _maps(
    "char",
    "int",
    (STRINGS,),
    [
        ("ordinal", "take the code of each", "ord({x})", "", ""),
        ("ordinal_add", "take the code of each plus {a}", "ord({x}) + {a}", "digit", ""),
        ("ordinal_modulo", "take the code of each modulo {a}", "ord({x}) % {a}", "factor", ""),
    ],
)

_WORD_FILTERS = _filters(
    "word",
    (STRINGS,),
    [
        ("longer", "words longer than {a}", "len({x}) > {a}", "few", ""),
        ("shorter", "words shorter than {a}", "len({x}) < {a}", "few", ""),
        ("length_is", "words of length {a}", "len({x}) == {a}", "few", ""),
        ("starts", 'words that start with "{a}"', '{x}[0] == "{a}"', "letter", ""),
        ("ends", 'words that end with "{a}"', '{x}[-1] == "{a}"', "letter", ""),
        ("has", 'words with "{a}"', '"{a}" in {x}', "letter", ""),
        ("lacks", 'words without "{a}"', '"{a}" not in {x}', "letter", ""),
    ],
)

_WORD_MAPS = _maps(
    "word",
    "text",
    (STRINGS,),
    [
        ("reverse", "reverse each", "{x}[::-1]", "", ""),
        ("head", "take the first {a} letters of each", "{x}[:{a}]", "few", ""),
        ("rest", "cut the first {a} letters of each", "{x}[{a}:]", "few", ""),
        ("word_suffix", 'put "{a}" after each', '{x} + "{a}"', "letter", ""),
        ("word_exchange", 'replace "{a}" by "{b}"', '{x}.replace("{a}", "{b}")', "letter letter", "a!=b"),
    ],
) + _maps(
    "word",
    "int",
    (STRINGS,),
    [
        ("length", "take the length of each", "len({x})", "", ""),
        ("length_times", "take {a} times the length of each", "len({x}) * {a}", "factor", ""),
        ("occurrences", 'count "{a}" in each', '{x}.count("{a}")', "letter", ""),
    ],
)

_PAIR_FILTERS = _filters(
    "pair",
    NUMERIC,
    [
        ("sum_is", "pairs with sum {a}", "{x} + {y} == {a}", "digit", ""),
        ("sum_above", "pairs with sum above {a}", "{x} + {y} > {a}", "digit", ""),
        ("sum_multiple", "pairs with sum divisible by {a}", "({x} + {y}) % {a} == 0", "factor", ""),
        ("product_below", "pairs with product below {a}", "{x} * {y} < {a}", "tens", ""),
        ("product_multiple", "pairs with product divisible by {a}", "{x} * {y} % {a} == 0", "factor", ""),
        ("difference_above", "pairs with {x} - {y} above {a}", "{x} - {y} > {a}", "bound", ""),
        ("apart", "pairs {a} apart", "abs({x} - {y}) == {a}", "digit", ""),
        ("within", "pairs at most {a} apart", "abs({x} - {y}) <= {a}", "digit", ""),
        ("rising", "pairs with {x} below {y}", "{x} < {y}", "", ""),
    ],
)

_PAIR_MAPS = _maps(
    "pair",
    "int",
    NUMERIC,
    [
        ("pair_sum", "take {x} plus {y}", "{x} + {y}", "", ""),
        ("pair_product", "take {x} times {y}", "{x} * {y}", "", ""),
        ("pair_product_add", "take {x} times {y} plus {a}", "{x} * {y} + {a}", "digit", ""),
        ("pair_gap", "take the distance", "abs({x} - {y})", "", ""),
        ("pair_larger", "take the larger", "max({x}, {y})", "", ""),
        ("pair_smaller", "take the smaller", "min({x}, {y})", "", ""),
        ("pair_left", "take {a} times {x} plus {y}", "{a} * {x} + {y}", "factor", ""),
        ("pair_right", "take {x} minus {a} times {y}", "{x} - {a} * {y}", "factor", ""),
        ("pair_modulo", "take {x} plus {y} modulo {a}", "({x} + {y}) % {a}", "factor", ""),
    ],
)

ANY_DOMAIN = (LISTS, STRINGS, RANGES)


def _reduce(name: str, takes: str, gives: str, phrase: str, fold: Fold, parameters: tuple[str, ...] = ()) -> Operation:
    domains = (STRINGS,) if takes == "text" else ANY_DOMAIN
    return Operation(name, "reduce", domains, phrase, "", parameters, "", takes, gives, fold)


_APPEND = Fold(("out = []",), ("out.append({e})",), "out", "[{g}]", ordered=True)
_DISTINCT = Fold(
    ("out = []",),
    ("if {e} not in out:", "    out.append({e})"),
    "out",
    "list(dict.fromkeys({g}))",
    ordered=True,
)

_REDUCTIONS = [
    _reduce("sum", "int", "int", "return the sum", Fold(("total = 0",), ("total += {e}",), "total", "sum({g})")),
    _reduce("product", "int", "int", "return the product", Fold(("total = 1",), ("total *= {e}",), "total")),
    _reduce(
        "subtract_from",
        "int",
        "int",
        "subtract all from {a} and return it",
        Fold(("total = {a}",), ("total -= {e}",), "total", "{a} - sum({g})"),
        ("digit",),
    ),
    _reduce(
        "largest",
        "int",
        "int",
        "return the largest but at least {a}",
        Fold(("best = {a}",), ("best = max(best, {e})",), "best", "max([{a}] + [{g}])"),
        ("bound",),
    ),
    _reduce(
        "smallest",
        "int",
        "int",
        "return the smallest but at most {a}",
        Fold(("best = {a}",), ("best = min(best, {e})",), "best", "min([{a}] + [{g}])"),
        ("bound",),
    ),
    _reduce(
        "last",
        "int",
        "int",
        "return the last or {a} if none",
        Fold(("last = {a}",), ("last = {e}",), "last", "([{a}] + [{g}])[-1]", ordered=True),
        ("bound",),
    ),
    _reduce(
        "first",
        "int",
        "int",
        "return the first or {a} if none",
        Fold((), ("return {e}",), "", "next(({g}), {a})", otherwise="return {a}", ordered=True),
        ("bound",),
    ),
    _reduce(
        "fold",
        "int",
        "int",
        "fold them with total * {a} plus each",
        Fold(("total = 0",), ("total = total * {a} + {e}",), "total", ordered=True),
        ("few",),
    ),
    _reduce(
        "count_above",
        "int",
        "int",
        "count those above {a}",
        Fold(
            ("total = 0",),
            ("if {e} > {a}:", "    total += 1"),
            "total",
            "sum({g})",
            element="{e} > {a}",
        ),
        ("digit",),
    ),
    _reduce(
        "any_equal",
        "int",
        "bool",
        "return whether any is {a}",
        Fold((), ("if {e} == {a}:", "    return True"), "", "any({g})", "{e} == {a}", "return False"),
        ("bound",),
    ),
    _reduce(
        "all_below",
        "int",
        "bool",
        "return whether all are below {a}",
        Fold((), ("if {e} >= {a}:", "    return False"), "", "all({g})", "{e} < {a}", "return True"),
        ("tens",),
    ),
    _reduce("list", "any", "list", "return the list", _APPEND),
    _reduce("distinct", "any", "list", "return the list without repeats", _DISTINCT),
    _reduce(
        "count",
        "any",
        "int",
        "return the count",
        Fold(("total = 0",), ("total += 1",), "total", "sum({g})", element="1"),
    ),
    _reduce(
        "count_distinct",
        "any",
        "int",
        "count the different ones",
        Fold(("seen = set()",), ("seen.add({e})",), "len(seen)", "len(set({g}))"),
    ),
    _reduce(
        "exists",
        "any",
        "bool",
        "return whether there is one",
        Fold((), ("return True",), "", "any({g})", "True", "return False"),
    ),
    _reduce(
        "join",
        "text",
        "text",
        "return them joined",
        Fold(('text = ""',), ("text += {e}",), "text", '"".join({g})', ordered=True),
    ),
    _reduce(
        "join_by",
        "text",
        "text",
        'return them joined by "{a}"',
        Fold(("out = []",), ("out.append({e})",), '"{a}".join(out)', '"{a}".join({g})', ordered=True),
        ("mark",),
    ),
    _reduce(
        "longest",
        "text",
        "int",
        "return the largest length but at least {a}",
        Fold(
            ("best = {a}",),
            ("best = max(best, len({e}))",),
            "best",
            "max([{a}] + [{g}])",
            element="len({e})",
        ),
        ("few",),
    ),
]


def _post(
    name: str, takes: str, phrase: str, code: str, kind: str = "", domains: tuple[str, ...] = ANY_DOMAIN
) -> Operation:
    return Operation(name, "post", domains, phrase, code, tuple(kind.split()), "", takes, takes)


# The phrase follows the reduction's; `{r}` is the reduced value.
_POSTS = [
    _post("plus", "int", "then add {a}", "{r} + {a}", "digit"),
    _post("times", "int", "then multiply by {a}", "{r} * {a}", "factor"),
    _post("remains", "int", "then take it modulo {a}", "{r} % {a}", "factor"),
    _post("at_most_result", "int", "but at most {a}", "min({r}, {a})", "digit"),
    _post("leading", "list", "but only the first {a}", "{r}[:{a}]", "few"),
    _post("skipping", "list", "without the first {a}", "{r}[{a}:]", "few"),
    _post("sorted", "list", "in ascending order", "sorted({r})"),
    _post("backwards_result", "list", "backwards", "{r}[::-1]"),
    _post("ended", "list", "and {a} at the end", "{r} + [{a}]", "digit", NUMERIC),
    _post("text_backwards", "text", "backwards", "{r}[::-1]", "", (STRINGS,)),
    _post("text_leading", "text", "but only the first {a}", "{r}[:{a}]", "few", (STRINGS,)),
    _post("text_ended", "text", 'and "{a}" at the end', '{r} + "{a}"', "letter", (STRINGS,)),
]

STEPS: dict[str, Operation] = {
    operation.name: operation
    for operation in [
        *_INT_FILTERS,
        *_INT_MAPS,
        *_CHAR_FILTERS,
        *_CHAR_MAPS,
        *_WORD_FILTERS,
        *_WORD_MAPS,
        *_PAIR_FILTERS,
        *_PAIR_MAPS,
        *_REDUCTIONS,
        *_POSTS,
    ]
}
