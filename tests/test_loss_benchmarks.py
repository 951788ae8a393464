"""The study of a training step runs, its page shows the file's tables, and the pictures come from the library."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import loss_pictures, loss_step
from benchmarks.tree_report import fill
from training.config import StudentConfig

PAGE = Path("docs/loss.md")
RESULTS = Path("benchmarks/results/loss_step.json")


def test_the_study_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    config = StudentConfig(hidden_size=16, intermediate_size=32, layers=1, heads=2)
    monkeypatch.setitem(loss_step.STUDENTS, "kata", loss_step.Size(config, 400, 3, None, 2, True))
    monkeypatch.setitem(loss_step.STUDENTS, "large", loss_step.Size(config, 600, 2, 96, 2, False))
    out, threads = tmp_path / "loss_step.json", torch.get_num_threads()
    try:
        for student in ("kata", "large"):
            loss_step.main(["--student", student, "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert set(report) == {"kata", "large"}
    compared = [[row["variant"] for row in report[student]["losses"]][:3] for student in ("kata", "large")]
    assert compared == [["trunk", "eager cross-entropy", loss_step.FUSED], []]
    for found in report.values():
        assert sum(part["share"] for part in found["parts"]) == pytest.approx(1.0)
        assert all(part["median_ms"] > 0 for part in found["parts"])
    assert "gap: align the trees" in capsys.readouterr().out
    assert "1 M parameters" not in loss_pictures.step_picture(report)
    page = tmp_path / "loss.md"
    page.write_text(PAGE.read_text())
    loss_step.main(["--results", str(tmp_path), "--write-docs", str(page)])
    assert "structure-aware, gap + alignment" in page.read_text()


def test_the_page_shows_the_results() -> None:
    text = PAGE.read_text()
    assert fill(text, loss_step.tables(json.loads(RESULTS.read_text()))) == text
    for image in PAGE.parent.glob("images/loss_*.svg"):
        assert f"images/{image.name}" in text


def test_the_pictures_say_what_the_library_computes() -> None:
    gap = labels(loss_pictures.gap_picture(loss_pictures.STUDENT, loss_pictures.TEACHER))
    assert {"if", "total", "gap 1"} <= gap
    total = sum(chance for _, chance in loss_pictures.mappings())
    assert any(f"sum {total:.4f} = exp(-TED_soft)" in label for label in labels(loss_pictures.mappings_picture()))
    assert {"pass", "fail", "return max(xs)"} <= labels(loss_pictures.pathway_picture(loss_pictures.CANDIDATES))
    assert {"linear", "cosine", "gap 0.5"} <= labels(loss_pictures.weight_picture())


def labels(picture: str) -> set[str]:
    return {element.text or "" for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}
