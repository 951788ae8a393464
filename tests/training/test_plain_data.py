"""Values that cross the sandbox's wall: what survives, what counts as plain, what is refused."""

from __future__ import annotations

import enum
import json
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import plain_data

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**53 - 2, max_value=2**80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=12,
)


def types_of(value: Any) -> Any:
    """The types in a value, in an order that does not depend on the order of sets."""
    if isinstance(value, dict):
        return dict, sorted(repr((types_of(k), types_of(v))) for k, v in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(types_of(item)) for item in value)
    return (type(value), [types_of(item) for item in value]) if isinstance(value, (list, tuple)) else type(value)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_plain_data_survives_the_journey(value: Any) -> None:
    back = plain_data.decode(json.loads(json.dumps(plain_data.encode(value))))
    assert back == value
    assert types_of(back) == types_of(value)
    assert plain_data.equal(back, value)


class Shouting(str):
    def __str__(self) -> str:
        return "LOUD"


class Liar(int):
    def __int__(self) -> int:
        return 8

    def __index__(self) -> int:
        return 8


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.IntEnum):
    RED = 1


def test_subclasses_count_by_their_content_and_the_rest_is_not_plain() -> None:
    assert plain_data.decode(plain_data.encode(OrderedDict(a=1))) == {"a": 1}
    assert plain_data.decode(plain_data.encode(Counter("aab"))) == {"a": 2, "b": 1}
    for value, plain in ((Shouting("a"), "a"), (Liar(7), 7), (Point(1, 2), (1, 2)), (Colour.RED, 1)):
        back = plain_data.decode(plain_data.encode(value))
        assert back == plain
        assert type(back) is type(plain)
    for original in (deque([1, 2]), range(1, 10, 3), Decimal("1.50"), Fraction(1, 3), bytearray(b"\xff")):
        back = plain_data.decode(plain_data.encode(original))
        assert (back, type(back)) == (original, type(original))
    for other in (object(), iter([]), len, int, {}.values(), {1: object()}):
        with pytest.raises(plain_data.NotPlain):
            plain_data.encode(other)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"tuple": 1}, {"set": [[1]]}, {"int": "zz"}, {"int": 3}, {"a": 1, "b": 2}, {"dict": [[1]]}, {"nope": []},
        {"range": ["0x1", "0x2", "0x0"]}, {"fraction": ["0x1", "0x0"]}, {"decimal": "x"}, {"bytes": "\u1234"},
        {"complex": ["1"]}, {"fraction": [3, "0x1"]}, {"fraction": ["0x" + "f" * 20_000, "0x1"]},
        {"set": list(range(10_001))},
    ],
)  # fmt: skip
def test_malformed_data_is_refused(data: Any) -> None:
    with pytest.raises(plain_data.NotPlain):
        plain_data.decode(data)
