"""When a result counts as right on the plus sets: EvalPlus 0.3.1's rules, on plain data, written anew.

A result is right if it equals the reference's. Otherwise, where the task has a tolerance `atol`, or where the
reference's result is a float or a non-empty list or tuple of floats (then 1e-6), it is right if it has the same
type and every number in it is within `atol + 1e-7 * |expected|`. Sixteen tasks have a rule of their own, below.

Differences from EvalPlus, all on purpose: NaN equals NaN; only plain data can be right (an iterator, an array or
an object with its own `__eq__` is not); numbers are compared place by place, never broadcast; the tolerance that a
float result brings does not stay for later tests of the same program; HumanEval/32 can pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from training import plain_data

Compare = Callable[[Any, Any], bool]
Row = dict[str, Any]

RELATIVE_TOLERANCE = 1e-7
FLOAT_TOLERANCE = 1e-6

# MBPP+ tasks whose order and repetitions do not matter.
SET_TASKS = frozenset(
    {
        "similar_elements",
        "find_char_long",
        "common_in_nested_lists",
        "extract_singly",
        "larg_nnum",
        "intersection_array",
        "find_dissimilar",
        "Diff",
    }
)
# MBPP+ tasks whose reference returns match objects: any result but None stands for "found".
NOT_NONE_TASKS = frozenset({"check_str", "text_match_three", "text_starta_endb"})


def is_not_none_task(problem: Row) -> bool:
    """Whether of this problem's results only "found" or "not found" is compared."""
    return problem["family"] == "mbpp_plus" and problem["entry_point"] in NOT_NONE_TASKS


def compare_for(problem: Row, call: list[Any]) -> Compare:
    """`compare(result, expected)` for one call (encoded arguments) of a plus problem."""
    name, atol = problem["entry_point"], problem["tests"]["atol"]
    if problem["family"].startswith("humaneval"):
        if name == "find_zero":
            (coefficients,) = map(plain_data.decode, call)
            return lambda result, _: abs(_polynomial(coefficients, float(result))) <= atol
    elif name in SET_TASKS:
        return partial(_matches_as_set, atol=atol)
    elif name in _ALSO_RIGHT:
        also, arguments = _ALSO_RIGHT[name], [plain_data.decode(argument) for argument in call]
        return lambda result, expected: also(result, arguments, atol) or matches(result, expected, atol)
    return partial(matches, atol=atol)


def matches(result: Any, expected: Any, atol: float) -> bool:
    """Whether a result equals the expected one or is near enough."""
    return result == expected or (result != result and expected != expected) or _is_near(result, expected, atol)


def _matches_as_set(result: Any, expected: Any, atol: float) -> bool:
    if isinstance(result, range) and result[plain_data.MAX_NODES :]:
        return False  # a set of it might not fit into memory
    return set(result) == set(expected) or _is_near(result, expected, atol)


def _is_near(result: Any, expected: Any, atol: float) -> bool:
    if atol == 0 and _is_float(expected):
        atol = FLOAT_TOLERANCE
    return atol != 0 and type(result) is type(expected) and _near(result, expected, atol)


def _is_float(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _near(result: Any, expected: Any, atol: float) -> bool:
    if isinstance(result, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(result) == len(expected) and all(_near(a, b, atol) for a, b in zip(result, expected, strict=True))
    if not isinstance(result, (int, float, complex)) or not isinstance(expected, (int, float, complex)):
        return False
    return result == expected or abs(result - expected) <= atol + RELATIVE_TOLERANCE * abs(expected)


def _polynomial(coefficients: list[Any], x: Any) -> Any:
    return sum(coefficient * x**power for power, coefficient in enumerate(coefficients))


def _pyramid_surface(edge: float, height: float) -> int:
    """Mbpp/581 with `height` read as that of the apex above the base; the reference takes it as the slant."""
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))


def _digit_distance(first: int, second: int) -> int:
    """Mbpp/558 with the shorter number padded by zeros; the reference aligns first digits and drops the rest."""
    a, b = str(first), str(second)
    width = max(len(a), len(b))
    return sum(abs(int(x) - int(y)) for x, y in zip(a.zfill(width), b.zfill(width), strict=True))


# (result, arguments, atol) -> whether a result is right that the reference may disagree with.
_ALSO_RIGHT: dict[str, Callable[[Any, list[Any], float], bool]] = {
    "are_equivalent": lambda result, arguments, atol: True,  # Mbpp/164: the task text does not say what it means
    "sum_div": lambda result, arguments, atol: result == 0,  # Mbpp/295: whether a number divides itself is left open
    "surface_Area": lambda result, arguments, atol: (
        isinstance(result, (int, float)) and abs(result - _pyramid_surface(*arguments)) <= atol
    ),
    "digit_distance_nums": lambda result, arguments, atol: result == _digit_distance(*arguments),
}
