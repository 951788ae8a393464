"""Base and plus verdicts through the real sandbox, expected outputs from the reference, their cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.benchmarks.rows import data_folder, humaneval_source, mbpp_plus_source
from tests.training.sandboxes import sandbox_or_skip
from training.benchmarks import Grader, load_benchmark
from training.benchmarks.expected import expected_of
from training.benchmarks.humaneval import problem_row
from training.benchmarks.plus import humaneval_plus_row, mbpp_plus_row
from training.sandbox import Sandbox

Row = dict[str, Any]

SQUARE = "def square(x):\n    return x * x\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip(workers=2, memory_mb=4096) as opened:
        yield opened


def statuses(grader: Grader, *samples: tuple[Row, str]) -> list[tuple[str, str | None]]:
    return [(grade.base, grade.plus) for grade in grader.grade(samples)]


def test_base_and_plus_verdicts(sandbox: Sandbox, tmp_path: Path) -> None:
    problem = mbpp_plus_row(mbpp_plus_source(1000, SQUARE, [[1], [2]], [[3], [-4]]))
    grader = Grader(sandbox, cache=tmp_path, time_floor_s=0.3)
    codes = [
        SQUARE,
        "def square(x): return x * abs(x)\n",  # right on the base tests
        "def square(x): return 1\n",
        "def square(x): return x * x if x != 3 else 1 / 0\n",
        "def square(x):\n    while x == 3: pass\n    return x * x\n",
        "def square(x):\n    while x == 1: pass\n    return x * x\n",
        "import os\ndef square(x): return x * x if x > 0 else os._exit(0)\n",
        "class Always:\n    def __eq__(self, other): return True\ndef square(x): return Always()\n",
        "def square(x:\n",
        "",
    ]
    assert statuses(grader, *((problem, code) for code in codes)) == [
        ("passed", "passed"),
        ("passed", "failed"),
        ("failed", "failed"),
        ("passed", "error"),
        ("passed", "timeout"),
        ("timeout", "timeout"),
        ("passed", "error"),
        ("failed", "failed"),
        ("error", "error"),
        ("no_code", "no_code"),
    ]


def test_many_samples_stay_in_order(sandbox: Sandbox, tmp_path: Path) -> None:
    problem = mbpp_plus_row(mbpp_plus_source(1000, SQUARE, [[1]], [[3]]))
    codes = [f"def square(x): return x * x if x < {number % 4} else 0\n" for number in range(150)]
    found = statuses(Grader(sandbox, cache=tmp_path), *((problem, code) for code in codes))
    pattern = [("failed", "failed"), ("failed", "failed"), ("passed", "failed"), ("passed", "failed")]
    assert found == [pattern[number % 4] for number in range(150)]


def test_a_call_may_take_a_multiple_of_what_the_reference_takes(sandbox: Sandbox, tmp_path: Path) -> None:
    slow = "from time import perf_counter\ndef f(x):\n    start = perf_counter()\n"
    slow += "    while perf_counter() - start < {}: pass\n    return x\n"
    problem = mbpp_plus_row(mbpp_plus_source(1001, slow.format(0.2), [[1]], []))
    samples = [(problem, slow.format(0.3)), (problem, slow.format(0.9))]
    strict = Grader(sandbox, cache=tmp_path, time_floor_s=0.1, time_factor=3.0)
    assert statuses(strict, *samples) == [("passed", None), ("timeout", None)]
    assert strict.base_program(problem, "x").time_limit_s == pytest.approx(0.6, abs=0.1)
    floor = Grader(sandbox, cache=tmp_path, time_floor_s=3.0, time_factor=3.0)
    assert statuses(floor, *samples) == [("passed", None), ("passed", None)]


def test_found_or_not_is_all_that_three_tasks_compare(sandbox: Sandbox, tmp_path: Path) -> None:
    code = "import re\ndef check_str(s):\n    return re.match('a', s)\n"
    problem = mbpp_plus_row(mbpp_plus_source(737, code, [["ab"]], [["ba"]]))
    grader = Grader(sandbox, cache=tmp_path)
    found = "def check_str(s):\n    return {}\n"
    codes = [code, *(found.format(text) for text in ("s[0] == 'a'", "s[0] == 'a' or None", "'x'", "None"))]
    assert statuses(grader, *((problem, code) for code in codes)) == [
        ("passed", "passed"),
        ("passed", "passed"),
        ("passed", "passed"),
        ("passed", "failed"),
        ("failed", "failed"),
    ]


def test_large_results_are_compared_by_digest(sandbox: Sandbox, tmp_path: Path) -> None:
    code = "def count(n):\n    return [float(i) for i in range(n)]\n"
    problem = mbpp_plus_row(mbpp_plus_source(1002, code, [[3]], [[300_000]]))
    expected = expected_of(problem, sandbox, tmp_path)
    assert expected.is_digest == [False, True]
    assert expected.outputs[0] == [0.0, 1.0, 2.0]
    assert isinstance(expected.outputs[1], str)
    grader = Grader(sandbox, cache=tmp_path)
    codes = [
        "def count(n): return list(range(n))\n",
        "def count(n): return tuple(range(n))\n",
        "def count(n): return list(range(n)) if n < 9 else [*range(n - 1), 0]\n",
        "def count(n): return list(range(n)) if n < 9 else 5\n",
        "class Always(list):\n    def __eq__(self, other): return True\n"
        "def count(n): return list(range(n)) if n < 9 else Always()\n",
    ]
    assert statuses(grader, *((problem, code) for code in codes)) == [
        ("passed", "passed"),
        ("failed", "failed"),
        ("passed", "failed"),
        ("passed", "failed"),
        ("passed", "failed"),
    ]


def test_expected_outputs_are_kept_by_content(sandbox: Sandbox, tmp_path: Path) -> None:
    source = mbpp_plus_source(1003, "def f(x):\n    return (x, {x: 1j})\n", [[1]], [[2.5]])
    problem = mbpp_plus_row(source)
    first = expected_of(problem, sandbox, tmp_path)
    assert first.outputs == [(1, {1: 1j}), (2.5, {2.5: 1j})]
    (file,) = tmp_path.iterdir()
    with Sandbox(workers=1) as closed:
        pass
    assert expected_of(problem, closed, tmp_path).outputs == first.outputs  # no sandbox was needed
    other = mbpp_plus_row(source | {"plus_input": [[3]]})
    with pytest.raises(RuntimeError, match="needs `with Sandbox"):
        expected_of(other, closed, tmp_path)
    assert expected_of(other, sandbox, tmp_path).outputs[1] == (3, {3: 1j})
    assert len(list(tmp_path.iterdir())) == 2
    assert file in tmp_path.iterdir()


def test_humaneval_checks(sandbox: Sandbox, tmp_path: Path) -> None:
    test = "def check(candidate):\n    assert candidate(2) == 4\n    assert abs(candidate(0.5) - 0.25) < 1e-6\n"
    plain = problem_row(humaneval_source(900, "def square(x):\n", "    return x * x\n", test))
    prompt = "import math\n\ndef find_zero(xs):\n"
    root = problem_row(humaneval_source(32, prompt, "    return -xs[0] / xs[1]\n", "def check(candidate): pass\n"))
    grader = Grader(sandbox, cache=tmp_path)
    newton = """def find_zero(xs):
    low, high = -1.0, 1.0
    value = lambda x: sum(c * x ** i for i, c in enumerate(xs))
    while value(low) * value(high) > 0: low, high = 2 * low, 2 * high
    while True:
        middle = (low + high) / 2
        if middle in (low, high): return middle
        if value(low) * value(middle) > 0: low = middle
        else: high = middle
