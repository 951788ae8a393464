"""The studies of the LM head run at tiny sizes and print no number for a wrong result; the page has their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import lm_head, lm_head_device, lm_head_report, lm_head_variants
from structloss.lm_head import linear_cross_entropy

PAGE = Path("docs/lm_head.md")
RESULTS = Path("benchmarks/results")


@pytest.fixture(autouse=True)
def _same_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_study_and_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lm_head.json"
    assert lm_head.main(["--quick", "--study", "shapes", "sweep", "--out", str(out)]) == 0
    assert lm_head.main(["--quick", "--study", "options", "accuracy", "topk", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(lm_head.STUDIES) <= set(report)
    rows = report["shapes"]["rows"]
    assert {"structloss", "structloss, torch", "eager", "eager, x[keep]"} <= {row["variant"] for row in rows}
    assert all(row["p25_ms"] <= row["median_ms"] <= row["p75_ms"] for row in rows)
    assert all(row["times_the_floor"] == 1 for row in rows if row["variant"].startswith("floor"))
    printed = capsys.readouterr().out
    assert all(table in printed for table in lm_head_report.tables(report).values())

    again = ["--quick", "--study", "sweep", "--scenario", "2", "--rounds", "1", "--out", str(out)]
    assert lm_head.main(again) == 0
    before, after = report["sweep"]["rows"], json.loads(out.read_text())["sweep"]["rows"]
    assert [row["variant"] for row in before] == [row["variant"] for row in after]
    for old, new in zip(before, after, strict=True):
        assert (old == new) == ((old["frozen"], old["masked"]) != (False, 0.0))

    assert lm_head.main(["--results", str(tmp_path), "--plot", str(tmp_path)]) == 0
    drawn = ElementTree.parse(tmp_path / "lm_head_masked.svg").getroot()
    labels = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"structloss", "eager", "milliseconds, frozen head", "peak memory, MiB, trained head"} <= labels


def test_a_wrong_variant_gets_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def half(*args: Any, **options: Any) -> Any:
        return linear_cross_entropy(*args, **options) * 0.5

    monkeypatch.setattr(lm_head_variants, "linear_cross_entropy", half)
    for study in (lm_head, lm_head_device):
        out = tmp_path / f"{study.__name__}.json"
        arguments = ["--quick", "--out", str(out)]
        arguments += ["--study", "shapes"] if study is lm_head else ["--device", "cpu"]
        assert study.main(arguments) == 1
        report = json.loads(out.read_text())
        rows = report["shapes"]["rows"] if study is lm_head else report["rows"]
        ours = [row for row in rows if row["variant"].startswith("structloss")]
        assert ours
        assert all(row["refused"] == "wrong result" and "median_ms" not in row for row in ours)
        assert all("median_ms" in row for row in rows if row["variant"] == "eager")


def test_the_gpu_study_lists_what_is_absent_and_what_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no kernel for this card\nand more")

    found = {"json": lambda: {"": fails}, "no_such_module": lambda: {"": fails}}
    monkeypatch.setattr(lm_head_device, "PEERS", {"json": "fails", "no_such_module": "absent"})
    monkeypatch.setattr(lm_head_device, "_PEER_CALLS", found)
    out = tmp_path / "device.json"
    assert lm_head_device.main(["--quick", "--device", "cpu", "--masked", "0.5", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    reasons = {row["variant"]: row["refused"] for row in report["rows"] if "refused" in row}
    assert reasons["absent"] == "not installed (pip install absent)"
    assert reasons["fails"] == "RuntimeError: no kernel for this card"
    assert {row["variant"] for row in report["row_pass"]} == {"floor: copy", "row pass, torch"}
    assert "no time: RuntimeError" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_faulty_row_pass_gets_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str) -> None:
    class Faulty(lm_head_device.TorchRowPass):
        def __call__(self, logits: torch.Tensor, *rest: Any) -> None:
            if fault == "raises":
                raise RuntimeError("no kernel image")
            super().__call__(logits, *rest)
            logits[:, 0] += 1.0

    monkeypatch.setattr(lm_head_device, "TorchRowPass", Faulty)
    out = tmp_path / "device.json"
    arguments = ["--quick", "--device", "cpu", "--masked", "0.5", "--only", "eager", "structloss, t", "--out", str(out)]
    assert lm_head_device.main(arguments) == (fault == "wrong")
    report = json.loads(out.read_text())
    floor, row_pass = report["row_pass"]
    assert "gb_per_s" in floor
    assert "gb_per_s" not in row_pass
    assert row_pass["refused"] == {"wrong": "wrong result", "raises": "RuntimeError: no kernel image"}[fault]
    timed = {row["variant"] for row in report["rows"] if "median_ms" in row}
    assert timed == {"floor: 2 GEMMs", "floor: 3 GEMMs", "structloss, torch", "eager", "eager, x[keep]"}


def test_a_limit_on_time_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stops(options: Any, masked: float, *, frozen: bool) -> Any:
        if not frozen:
            raise KeyboardInterrupt
        return compare(options, masked, frozen=frozen)

    compare = lm_head_device.compare
    monkeypatch.setattr(lm_head_device, "compare", stops)
    out = tmp_path / "device.json"
    with pytest.raises(KeyboardInterrupt):
        lm_head_device.main(["--quick", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert rows
    assert all(row["frozen"] for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_study_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert lm_head_device.main(["--quick"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_only_wants_a_call_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lm_head_device.main(["--quick", "--device", "cpu", "--only", "ligr"])
    assert "--only wants the beginning of a name" in capsys.readouterr().err


def test_the_page_shows_what_was_measured() -> None:
    report = json.loads((RESULTS / "lm_head.json").read_text())
    for name, table in lm_head_report.tables(report).items():
        page = Path("docs/topk_kl.md") if name == "topk" else PAGE
        text = page.read_text()
        assert f"<!-- begin {name}:" in text
        assert table in text, f"{name}: renew it with python -m benchmarks.lm_head --write-docs {page}"
    picture = lm_head_report.by_masked_share(report["sweep"]["rows"])
    assert Path("docs/images/lm_head_masked.svg").read_text() == picture
