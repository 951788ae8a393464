"""Running kata programs in this process: our own code only, with a step limit against endless loops.

Model-written code never comes here; that is the sandbox's work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

STEP_LIMIT = 2000
FAILED = "<failed>"  # the outcome of a call that raises or does not end; no kata program returns this text

_LOOP_HEADER = re.compile(r"^( *)(while|for) .*:$", re.MULTILINE)
_WHILE_HEADER = re.compile(r"^( *)(while) .*:$", re.MULTILINE)


def load(source: str, entry_point: str = "f") -> Callable[[Sequence[Any]], Any]:
    """A function from a list of arguments to the program's result, or `FAILED` if it raises or does not end.

    Raises SyntaxError if the source does not compile. Arguments that are lists are copied for each call.
    """
    names: dict[str, Any] = {"_next": next}
    # Mutants can also extend the list that they walk over, or nest a loop up to a growing total.
    suspect = ".append" in source or source.count("for ") > 1
    headers = _LOOP_HEADER if suspect else _WHILE_HEADER
    counted = headers.sub(lambda match: f"{match[0]}\n{match[1]}    _next(_steps)", source)
    exec(compile(counted, "<kata>", "exec"), names)
    function = names[entry_point]

    def call(arguments: Sequence[Any]) -> Any:
        names["_steps"] = iter(range(STEP_LIMIT))
        try:
            return function(*[_copied(argument) for argument in arguments])
        except Exception:
            return FAILED

    return call


def _copied(value: Any) -> Any:
    if type(value) is not list:
        return value
    return [_copied(item) for item in value] if value and type(value[0]) is list else value[:]


def same(left: Any, right: Any) -> bool:
    """Equality as the hidden tests see it."""
    try:
        return bool(left == right)
    except RecursionError:  # a mutant can append a list to itself
        return False


def passes(source: str, tests: Sequence[dict[str, Any]], entry_point: str = "f") -> bool:
    """Whether the program compiles and gives the expected result in every test."""
    try:
        call = load(source, entry_point)
    except SyntaxError:
        return False
    return all(same(call(test["args"]), test["expected"]) for test in tests)