"""
    assert statuses(grader, (plain, SQUARE), (plain, "def square(x): return 4\n"), (root, newton)) == [
        ("passed", None),
        ("failed", None),
        ("passed", None),
    ]
    assert statuses(grader, (root, "def find_zero(xs): return 0.0\n")) == [("failed", None)]


def test_humaneval_plus_references_hold_their_prompt(sandbox: Sandbox, tmp_path: Path) -> None:
    source = humaneval_source(901, "from math import floor\ndef f(x):\n", "    return floor(x)\n", "")
    problem = humaneval_plus_row(source | {"base_input": [[1.5]], "plus_input": {}, "atol": 0})
    assert statuses(Grader(sandbox, cache=tmp_path), (problem, problem["reference"])) == [("passed", None)]


@pytest.mark.parametrize(
    ("name", "file", "step"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 1),
        ("humaneval_plus", "humanevalplus/HumanEvalPlus.jsonl.gz", 8),
        ("mbpp_plus", "mbppplus/MbppPlus.jsonl.gz", 8),
        ("mbpp_sanitized", "mbpp/sanitized-mbpp.json", 4),
    ],
)
def test_references_pass_and_broken_twins_do_not(
    sandbox: Sandbox, tmp_path: Path, name: str, file: str, step: int
) -> None:
    """A part of each set (`python -m benchmarks.reference_scores` grades all); twins return the result in a list."""
    problems = load_benchmark(name, data_folder(file).joinpath(file)).problems[::step]
    grader = Grader(sandbox, cache=tmp_path, time_limit_s=20)
    right = list(grader.grade((problem, problem["reference"]) for problem in problems))
    assert [grade for grade in right if grade.verdict.status != "passed"] == []
    twin = "\n_right = {name}\ndef {name}(*a): return [_right(*a)]\n"
    broken = [(p, p["reference"] + twin.format(name=p["entry_point"])) for p in problems]
    fooled = {p["id"] for (p, _), grade in zip(broken, grader.grade(broken), strict=True) if grade.base == "passed"}
    assert len(fooled) <= len(problems) // 50, fooled
