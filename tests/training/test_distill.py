"""The command line from end to end, with a run far too small to learn anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main
from training.evaluation.summary import CONDITIONS
from training.jsonl import read_jsonl
from training.report import compare_runs, rows_of, table_lines
from training.runs import RunFolder

from .sandboxes import sandbox_or_skip

SMALL = [
    "data.kata.num_train=40",
    "data.kata.num_validation=2",
    "data.kata.num_test=6",
    "student.hidden_size=16",
    "student.layers=1",
    "student.vocab_size=400",
    "train.tokens=6000",
    "train.log_every=5",
    "evaluate.max_new_tokens=12",
]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments], capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    with sandbox_or_skip(workers=1):
        pass
    root = tmp_path_factory.mktemp("runs") / "run"
    done = cli("distill", "training/recipes/kata_smoke.yaml", "--run", str(root), *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    return root, done.stdout


def test_a_run_leaves_a_table_and_a_page(finished: tuple[Path, str]) -> None:
    root, console = finished
    rows = json.loads((root / "results.json").read_text())
    assert {(row["arm"], row["split"]) for row in rows} == {
        (arm, split)
        for arm in ("untrained", "nearest", "cross_entropy", "structure_aware")
        for split in ("test_unseen", "test_composition")
    }
    for row in rows:
        assert row["problems"] == 6 == sum(row["statuses"].values())
        assert row["n"] == 1
        assert row["prompt"] == ("none" if row["arm"] == "nearest" else "think-1")
        assert row["extractor"] == ("copy" if row["arm"] == "nearest" else "after-think-1")
        assert (row["set"], row["temperature"]) == (f"kata/{row['split']}", 0.0)
        assert row.keys() >= {*CONDITIONS, "n", "problems"}
        assert row["isolation"]
        assert 0 <= row["low"] <= row["pass@1"] <= row["high"] <= 1
    assert "Conditions of each number" in (root / "report.html").read_text()
    tokens = {row["tokens"] for row in rows if row["arm"] in ("cross_entropy", "structure_aware")}
    assert len(tokens) == 1, "the arms saw the same number of tokens"
    assert "structure-aware loss" in console
    page = (root / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "copy of the nearest training solution" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", ""), "the page needs nothing from outside"


def test_every_sample_was_judged(finished: tuple[Path, str]) -> None:
    root, _ = finished
    problems = {row["id"]: row for row in read_jsonl(root / "data" / "problems.jsonl")}
    samples = list(read_jsonl(root / "arms" / "structure_aware" / "samples-test_unseen.jsonl"))
    assert [problems[sample["id"]]["split"] for sample in samples] == ["test_unseen"] * 6
    assert all("status" in sample and "syntax_match" in sample for sample in samples)
    verified = list(read_jsonl(root / "verified" / "traces.jsonl"))
    assert all(row["passed"] for row in verified), "the scripted teacher is right"


def test_two_arms_are_compared(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = finished
    arms = [str(root / "arms" / arm) for arm in ("cross_entropy", "structure_aware")]
    assert main(["evaluate", "--compare", *arms]) == 0
    table = capsys.readouterr().out
    for split in ("test_unseen", "test_composition"):
        assert f"== A cross_entropy {split}   B structure_aware {split}" in table
    assert "McNemar, only A" in table
    assert main(["evaluate", "--compare", arms[0], str(root / "arms" / "nearest")]) == 2
    assert "extractor differs" in capsys.readouterr().err


def test_a_finished_run_is_not_done_again(finished: tuple[Path, str]) -> None:
    root, console = finished
    before = {path: path.stat().st_mtime_ns for path in root.glob("arms/*/samples-*.jsonl")}
    again = cli("distill", "training/recipes/kata_smoke.yaml", "--run", str(root), *SMALL)
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in root.glob("arms/*/samples-*.jsonl")} == before
    table = [line for line in console.splitlines() if "test_unseen" in line and "[" in line]
    assert table
    assert all(line in again.stdout for line in table)


def test_several_runs_make_one_table(finished: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = finished
    run = RunFolder.existing(root)
    out = tmp_path / "seeds.json"
    rows = compare_runs([run, run], out)
    assert len(rows) == 2 * len(rows_of(*run))
    assert json.loads(out.read_text())["rows"] == rows
    assert out.with_suffix(".html").is_file()
    assert len(table_lines(rows)) == len(rows) + 2


def test_other_values_in_the_same_folder_are_refused(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = finished
    assert main(["distill", "training/recipes/kata_smoke.yaml", "--run", str(root), *SMALL, "seed=4"]) == 2
    assert "other values of seed (seed was 0, now 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "none.yaml"], "cannot read the recipe"),
        (["distill", "training/recipes/kata.yaml", "train.tokens=many"], "train.tokens"),
        (["train", "training/recipes/kata.yaml", "--arms", "x"], "unrecognized arguments"),
        (["report", "nowhere"], "is no run folder"),
        (["fly"], "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as refused:  # argparse
        code = int(refused.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "distill" in text
