"""MBPP loading and its leak guard, on made-up rows always and on the real files where they are at hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.benchmarks.rows import data_folder, mbpp_plus_source
from tests.training.sandboxes import sandbox_or_skip
from training.benchmarks.leaks import normalise_text
from training.benchmarks.mbpp import entry_point_of, problem_row, split_of
from training.jsonl import read_jsonl, write_jsonl
from training.mbpp import load_mbpp
from training.sandbox import Sandbox, program_from_problem

Row = dict[str, Any]


def source(task: int, text: str | None = None, tests: list[str] | None = None) -> Row:
    return {
        "task_id": task,
        "text": text or f"Write a function number {task}.",
        "code": f"def f{task}(x):\r\n\treturn x + {task}\r\n",
        "test_list": tests or [f"assert f{task}(1) == {1 + task}", f"assert f{task}(2) == {2 + task}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def trace(task: int, model: str = "big (model)") -> Row:
    code = f"def f{task}(x):\n    return x + {task}\n"
    response = f"Think.\n```python\n{code}```"
    return {"task_id": task, "model": model, "reasoning": "Think.\r\n", "code": code, "response": response}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two tasks a split; 602 and 512 are in MBPP+, 603 repeats a test text, 604 a test assertion, 605 an MBPP+ text."""
    rows = [source(task) for task in (1, 2, 11, 12, 511, 512, 601, 602, 606)]
    rows.append(source(603, text="write a  function, number 12"))
    rows.append(source(604, tests=["assert f604(5) == 609", "assert f11( 1) ==12"]))
    rows.append(source(605, text="A text that only MBPP+ has."))
    plus = [
        mbpp_plus_source(512, "def f(x): return x\n", [], []) | {"prompt": '"""\nReworded.\nassert f(1) == 2\n"""\n'},
        mbpp_plus_source(602, "def f(x): return x\n", [], [])
        | {"prompt": '"""\nA text that only MBPP+ has.\nassert f(1) == 2\n"""\n'},
    ]
    traces = [trace(task) for task in (1, 11, 511, 512, 601, 602, 603, 604, 605, 606)]
    traces += [trace(601), {**trace(606), "code": " "}]
    written = {"problems": tmp_path / "mbpp.jsonl", "plus": tmp_path / "plus.gz", "traces": tmp_path / "traces.jsonl"}
    for name, content in (("problems", rows), ("traces", traces)):
        written[name].write_text("".join(json.dumps(row) + "\n" for row in content))
    with gzip.open(written["plus"], "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in plus)
    return written


def test_each_drop_has_its_reason_and_is_counted(files: dict[str, Path]) -> None:
    problems, traces, dropped = load_mbpp(files["problems"], plus=files["plus"], traces=files["traces"])
    assert {problem["id"]: problem["split"] for problem in problems} == {
        "mbpp/1": "prompt", "mbpp/2": "prompt", "mbpp/11": "test", "mbpp/12": "test",
        "mbpp/511": "validation", "mbpp/601": "train", "mbpp/606": "train",
    }  # fmt: skip
    assert [row["id"] for row in traces] == [
        "mbpp/601/big-model-1", "mbpp/606/big-model-1", "mbpp/601/big-model-2", "mbpp/606/big-model-2",
    ]  # fmt: skip
    assert dropped == {
        "train problem: same id (mbpp_plus)": 1,
        "train problem: same text (mbpp)": 1,
        "train problem: same text (mbpp_plus)": 1,
        "train problem: same assertion (mbpp)": 1,
        "validation problem: same id (mbpp_plus)": 1,
        "trace: same id (mbpp)": 1,
        "trace: same id (mbpp_plus)": 2,
        "trace: problem in the prompt split": 1,
        "trace: problem in the validation split": 1,
        "trace: problem dropped": 3,
    }


def test_a_reworded_task_is_judged_by_its_own_tests(files: dict[str, Path]) -> None:
    rows = [row for row in read_jsonl(files["traces"]) if row["task_id"] == 601]
    check = "def check(candidate):\n    assert candidate([1])==602\n    assert candidate([2])==603\n\ncheck(f601)\n"
    write_jsonl(files["traces"], [row | {"source_test": check, "entry_point": "f601"} for row in rows[:1]])
    trace = load_mbpp(files["problems"], plus=files["plus"], traces=files["traces"]).traces[0]
    assert trace["tests"] == {"asserts": ["assert f601([1])==602", "assert f601([2])==603"], "setup": ""}
    assert trace["prompt"] == "Write a function number 601.\nassert f601([1])==602"


def test_references_are_traces_of_clean_training_problems(files: dict[str, Path]) -> None:
    without = load_mbpp(files["problems"], plus=files["plus"], traces=files["traces"])
    loaded = load_mbpp(files["problems"], plus=files["plus"], traces=files["traces"], references=True)
    added = loaded.traces[len(without.traces) :]
    trainable = [problem["id"] for problem in loaded.problems if problem["split"] == "train"]
    assert [row["problem_id"] for row in added] == trainable
    assert all(row["reasoning"] == "" and row["teacher"] == "mbpp" for row in added)


def test_rows_have_the_agreed_fields(files: dict[str, Path]) -> None:
    problems, traces, _ = load_mbpp(files["problems"], plus=files["plus"], traces=files["traces"])
    problem = next(problem for problem in problems if problem["id"] == "mbpp/601")
    assert problem == {
        "id": "mbpp/601",
        "prompt": "Write a function number 601.\nassert f601(1) == 602",
        "code_prefix": "",
        "entry_point": "f601",
        "tests": {"asserts": ["assert f601(1) == 602", "assert f601(2) == 603"], "setup": ""},
        "split": "train",
        "family": "mbpp",
        "shape": "",
        "reference": "def f601(x):\n\treturn x + 601\n",
    }
    assert traces[0] == {
        "id": "mbpp/601/big-model-1",
        "problem_id": "mbpp/601",
        "prompt": problem["prompt"],
        "tests": problem["tests"],
        "code_prefix": "",
        "reasoning": "Think.",
        "code": "def f601(x):\n    return x + 601\n",
        "teacher": "big (model)",
        "passed": None,
    }
    # A row without code falls back on the answer itself.
    assert traces[-1]["code"] == "def f606(x):\n    return x + 606\n"


def test_the_number_of_test_problems_can_be_limited(files: dict[str, Path]) -> None:
    loaded = load_mbpp(files["problems"], plus=files["plus"], test_limit=1)
    assert [problem["id"] for problem in loaded.problems if problem["split"] == "test"] == ["mbpp/11"]
    assert loaded.dropped["test problem beyond 1"] == 1
    assert loaded.traces == []


def test_splits_are_the_official_ranges() -> None:
    edges = {1: "prompt", 10: "prompt", 11: "test", 510: "test", 511: "validation", 600: "validation", 601: "train"}
    assert {task: split_of(task) for task in edges} == edges
    assert split_of(974) == "train"
    for wrong in (0, 975):
        with pytest.raises(ValueError, match="task_id"):
            split_of(wrong)


def test_a_file_that_is_not_mbpp_plus_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for wrong in (tmp_path / "empty.jsonl", files["traces"].with_name("humaneval.jsonl")):
        wrong.write_text(wrong.read_text() if wrong.exists() else '{"task_id": "HumanEval/1", "prompt": ""}\n')
        with pytest.raises(ValueError, match="MBPP"):
            load_mbpp(files["problems"], plus=wrong)


def test_entry_points() -> None:
    code = "class Node: pass\ndef helper(x): pass\ndef f(x): pass\n"
    assert entry_point_of(["assert set(f(1)) == {2}"], code) == "f"
    assert entry_point_of(["assert 1 == 1", "assert helper(1) == f(2)"], code) in ("helper", "f")
    with pytest.raises(ValueError, match="Node, f, helper"):
        entry_point_of(["assert g(1)"], code)


def test_no_evaluation_task_can_enter_training() -> None:
    """The ids are taken from the files anew, without the loader."""
    problems_path = data_folder("mbpp/mbpp.jsonl") / "mbpp/mbpp.jsonl"
    plus_path = data_folder("mbppplus/MbppPlus.jsonl.gz") / "mbppplus/MbppPlus.jsonl.gz"
    traces_path = data_folder("traces/mbpp_gpt_traces.jsonl.gz") / "traces/mbpp_gpt_traces.jsonl.gz"
    with gzip.open(plus_path, "rt") as file:
        plus = {int(json.loads(line)["task_id"].split("/")[1]) for line in file}
    assert len(plus) == 378
    raw = {row["task_id"]: row for row in map(json.loads, problems_path.read_text().splitlines())}
    forbidden = plus | set(range(11, 511))
    texts = {normalise_text(raw[task]["text"]) for task in forbidden}

    problems, traces, dropped = load_mbpp(problems_path, plus=plus_path, traces=traces_path)
    by_split: dict[str, set[int]] = {"prompt": set(), "test": set(), "validation": set(), "train": set()}
    for problem in problems:
        by_split[problem["split"]].add(int(problem["id"].removeprefix("mbpp/")))
    assert by_split["test"] == set(range(11, 511))
    for split in ("train", "validation"):
        assert not by_split[split] & forbidden
        assert not {normalise_text(raw[task]["text"]) for task in by_split[split]} & texts
    trained = {int(row["problem_id"].removeprefix("mbpp/")) for row in traces}
    assert trained
    assert trained <= by_split["train"]
    assert dropped["train problem: same id (mbpp_plus)"] == 108
    assert dropped["validation problem: same id (mbpp_plus)"] == 39
    # 602/217, 704/248 and 872/216 share their text; those of them that are in MBPP+ are counted there.
    assert not {602, 704, 872} & by_split["train"]
    assert len(by_split["train"]) + sum(n for reason, n in dropped.items() if reason.startswith("train")) == 374


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip(workers=2) as opened:
        yield opened


def test_reference_solutions_pass_and_broken_ones_do_not(sandbox: Sandbox) -> None:
    """Every sixth task and the odd ones: setup code, sys.getsizeof and isclose in the tests, CRLF, tabs.

    The broken twin returns what an honest mistake might: the result in a list.
    """
    path = data_folder("mbpp/mbpp.jsonl") / "mbpp/mbpp.jsonl"
    rows = [row for row in read_jsonl(path) if row["task_id"] % 6 == 0 or row["task_id"] in (367, 596, 927, 82)]
    problems = [problem_row(row) for row in rows]
    right = [program_from_problem(problem, problem["reference"], time_limit_s=20) for problem in problems]
    wrong = [
        program_from_problem(
            problem,
            f"{problem['reference']}\n_right = {problem['entry_point']}\n"
            f"def {problem['entry_point']}(*a): return [_right(*a)]\n",
            time_limit_s=20,
        )
        for problem in problems
    ]
    verdicts = list(sandbox.run(right + wrong))
    assert [v for v in verdicts[: len(right)] if v.status != "passed"] == []
    # Truth of a list hides the fault where the test is `assert f(x)`.
    fooled = [v.id for v in verdicts[len(right) :] if v.status == "passed"]
    bare = [p["id"] for p in problems if all("==" not in test for test in p["tests"]["asserts"])]
    assert set(fooled) <= set(bare)
