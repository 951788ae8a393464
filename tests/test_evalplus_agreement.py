"""The comparison with EvalPlus: its solutions, our half of it, its tables; EvalPlus itself is not run here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evalplus_report
from benchmarks.evalplus_agreement import cause_of, grade_ours, outcome
from benchmarks.evalplus_samples import WRAPPERS, edits, make_samples
from tests.training.benchmarks.rows import mbpp_plus_source
from tests.training.sandboxes import machine_has_namespaces
from training.benchmarks.plus import mbpp_plus_row
from training.kata.mutants import compiles

PAGE = Path("docs/evaluation_agreement.md")
CODE = """def f(numbers):
    out = []
    for x in numbers:
        if x > 2:
            out.append(x + 1)
    return out
"""
PROBLEM = mbpp_plus_row(mbpp_plus_source(1, CODE, [[[1, 2, 3]], [[3, 4]], [[5]]], [[[7, 2, 9]]])) | {
    "task_id": "Mbpp/1"
}


def test_edits_change_one_thing_and_compile() -> None:
    found = set(edits(CODE))
    assert all(compiles(text) and text != CODE for text in found)
    for part in ("x >= 2", "x > 3", "x > 1", "x - 1", "x + 2", "not x > 2"):
        assert sum(part in text for text in found) == 1, part
    assert any("for" not in text for text in found)


@pytest.mark.skipif(not machine_has_namespaces(), reason="this machine allows no user, network and PID namespaces")
def test_our_half_gives_each_wrapper_its_verdict_and_resumes(tmp_path: Path) -> None:
    candidates = [
        {
            "task_id": 1,
            "code": CODE.replace("x + 1", "1 + x"),
            "needs_typing_prelude": True,
            "result_mbpp_tests": "pass",
        },
        {"task_id": 1, "code": "def f(x):", "needs_typing_prelude": False, "result_mbpp_tests": "syntax"},
        {"task_id": 2, "code": CODE, "needs_typing_prelude": False, "result_mbpp_tests": "pass"},
    ]
    slow = {kind for kind in WRAPPERS if kind.startswith(("slow", "endless loop"))}
    samples = make_samples([PROBLEM], candidates, model=4, mutants=0, wrapped=1)
    samples = [sample for sample in samples if sample["kind"] not in slow]
    options = argparse.Namespace(workers=2, work=tmp_path)
    first = grade_ours([PROBLEM], samples, tmp_path, options)
    passed = {sample["kind"] for sample in samples if outcome(first[sample["id"]])[1]}
    right = {"reference", "model", "prints", "changes its arguments", "list for tuple", "float for int", "int for bool"}
    assert passed == right | {"off by 1e-9", "off by 1e-3", "list subclass"}  # no floats here that could be off
    statuses = [first[sample["id"]]["base"] for sample in samples if sample["kind"] == "model"]
    assert sorted(statuses) == ["error", "passed"]
    path = tmp_path / "ours.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == len(samples)
    path.write_text("".join(lines[:5]) + lines[5][:20])
    assert grade_ours([PROBLEM], samples, tmp_path, options).keys() == first.keys()
    assert path.read_text().splitlines(keepends=True)[:5] == lines[:5]
    assert len(path.read_text().splitlines()) == len(samples)


def test_causes() -> None:
    row: dict[str, Any] = {"ours": ["passed", "passed"], "evalplus_alone": ["pass", "fail"], "detail": ""}
    sample = {"task_id": "Mbpp/1", "kind": "model"}
    assert cause_of(row, sample) == "unexplained"
    assert (
        cause_of(row | {"detail": "call 1: the result is not plain data: x"}, sample) == "the result is no plain data"
    )
    assert "with that task only" in cause_of(row | {"evalplus_alone": ["pass", "pass"]}, sample)
    assert cause_of(row, sample | {"task_id": "HumanEval/32"}).startswith("HumanEval/32")


def test_the_page_has_the_stored_results() -> None:
    page = PAGE.read_text()
    for name, table in evalplus_report.tables().items():
        assert table in page, name


def test_stored_results_hold_what_was_promised() -> None:
    scores = json.loads((evalplus_report.RESULTS / "reference_scores.json").read_text())
    passed = {row["set"]: row["passed"] for row in scores["sets"]}
    wanted = {"mbpp_all": 974, "mbpp_sanitized": 427, "mbpp_plus": 378, "humaneval": 164, "humaneval_plus": 164}
    assert wanted.items() <= passed.items()
    report = json.loads((evalplus_report.RESULTS / "evalplus_agreement.json").read_text())["agreement"]
    assert sum(study["samples"] for study in report.values()) >= 1000
    assert all("unexplained" not in study["causes"] for study in report.values())
