"""Each filter and each map of the grammar against what its phrase says, written by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from training.kata.execution import load
from training.kata.inputs import input_pool
from training.kata.operations import STEPS
from training.kata.problems import Shape, build

FILTERS: dict[str, tuple[list[Any], Callable[..., bool]]] = {
    "above": ([4], lambda x: x in range(5, 1000)),
    "below": ([4], lambda x: x in range(-1000, 4)),
    "at_least": ([4], lambda x: x in range(4, 1000)),
    "at_most": ([4], lambda x: x in range(-1000, 5)),
    "multiple": ([4], lambda x: x / 4 == round(x / 4)),
    "indivisible": ([4], lambda x: x / 4 != round(x / 4)),
    "remainder": ([5, 2], lambda x: x in range(-998, 1000, 5)),
    "other_than": ([4], lambda x: x not in {4}),
    "between": ([2, 6], lambda x: x in {2, 3, 4, 5, 6}),
    "outside": ([2, 6], lambda x: x not in {2, 3, 4, 5, 6}),
    "square_above": ([16], lambda x: abs(x) > 4),
    "last_digit": ([7], lambda x: str(1000 + x)[-1] == "7"),
    "even_above": ([3], lambda x: x in range(4, 1000, 2)),
    "odd_below": ([6], lambda x: x in range(-999, 6, 2)),
    "far": ([6, 2], lambda x: x not in {4, 5, 6, 7, 8}),
    "near": ([6, 2], lambda x: x in {4, 5, 6, 7, 8}),
    "even": ([], lambda x: x & 1 == 0),
    "odd": ([], lambda x: x & 1 == 1),
    "vowel": ([], lambda c: c in set("aeiou")),
    "no_vowel": ([], lambda c: c not in set("aeiou")),
    "other_letter": (["d"], lambda c: {c} != {"d"}),
    "before": (["d"], lambda c: ord(c) < ord("d")),
    "from_on": (["d"], lambda c: ord(c) >= ord("d")),
    "either": (["d", "n"], lambda c: c in {"d", "n"}),
    "neither": (["d", "n"], lambda c: c not in {"d", "n"}),
    "digit": ([], lambda c: c in set("0123456789")),
    "upper_case": ([], lambda c: "A" <= c <= "Z"),
    "lower_case": ([], lambda c: "a" <= c <= "z"),
    "longer": ([3], lambda w: w[3:] != ""),
    "shorter": ([3], lambda w: w[2:] == ""),
    "length_is": ([3], lambda w: w[2:] != "" and w[3:] == ""),
    "starts": (["e"], lambda w: w.startswith("e")),
    "ends": (["e"], lambda w: w.endswith("e")),
    "has": (["e"], lambda w: w.count("e") > 0),
    "lacks": (["e"], lambda w: w.count("e") == 0),
    "sum_is": ([6], lambda x, y: y == 6 - x),
    "sum_above": ([6], lambda x, y: y > 6 - x),
    "sum_multiple": ([3], lambda x, y: x % 3 == -y % 3),
    "product_below": ([20], lambda x, y: 20 - y * x > 0),
    "product_multiple": ([6], lambda x, y: (y * x) / 6 == round((y * x) / 6)),
    "difference_above": ([2], lambda x, y: x > y + 2),
    "apart": ([3], lambda x, y: y in (x - 3, x + 3)),
    "within": ([3], lambda x, y: x - 3 <= y <= x + 3),
    "rising": ([], lambda x, y: y > x),
}

MAPS: dict[str, tuple[list[Any], Callable[..., Any]]] = {
    "add": ([4], lambda x: 4 + x),
    "subtract": ([4], lambda x: -4 + x),
    "multiply": ([4], lambda x: x + x + x + x),
    "divide": ([4], lambda x: (x - x % 4) / 4),
    "modulo": ([4], lambda x: x - 4 * (x // 4)),
    "square": ([], lambda x: x**2),
    "square_add": ([5], lambda x: x**2 + 5),
    "scale_add": ([3, 5], lambda x: 5 + 3 * x),
    "add_scale": ([3, 5], lambda x: 15 + 5 * x),
    "add_modulo": ([3, 5], lambda x: (x - 2) % 5),
    "from": ([7], lambda x: -(x - 7)),
    "distance": ([7], lambda x: max(x - 7, 7 - x)),
    "cap": ([7], lambda x: 7 if x > 7 else x),
    "raise": ([7], lambda x: 7 if x < 7 else x),
    "times_more": ([3], lambda x: x**2 + 3 * x),
    "replace_above": ([6, 2], lambda x: x if x <= 6 else 2),
    "negate": ([], lambda x: 0 - x),
    "upper": ([], lambda c: chr(ord(c) - 32) if "a" <= c <= "z" else c),
    "lower": ([], lambda c: chr(ord(c) + 32) if "A" <= c <= "Z" else c),
    "repeat": ([3], lambda c: c + c + c),
    "suffix": (["t"], lambda c: f"{c}t"),
    "prefix": (["t"], lambda c: f"t{c}"),
    "exchange": (["a", "e"], lambda c: {"a": "e"}.get(c, c)),
    "ordinal": ([], lambda c: c.encode()[0]),
    "ordinal_add": ([4], lambda c: c.encode()[0] + 4),
    "ordinal_modulo": ([4], lambda c: c.encode()[0] & 3),
    "reverse": ([], lambda w: "".join(reversed(w))),
    "head": ([2], lambda w: "".join(list(w)[0:2])),
    "rest": ([2], lambda w: "".join(list(w)[2:])),
    "word_suffix": (["t"], lambda w: f"{w}t"),
    "word_exchange": (["a", "e"], lambda w: w.translate({ord("a"): "e"})),
    "length": ([], lambda w: sum(1 for _ in w)),
    "length_times": ([3], lambda w: len(w + w + w)),
    "occurrences": (["a"], lambda w: sum(c == "a" for c in w)),
    "pair_sum": ([], lambda x, y: y + x),
    "pair_product": ([], lambda x, y: y * x),
    "pair_product_add": ([4], lambda x, y: 4 + y * x),
    "pair_gap": ([], lambda x, y: x - y if x > y else y - x),
    "pair_larger": ([], lambda x, y: x if x > y else y),
    "pair_smaller": ([], lambda x, y: y if x > y else x),
    "pair_left": ([3], lambda x, y: y + x + x + x),
    "pair_right": ([3], lambda x, y: x - y - y - y),
    "pair_modulo": ([3], lambda x, y: (x % 3 + y % 3) % 3),
}

# element type -> frame and what its elements are
ELEMENTS: dict[str, tuple[str, Callable[..., list[tuple[Any, ...]]]]] = {
    "int": ("xs", lambda xs: [(x,) for x in xs]),
    "char": ("s", lambda s: [(c,) for c in s]),
    "word": ("words", lambda s: [(w,) for w in s.split()]),
    "pair": ("cross", lambda xs, ys: [(x, y) for x in xs for y in ys]),
}


def _agree(shape: Shape, params: dict[str, list[Any]], oracle: Callable[..., Any]) -> None:
    kata = build(shape, params)
    for structure, code in kata.bodies.items():
        call = load(kata.code_prefix + code)
        for arguments in input_pool(kata.kinds, kata.reference, random.Random(str(shape)), 150):
            assert call(arguments) == oracle(*arguments), (structure, arguments)


@pytest.mark.parametrize("name", FILTERS)
def test_filter(name: str) -> None:
    values, keeps = FILTERS[name]
    frame, elements = ELEMENTS[STEPS[name].takes]
    params = {"source": [], "filter": values, "reduce": []}
    if frame == "cross":
        _agree(Shape(frame, name, "", "count"), params, lambda *a: sum(keeps(*e) for e in elements(*a)))
    else:
        _agree(Shape(frame, name, "", "list"), params, lambda *a: [e[0] for e in elements(*a) if keeps(*e)])


@pytest.mark.parametrize("name", MAPS)
def test_map(name: str) -> None:
    values, value = MAPS[name]
    frame, elements = ELEMENTS[STEPS[name].takes]
    params = {"source": [], "map": values, "reduce": []}
    _agree(Shape(frame, "", name, "list"), params, lambda *a: [value(*e) for e in elements(*a)])


def test_every_filter_and_map_has_an_oracle() -> None:
    assert set(FILTERS) == {name for name, step in STEPS.items() if step.role == "filter"}
    assert set(MAPS) == {name for name, step in STEPS.items() if step.role == "map"}
