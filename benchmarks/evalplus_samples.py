"""Solutions that two graders are compared on: right, wrong, slow and crashing ones for MBPP+ and HumanEval+.

Real model output (MBPP only), the references, single edits of the references, and references with a wrapper that is
slow, crashes, or returns the right values in another shape.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.FloorDiv,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
}

# What a wrapper does with the result, or instead of calling; `{name}` is the entry point, `_n` counts the calls.
WRAPPERS = {
    "slow, within the limit": "    if _n == 2: _wait(0.5)\n    return _right(*a, **k)\n",
    "slow, beyond the limit": "    if _n == 2: _wait(3)\n    return _right(*a, **k)\n",
    "endless loop": "    while _n == 2: pass\n    return _right(*a, **k)\n",
    "raises": "    if _n == 2: raise ValueError('no')\n    return _right(*a, **k)\n",
    "endless recursion": "    if _n >= 2: return {name}(*a, **k)\n    return _right(*a, **k)\n",
    "sys.exit": "    if _n == 2: import sys; sys.exit(0)\n    return _right(*a, **k)\n",
    "os._exit": "    if _n == 2: import os; os._exit(0)\n    return _right(*a, **k)\n",
    "takes 64 GB": "    if _n == 2: bytearray(64 << 30)\n    return _right(*a, **k)\n",
    "reads input": "    if _n == 2: input()\n    return _right(*a, **k)\n",
    "prints": "    print(a)\n    return _right(*a, **k)\n",
    "returns None": "    return None if _n == 2 else _right(*a, **k)\n",
    "tuple for list": "    r = _right(*a, **k)\n    return tuple(r) if type(r) is list else r\n",
    "list for tuple": "    r = _right(*a, **k)\n    return list(r) if type(r) is tuple else r\n",
    "float for int": "    r = _right(*a, **k)\n    return float(r) if type(r) is int and r < 2**53 else r\n",
    "int for bool": "    r = _right(*a, **k)\n    return int(r) if type(r) is bool else r\n",
    "off by 1e-9": "    r = _right(*a, **k)\n    return r + 1e-9 if type(r) is float else r\n",
    "off by 1e-3": "    r = _right(*a, **k)\n    return r + 1e-3 if type(r) is float else r\n",
    "iterator for list": "    r = _right(*a, **k)\n    return iter(r) if type(r) is list else r\n",
    "list subclass": "    r = _right(*a, **k)\n    return type('L', (list,), {{}})(r) if type(r) is list else r\n",
    "changes its arguments": (
        "    r = _right(*a, **k)\n    for x in a:\n        if type(x) is list: x.clear()\n    return r\n"
    ),
    "equals everything": "    return type('E', (), {{'__eq__': lambda s, o: True, '__hash__': lambda s: 0}})()\n",
}

_WRAPPED = """{source}

_right, _n = {name}, 0

def _wait(seconds):
    from time import perf_counter
    end = perf_counter() + seconds
    while perf_counter() < end: pass

def {name}(*a, **k):
    global _n
    _n += 1
{body}"""


def make_samples(
    problems: list[Row], candidates: Iterable[Row], *, model: int, mutants: int, wrapped: int, seed: int = 0
) -> list[Row]:
    """Rows {"id", "task_id", "kind", "solution"}: every reference, `model` solutions by models, `mutants` single
    edits a task, `wrapped` solutions of every wrapper.
    """
    rng = random.Random(seed)
    samples = [_sample(problem, "reference", problem["reference"]) for problem in problems]
    samples += _model_solutions(problems, candidates, model, rng)
    for problem in problems:
        found = list(dict.fromkeys(edits(problem["reference"])))
        samples += [_sample(problem, "single edit", text) for text in rng.sample(found, min(mutants, len(found)))]
    for kind, body in WRAPPERS.items():
        for problem in rng.sample(problems, wrapped):
            name = problem["entry_point"]
            text = _WRAPPED.format(source=problem["reference"], name=name, body=body.format(name=name))
            samples.append(_sample(problem, kind, text))
    return list({sample["id"]: sample for sample in samples}.values())


def _sample(problem: Row, kind: str, solution: str) -> Row:
    digest = hashlib.sha256(solution.encode()).hexdigest()[:12]
    return {"id": f"{problem['task_id']}/{digest}", "task_id": problem["task_id"], "kind": kind, "solution": solution}


def _model_solutions(problems: list[Row], candidates: Iterable[Row], count: int, rng: random.Random) -> list[Row]:
    """Solutions by models, half of them right on MBPP's own tests."""
    by_id = {problem["task_id"]: problem for problem in problems}
    pools: dict[bool, list[Row]] = {True: [], False: []}
    for row in candidates:
        if problem := by_id.get(f"Mbpp/{row['task_id']}"):
            typing = "from typing import *\n" if row["needs_typing_prelude"] else ""
            pools[row["result_mbpp_tests"] == "pass"].append(_sample(problem, "model", typing + row["code"]))
    chosen = []
    for pool in pools.values():
        unique = list({sample["id"]: sample for sample in pool}.values())
        chosen += rng.sample(unique, min(count // 2, len(unique)))
    return chosen


def edits(source: str) -> Iterator[str]:
    """The source with one operator swapped, one constant changed, one test negated or one statement left out."""
    tree = ast.parse(source)
    for place in range(sum(1 for _ in ast.walk(tree))):
        for change in range(2):
            twin = copy.deepcopy(tree)
            if _change(list(ast.walk(twin))[place], change):
                try:
                    yield ast.unparse(ast.fix_missing_locations(twin)) + "\n"
                except (ValueError, RecursionError):
                    continue


def _change(node: ast.AST, change: int) -> bool:
    """Edits a node in place; False where there is no such edit."""
    if isinstance(node, ast.Compare) and change == 0 and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and change == 0 and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + (1, -1)[change]  # type: ignore[operator]
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)) and change == 0:
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, (ast.FunctionDef, ast.For, ast.If)) and change == 1 and len(node.body) > 1:
        del node.body[len(node.body) // 2]
    else:
        return False
    return True
