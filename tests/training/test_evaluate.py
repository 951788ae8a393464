"""Judging samples: what counts as what."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import RunConfig
from training.evaluate import judge
from training.evaluation.summary import Tally
from training.progress import Progress

from .conftest import TINY
from .sandboxes import sandbox_or_skip

PROBLEM = {
    "id": "p",
    "code_prefix": "def f(x):\n",
    "entry_point": "f",
    "tests": [{"args": [2], "expected": 3}, {"args": [5], "expected": 6}],
    "reference": "    return x + 1\n",
}
SAMPLES = {
    "    return x + 1": ("passed", True),
    "    return x + 2": ("failed", True),
    "    return x +": ("error", True),
    "": ("no_code", True),
    "    return y": ("truncated", False),
    "    return 1 + x": ("passed", False),
}


def judged(tests: Any = PROBLEM["tests"]) -> list[dict[str, Any]]:
    with sandbox_or_skip(workers=1):
        pass
    rows: list[dict[str, Any]] = [
        {"id": f"p{i}", "code": code, "ended": ended} for i, (code, (_, ended)) in enumerate(SAMPLES.items())
    ]
    problems = [PROBLEM | {"tests": tests, "id": row["id"]} for row in rows]
    with Progress("judge", len(rows)) as progress:
        isolation = judge(rows, problems, RunConfig(**TINY), progress)
    assert isolation
    return rows


def test_statuses_and_metrics() -> None:
    rows = judged()
    assert [row["status"] for row in rows] == [status for status, _ in SAMPLES.values()]
    assert rows[0]["syntax_match"] == rows[0]["tsed"] == 1.0
    assert rows[2]["syntax_match"] == 0.0
    summary = Tally(rows).summary()
    assert (summary["problems"], summary["n"], summary["pass@1"]) == (6, 1, pytest.approx(2 / 6))
    assert summary["low"] < 2 / 6 < summary["high"]
    assert sum(summary["statuses"].values()) == 6


def test_a_fault_of_the_sandbox_is_no_failed_program() -> None:
    with pytest.raises(RuntimeError, match="says nothing about the program"):
        judged(tests=[])
