"""`python -m training evaluate` without a recipe, from the words of the command line to its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.training.benchmarks.rows import humaneval_source
from tests.training.sandboxes import sandbox_or_skip
from training.__main__ import main
from training.jsonl import write_jsonl
from training.runs import read_json

from .model_server import running

BODIES = [f"    return x + {k}\n" for k in range(164)]


@pytest.fixture
def named(tmp_path: Path) -> list[str]:
    """A file of HumanEval's form and size; the words that name its first five problems."""
    rows = [
        humaneval_source(
            k,
            f'def add(x):\n    """Add {k}."""\n',
            body,
            f"def check(candidate):\n    assert candidate(2) == {2 + k}\n",
        )
        for k, body in enumerate(BODIES)
    ]
    write_jsonl(tmp_path / "humaneval.jsonl", rows)
    return [
        "--benchmark",
        "humaneval",
        "--data",
        str(tmp_path / "humaneval.jsonl"),
        "--limit",
        "5",
        "--memory-mb",
        "512",
    ]


@pytest.fixture
def walls() -> None:
    with sandbox_or_skip(workers=1):
        pass


@pytest.mark.usefixtures("walls")
def test_samples_are_graded_and_compared(tmp_path: Path, named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    right = [{"task_id": f"HumanEval/{k}", "completion": body} for k, body in enumerate(BODIES[:5])]
    write_jsonl(tmp_path / "right.jsonl", right)
    wrong = [row | {"completion": "    return None\n"} for row in right]
    write_jsonl(tmp_path / "some.jsonl", [right[0], *wrong[1:]])
    for name in ("right", "some"):
        assert main(["evaluate", "--samples", str(tmp_path / f"{name}.jsonl"), *named, "--temperature", "0"]) == 0
    console = capsys.readouterr().out
    assert re.search(r"pass@1 +100\.0 \[56\.6, 100\.0\]", console)
    assert re.search(r"pass@1 +20\.0 ", console)
    assert "problems 5, n 1, temperature 0.0, max new tokens not known, prompt not known, extractor none" in console
    assert "isolation" in console
    assert "isolation not known" not in console
    assert read_json(tmp_path / "some.humaneval" / "results.json")["statuses"] == {"failed": 4, "passed": 1}

    assert main(["evaluate", "--compare", str(tmp_path / "right.jsonl"), str(tmp_path / "some.humaneval")]) == 0
    table = capsys.readouterr().out
    assert re.search(r"pass@1 .* -80\.0 \[.*\] +0\.1250 +McNemar, only A 4, only B 0 +5", table)
    assert "syntax_match" in table


@pytest.mark.usefixtures("walls")
def test_a_model_behind_a_server_is_asked_and_graded(
    tmp_path: Path, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(prompt: str, seed: int) -> str:
        (number,) = re.findall(r"Add (\d+)", prompt)
        return f"Sure!\n```python\ndef add(x):\n{BODIES[int(number)]}```\nDone."

    words = ["evaluate", "--model", "m", *named, "--out", str(tmp_path / "out"), "--n", "2", "--temperature", "0.8"]
    with running(answer) as model:
        assert main([*words, "--server", model.url]) == 0
    assert re.search(r"pass@2 +100\.0", capsys.readouterr().out)
    results = read_json(tmp_path / "out" / "results.json")
    assert (results["prompt"], results["temperature"], results["n"], results["model"]) == ("chat-1", 0.8, 2, "m")
    assert results["extractor"] == "structloss-2"
    assert results["set"] == "humaneval"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "s.jsonl"], "--samples wants --benchmark NAME"),
        (["--samples", "s.jsonl", "--benchmark", "kata"], "--samples: no such file: s.jsonl"),
        (["--samples", "s.jsonl", "--model", "m"], "give one of --compare, --samples, --model"),
        (["--server", "http://x/v1"], "give one of --compare, --samples, --model"),
        (["recipe.yaml", "--compare", "a", "b"], "--compare takes no recipe, got recipe.yaml"),
        (["--model", "m", "--benchmark", "kata"], "--model wants --out FOLDER"),
        (["--model", "m", "--benchmark", "kata", "--n", "3", "--out", "o"], "3 greedy samples are all the same"),
        (["--compare", "a", "b"], "a: wants a run folder, an arm's folder or graded samples"),
        ([], "evaluate wants a recipe, or one of --compare, --samples, --model"),
    ],
)
def test_words_that_do_not_fit(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
