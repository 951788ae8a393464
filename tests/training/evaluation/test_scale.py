"""The study of scale at a tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import evaluation_scale
from benchmarks.timing import WrongResult
from tests.training.sandboxes import sandbox_or_skip
from training.jsonl import write_jsonl


def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sandbox_or_skip(workers=1):
        pass
    words = ["--samples", "3000", "--programs", "24", "--kills", "0", "--out", str(tmp_path / "scale.json")]
    monkeypatch.setattr(sys, "argv", ["evaluation_scale", *words])
    assert evaluation_scale.main() == 0
    result = json.loads((tmp_path / "scale.json").read_text())
    assert [row["samples"] for row in result["reading"]] == [30, 300, 3000]
    small, *_, large = (row["peak_mb"] for row in result["reading"])
    # 2970 more samples are 2.3 MB of text, read twice; the bootstrap over more problems takes some megabytes.
    assert large < small + 20
    assert result["killed"]["lost"] == 0


def test_a_lost_or_doubled_row_is_seen(tmp_path: Path) -> None:
    each = -(-300 // evaluation_scale.PROBLEMS)
    right = [
        {"task_id": f"adding/{n // each}", "sample": n % each, "status": "failed" if n % each % 3 == 2 else "passed"}
        for n in range(300)
    ]
    write_jsonl(tmp_path / "verdicts.jsonl", right)
    evaluation_scale.check(tmp_path, 300)
    for wrong in (right[1:], [*right, right[-1]], [right[1], right[0], *right[2:]]):
        write_jsonl(tmp_path / "verdicts.jsonl", wrong)
        with pytest.raises(WrongResult):
            evaluation_scale.check(tmp_path, 300)
