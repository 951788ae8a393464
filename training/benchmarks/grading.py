"""Grades programs on any benchmark's problems: one verdict, or one on the base and one on the plus tests."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from training.assertions import PreparedCall, result_check
from training.benchmarks import digests
from training.benchmarks.expected import calls_of, default_cache, expected_of, needs_expected
from training.benchmarks.oracles import compare_for, is_not_none_task
from training.sandbox import Program, Sandbox, Verdict, program_from_problem

Row = dict[str, Any]

_FOUND = "_result_is_not_none"


@dataclass(frozen=True)
class Grade:
    """`base`: the status on the base tests; `plus`: on base and plus tests, None where a set has no plus tests.

    `verdict` is the sandbox's last word: on the plus tests where the base tests passed.
    """

    base: str
    plus: str | None
    verdict: Verdict


@dataclass(frozen=True)
class _PreparedTests:
    calls: list[PreparedCall]
    limits_s: list[float]
    setup: str
    num_base: int


class Grader:
    """Grades with one sandbox; keeps the tests of the last 600 problems ready.

    A call of a plus problem may take `time_floor_s` or `time_factor` times what the reference took, whichever is
    more; all base calls of a program together, and all plus calls, what they may take in sum, at most
    `task_limit_s`. (The defaults are those of EvalPlus 0.3.1.) `time_limit_s` is the limit of a program on other
    problems. `cache`: folder of expected outputs. MBPP+ wants a sandbox with `memory_mb=4096`, EvalPlus's limit:
    a few of its references need more than 1 GB.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        cache: Path | None = None,
        time_floor_s: float = 1.0,
        time_factor: float = 4.0,
        task_limit_s: float = 60.0,
        time_limit_s: float = 4.0,
        prelude: str = "",
    ) -> None:
        self.sandbox = sandbox
        self.cache = default_cache() if cache is None else cache
        self.time_floor_s = time_floor_s
        self.time_factor = time_factor
        self.task_limit_s = task_limit_s
        self.time_limit_s = time_limit_s
        self.prelude = prelude
        self._prepared: OrderedDict[str, _PreparedTests] = OrderedDict()

    def grade(self, samples: Iterable[tuple[Row, str]]) -> Iterator[Grade]:
        """One grade for each pair of problem and code, in order; takes 64 samples at a time.

        Only programs that pass the base tests meet the plus tests, which are many more.
        """
        samples = iter(samples)
        while chunk := list(islice(samples, 64)):
            verdicts = list(self.sandbox.run(self.base_program(problem, code) for problem, code in chunk))
            passing = [
                (problem, code)
                for (problem, code), verdict in zip(chunk, verdicts, strict=True)
                if verdict.status == "passed" and has_plus_tests(problem)
            ]
            plus = iter(list(self.sandbox.run(self.plus_program(problem, code) for problem, code in passing)))
            for (problem, _), verdict in zip(chunk, verdicts, strict=True):
                if not has_plus_tests(problem):
                    yield Grade(verdict.status, None, verdict)
                elif verdict.status != "passed":
                    yield Grade(verdict.status, verdict.status, verdict)
                else:
                    last = next(plus)
                    yield Grade("passed", last.status, last)

    def base_program(self, problem: Row, code: str) -> Program:
        """The program that runs `code` on the base tests of `problem`, or on all tests where there are no others."""
        if not needs_expected(problem):
            return program_from_problem(problem, code, prelude=self.prelude, time_limit_s=self.time_limit_s)
        return self._calling_program(problem, code, slice(None, self._tests(problem).num_base))

    def plus_program(self, problem: Row, code: str) -> Program:
        """The program that runs `code` on the plus tests of `problem`."""
        return self._calling_program(problem, code, slice(self._tests(problem).num_base, None))

    def _calling_program(self, problem: Row, code: str, part: slice) -> Program:
        tests = self._tests(problem)
        name, setup = problem["entry_point"], tests.setup
        if is_not_none_task(problem):
            setup = (
                f"def {_FOUND}(*arguments):\n"
                f"    result = {name}(*arguments)\n"
                "    return result if isinstance(result, bool) else result is not None\n"
            )
            name = _FOUND
        source = self.prelude + problem["code_prefix"] + code if code.strip() else ""
        limits = tests.limits_s[part]
        return Program(
            problem["id"], source, name, tests.calls[part], min(self.task_limit_s, sum(limits)), setup, limits
        )

    def _tests(self, problem: Row) -> _PreparedTests:
        if problem["id"] not in self._prepared:
            self._prepared[problem["id"]] = self._prepare(problem)
            if len(self._prepared) > 600:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(problem["id"])
        return self._prepared[problem["id"]]

    def _prepare(self, problem: Row) -> _PreparedTests:
        expected = expected_of(problem, self.sandbox, self.cache)
        calls = []
        for call, output, is_digest in zip(calls_of(problem), expected.outputs, expected.is_digest, strict=True):
            if is_digest:
                digest = digests.digest_call(problem["entry_point"], call)
                calls.append(PreparedCall(digest, result_check(output, operator.eq)))
            else:
                calls.append(PreparedCall(call, result_check(output, compare_for(problem, call))))
        limits = [max(self.time_floor_s, self.time_factor * seconds) for seconds in expected.seconds]
        setup = digests.SOURCE if any(expected.is_digest) else ""
        return _PreparedTests(calls, limits, setup, len(problem["tests"]["base"]))


def has_plus_tests(problem: Row) -> bool:
    """Whether a problem has tests beyond its base tests."""
    return needs_expected(problem) and bool(problem["tests"]["plus"])
