"""MBPP problems and teacher traces, with a guard that keeps evaluation problems out of training.

MBPP+ is not a part of MBPP's test split: 108 of its 378 tasks lie in the official train range, 39 in the
validation range. Training on the official split and reporting MBPP+ is contamination, so those tasks leave
both pools here, by code, together with problems that repeat a test problem under another id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from training.benchmarks.humaneval import problem_row as humaneval_row
from training.benchmarks.leaks import LeakGuard
from training.benchmarks.mbpp import problem_row, prompt_of, split_of, unix
from training.benchmarks.plus import mbpp_plus_row
from training.extraction import extract_code
from training.jsonl import read_jsonl

Row = dict[str, Any]


class Mbpp(NamedTuple):
    """Problem rows, trace rows (train problems only) and how many rows were dropped for which reason."""

    problems: list[Row]
    traces: list[Row]
    dropped: dict[str, int]


def load_mbpp(
    problems: str | Path,
    *,
    plus: str | Path,
    humaneval: str | Path | None = None,
    traces: str | Path | None = None,
    references: bool = False,
    test_limit: int | None = None,
) -> Mbpp:
    """Loads `mbpp.jsonl` and teacher traces, without what `training.benchmarks.leaks` finds again in MBPP's test split,
    in `MbppPlus.jsonl.gz` and, if it is given, in `HumanEval.jsonl.gz`.

    With `references`, MBPP's own solutions of the training problems are added to the traces.

    Raises ValueError if a file is not what its name says, for example if `plus` holds no MBPP+ tasks.
    """
    guard = guard_from_files(problems, plus, humaneval)
    dropped: Counter[str] = Counter()
    kept: list[Row] = []
    tests = 0
    for source in read_jsonl(problems):
        problem = problem_row(source)
        if problem["split"] == "test":
            tests += 1
            reason = None if test_limit is None or tests <= test_limit else f"test problem beyond {test_limit}"
        else:
            leak = guard.leak_of(problem)
            reason = None if leak is None else str(leak)
        if reason is None:
            kept.append(problem)
        else:
            dropped[f"{problem['split']} problem: {reason}" if problem["split"] != "test" else reason] += 1
    rows = [] if traces is None else trace_rows(read_jsonl(traces), kept, guard, dropped)
    if references:
        rows += reference_rows(kept)
    return Mbpp(kept, rows, dict(sorted(dropped.items())))


def guard_from_files(problems: str | Path, plus: str | Path, humaneval: str | Path | None = None) -> LeakGuard:
    """The guard of MBPP's test split, MBPP+ and, if it is given, HumanEval."""
    rows = list(read_jsonl(plus))
    if not rows or not all(re.fullmatch(r"Mbpp/\d+", str(row.get("task_id"))) for row in rows):
        raise ValueError(f"plus: wants MBPP+ rows, with task ids such as 'Mbpp/2', got {plus}")
    plus_rows = [mbpp_plus_row(row) for row in rows]
    plus_ids = {row["id"].replace("mbpp_plus", "mbpp") for row in plus_rows}
    mbpp_rows = [problem_row(row) for row in read_jsonl(problems)]
    test = [row for row in mbpp_rows if row["split"] == "test"]
    # MBPP's own rows of MBPP+ tasks are worded otherwise and have other tests.
    twins = [row | {"family": "mbpp_plus"} for row in mbpp_rows if row["id"] in plus_ids]
    others = [] if humaneval is None else [humaneval_row(row) for row in read_jsonl(humaneval)]
    return LeakGuard(test + twins + plus_rows + others)


def trace_rows(sources: Iterable[Row], problems: Iterable[Row], guard: LeakGuard, dropped: Counter[str]) -> list[Row]:
    """Trace rows for the train problems among `problems`; counts in `dropped` why others are left out.

    A teacher that was asked a reworded task (typed, a list for a tuple) is judged by that task's own tests, where the
    source has them; the prompt then shows the first of those.
    """
    trainable = {problem["id"]: problem for problem in problems if problem["split"] == "train"}
    rows: list[Row] = []
    seen: Counter[str] = Counter()
    for source in sources:
        task = source["task_id"]
        problem = trainable.get(f"mbpp/{task}")
        if leaked := guard.same_id(f"mbpp/{task}"):
            dropped[f"trace: same id ({leaked['family']})"] += 1
        elif problem is None:
            in_train = split_of(task) == "train"
            reason = "problem dropped" if in_train else f"problem in the {split_of(task)} split"
            dropped[f"trace: {reason}"] += 1
        else:
            teacher = source["model"]
            name = f"{problem['id']}/{re.sub(r'[^a-z0-9.]+', '-', teacher.lower()).strip('-')}"
            seen[name] += 1
            code = source["code"] if source["code"].strip() else _extracted(source, problem["entry_point"])
            tests = problem["tests"]
            if own := own_asserts(source):
                tests = {"asserts": own, "setup": ""}
            rows.append(
                {
                    "id": f"{name}-{seen[name]}",
                    "problem_id": problem["id"],
                    "prompt": prompt_of(problem["prompt"].rpartition("\n")[0], tests["asserts"][0]),
                    "tests": tests,
                    "code_prefix": problem["code_prefix"],
                    "reasoning": unix(source["reasoning"]).strip(),
                    "code": unix(code),
                    "teacher": teacher,
                    "passed": None,
                }
            )
    return rows


def own_asserts(source: Row) -> list[str]:
    """The assertions that a trace's own source judged it by, with the entry point for `candidate`."""
    lines = map(str.strip, (source.get("source_test") or "").splitlines())
    return [re.sub(r"\bcandidate\b", source["entry_point"], line) for line in lines if line.startswith("assert ")]


def reference_rows(problems: Iterable[Row]) -> list[Row]:
    """MBPP's own solutions of the train problems among `problems`, as traces without reasoning."""
    return [
        {
            "id": f"{problem['id']}/reference",
            "problem_id": problem["id"],
            "prompt": problem["prompt"],
            "code_prefix": problem["code_prefix"],
            "reasoning": "",
            "code": problem["reference"],
            "teacher": "mbpp",
            "passed": None,
        }
        for problem in problems
        if problem["split"] == "train"
    ]


def _extracted(source: Row, entry_point: str) -> str:
    return extract_code(source.get("response") or "", entry_point).code
