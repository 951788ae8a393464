"""The grammar: every frame, step and structure does what the sentence says, judged by programs written by hand."""

# ruff: noqa: E501 - the oracles are a table, one row a line

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from training.kata import OPERATIONS, count_shapes
from training.kata.execution import FAILED, load
from training.kata.frames import FRAMES, HARD_FAMILIES, PLAIN_FAMILIES
from training.kata.inputs import input_pool
from training.kata.operations import STEPS
from training.kata.problems import Shape, all_shapes, build, draw_params, reasoning
from training.kata.render import negated

Params = dict[str, list[Any]]


def _params(source: tuple = (), **steps: Any) -> Params:
    return {"source": list(source), **{role: list(values) for role, values in steps.items()}}


def _runs(kept: list[bool]) -> list[int]:
    return [len(list(group)) for value, group in itertools.groupby(kept) if value]


def _records(values: list[int], best: int) -> list[int]:
    return list(itertools.accumulate(values, max, initial=best))[1:]


def _spent(values: list[int], budget: int) -> list[int]:
    sums = list(itertools.accumulate(values))
    over = [position for position, total in enumerate(sums) if total > budget]
    return values[: over[0] + 1] if over else values


def _switched(xs: list[int], flips: Callable[[int], bool]) -> list[int]:
    return [x for position, x in enumerate(xs) if sum(map(flips, xs[: position + 1])) % 2]


def _before(xs: Any, stop: Callable[[Any], bool]) -> list[Any]:
    return list(itertools.takewhile(lambda x: not stop(x), xs))


def _reset(values: list[int], top: int) -> int:
    total = 0
    for value in values:
        total = 0 if total + value > top else total + value
    return total


