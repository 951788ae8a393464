"""Rows with verdicts to numbers, against counts by hand."""

from __future__ import annotations

import pytest

from structloss.metrics import pass_at_k
from training.evaluation.summary import Tally, conditions_line, problems_hash


def rows(verdicts: dict[str, str]) -> list[dict]:
    """A row for each letter: p passed all, b passed the base tests alone, f neither."""
    return [
        {
            "task_id": name,
            "sample": index,
            "status": "passed" if letter == "p" else "failed",
            "base": "passed" if letter in "pb" else "failed",
            "syntax_match": {"p": 1.0, "b": 0.5, "f": None}[letter],
        }
        for name, letters in verdicts.items()
        for index, letter in enumerate(letters)
    ]


def test_rates_of_base_and_all_tests() -> None:
    summary = Tally(rows({"a": "ppb", "b": "fff", "c": "fbp"})).summary()
    assert (summary["problems"], summary["samples"], summary["n"]) == (3, 9, 3)
    assert summary["pass@1"] == pytest.approx((2 / 3 + 0 + 1 / 3) / 3)
    assert list(summary["pass@k"]) == ["1", "2"]
    expected = pass_at_k(3, [2, 0, 1], 2)
    assert summary["pass@k"]["2"] == {"value": expected.value, "low": expected.low, "high": expected.high}
    assert summary["base pass@k"]["1"]["value"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert summary["statuses"] == {"failed": 6, "passed": 3}
    # Means over the samples of a problem, then over problems where one is defined.
    assert summary["syntax_match"]["mean"] == pytest.approx((2.5 / 3 + 0.75) / 2)
    assert summary["syntax_match"]["n"] == 2
    assert summary["tsed"] == {"mean": None, "n": 0}


def test_different_numbers_of_samples() -> None:
    summary = Tally(rows({"a": "pf", "b": "p"})).summary()
    assert (summary["n"], list(summary["pass@k"])) == ([1, 2], ["1"])
    assert summary["pass@1"] == pytest.approx(0.75)


def test_no_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="rows: got none"):
        Tally().summary()


def test_a_changed_test_changes_the_hash() -> None:
    problem = {"id": "p", "prompt": "Add.", "tests": [{"args": [1], "expected": 2}]}
    assert problems_hash([problem]) == problems_hash([dict(problem)])
    assert problems_hash([problem]) != problems_hash([problem | {"tests": [{"args": [1], "expected": 3}]}])
    assert len(problems_hash([])) == 16


def test_what_is_not_known_is_said() -> None:
    line = conditions_line({"set": "humaneval", "version": "2021", "isolation": {"network": True, "files": False}})
    assert "prompt not known" in line
    assert "isolation without files" in line
