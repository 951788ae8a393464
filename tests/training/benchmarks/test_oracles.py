"""What counts as right on the plus sets: hand-made cases for tolerances and for each task with a rule of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest

from training import plain_data
from training.benchmarks.oracles import compare_for, matches


@pytest.mark.parametrize(
    ("result", "expected", "atol", "right"),
    [
        (1, 1, 0, True),
        (True, 1, 0, True),
        ((1, 2), [1, 2], 0, False),
        ([], 0, 0, False),
        # A float, or a list of floats, brings a tolerance of 1e-6 plus 1e-7 of the value.
        (0.5 + 9e-7, 0.5, 0, True),
        (0.5 + 1.2e-6, 0.5, 0, False),
        (1e9 + 50, 1e9, 0, True),
        (1e9 + 150, 1e9, 0, False),
        ([1.0, 2.0 + 5e-7], [1.0, 2.0], 0, True),
        ([1.0], [1.0, 2.0], 0, False),
        ((1.0, 2.0 + 5e-7), [1.0, 2.0], 0, False),
        # Integers, mixed lists and nested floats bring none.
        (2.0000001, 2, 0, False),
        ([1, 2.0 + 5e-7], [1, 2.0], 0, False),
        ([[2.0 + 5e-7]], [[2.0]], 0, False),
        # A tolerance of the task holds at any depth, but the type stays.
        ([[2.0 + 5e-5], 1], [[2.0], 1], 1e-4, True),
        ([[2.0 + 5e-4], 1], [[2.0], 1], 1e-4, False),
        (2, 2.00001, 1e-4, False),
        (1j + 1e-5, 1j, 1e-4, True),
        ("a", "b", 1e-4, False),
        (None, 1.0, 1e-4, False),
        (math.inf, math.inf, 0, True),
        (math.nan, math.nan, 0, True),
        (math.nan, 1.0, 0, False),
        (float(-(10**20) + 1), -(10**20) + 1, 0, False),
    ],
)
def test_tolerances(result: Any, expected: Any, atol: float, right: bool) -> None:
    assert matches(result, expected, atol) is right


def judged(name: str, arguments: list[Any], result: Any, expected: Any, family: str = "mbpp_plus") -> bool:
    problem = {"entry_point": name, "family": family, "tests": {"atol": 1e-4 if name == "find_zero" else 0}}
    call = [plain_data.encode(argument) for argument in arguments]
    return bool(compare_for(problem, call)(result, expected))


def test_sets_ignore_order_and_repetition_in_their_tasks_only() -> None:
    assert judged("similar_elements", [], (2, 1, 1), (1, 2))
    assert judged("Diff", [], [2, 1], {1, 2})
    assert not judged("similar_elements", [], (2, 1), (1, 2, 3))
    assert not judged("other", [], (2, 1), (1, 2))
    with pytest.raises(TypeError):
        judged("similar_elements", [], 5, (1, 2))


def test_second_readings_of_a_task_are_right_too() -> None:
    assert judged("are_equivalent", [1, 2], "anything", True)
    assert judged("sum_div", [7], 0, 1)
    assert not judged("sum_div", [7], 2, 1)
    # A pyramid of edge 3: slant height 4 gives 33, apex height 4 gives 9 + 6 * sqrt(18.25) = 34.6.
    assert judged("surface_Area", [3, 4], 33, 33)
    assert judged("surface_Area", [3, 4], 35, 33)
    assert not judged("surface_Area", [3, 4], 34, 33)
    assert not judged("surface_Area", [3, 4], None, 33)
    # 123 and 45: 1-4, 2-5 by first digits is 6; 1-0, 2-4, 3-5 padded is 5.
    assert judged("digit_distance_nums", [123, 45], 6, 6)
    assert judged("digit_distance_nums", [123, 45], 5, 6)
    assert not judged("digit_distance_nums", [123, 45], 4, 6)


def test_any_root_of_the_polynomial_is_right() -> None:
    coefficients = [-6, 11, -6, 1]  # (x - 1)(x - 2)(x - 3)
    for root in (1, 2.0, 3.00001):
        assert judged("find_zero", [coefficients], root, 1.0, "humaneval_plus")
    assert not judged("find_zero", [coefficients], 1.01, 1.0, "humaneval_plus")
    assert not judged("find_zero", [coefficients], math.nan, 1.0, "humaneval_plus")
