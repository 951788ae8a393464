"""Rows as the benchmark files hold them, small ones, and the folder of the real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, Any]


def data_folder(*needed: str) -> Path:
    """The folder of the real files; the test is skipped where one of `needed` is missing."""
    given = os.environ.get("STRUCTLOSS_DATA")
    folder = Path(given) if given else Path(__file__).parents[4] / "shared" / "data"
    for name in needed:
        if not folder.joinpath(name).is_file():
            pytest.skip(f"no {name}: set STRUCTLOSS_DATA to a folder that has it")
    return folder


def mbpp_plus_source(number: int, code: str, base: list[Any], plus: list[Any], *, atol: float = 0.0) -> Row:
    name = code[code.rindex("def ") + 4 :].partition("(")[0]
    return {
        "task_id": f"Mbpp/{number}",
        "prompt": f'"""\nWrite it.\nassert {name}(...)\n"""\n',
        "entry_point": name,
        "canonical_solution": "\n" + code,
        "base_input": base,
        "plus_input": plus,
        "atol": atol,
        "contract": "",
        "assertion": "",
    }


def humaneval_source(number: int, prompt: str, body: str, test: str) -> Row:
    name = prompt[prompt.rindex("def ") + 4 :].partition("(")[0]
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": prompt,
        "entry_point": name,
        "canonical_solution": body,
        "test": test,
    }
