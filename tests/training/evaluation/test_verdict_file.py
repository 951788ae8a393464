"""Grading into a file: right verdicts, and none lost or doubled whenever the process dies."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.sandboxes import sandbox_or_skip
from training.config import ConfigError
from training.evaluation import verdict_file
from training.evaluation.compare import find_evaluations
from training.evaluation.summary import CONDITIONS
from training.evaluation.verdict_file import Limits, grade_file
from training.jsonl import read_jsonl, write_jsonl
from training.runs import read_json

from .sets import benchmark, sample_rows

QUICK = Limits(workers=2, memory_mb=512)


@pytest.fixture
def walls() -> None:
    with sandbox_or_skip(workers=1):
        pass


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "s.jsonl", [row for row, _ in sample_rows()])
    return tmp_path / "s.jsonl"


def graded(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return grade_file(path, benchmark(), out, limits=QUICK, **options)


@pytest.mark.usefixtures("walls")
def test_verdicts_results_and_what_stands_beside_them(samples: Path, tmp_path: Path) -> None:
    results = graded(samples, tmp_path / "s.adding", generation={"prompt": "code-1", "temperature": 0.8})
    verdicts = list(read_jsonl(tmp_path / "s.adding" / "verdicts.jsonl"))
    expected = sample_rows()
    assert [row["status"] for row in verdicts] == [status for _, status in expected]
    assert [row["task_id"] for row in verdicts] == [row["task_id"].lower() for row, _ in expected]
    assert [row["sample"] for row in verdicts] == [0, 1, 2, 3] * 4
    assert (results["pass@1"], results["pass@k"]["2"]["value"]) == (0.25, 0.5)
    assert {name: results[name] for name in ("set", "version", "prompt", "extractor", "n", "temperature")} == {
        "set": "adding", "version": "1", "prompt": "code-1", "extractor": "none", "n": 4, "temperature": 0.8,
    }  # fmt: skip
    assert results.keys() >= {*CONDITIONS, "n", "problems"}
    assert results["isolation"]
    assert results == read_json(tmp_path / "s.adding" / "results.json")
    assert verdicts[0]["syntax_match"] == verdicts[0]["tsed"] == 1.0
    (evaluation,) = find_evaluations(samples)
    assert evaluation.results == results
    # Graded again: nothing runs, nothing changes.
    before = (tmp_path / "s.adding" / "verdicts.jsonl").read_bytes()
    assert graded(samples, tmp_path / "s.adding", generation={"prompt": "code-1", "temperature": 0.8}) == results
    assert (tmp_path / "s.adding" / "verdicts.jsonl").read_bytes() == before


@pytest.mark.usefixtures("walls")
def test_a_cut_answer_is_truncated_unless_it_passes(tmp_path: Path) -> None:
    outputs = ["```python\ndef add(x):\n    return x + 1", "```python\ndef add(x):\n    return (x", "<think> so", "no"]
    write_jsonl(tmp_path / "s.jsonl", [{"task_id": "Adding/1", "output": text} for text in outputs])
    graded(tmp_path / "s.jsonl", tmp_path / "out", partial=True)
    statuses = [row["status"] for row in read_jsonl(tmp_path / "out" / "verdicts.jsonl")]
    assert statuses == ["passed", "truncated", "truncated", "no_code"]


@pytest.mark.usefixtures("walls")
def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The process is killed again and again, at random moments of its work, until one gets to the end."""
    rows = sample_rows(count=4, each=50)
    write_jsonl(tmp_path / "s.jsonl", [row for row, _ in rows])
    out, verdicts = tmp_path / "out", tmp_path / "out" / "verdicts.jsonl"
    draw = random.Random(0)
    fork = multiprocessing.get_context("fork")
    lengths = []

    def written() -> int:
        return verdicts.stat().st_size if verdicts.exists() else 0

    for _ in range(40):
        process = fork.Process(target=graded, args=(tmp_path / "s.jsonl", out), kwargs={"structure": False})
        process.start()
        # Rows come in bursts, a chunk of the grader's at a time; some kills are to fall between them.
        goal = written() + draw.randrange(6000)
        while process.is_alive() and written() < goal:
            time.sleep(0.0005)
        if draw.random() < 0.4:
            time.sleep(draw.random() * 0.02)
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        lengths.append(verdicts.read_bytes().count(b"\n") if verdicts.exists() else 0)
        if (out / "results.json").is_file():
            break
    assert lengths == sorted(lengths)
    assert sum(0 < length < len(rows) for length in lengths) >= 2, "it was killed in the midst of its work"
    graded(tmp_path / "s.jsonl", out, structure=False)
    found = list(read_jsonl(verdicts))
    assert [(row["task_id"], row["sample"]) for row in found] == [
        (f"adding/{k}", i) for k in range(4) for i in range(50)
    ]
    assert [row["status"] for row in found] == [status for _, status in rows]
    whole = graded(tmp_path / "s.jsonl", tmp_path / "whole", structure=False)
    assert read_json(out / "results.json") == whole


