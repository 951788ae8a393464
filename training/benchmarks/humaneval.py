"""HumanEval as problem rows, its `check` functions turned into asserts whose expected values the grader keeps.

157 of the 164 `check` functions are a list of asserts. The other seven loop, draw random inputs or keep locals;
they are written out here as the asserts that they stand for (random ones with a fixed seed), because a `check`
that runs as a whole runs beside the program, where an object that equals everything passes it.
"""

from __future__ import annotations

import ast
import random
import string
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def problem_row(source: Row) -> Row:
    """A row of HumanEval.jsonl as a Problem. `completion_prefix` is what a bare completion continues.

    The program must be whole (`code_prefix` is empty): the prompt's imports and helpers are a part of it.
    """
    entry_point = source["entry_point"]
    if (name := source["task_id"]) == "HumanEval/32":
        tests: Row = {"base": [[coefficients] for coefficients in _polynomials()], "plus": [], "atol": 1e-4}
    else:
        tests = {
            "asserts": [*plain_asserts(source["test"], entry_point), *_written_out(name, entry_point)],
            "setup": "",
        }
    return {
        "id": f"humaneval/{name.rpartition('/')[2]}",
        "prompt": source["prompt"],
        "code_prefix": "",
        "completion_prefix": source["prompt"],
        "entry_point": entry_point,
        "tests": tests,
        "split": "test",
        "family": "humaneval",
        "shape": "",
        "reference": source["prompt"] + source["canonical_solution"],
    }


def plain_asserts(test: str, entry_point: str) -> list[str]:
    """The asserts of a `check` function that use nothing but `candidate`, which becomes the entry point."""
    (check,) = (node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef) and node.name == "check")
    local = {node.id for node in ast.walk(check) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    asserts = []
    for statement in check.body:
        names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        if isinstance(statement, ast.Assert) and not names & local and "candidate" in names:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and node.id == "candidate":
                    node.id = entry_point
            asserts.append(ast.unparse(ast.Assert(statement.test, None)))
    return asserts


def _written_out(task_id: str, entry_point: str) -> list[str]:
    cases = _CASES[task_id]() if task_id in _CASES else []
    return [f"assert {entry_point}({', '.join(map(repr, args))}) == {expected!r}" for args, expected in cases]


def _polynomials() -> list[list[int]]:
    """The hundred coefficient lists of HumanEval/32, which has a seed of its own."""
    source = random.Random(42)
    return [[source.randint(-10, 10) or 1 for _ in range(2 * source.randint(1, 4))] for _ in range(100)]


def _words() -> list[str]:
    source = random.Random(0)
    return ["".join(source.choices(string.ascii_lowercase, k=source.randint(10, 20))) for _ in range(100)]


def _cyclic_cases() -> list[tuple[list[Any], Any]]:
    """Words whose groups of three letters were turned by one place, and the words."""
    groups = [[word[i : i + 3] for i in range(0, len(word), 3)] for word in _words()]
    turned = ["".join(g[1:] + g[0] if len(g) == 3 else g for g in word) for word in groups]
    return [([code], word) for code, word in zip(turned, _words(), strict=True)]


def _shift_cases() -> list[tuple[list[Any], Any]]:
    letters = string.ascii_lowercase
    shift = str.maketrans(letters, letters[5:] + letters[:5])
    return [([word.translate(shift)], word) for word in _words()]


def _sum_cases() -> list[tuple[list[Any], Any]]:
    source = random.Random(0)
    pairs = [[source.randint(0, 1000), source.randint(0, 1000)] for _ in range(100)]
    return [(pair, sum(pair)) for pair in pairs]


_CASES: dict[str, Callable[[], list[tuple[list[Any], Any]]]] = {
    "HumanEval/38": _cyclic_cases,
    "HumanEval/44": lambda: [([x, x + 1], str(x)) for x in range(2, 8)],
    "HumanEval/50": _shift_cases,
    "HumanEval/53": _sum_cases,
    "HumanEval/151": lambda: [([list(range(-99, 100, 2))], sum(x * x for x in range(1, 100, 2)))],
}
