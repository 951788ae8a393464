"""Values as plain data: what may cross the wall between a sandboxed program and its grader.

A program's results leave the sandbox as tagged JSON and are rebuilt from built-in types only, so no method
that the program wrote (`__eq__`, `__bool__`, `__repr__`) ever runs in the grader. This file is loaded on both
sides of the wall and therefore imports only the standard library.

JSON numbers, strings, booleans, null and lists stand for themselves; everything else is an object with one
key, the name of its type: `{"tuple": [1, 2]}`, `{"set": [...]}`, `{"dict": [[key, value], ...]}`, `{"int":
"0x..."}` beyond 2**53, `{"float": "nan"}`, `{"bytes": "..."}` (latin-1), `{"complex": [re, im]}` and so on.
An instance of a subclass counts as its built-in content, read through the built-in type's own methods.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 100
MAX_NODES = 200_000
# Integers with equal hashes make a set quadratic; this bounds what a hostile result can cost its grader.
MAX_HASHED = 10_000
# To reduce a fraction takes quadratic time.
MAX_FRACTION_DIGITS = 10_000
_EXACT = 2**53

_DICT_KEYS: type = type({}.keys())


class NotPlain(ValueError):
    """A value (or its encoding) is not plain data; the message says why."""


def encode(value: object) -> Any:
    """Returns `value` as tagged JSON data.

    Raises NotPlain for anything but None, numbers, text, bytes, the built-in containers, range, deque, dict
    keys, Fraction, Decimal (or subclasses of these) and numpy's scalars, which become Python's, beyond 100 levels and
    beyond 200,000 parts.
    """
    return _Encoder().encode(value, 0)


class _Encoder:
    def __init__(self) -> None:
        self.nodes = 0

    def encode(self, value: Any, depth: int) -> Any:
        self.nodes += 1
        if depth > MAX_DEPTH:
            raise NotPlain(f"nested deeper than {MAX_DEPTH} levels, or contains itself")
        if self.nodes > MAX_NODES:
            raise NotPlain(f"more than {MAX_NODES} parts")
        # The type, never isinstance: that would ask the value's own __class__.
        kind = type(value)
        if value is None or kind is bool:
            return value
        mro = type.__dict__["__mro__"].__get__(kind)
        if str in mro:
            return str.__str__(value)
        if int in mro:
            number = int.__int__(value)
            return number if -_EXACT < number < _EXACT else {"int": hex(number)}
        if float in mro:
            return self._float(float.__float__(value))
        if list in mro:
            return self._items(list.__iter__(value), depth)
        if tuple in mro:
            return {"tuple": self._items(tuple.__iter__(value), depth)}
        if dict in mro:
            self._check_hashed(dict.__len__(value))
            return {
                "dict": [[self.encode(key, depth + 1), self.encode(item, depth + 1)] for key, item in dict.items(value)]
            }
        if set in mro:
            self._check_hashed(set.__len__(value))
            return {"set": self._items(set.__iter__(value), depth)}
        if frozenset in mro:
            self._check_hashed(frozenset.__len__(value))
            return {"frozenset": self._items(frozenset.__iter__(value), depth)}
        if kind is _DICT_KEYS:
            self._check_hashed(len(value))
            return {"set": self._items(iter(value), depth)}
        if bytes in mro:
            return {"bytes": bytes.decode(value, "latin-1")}
        if bytearray in mro:
            return {"bytearray": bytearray.decode(value, "latin-1")}
        if complex in mro:
            return {"complex": [self._float(part) for part in _parts(value)]}
        if deque in mro:
            return {"deque": self._items(deque.__iter__(value), depth)}
        if kind is range:
            return {"range": [hex(value.start), hex(value.stop), hex(value.step)]}
        if kind is Fraction:
            parts = [hex(value.numerator), hex(value.denominator)]
            _check_fraction(parts)
            return {"fraction": parts}
        if kind is Decimal:
            return {"decimal": str(value)}
        numpy = sys.modules.get("numpy")
        if numpy is not None and numpy.generic in mro:
            return self.encode(numpy.generic.item(value), depth + 1)  # deeper: a long double's item is itself
        raise NotPlain(f"a value of type {type.__dict__['__name__'].__get__(kind)}")

    def _items(self, items: Any, depth: int) -> list[Any]:
        return [self.encode(item, depth + 1) for item in items]

    def _check_hashed(self, size: int) -> None:
        if size > MAX_HASHED:
            raise NotPlain(f"a set or dict of more than {MAX_HASHED} elements")

    def _float(self, number: float) -> Any:
        return number if math.isfinite(number) else {"float": repr(number)}


def _check_fraction(parts: list[Any]) -> None:
    if any(len(part) > MAX_FRACTION_DIGITS for part in parts):
        raise NotPlain(f"a fraction of more than {MAX_FRACTION_DIGITS} hexadecimal digits")


def _parts(value: Any) -> tuple[float, float]:
    return complex.__dict__["real"].__get__(value), complex.__dict__["imag"].__get__(value)


def decode(data: Any) -> Any:
    """Rebuilds a value from `encode`'s data; raises NotPlain for what `encode` could not have written."""
    try:
        return _decode(data, 0)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if isinstance(error, NotPlain):
            raise
        raise NotPlain(f"malformed data ({type(error).__name__})") from None