@pytest.mark.usefixtures("walls")
def test_a_row_cut_at_any_byte_is_written_again(samples: Path, tmp_path: Path) -> None:
    graded(samples, tmp_path / "whole")
    whole = (tmp_path / "whole" / "verdicts.jsonl").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    seconds = b'"seconds"'
    for cut in (0, 1, last - 1, last, last + 1, (last + len(whole)) // 2, len(whole) - 1):
        out = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", out)
        (out / "verdicts.jsonl").write_bytes(whole[:cut])
        (out / "results.json").unlink()
        graded(samples, out)
        again = (out / "verdicts.jsonl").read_bytes()
        kept = whole[: whole.rfind(b"\n", 0, cut) + 1]
        assert again.startswith(kept)
        # All but the time that each took.
        assert [r.partition(seconds)[0] for r in again.split(b"\n")] == [
            r.partition(seconds)[0] for r in whole.split(b"\n")
        ]


@pytest.mark.usefixtures("walls")
def test_a_samples_file_may_grow_and_not_change(samples: Path, tmp_path: Path) -> None:
    rows = [row for row, _ in sample_rows()]
    graded(samples, tmp_path / "out")
    write_jsonl(samples, [*rows, {"task_id": "Adding/0", "completion": "    return x\n"}])
    assert graded(samples, tmp_path / "out")["samples"] == 17
    write_jsonl(samples, [{"task_id": "Adding/0", "completion": "    return 1\n"}, *rows[1:], *rows[:1]])
    with pytest.raises(ConfigError, match="row 1: the verdict on sample 0 of adding/0 is not on what .* holds there"):
        graded(samples, tmp_path / "out")
    write_jsonl(samples, rows)
    with pytest.raises(ConfigError, match="row 17"):
        graded(samples, tmp_path / "out")


@pytest.mark.usefixtures("walls")
def test_other_settings_and_missing_problems_are_refused(samples: Path, tmp_path: Path) -> None:
    graded(samples, tmp_path / "out", structure=False)
    with pytest.raises(ConfigError, match=r"other values of extractor \(extractor was 'none', now 'structloss-"):
        graded(samples, tmp_path / "out", structure=False, extract=True)
    write_jsonl(samples, [row for row, _ in sample_rows(count=3)])
    with pytest.raises(ConfigError, match=r"1 of 4 problems have no sample \(adding/3, \.\.\.\)"):
        graded(samples, tmp_path / "other")
    results = graded(samples, tmp_path / "other", partial=True)
    assert (results["problems"], results["problems_without_samples"]) == (3, 1)


def test_two_processes_do_not_grade_into_one_folder(samples: Path, tmp_path: Path) -> None:
    with (
        verdict_file.held_folder(tmp_path / "out", "settings.json", {}),
        pytest.raises(ConfigError, match="another process is working on"),
    ):
        graded(samples, tmp_path / "out")


def test_faults_of_the_sandbox() -> None:
    """A fault counts once another row shows that the sandbox works; many in a row are the machine's and count not."""

    def rows(statuses: str) -> Any:
        names = {"p": "passed", "s": "sandbox_error"}
        return ({"task_id": "a", "status": names[letter], "detail": "d"} for letter in statuses)

    def through(statuses: str) -> int:
        return len(list(verdict_file._held_faults(rows(statuses))))

    assert through("psspsss") == 7
    given = verdict_file._held_faults(rows("pp" + "s" * 9 + "p"))
    assert [next(given)["status"], next(given)["status"]] == ["passed", "passed"]
    with pytest.raises(RuntimeError, match="the sandbox failed on 8 samples in a row"):
        next(given)
