"""MBPP as problem rows: the test split (ids 11 to 510) and the sanitized set (427 tasks of all splits)."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable
from typing import Any

from training.benchmarks.oracles import NOT_NONE_TASKS

Row = dict[str, Any]

FIRST_IDS = {"prompt": 1, "test": 11, "validation": 511, "train": 601}
LAST_ID = 974


def split_of(task_id: int) -> str:
    """The official split of an MBPP task: prompt 1-10, test 11-510, validation 511-600, train 601-974."""
    if not 1 <= task_id <= LAST_ID:
        raise ValueError(f"task_id must be 1 to {LAST_ID}, got {task_id}")
    return max((first, name) for name, first in FIRST_IDS.items() if first <= task_id)[1]


def prompt_of(text: str, assertion: str) -> str:
    """What the student is asked: the task and one assertion, which names the function."""
    return f"{unix(text).strip()}\n{assertion}"


def problem_row(source: Row) -> Row:
    """A row of mbpp.jsonl as a Problem: text and first assertion as prompt, all assertions as tests."""
    row = _row(source, source["text"], source.get("test_setup_code") or "")
    return row | {"id": f"mbpp/{source['task_id']}", "split": split_of(source["task_id"]), "family": "mbpp"}


def sanitized_row(source: Row) -> Row:
    """A row of sanitized-mbpp.json as a Problem; its imports for the tests become their setup.

    Three tasks assert the bare truth of a match object, which is no plain data: there its truth is the result.
    """
    row = _row(source, source["prompt"], "\n".join(source["test_imports"]))
    if row["entry_point"] in NOT_NONE_TASKS:
        asserts = row["tests"]["asserts"]
        row["tests"]["asserts"] = [re.sub(r"^assert (not )?(.*)$", r"assert \1bool(\2)", test) for test in asserts]
    return row | {"id": f"mbpp_sanitized/{source['task_id']}", "split": "test", "family": "mbpp_sanitized"}


def _row(source: Row, text: str, setup: str) -> Row:
    reference = unix(source["code"]).strip() + "\n"
    asserts = [unix(test).strip() for test in source["test_list"]]
    return {
        "prompt": prompt_of(text, asserts[0]),
        "code_prefix": "",
        "entry_point": entry_point_of(asserts, reference),
        "tests": {"asserts": asserts, "setup": unix(setup).strip()},
        "shape": "",
        "reference": reference,
    }


def entry_point_of(asserts: Iterable[str], reference: str) -> str:
    """The function or class of `reference` that the first assertion to call any of them calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MBPP's patterns hold escapes that Python warns of
        body = ast.parse(reference).body
    defined = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    for statement in asserts:
        for node in ast.walk(ast.parse(statement)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    raise ValueError(f"no assertion calls anything that the reference defines ({', '.join(sorted(defined))})")


def unix(text: str) -> str:
    """Line feeds for the line ends of other systems."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
