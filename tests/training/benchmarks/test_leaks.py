"""The leak guard: what each rule catches, what it leaves, on made-up rows and on MBPP's own training problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.benchmarks.rows import data_folder, humaneval_source, mbpp_plus_source
from tests.training.sandboxes import sandbox_or_skip
from training.benchmarks import Grader, load_benchmark
from training.benchmarks.humaneval import problem_row
from training.benchmarks.leaks import LeakGuard, code_fingerprints, screen, task_words
from training.benchmarks.plus import mbpp_plus_row

Row = dict[str, Any]

CODE = """def running_total(numbers):
    total, out = 0, []
    for number in numbers:
        if number > 0:
            total += number
            out.append(total)
    return out
"""
TEXT = "Return the running total of the positive numbers of a list, in the order in which they come."


@pytest.fixture
def guard() -> LeakGuard:
    prompt = f'def running_total(numbers):\n    """ {TEXT}\n    >>> running_total([1, -1, 2])\n    [1, 3]\n    """\n'
    test = "def check(candidate):\n    assert candidate([1, -1, 2]) == [1, 3]\n    assert candidate([]) == []\n"
    body = CODE.partition("\n")[2]
    plus = mbpp_plus_source(602, "def f(x): return x + 1\n", [[1]], [[2]])
    return LeakGuard([problem_row(humaneval_source(3, prompt, body, test)), mbpp_plus_row(plus)])


def trace(code: str, prompt: str = "Something else.", id: str = "mbpp/700", **other: Any) -> Row:
    return {"id": f"{id}/model-1", "problem_id": id, "prompt": prompt, "code": code, **other}


def rule(guard: LeakGuard, row: Row) -> str | None:
    leak = guard.leak_of(row)
    return leak and str(leak)


def test_each_rule(guard: LeakGuard) -> None:
    other = "def f(x):\n    return x\n"
    assert rule(guard, trace(other)) is None
    assert rule(guard, trace(other, id="mbpp/602")) == "same id (mbpp_plus)"
    assert rule(guard, trace(other, id="humaneval/3")) == "same id (humaneval)"
    assert rule(guard, trace(other, prompt=TEXT.upper())) == "same text (humaneval)"
    assert rule(guard, trace(other, prompt=TEXT + "\nassert f([1]) == [1]")) == "same text (humaneval)"
    assert rule(guard, trace(other, prompt="Please: " + TEXT[:-6])) == "13-gram (humaneval)"
    assert rule(guard, trace(other, prompt="Return the running total of a list of numbers.")) is None
    tests = {"asserts": ["assert running_total( [1,-1, 2]) == [1, 3]"]}
    assert rule(guard, trace(other, tests=tests)) == "same assertion (humaneval)"
    renamed = CODE.replace("running_total", "g").replace("number", "x").replace("total", "t").replace("out", "acc")
    annotated = renamed.replace("(xs)", "(xs: list[int]) -> list[int]").replace("    t,", '    """Doc."""\n    t,')
    assert annotated.count("list[int]") == 2
    assert rule(guard, trace(f"import re\n\n{annotated}# a comment\n")) == "same code (humaneval)"
    assert rule(guard, trace(CODE.replace("> 0", ">= 0"))) is None
    assert rule(guard, trace("def f(x):\n")) is None


def test_small_functions_are_never_the_same_code(guard: LeakGuard) -> None:
    assert code_fingerprints("def f(x): return x + 1\n") == set()
    assert rule(guard, trace("def g(y): return y + 1\n")) is None


def test_names_that_are_not_bound_count() -> None:
    assert code_fingerprints(CODE) != code_fingerprints(CODE.replace("number > 0", "len(number) > 0"))
    swapped = CODE.replace("append(total)", "append(number)")
    assert code_fingerprints(CODE) != code_fingerprints(swapped)


def test_task_words_leave_out_code_and_examples() -> None:
    assert task_words('"""\nWrite f.\nassert f(1) == 2\n"""\n') == ["write", "f"]
    assert task_words("Write f.\nassert f(1) == 2") == ["write", "f"]
    prompt = 'import re\n\ndef g(x):\n    """Helper."""\n\ndef f(x):\n    """ Twice x.\n    >>> f(1)\n    2\n    """\n'
    assert task_words(prompt) == ["twice", "x"]


def test_code_that_passes_a_benchmarks_tests_is_dropped(guard: LeakGuard, tmp_path: Path) -> None:
    other_way = "def running_total(n):\n    kept = [x for x in n if x > 0]\n"
    other_way += "    return [sum(kept[: i + 1]) for i in range(len(kept))]\n"
    rows = [
        trace(other_way),
        trace(other_way.replace("running_total", "another_name")),
        trace("def running_total(n):\n    return n\n"),
        trace("def f(x):\n    return 1 + x\n"),
        trace("", id="mbpp/602"),
    ]
    with sandbox_or_skip(workers=1) as sandbox:
        kept, dropped = screen(rows, guard, Grader(sandbox, cache=tmp_path))
    assert kept == rows[1:3]
    assert dropped == {"passes (humaneval)": 1, "passes (mbpp_plus)": 1, "same id (mbpp_plus)": 1}
    kept, dropped = screen(rows, guard)
    assert kept == rows[:4]
    assert dropped == {"same id (mbpp_plus)": 1}


def test_mbpps_own_training_problems() -> None:
    """Read by hand among what the rules find: 517 and 960 are HumanEval/35 and /55, 658 is 362 of the test split."""
    folder = data_folder("mbpp/mbpp.jsonl", "mbppplus/MbppPlus.jsonl.gz", "humaneval/HumanEval.jsonl.gz")
    protected = [row for name in ("mbpp", "mbpp_plus", "humaneval") for row in load_benchmark(name, folder).problems]
    pool = [row for row in load_benchmark("mbpp_all", folder).problems if row["split"] in ("train", "validation")]
    guard = LeakGuard(protected)
    leaks = {row["id"]: str(leak) for row in pool if (leak := guard.leak_of(row))}
    assert sum(leak == "same id (mbpp_plus)" for leak in leaks.values()) == 108 + 39
    assert {leaks[f"mbpp/{number}"] for number in (517, 960)} == {"same code (humaneval)"}
    assert {leaks[f"mbpp/{number}"] for number in (658, 666, 842)} == {"same code (mbpp)"}
    assert leaks["mbpp/683"] == "13-gram (mbpp)"  # the sum of two squares, where the test split has the product
