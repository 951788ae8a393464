"""MBPP problems and teacher traces, with a guard that keeps evaluation problems out of training.

MBPP+ is not a part of MBPP's test split: 108 of its 378 tasks lie in the official train range, 39 in the
validation range. Training on the official split and reporting MBPP+ is contamination, so those tasks leave
both pools here, by code, together with problems that repeat a test problem under another id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.benchmarks.mbpp import problem_row, prompt_of, split_of, unix
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
    traces: str | Path | None = None,
    references: bool = False,
    test_limit: int | None = None,
) -> Mbpp:
    """Loads `mbpp.jsonl`, `MbppPlus.jsonl.gz` (only to keep its tasks out of training) and teacher traces.

    With `references`, MBPP's own solutions of the training problems are added to the traces.

    Raises ValueError if a file is not what its name says, for example if `plus` holds no MBPP+ tasks.
    """
    guard = LeakGuard.from_files(problems, plus)
    dropped: Counter[str] = Counter()
    kept: list[Row] = []
    tests = 0
    for source in read_jsonl(problems):
        problem = problem_row(source)
        if problem["split"] == "test":
            tests += 1
            reason = None if test_limit is None or tests <= test_limit else f"test problem beyond {test_limit}"
        else:
            reason = guard.reason_to_drop(source)
        if reason is None:
            kept.append(problem)
        else:
            dropped[f"{problem['split']} problem: {reason}" if problem["split"] != "test" else reason] += 1
    rows = [] if traces is None else trace_rows(read_jsonl(traces), kept, guard, dropped)
    if references:
        rows += reference_rows(kept)
    return Mbpp(kept, rows, dict(sorted(dropped.items())))


@dataclass(frozen=True)
class LeakGuard:
    """What training must not see: task ids of the test split and of MBPP+, their texts, their assertions."""

    test_ids: frozenset[int]
    plus_ids: frozenset[int]
    texts: frozenset[str]
    assertions: frozenset[str]

    @staticmethod
    def from_files(problems: str | Path, plus: str | Path) -> LeakGuard:
        plus_rows = list(read_jsonl(plus))
        named = [re.fullmatch(r"Mbpp/(\d+)", str(row.get("task_id"))) for row in plus_rows]
        if not named or None in named:
            raise ValueError(f"plus: wants MBPP+ rows, with task ids such as 'Mbpp/2', got {plus}")
        plus_ids = frozenset(int(match[1]) for match in named if match)
        protected = [
            row for row in read_jsonl(problems) if split_of(row["task_id"]) == "test" or row["task_id"] in plus_ids
        ]
        texts = {normalise_text(row["text"]) for row in protected}
        texts |= {normalise_text(_docstring_text(row["prompt"])) for row in plus_rows}
        return LeakGuard(
            frozenset(row["task_id"] for row in protected if split_of(row["task_id"]) == "test"),
            plus_ids,
            frozenset(texts),
            frozenset(_normal_assert(test) for row in protected for test in row["test_list"]),
        )

    def reason_to_drop(self, source: Row) -> str | None:
        """Why a row of mbpp.jsonl may not be trained or tuned on; None if it may."""
        if source["task_id"] in self.plus_ids:
            return "in MBPP+"
        if source["task_id"] in self.test_ids:
            return "in the test split"
        if normalise_text(source["text"]) in self.texts:
            return "same text as an evaluation problem"
        if any(_normal_assert(test) in self.assertions for test in source["test_list"]):
            return "same assertion as an evaluation problem"
        return None


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
        if task in guard.test_ids:
            dropped["trace: problem in the test split"] += 1
        elif task in guard.plus_ids:
            dropped["trace: problem in MBPP+"] += 1
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


def normalise_text(text: str) -> str:
    """Lower case words only: what two copies of one task text share."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _normal_assert(statement: str) -> str:
    return re.sub(r"\s+", "", statement).lower()


def _docstring_text(prompt: str) -> str:
    """The task text of an MBPP+ prompt, which is a docstring with one assertion at its end."""
    return prompt.strip().strip('"').partition("\nassert ")[0]
