"""Splits a test into what the sandbox computes and what the grader compares.

`assert f(1, 2) == (3, 4)` becomes the expression `f(1, 2)`, evaluated beside the program, and the value
`(3, 4)`, which the program's process never receives. The comparison itself happens here, on plain data.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from training import plain_data


def _contains(a: Any, b: Any) -> bool:
    """`a in b`, but no walk through a range, which a program may have made endless."""
    if isinstance(b, range) and not isinstance(a, int):
        return isinstance(a, float) and a.is_integer() and int(a) in b
    return a in b


_COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.In: ("in", _contains),
    ast.NotIn: ("not in", lambda a, b: not _contains(a, b)),
    ast.Is: ("is", lambda a, b: type(a) is type(b) and a == b),
    ast.IsNot: ("is not", lambda a, b: type(a) is not type(b) or a != b),
}


@dataclass(frozen=True)
class Side:
    """One operand: a value known here, or an expression to be evaluated beside the program or without it."""

    value: Any = None
    expression: str | None = None
    needs_program: bool = False


_RESULT = Side(needs_program=True)


@dataclass(frozen=True)
class Check:
    """A comparison `compare(*operands)`; `symbol` is for messages."""

    sides: tuple[Side, ...]
    symbol: str
    compare: Callable[..., bool]


@dataclass(frozen=True)
class Case:
    """A call of the entry point with `args`; its result is to equal `expected` (floats: 1e-9, relative)."""

    args: list[Any] = field(default_factory=list)
    expected: Any = None


@dataclass(frozen=True)
class PreparedCall:
    """A test made ready once for many programs: `call` in the form that a request holds, the check of its result."""

    call: Any
    check: Check


def split_assert(statement: str, entry_point: str | None = None, setup: str = "") -> list[Check]:
    """Turns one assert statement into checks, all of which must hold.

    `a and b` gives several; comparisons, `not`, `math.isclose` and bare truth are judged by the grader; any
    other form is evaluated as a whole beside the program and only its truth is judged. A side that names
    nothing but built-ins and standard modules, and not the entry point, is evaluated without the program; if
    `entry_point` is None no such side is assumed. Raises ValueError if `statement` is not one assert.
    """
    try:
        body = ast.parse(statement.strip()).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"test {statement!r} does not parse: {error}") from None
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise ValueError(f"test {statement!r} must be one assert statement")
    known = frozenset(dir(builtins)) | sys.stdlib_module_names | _imported_names(setup)
    return _split(body[0].test, known - {entry_point} if entry_point else frozenset())


def _split(test: ast.expr, known: frozenset[str]) -> list[Check]:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [check for part in test.values for check in _split(part, known)]
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return [Check((_side(test.operand, known),), "not", operator.not_)]
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        symbol, compare = _COMPARISONS[type(test.ops[0])]
        return [Check((_side(test.left, known), _side(test.comparators[0], known)), symbol, compare)]
    close = _split_isclose(test, known)
    return [close] if close else [Check((_side(test, known),), "is true:", operator.truth)]


def _split_isclose(test: ast.expr, known: frozenset[str]) -> Check | None:
    if not isinstance(test, ast.Call) or ast.unparse(test.func) not in ("math.isclose", "isclose"):
        return None
    try:
        tolerances = {str(word.arg): float(ast.literal_eval(word.value)) for word in test.keywords}
    except (ValueError, TypeError):
        return None
    if len(test.args) != 2 or not tolerances.keys() <= {"rel_tol", "abs_tol"}:
        return None
    sides = tuple(_side(argument, known) for argument in test.args)
    return Check(sides, "is close to", lambda a, b: math.isclose(a, b, **tolerances))


def _side(expression: ast.expr, known: frozenset[str]) -> Side:
    try:
        return Side(value=ast.literal_eval(expression))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    bound = {
        node.id for node in ast.walk(expression) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    bound |= {node.arg for node in ast.walk(expression) if isinstance(node, ast.arg)}
    names = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)} - bound
    return Side(expression=ast.unparse(expression), needs_program=not names <= known)


def _imported_names(setup: str) -> frozenset[str]:
    return frozenset(
        alias.asname or alias.name.partition(".")[0]
        for node in ast.parse(setup).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    )


def clean_prelude(expression: str, setup: str) -> str:
    """The imports that `expression` needs without the program: those of `setup`, and the modules it names."""
    imports = [ast.unparse(node) for node in ast.parse(setup).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)}
    modules = sorted(name for name in names if name in sys.stdlib_module_names and not hasattr(builtins, name))
    return "\n".join([*(f"import {name}" for name in modules), *imports])


def case_check(case: Case) -> Check:
    """The check of a case: its call is made by the sandbox and stands as the first side."""
    return result_check(case.expected, plain_data.equal)


def result_check(expected: Any, compare: Callable[[Any, Any], bool]) -> Check:
    """The check that `compare(result, expected)` holds for what a call of the entry point returned."""
    return Check((_RESULT, Side(value=expected)), "==", compare)
