"""What counts as a program that parses, for the metrics that read Python's own syntax tree."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def parse_candidate(source: str) -> ast.Module | None:
    """The module of `source`, or None where Python does not accept it.

    Null bytes and nesting beyond the parser's limit count as not accepted. A leading byte order mark is
    skipped.
    """
    if not isinstance(source, str):
        raise TypeError(f"candidate: got {type(source).__name__}, wants str")
    return _parse(source)


def parse_reference(source: str) -> ast.Module:
    """The module of `source`; raises ValueError where Python does not accept it: the data are broken."""
    if not isinstance(source, str):
        raise TypeError(f"reference: got {type(source).__name__}, wants str")
    module = _parse(source)
    if module is None:
        raise ValueError(f"reference: got source that Python cannot parse, wants a program: {source[:60]!r}")
    return module


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            # Odd escapes warn; under `-W error` they would make a valid program invalid.
            warnings.simplefilter("ignore")
            return ast.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def clipped_f1(candidate: Mapping[T, int], reference: Mapping[T, int]) -> float:
    """Harmonic mean of precision and recall of two multisets; 1.0 for two empty ones.

    An element is matched at most as often as both have it.
    """
    total = sum(candidate.values()) + sum(reference.values())
    if not total:
        return 1.0
    both = sum(min(count, candidate.get(item, 0)) for item, count in reference.items())
    return 2 * both / total