def _decode(data: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH} levels")
    if data is None or isinstance(data, (bool, str)):
        return data
    if isinstance(data, (int, float)):
        return data
    if isinstance(data, list):
        return [_decode(item, depth + 1) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise NotPlain("malformed data")
    ((tag, content),) = data.items()
    if tag in ("int", "float", "bytes", "bytearray", "decimal"):
        return _decode_text(tag, content)
    if not isinstance(content, list):
        raise NotPlain(f"malformed {tag}")
    if tag in ("range", "fraction"):
        if tag == "fraction":
            _check_fraction(content)
        numbers = [_decode_text("int", item) for item in content]
        return range(*numbers) if tag == "range" else Fraction(*numbers)
    if tag in ("set", "frozenset", "dict") and len(content) > MAX_HASHED:
        raise NotPlain(f"a {tag} of more than {MAX_HASHED} elements")
    if tag == "dict":
        return {_decode(key, depth + 1): _decode(item, depth + 1) for key, item in content}
    items = [_decode(item, depth + 1) for item in content]
    if tag == "tuple":
        return tuple(items)
    if tag == "set":
        return set(items)
    if tag == "frozenset":
        return frozenset(items)
    if tag == "deque":
        return deque(items)
    if tag == "complex" and all(isinstance(item, float) for item in items):
        return complex(*items)
    raise NotPlain(f"unknown tag {tag!r}")


def _decode_text(tag: str, content: Any) -> Any:
    if not isinstance(content, str):
        raise NotPlain(f"malformed {tag}")
    if tag == "int":
        return int(content, 16)
    if tag == "float":
        return float(content)
    if tag == "decimal":
        return Decimal(content)
    raw = content.encode("latin-1")
    return raw if tag == "bytes" else bytearray(raw)


def equal(actual: Any, expected: Any, rel_tol: float = 1e-9) -> bool:
    """Python's `==` on plain data, except that floats agree within `rel_tol` (or both are NaN), at any depth.

    As in Python `True == 1 == 1.0`, and a list never equals a tuple. Elements of sets and keys of dicts are
    compared exactly.
    """
    if isinstance(actual, float) or isinstance(expected, float):
        if not isinstance(actual, (int, float)) or not isinstance(expected, (int, float)):
            return bool(actual == expected)
        if actual != actual or expected != expected:
            return actual != actual and expected != expected
        try:
            return math.isclose(actual, expected, rel_tol=rel_tol)
        except OverflowError:
            return actual == expected
    if isinstance(actual, (list, tuple)):
        return (
            type(actual) is type(expected)
            and len(actual) == len(expected)
            and all(equal(a, b, rel_tol) for a, b in zip(actual, expected, strict=True))
        )
    if isinstance(actual, dict):
        return (
            isinstance(expected, dict)
            and len(actual) == len(expected)
            and all(key in expected and equal(item, expected[key], rel_tol) for key, item in actual.items())
        )
    return bool(actual == expected)


def describe(value: Any, limit: int = 120) -> str:
    """`repr` of plain data, cut to `limit` characters; never fails."""
    try:
        text = repr(value)
    except ValueError:
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a value with a huge number"
    return text if len(text) <= limit else text[: limit - 3] + "..."
