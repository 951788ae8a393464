"""Comparing two evaluations: what is refused, and the numbers against the functions behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from structloss.metrics import mcnemar_exact, paired_bootstrap
from training.config import ConfigError
from training.evaluation.compare import compare, comparison_lines, find_evaluations, pairs
from training.evaluation.summary import Tally
from training.jsonl import write_jsonl
from training.runs import write_json

from .test_summary import rows

CONDITIONS = {
    "set": "humaneval",
    "version": "2021",
    "problems_sha256": "abc",
    "prompt": "code-1",
    "extractor": "structloss-2",
    "temperature": 0.8,
    "max_new_tokens": 512,
    "isolation": {"network": True},
}


def graded(folder: Path, verdicts: dict[str, str], *, base: bool = True, **changed: Any) -> Path:
    found = [row if base else {k: v for k, v in row.items() if k != "base"} for row in rows(verdicts)]
    write_jsonl(folder / "verdicts.jsonl", found)
    write_json(folder / "results.json", Tally(found).summary() | CONDITIONS | changed)
    return folder


def only(path: Path) -> Any:
    (evaluation,) = find_evaluations(path)
    return evaluation


A = {"a": "pp", "b": "ff", "c": "pf", "d": "bf", "e": "pb"}
B = {"a": "pp", "b": "pf", "c": "pp", "d": "bb", "e": "fb"}


def test_numbers_are_those_of_the_tests_behind_them(tmp_path: Path) -> None:
    a, b = only(graded(tmp_path / "a", A)), only(graded(tmp_path / "b", B))
    table = {row["metric"]: row for row in compare(a, b)}
    assert list(table) == ["pass@1", "base pass@1", "pass@2", "base pass@2", "syntax_match"]
    expected = paired_bootstrap([1, 0, 0.5, 0, 0.5], [1, 0.5, 1, 0, 0])
    row = table["pass@1"]
    assert (row["value"], row["low"], row["high"], row["p"]) == (
        expected.value, expected.low, expected.high, expected.p,
    )  # fmt: skip
    assert (row["a"]["value"], row["b"]["value"], row["test"], row["problems"]) == (0.4, 0.5, "bootstrap", 5)
    # Problem b has no sample with a defined syntax match in A.
    assert table["syntax_match"]["problems"] == 4
    text = "\n".join(comparison_lines(a, b, list(table.values())))
    assert "pass@1" in text
    assert "+10.0 [" in text
    assert "extractor structloss-2" in text


def test_one_sample_a_problem_is_tested_with_mcnemar(tmp_path: Path) -> None:
    verdicts_a, verdicts_b = "pffffffp", "fpppppfp"
    a = only(graded(tmp_path / "a", dict(zip("abcdefgh", verdicts_a, strict=True)), base=False))
    b = only(graded(tmp_path / "b", dict(zip("abcdefgh", verdicts_b, strict=True)), base=False))
    (row, *_) = compare(a, b)
    expected = mcnemar_exact([c == "p" for c in verdicts_a], [c == "p" for c in verdicts_b])
    assert (row["test"], row["only_a"], row["only_b"], row["p"]) == ("McNemar", 1, 5, expected.p)
    assert row["p"] == pytest.approx(2 * (1 + 6) / 64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"set": "mbpp"}, "set differs, the benchmark: 'humaneval' in .*, 'mbpp' in"),
        ({"version": "v0.1.9"}, "version differs"),
        ({"problems_sha256": "other"}, "problems_sha256 differs"),
        ({"extractor": "structloss-1"}, "extractor differs, how programs are taken out of answers"),
        ({"n": 3}, "n differs, samples a problem: 2 in .*, 3 in"),
    ],
)
def test_what_was_not_measured_alike_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    a, b = only(graded(tmp_path / "a", A)), only(graded(tmp_path / "b", B, **changed))
    with pytest.raises(ConfigError, match=message):
        compare(a, b)


def test_other_problems_are_refused(tmp_path: Path) -> None:
    a, b = only(graded(tmp_path / "a", A)), only(graded(tmp_path / "b", {**B, "f": "pp"}))
    with pytest.raises(ConfigError, match=r"the problems differ, or their numbers of samples: f \(of 1\)"):
        compare(a, b)


def test_another_prompt_is_compared_and_said(tmp_path: Path) -> None:
    a, b = only(graded(tmp_path / "a", A)), only(graded(tmp_path / "b", B, prompt="chat-1"))
    assert "note: prompt differs: 'code-1' and 'chat-1'" in comparison_lines(a, b, compare(a, b))


def test_folders_are_found_by_samples_files_runs_and_arms(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("")
    with pytest.raises(ConfigError, match="is not graded yet"):
        find_evaluations(tmp_path / "s.jsonl")
    graded(tmp_path / "s.humaneval", A)
    assert only(tmp_path / "s.jsonl").rows == tmp_path / "s.humaneval" / "verdicts.jsonl"
    # Samples that were drawn here lie in the folder of their verdicts.
    (tmp_path / "s.humaneval" / "samples.jsonl").write_text("")
    assert only(tmp_path / "s.humaneval" / "samples.jsonl").rows == tmp_path / "s.humaneval" / "verdicts.jsonl"
    graded(tmp_path / "s.mbpp", A)
    with pytest.raises(ConfigError, match="is graded in 2 folders"):
        find_evaluations(tmp_path / "s.jsonl")

    run = tmp_path / "run"
    for arm in ("one", "two"):
        write_jsonl(run / "arms" / arm / "samples-test.jsonl", rows(A))
        write_json(run / "arms" / arm / "results.json", {"test": Tally(rows(A)).summary() | CONDITIONS})
    write_json(run / "results.json", [])
    (run / "config.yaml").write_text("")
    assert [(e.name, e.split) for e in find_evaluations(run)] == [("one", "test"), ("two", "test")]
    assert only(run / "arms" / "two").split == "test"
    both = [(a.name, b.name) for a, b in pairs(find_evaluations(run), find_evaluations(run))]
    assert both == [("one", "one"), ("two", "two")]
    arms = [(a.name, b.name) for a, b in pairs([only(run / "arms" / "one")], [only(run / "arms" / "two")])]
    assert arms == [("one", "two")]
    with pytest.raises(ConfigError, match="Name one arm on each side"):
        list(pairs(find_evaluations(run), find_evaluations(tmp_path / "s.mbpp")))
    with pytest.raises(ConfigError, match=r"holds no results\.json"):
        find_evaluations(tmp_path)
