"""The study of the workers runs, and its page shows the file's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import own_code_workers
from benchmarks.loss_step import Size
from benchmarks.tree_report import fill
from training.config import StudentConfig

PAGE = Path("docs/integrations.md")
RESULTS = Path("benchmarks/results/own_code_workers.json")


def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StudentConfig(hidden_size=16, intermediate_size=32, layers=1, heads=2)
    monkeypatch.setitem(own_code_workers.SIZES, "kata", Size(config, 400, 2, None, 2, True))
    monkeypatch.setattr(own_code_workers, "LOCK_SECONDS", 0.0)
    out, threads = tmp_path / "workers.json", torch.get_num_threads()
    try:
        own_code_workers.main(["--student", "kata", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())["students"]["kata"]
    assert [row["variant"] for row in found["steps"]][1:] == ["the step", "a thread", "a process"]
    assert all(0 < row["own_code"]["median_ms"] < row["step"]["median_ms"] for row in found["steps"])
    assert all(row["speed_up"] > 0 for row in found["lock"])


def test_the_page_shows_the_results() -> None:
    text = PAGE.read_text()
    assert fill(text, own_code_workers.tables(json.loads(RESULTS.read_text()))) == text