# shape, parameters, what a careful reader of the sentence would write
FRAME_ORACLES: list[tuple[str, Params, Callable[..., Any]]] = [
    ("xs|above|square|sum|-", _params(filter=[3], map=[], reduce=[]), lambda xs: sum(x**2 for x in xs if x > 3)),
    ("xs_from|-|add|list|-", _params([2], map=[5], reduce=[]), lambda xs: [x + 5 for x in xs][2:]),
    ("xs_until|-|add|list|-", _params([3], map=[5], reduce=[]), lambda xs: [x + 5 for x in xs][:3]),
    ("xs_step|even|-|list|-", _params([2], filter=[], reduce=[]), lambda xs: [x for x in xs[::2] if not x % 2]),
    ("xs_backwards|-|add|list|-", _params(map=[1], reduce=[]), lambda xs: [x + 1 for x in reversed(xs)]),
    ("xs_sorted|above|-|first|-", _params(filter=[2], reduce=[7]), lambda xs: min([x for x in xs if x > 2], default=7)),
    ("s|-|suffix|join|-", _params(map=["e"], reduce=[]), lambda s: "e".join(s) + ("e" if s else "")),
    ("s_from|vowel|-|count|-", _params([2], filter=[], reduce=[]), lambda s: sum(map(s[2:].count, "aeiou"))),
    ("s_step|-|repeat|join|-", _params([3], map=[2], reduce=[]), lambda s: "".join(c + c for c in s[::3])),
    ("s_backwards|digit|-|join|-", _params(filter=[], reduce=[]), lambda s: "".join(filter(str.isdigit, s))[::-1]),
    ("words|longer|length|sum|-", _params(filter=[3], map=[], reduce=[]), lambda s: sum(len(w) for w in s.split() if w[3:])),
    ("words_from|-|head|list|-", _params([2], map=[2], reduce=[]), lambda s: [w[:2] for w in s.split()][2:]),
    ("words_backwards|has|-|list|-", _params(filter=["a"], reduce=[]), lambda s: [w for w in s.split() if "a" in w][::-1]),
    ("below_n|multiple|-|sum|-", _params(filter=[3], reduce=[]), lambda n: sum(range(0, n, 3))),
    ("to_n|-|square|sum|-", _params([4], map=[], reduce=[]), lambda n: sum(x * x for x in range(n + 1) if x >= 4)),
    ("below_n_step|-|square|sum|-", _params([3], map=[], reduce=[]), lambda n: sum(x * x for x in range(n) if x % 3 == 0)),
    ("to_n_step|odd|-|list|-", _params([2, 3], filter=[], reduce=[]), lambda n: [x for x in range(2, 99, 3) if x % 2 and x <= n]),
    ("down_from_n|-|add|list|-", _params([4], map=[1], reduce=[]), lambda n: sorted(range(5, n + 2), reverse=True)),
    ("times_n|odd|-|count|-", _params([3], filter=[], reduce=[]), lambda n: 3 * n // 2),
    ("pairs|sum_is|-|count|-", _params(filter=[5], reduce=[]), lambda xs: sum(x + y == 5 for x, y in itertools.combinations(xs, 2))),
    ("grid|rising|pair_product|sum|-", _params(filter=[], map=[], reduce=[]), lambda n, m: sum(x * y for y in range(m) for x in range(min(n, y)))),
    ("triangle|sum_above|-|count|-", _params([3], filter=[9], reduce=[]), lambda n: sum(max(0, x - max(10 - x, 0)) for x in range(3, n + 1))),
    ("cross|apart|-|count|-", _params(filter=[2], reduce=[]), lambda xs, ys: sum(ys.count(x + 2) + ys.count(x - 2) for x in xs)),
    ("rows|above|-|sum|-", _params(filter=[4], reduce=[]), lambda rows: sum(x for x in itertools.chain(*rows) if x > 4)),
    ("row_totals|even|add|sum|-", _params(filter=[], map=[1], reduce=[]), lambda rows: [sum(x + 1 for x in r if x % 2 == 0) for r in rows]),
    ("position|above|-|-|-", _params([8], filter=[3]), lambda xs: ([i for i, x in enumerate(xs) if x > 3] + [8])[0]),
    ("position_text|either|-|-|-", _params([0], filter=["a", "e"]), lambda s: ([i for i, c in enumerate(s) if c in ("a", "e")] + [0])[0]),
    ("until|above|square|sum|-", _params(filter=[7], map=[], reduce=[]), lambda xs: sum(x * x for x in _before(xs, lambda x: x > 7))),
    ("until_text|vowel|-|join|-", _params(filter=[], reduce=[]), lambda s: "".join(_before(s, lambda c: c in "aeiou"))),
    ("budget_sum|-|multiply|-|-", _params([20], map=[3]), lambda xs: sum(_spent([3 * x for x in xs], 20))),
    ("budget_count|-|add|-|-", _params([20], map=[4]), lambda xs: len(_spent([4 + x for x in xs], 20))),
    ("quota|above|square|sum|-", _params([2], filter=[1], map=[], reduce=[]), lambda xs: sum([x * x for x in xs if x > 1][:2])),
    ("search|-|square_add|-|-", _params([2], map=[3]), lambda n: min(x for x in range(2, 99) if x * x + 3 > n)),
    ("zip|-|pair_product|sum|-", _params(map=[], reduce=[]), lambda xs, ys: sum(x * y for x, y in zip(xs, ys, strict=False))),
    ("with_number|sum_above|-|count|-", _params(filter=[6], reduce=[]), lambda xs, y: len([x for x in xs if x > 6 - y])),
    ("members|-|add|list|-", _params(map=[2], reduce=[]), lambda xs, ys: [x + 2 for x in xs if x in set(ys)]),
    ("outsiders|-|add|list|-", _params(map=[2], reduce=[]), lambda xs, ys: [x + 2 for x in xs if x not in set(ys)]),
    ("lookup|-|add|list|-", _params(map=[2], reduce=[]), lambda xs, ys: [dict(enumerate(xs))[i] + 2 for i in ys if i in range(len(xs))]),
    ("common|-|suffix|join|-", _params(map=["x"], reduce=[]), lambda s, t: "".join(c + "x" for c in s if set(c) & set(t))),
    ("previous|rising|-|count|-", _params([4], filter=[], reduce=[]), lambda xs: sum(p > x for p, x in itertools.pairwise([4, *xs]))),
    ("adjacent|rising|-|count|-", _params(filter=[], reduce=[]), lambda xs: sum(x < y for x, y in itertools.pairwise(xs))),
    ("record_count|-|add|-|-", _params([3], map=[1]), lambda xs: len({*_records([x + 1 for x in xs], 3), 3}) - 1),
    ("record_list|-|add|-|-", _params([3], map=[1]), lambda xs: _records([x + 1 for x in xs], 3)),
    ("run|above|-|-|-", _params([1], filter=[3]), lambda xs: max([1, *_runs([x > 3 for x in xs])])),
    ("run_text|vowel|-|-|-", _params([0], filter=[]), lambda s: max([0, *_runs([c in "aeiou" for c in s])])),
    ("runs|above|-|-|-", _params([2], filter=[3]), lambda xs: len([run for run in _runs([x > 3 for x in xs]) if run >= 2])),
    ("toggle|multiple|-|sum|-", _params(filter=[3], reduce=[]), lambda xs: sum(_switched(xs, lambda x: x % 3 == 0))),
    ("counts_many|-|modulo|-|-", _params([2], map=[4]), lambda xs: sum(n >= 2 for n in Counter(x % 4 for x in xs).values())),
    ("counts_most|-|modulo|-|-", _params([1], map=[4]), lambda xs: max([1, *Counter(x % 4 for x in xs).values()])),
    ("alternate|-|add|-|-", _params([6], map=[2]), lambda xs: 6 + sum(x + 2 for x in xs[::2]) - sum(x + 2 for x in xs[1::2])),
    ("running|even|-|-|-", _params([2], filter=[]), lambda xs: list(itertools.accumulate([2] + [x for x in xs if x % 2 == 0]))[1:]),
    ("reset|-|add|-|-", _params([15], map=[3]), lambda xs: _reset([x + 3 for x in xs], 15)),
    ("digits|above|-|sum|-", _params(filter=[4], reduce=[]), lambda n: sum(int(c) for c in str(n) if c > "4")),
]  # fmt: skip


def _check(shape: Shape, params: Params, oracle: Callable[..., Any], pool_size: int = 150) -> None:
    kata = build(shape, params)
    pool = input_pool(kata.kinds, kata.reference, random.Random(str(shape)), pool_size)
    for structure, code in kata.bodies.items():
        call = load(kata.code_prefix + code)
        for arguments in pool:
            assert call(arguments) == oracle(*arguments), (structure, arguments)


@pytest.mark.parametrize(("text", "params", "oracle"), FRAME_ORACLES, ids=[row[0] for row in FRAME_ORACLES])
def test_frame_against_hand_written_program(text: str, params: Params, oracle: Callable[..., Any]) -> None:
    _check(Shape.parse(text), params, oracle)


def test_oracles_cover_all_frames() -> None:
    assert {row[0].split("|")[0] for row in FRAME_ORACLES} == set(FRAMES)


def _product(values: list[int]) -> int:
    return functools.reduce(lambda left, right: left * right, values, 1)


REDUCE_ORACLES: dict[str, tuple[list[Any], Callable[[list[Any]], Any]]] = {
    "sum": ([], sum),
    "product": ([], _product),
    "subtract_from": ([7], lambda v: 7 - sum(v)),
    "largest": ([3], lambda v: max([*v, 3])),
    "smallest": ([3], lambda v: min([*v, 3])),
    "last": ([4], lambda v: v[-1] if v else 4),
    "first": ([4], lambda v: v[0] if v else 4),
    "fold": ([3], lambda v: sum(value * 3 ** (len(v) - 1 - i) for i, value in enumerate(v))),
    "count_above": ([5], lambda v: len([value for value in v if value > 5])),
    "any_equal": ([6], lambda v: 6 in v),
    "all_below": ([12], lambda v: max(v, default=0) < 12),
    "list": ([], list),
    "distinct": ([], lambda v: sorted(set(v), key=v.index)),
    "count_distinct": ([], lambda v: len(set(v))),
}


@pytest.mark.parametrize("name", REDUCE_ORACLES)
def test_reduction_against_hand_written_program(name: str) -> None:
    values, oracle = REDUCE_ORACLES[name]
    shape = Shape("xs", "above", "add", name)
    _check(shape, _params(filter=[2], map=[1], reduce=values), lambda xs: oracle([x + 1 for x in xs if x > 2]))


TEXT_REDUCE_ORACLES: dict[str, tuple[list[Any], Callable[[list[str]], Any]]] = {
    "join": ([], "".join),
    "join_by": (["-"], "-".join),
    "longest": ([2], lambda v: max([2, *map(len, v)])),
}


@pytest.mark.parametrize("name", TEXT_REDUCE_ORACLES)
def test_text_reduction_against_hand_written_program(name: str) -> None:
    values, oracle = TEXT_REDUCE_ORACLES[name]
    shape = Shape("words", "has", "reverse", name)
    _check(
        shape, _params(filter=["e"], map=[], reduce=values), lambda s: oracle([w[::-1] for w in s.split() if "e" in w])
    )


@pytest.mark.parametrize(("name", "found"), [("count", len), ("exists", bool)])
def test_reduction_that_ignores_values(name: str, found: Callable[[list[int]], Any]) -> None:
    shape = Shape("xs", "near", "", name)
    _check(shape, _params(filter=[5, 2], reduce=[]), lambda xs: found([x for x in xs if 3 <= x <= 7]))


def test_every_reduction_has_an_oracle() -> None:
    reductions = {name for name, step in STEPS.items() if step.role == "reduce"}
    assert reductions == {*REDUCE_ORACLES, *TEXT_REDUCE_ORACLES, "count", "exists"}


POST_ORACLES: dict[str, tuple[str, list[Any], Callable[[list[int]], Any]]] = {
    "plus": ("subtract_from", [4], lambda v: 9 - sum(v) + 4),
    "times": ("subtract_from", [4], lambda v: (9 - sum(v)) * 4),
    "remains": ("subtract_from", [4], lambda v: (9 - sum(v)) % 4),
    "at_most_result": ("subtract_from", [4], lambda v: min(4, 9 - sum(v))),
    "leading": ("list", [2], lambda v: v[:2]),
    "skipping": ("list", [2], lambda v: v[2:]),
    "sorted": ("list", [], sorted),
    "backwards_result": ("list", [], lambda v: list(reversed(v))),
    "ended": ("list", [4], lambda v: [*v, 4]),
}


@pytest.mark.parametrize("name", POST_ORACLES)
def test_finishing_step_binds_to_the_whole_result(name: str) -> None:
    reduce_name, values, oracle = POST_ORACLES[name]
    params = _params(filter=[2], reduce=[9] if reduce_name == "subtract_from" else [], post=values)
    _check(Shape("xs", "above", "", reduce_name, name), params, lambda xs: oracle([x for x in xs if x > 2]))


def test_every_structure_of_every_frame_and_step_agrees() -> None:
    """Each operation that the grammar has, in several shapes, in all structures: same results, no failure."""
    rng = random.Random(5)
    by_operation: dict[str, list[Shape]] = {}
    for shape in all_shapes():
        for operation in shape.operations:
            by_operation.setdefault(operation.name, []).append(shape)
    assert set(by_operation) == set(OPERATIONS)
    structures = 0
    for shapes in by_operation.values():
        for shape in rng.sample(shapes, min(8, len(shapes))):
            kata = build(shape, draw_params(shape, rng))
            pool = input_pool(kata.kinds, kata.reference, rng, 25)
            outcomes = {}
            for structure, code in kata.bodies.items():
                call = load(kata.code_prefix + code)
                outcomes[structure] = [call(arguments) for arguments in pool]
                assert FAILED not in outcomes[structure], (shape, structure)
            assert all(outcome == next(iter(outcomes.values())) for outcome in outcomes.values()), shape
            structures += len(outcomes)
    assert structures > 3000


def test_numbers_that_are_promised() -> None:
    with_parameters = [operation for operation in OPERATIONS.values() if operation.parameters]
    assert len(with_parameters) >= 60
    for domain in PLAIN_FAMILIES:
        assert sum(domain in operation.domains for operation in with_parameters) >= 20, domain
    assert count_shapes() >= 1000
    assert len(set(map(str, all_shapes()))) == count_shapes()
    assert {frame.family for frame in FRAMES.values()} == {*PLAIN_FAMILIES, *HARD_FAMILIES}
    for family in HARD_FAMILIES:
        assert sum(frame.family == family for frame in FRAMES.values()) >= 5


def test_each_problem_of_two_or_more_structures() -> None:
    rng = random.Random(6)
    by_frame: dict[str, list[Shape]] = {}
    for shape in all_shapes():
        by_frame.setdefault(shape.frame, []).append(shape)
    shapes = [rng.choice(found) for found in by_frame.values() for _ in range(4)]
    for shape in shapes:
        bodies = build(shape, draw_params(shape, rng)).bodies
        assert len(set(bodies.values())) == len(bodies)
    assert sum(len(build(shape, draw_params(shape, rng)).bodies) >= 2 for shape in shapes) > 0.9 * len(shapes)


def test_reasoning_has_the_parameters_in_the_order_of_the_sentence() -> None:
    """What makes copying them easy for a small student: the n-th number here is the n-th number there."""
    params = _params([4], filter=[2], map=[6], reduce=[3], post=[9])
    kata = build(Shape("xs_from", "at_least", "add", "largest", "times"), params)
    assert re.findall(r"\d", kata.sentence) == ["4", "2", "6", "3", "9"]
    assert re.findall(r"\d", reasoning("loop", kata.bodies["loop"])) == ["4", "2", "6", "3", "9"]


def test_shape_text_round_trip() -> None:
    for shape in all_shapes()[::1009]:
        assert Shape.parse(str(shape)) == shape


@pytest.mark.parametrize(
    ("condition", "opposite"),
    [
        ("x > 3", "x <= 3"),
        ("(x + y) % 4 == 0", "(x + y) % 4 != 0"),
        ('c in "aeiou"', 'c not in "aeiou"'),
        ("1 <= x <= 4", "not (1 <= x <= 4)"),
        ("x < 2 or x > 5", "not (x < 2 or x > 5)"),
        ("c.isdigit()", "not c.isdigit()"),
    ],
)
def test_negated(condition: str, opposite: str) -> None:
    assert negated(condition) == opposite


def test_reasoning_names_structure_and_steps() -> None:
    kata = build(Shape("xs", "multiple", "square", "sum"), _params(filter=[3], map=[], reduce=[]))
    said = reasoning("loop", kata.bodies["loop"])
    assert said == "loop. for x in xs, if x % 3 == 0, add x * x to total. start total at 0. return total."
    assert reasoning("line", kata.bodies["line"]) == (
        "one line. for x in xs, if x % 3 == 0, take x * x. return sum(it)."
    )
    assert "skip if x % 3 != 0." in reasoning("skip", kata.bodies["skip"])
    run = build(Shape("run", "above"), _params([2], filter=[3]))
    assert "if x <= 3, set run to 0. skip. add 1 to run." in reasoning("skip", run.bodies["skip"])
