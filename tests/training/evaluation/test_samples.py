"""Samples files of every format, and what is wrong with some."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from training.evaluation.samples import (
    Sample,
    by_task_id,
    extractor_of,
    find_problem,
    prefix_of,
    program_of,
    read_samples,
    survey,
)
from training.extraction import EXTRACTOR
from training.jsonl import write_jsonl

from .sets import benchmark

PROBLEMS = by_task_id(benchmark().problems)


def test_rows_of_evalplus_and_human_eval(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_jsonl(
        path,
        [
            {"task_id": "HumanEval/0", "solution": "def f(): pass", "_identifier": "HumanEval/0 (line 1 in s.jsonl)"},
            {"task_id": "HumanEval/0", "completion": "    pass"},
            {"task_id": 11, "output": "```f```", "solution": "f", "ended": False},
        ],
    )
    assert list(read_samples(path)) == [
        Sample("HumanEval/0", 0, "def f(): pass", "solution"),
        Sample("HumanEval/0", 1, "    pass", "completion"),
        Sample("11", 0, "```f```", "output", False),
    ]
    zipped = tmp_path / "s.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_samples(zipped)) == list(read_samples(path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"solution": "x"}], r"row 1: wants task_id and a text .*, got solution \(str\)"),
        ([{"task_id": "a", "code": "x"}], "row 1: wants task_id and a text"),
        ([{"task_id": "a", "solution": None}], r"solution \(NoneType\)"),
        (
            [{"task_id": "a", "solution": "x"}, {"task_id": "a", "solution": "x", "sample": 0}],
            "row 2: sample 0 of a is",
        ),
        ([{"task_id": "a", "solution": "x", "sample": -1}], "sample: got -1"),
        ([{"task_id": "a", "solution": "x", "sample": True}], "sample: got True"),
    ],
)
def test_wrong_rows(tmp_path: Path, rows: list, message: str) -> None:
    write_jsonl(tmp_path / "s.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        list(read_samples(tmp_path / "s.jsonl"))


def test_what_is_wrong_is_known_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_jsonl(path, [{"task_id": "adding/0", "solution": "x"}, {"task_id": "Adding/1", "completion": "x"}] * 2)
    found = survey(path, PROBLEMS)
    assert found.samples == {"adding/0": 2, "adding/1": 2}
    assert found.kinds == {"solution", "completion"}
    write_jsonl(path, [{"task_id": "HumanEval/0", "solution": "x"}])
    with pytest.raises(ValueError, match="task_id 'HumanEval/0' is not in adding; it has 'adding/0'"):
        survey(path, PROBLEMS)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no sample"):
        survey(path, PROBLEMS)


def test_problems_by_the_names_of_their_sources() -> None:
    mbpp = by_task_id([{"id": "mbpp/11", "task_id": 11, "set": "mbpp"}])
    assert {find_problem(mbpp, name)["id"] for name in ("11", "Mbpp/11", "mbpp/11")} == {"mbpp/11"}
    plus = by_task_id([{"id": "mbpp_plus/2", "task_id": "Mbpp/2", "set": "mbpp_plus"}])
    assert find_problem(plus, "Mbpp/2")["id"] == "mbpp_plus/2"


def test_programs_of_each_kind() -> None:
    problem = benchmark().problems[3]
    prompt = problem["prompt"]
    body = "    return x + 3\n"
    assert program_of(Sample("a", 0, "x = 1", "solution"), problem, extract=False) == ("x = 1", False)
    assert program_of(Sample("a", 0, body, "completion"), problem, extract=False) == (prompt + body, False)
    # A blank completion is no code, and not a function that returns None.
    assert program_of(Sample("a", 0, " \n", "completion"), problem, extract=False)[0].strip() == ""
    chat = f"Here:\n```python\n{prompt}{body}```\n"
    assert program_of(Sample("a", 0, chat, "output"), problem, extract=False) == (prompt + body, False)
    assert program_of(Sample("a", 0, chat, "solution"), problem, extract=True) == (prompt + body, False)
    assert program_of(Sample("a", 0, "<think>\nhm", "output"), problem, extract=False) == ("", True)
    # Cut by the limit on new tokens: in the program, before there was one, or long after it.
    for text, cut in (
        (f"```python\n{prompt}{body}", True),
        (f"{body}\nprint(add(1))\nprint(add(", False),
        (body, True),
        ("Let us see", True),
        (chat, False),
        (chat + "It adds", False),
    ):
        assert program_of(Sample("a", 0, text, "output", False), problem, extract=False)[1] == cut, text
    assert prefix_of({"code_prefix": "def f(x):\n"}) == "def f(x):\n"


def test_one_extractor_a_file() -> None:
    assert extractor_of({"solution", "completion"}, extract=False) == "none"
    assert extractor_of({"solution", "output"}, extract=True) == EXTRACTOR
    with pytest.raises(ValueError, match="use --extract for all of them"):
        extractor_of({"solution", "output"}, extract=False)


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """Bytes held while reading ten times the rows: what is kept is counts and bits."""
    import tracemalloc

    peaks = []
    for each in (200, 2000):
        with (tmp_path / "s.jsonl").open("w") as file:
            for k in range(4):
                for index in range(each):
                    row = {"task_id": f"Adding/{k}", "solution": f"def add(x): return {index}" + " " * 200}
                    file.write(json.dumps(row) + "\n")
        tracemalloc.start()
        assert survey(tmp_path / "s.jsonl", PROBLEMS).samples.total() == 4 * each
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 7200 more rows of 250 characters are 1.8 MB; their bits are 900 bytes.
    assert peaks[1] < peaks[0] + 20_000
