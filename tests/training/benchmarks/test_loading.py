"""Benchmarks by name: sizes, what a row holds, decoded inputs, clear errors."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.benchmarks.rows import data_folder, humaneval_source, mbpp_plus_source
from training import plain_data
from training.benchmarks import NAMES, load_benchmark
from training.benchmarks.humaneval import plain_asserts, problem_row
from training.benchmarks.mbpp import sanitized_row
from training.benchmarks.plus import mbpp_plus_row
from training.jsonl import read_jsonl

FILES = (
    "mbpp/mbpp.jsonl",
    "mbpp/sanitized-mbpp.json",
    "mbppplus/MbppPlus.jsonl.gz",
    "humaneval/HumanEval.jsonl.gz",
    "humanevalplus/HumanEvalPlus.jsonl.gz",
)


def test_every_set_has_its_size_and_whole_rows() -> None:
    folder = data_folder(*FILES)
    sizes = {"mbpp": 500, "mbpp_all": 974, "mbpp_sanitized": 427, "mbpp_plus": 378, "humaneval": 164}
    wanted = {"id", "prompt", "code_prefix", "entry_point", "tests", "split", "family", "shape", "reference"}
    for name in set(NAMES) - {"kata"}:
        benchmark = load_benchmark(name, folder)
        assert len(benchmark.problems) == sizes.get(name, 164)
        assert len({problem["id"] for problem in benchmark.problems}) == len(benchmark.problems)
        for problem in benchmark.problems:
            assert wanted | {"set", "version", "task_id"} <= problem.keys()
            assert problem["entry_point"] in problem["reference"]
            assert (problem["set"], problem["version"]) == (name, benchmark.version)
    assert [problem["id"] for problem in load_benchmark("mbpp", folder).problems][::499] == ["mbpp/11", "mbpp/510"]
    json.dumps(load_benchmark("mbpp_plus", folder).problems)


def test_kata_needs_no_files() -> None:
    benchmark = load_benchmark("kata")
    assert {problem["split"] for problem in benchmark.problems} == {"test_unseen", "test_composition"}
    assert all(problem["set"] == "kata" for problem in benchmark.problems)


def test_errors_say_what_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="name must be one of mbpp, .*kata, got 'mpbb'"):
        load_benchmark("mpbb")
    with pytest.raises(FileNotFoundError, match="humaneval wants the file .*HumanEval.jsonl.gz"):
        load_benchmark("humaneval", tmp_path)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"task_id": "HumanEval/0"}\n')
    with pytest.raises(ValueError, match="a row of .*wrong.jsonl has no 'entry_point'"):
        load_benchmark("humaneval", wrong)
    short = tmp_path / "short.jsonl"
    row = humaneval_source(2, "def f(x):\n", "    return x\n", "def check(candidate):\n    assert candidate(1) == 1\n")
    short.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="humaneval 2021 has 164 problems, .*short.jsonl holds 1"):
        load_benchmark("humaneval", short)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install evalplus.*mbppplus/MbppPlus.jsonl.gz"):
        load_benchmark("mbpp_plus")


@pytest.mark.parametrize(
    ("number", "given", "wanted"),
    [
        (1, [[1, [2]]], [[1, [2]]]),
        (2, [[1, 2], [3]], [(1, 2), (3,)]),
        (63, [[[1, 2], [3, 4]]], [[(1, 2), (3, 4)]]),
        (75, [[[1, 2]], 3], [[(1, 2)], 3]),
        (106, [[1], [2, 3]], [[1], (2, 3)]),
        (115, [[[1, 1, 2], [], {}]], [[{1, 2}, {}, {}]]),
        (124, ["0", "1j"], [0.0, 1j]),
        (252, ["3+4j"], [3 + 4j]),
        (250, [[1, 2], 1], [(1, 2), 1]),
        (259, [[[1, 2], [3, 4]], [[5, 6]]], [((1, 2), (3, 4)), ((5, 6),)]),
        (278, [[1, [2, 3]]], [(1, (2, 3))]),
        (307, [[1, []], 2, 50], [(1, []), 2, 50]),
        (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
        (722, [{"a": [1.5, 2]}, 1.0, 2], [{"a": (1.5, 2)}, 1.0, 2]),
    ],
)
def test_inputs_become_what_the_task_takes(number: int, given: list[Any], wanted: list[Any]) -> None:
    row = mbpp_plus_row(mbpp_plus_source(number, "def f(*x): return x\n", [given], []))
    (call,) = row["tests"]["base"]
    decoded = [plain_data.decode(argument) for argument in call]
    assert decoded == wanted
    assert repr(decoded) == repr(wanted)
    # Inputs that the package `evalplus` has decoded already stay as they are.
    again = mbpp_plus_row(mbpp_plus_source(number, "def f(*x): return x\n", [decoded], []))
    assert again["tests"]["base"] == [call]


def test_sanitized_rows_keep_their_imports() -> None:
    source = {
        "task_id": 82,
        "prompt": "Volume of a sphere.",
        "code": "import math\ndef volume(r):\n  return math.pi * r ** 3\n",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(volume(1), 3.14, rel_tol=0.01)"],
    }
    row = sanitized_row(source)
    assert (row["id"], row["entry_point"], row["tests"]["setup"]) == ("mbpp_sanitized/82", "volume", "import math")
    assert row["prompt"] == "Volume of a sphere.\nassert math.isclose(volume(1), 3.14, rel_tol=0.01)"
    match = {"task_id": 737, "test_imports": [], "prompt": "", "code": "def check_str(s): pass"}
    row = sanitized_row(match | {"test_list": ['assert check_str("a")', 'assert not check_str("b")']})
    assert row["tests"]["asserts"] == ['assert bool(check_str("a"))', 'assert not bool(check_str("b"))']


def test_checks_become_asserts_without_messages_and_without_what_tests_nothing() -> None:
    test = (
        "def check(candidate):\n"
        "    assert candidate(1) == 'candidate', 'message'\n"
        "    assert True\n"
        "    local = 3\n"
        "    assert candidate(local) == 3\n"
        "    for x in range(3):\n        assert candidate(x) == x\n"
        "    assert abs(candidate(2) - 0.5) < 1e-6\n"
    )
    assert plain_asserts(test, "f") == ["assert f(1) == 'candidate'", "assert abs(f(2) - 0.5) < 1e-06"]


def test_no_assert_of_humaneval_is_lost() -> None:
    """Every assert of a `check` is either taken over or of a task that is written out by hand."""
    folder = data_folder("humaneval/HumanEval.jsonl.gz")
    by_hand = {"HumanEval/32", "HumanEval/38", "HumanEval/44", "HumanEval/50", "HumanEval/53", "HumanEval/151"}
    for problem in load_benchmark("humaneval", folder).problems:
        if problem["task_id"] not in by_hand:
            test = source_test(folder, problem["task_id"])
            asserts = [node for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Assert)]
            empty = sum(ast.unparse(node.test) == "True" for node in asserts)
            assert len(problem["tests"]["asserts"]) == len(asserts) - empty, problem["task_id"]


def source_test(folder: Path, task_id: str) -> str:
    rows = read_jsonl(folder / "humaneval" / "HumanEval.jsonl.gz")
    return next(row["test"] for row in rows if row["task_id"] == task_id)


def test_loops_are_written_out() -> None:
    test = "def check(candidate):\n    for x in range(2, 8):\n        assert candidate(x, x + 1) == str(x)\n"
    row = problem_row(humaneval_source(44, "def change_base(x, base):\n", "    return str(x)\n", test))
    assert row["tests"]["asserts"][-1] == "assert change_base(7, 8) == '7'"
    assert len(row["tests"]["asserts"]) == 6
    assert row["reference"] == "def change_base(x, base):\n    return str(x)\n"
    assert row["completion_prefix"] == "def change_base(x, base):\n"
