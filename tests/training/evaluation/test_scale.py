"""The study of scale: its check sees lost and doubled rows, and what it measures is flat at a small size too."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from benchmarks import evaluation_scale
from benchmarks.timing import WrongResult
from training.jsonl import write_jsonl


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """From the samples file and its verdicts to the results: five times the samples of every problem."""
    peaks = []
    for count in (2 * evaluation_scale.PROBLEMS, 10 * evaluation_scale.PROBLEMS):
        place = tmp_path / str(count)
        evaluation_scale.prepare(place, count)
        tracemalloc.start()
        assert evaluation_scale.grade(place, False)["samples"] == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 1312 more samples are 1 MB of text. Most of the peak is the bootstrap's, of one size for one number of problems.
    assert peaks[1] < peaks[0] + 100_000


def test_the_page_has_the_results() -> None:
    result = json.loads(Path("benchmarks/results/evaluation_scale.json").read_text())
    page = Path("docs/evaluation.md").read_text()
    assert "\n".join(evaluation_scale.table_lines(result)) in page


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
