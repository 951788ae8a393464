"""From what a program's process wrote to a verdict. Nothing that comes from there is trusted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from training import plain_data
from training.assertions import Check

Status = Literal["passed", "failed", "error", "timeout", "memory", "no_code", "sandbox_error"]


@dataclass(frozen=True)
class Verdict:
    """How a program fared. `seconds`: wall-clock time in the sandbox; `output`: the start of what it printed.

    passed: every test holds. failed: a result is wrong or not plain data. error: an exception, an exit, no
    such function, too much output. timeout, memory: a limit. no_code: the source is blank. sandbox_error: the
    sandbox or the tests are at fault, nothing is said about the program.
    """

    id: str
    status: Status
    detail: str
    seconds: float
    output: str = field(default="", compare=False)


def read_events(result: bytes, expected: int) -> tuple[list[Any], tuple[Status, str] | None]:
    """Parses what a program's process wrote, trusting none of it: the values, and what went wrong."""
    values: list[Any] = []
    try:
        for line in result.splitlines():
            kind, step, *rest = json.loads(line)
            if kind == "done" and step == len(values) == expected:
                return values, None
            where = "at import" if step == -1 else f"call {len(values) + 1}"
            if kind == "value" and step == len(values) < expected:
                values.append(plain_data.decode(rest[0]))
            elif kind == "raised":
                return values, ("error", f"{where}: {str(rest[0])[:400]}")
            elif kind == "late":
                return values, ("timeout", f"{where}: {str(rest[0])[:400]}")
            elif kind == "memory":
                return values, ("memory", f"{where}: out of memory")
            elif kind == "not_plain":
                return values, ("failed", f"{where}: the result is not plain data: {str(rest[0])[:400]}")
            else:
                return values, ("error", "malformed report")
    except plain_data.NotPlain as error:
        return values, ("failed", f"call {len(values) + 1}: the result is not plain data: {error}")
    except (ValueError, TypeError, LookupError, RecursionError):
        return values, ("error", "malformed report")
    return values, ("error", "ended before its tests were done")


def judge(program_id: str, checks: list[Check], calls: int, header: Mapping[str, Any], result: bytes) -> Verdict:
    """The verdict on a run: `header` is the zygote's word, `result` the program's."""
    finish = partial(Verdict, program_id, seconds=header["seconds"], output=header["output"])
    ended, status = header["ended"], header["status"]
    if ended == "timeout":
        return finish("timeout", f"stopped after {header['seconds']:.1f} s")
    if ended == "output":
        return finish("error", "printed too much")
    if ended == "result":
        return finish("failed", "the results are too large")
    values, trouble = read_events(result, calls)
    wrong = _first_wrong(checks, values)
    if wrong is not None:
        return finish("failed", wrong)
    if trouble is None:
        return finish("passed", "")
    if header["out_of_memory"]:
        return finish("memory", "its processes together used more than the run may")
    if trouble[1] == "ended before its tests were done":
        return finish(*_abnormal_end(None if status is None else status["code"]))
    return finish(*trouble)


def _first_wrong(checks: list[Check], values: list[Any]) -> str | None:
    """The first check that does not hold, among those whose values are there."""
    position = 0
    for number, check in enumerate(checks, 1):
        operands = []
        for side in check.sides:
            if not side.needs_program:
                operands.append(side.value)
            elif position < len(values):
                operands.append(values[position])
                position += 1
            else:
                return None
        try:
            holds = bool(check.compare(*operands))
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            holds = False
        if not holds:
            shown = [plain_data.describe(operand) for operand in operands]
            text = f" {check.symbol} ".join(shown) if len(shown) > 1 else f"{check.symbol} {shown[0]}"
            return f"check {number} does not hold: {text}"
    return None


def _abnormal_end(code: int | None) -> tuple[Status, str]:
    if code is None:
        return "error", "its processes were killed before its tests were done"
    if os.WIFSIGNALED(code):
        number = os.WTERMSIG(code)
        if number in (signal.SIGXCPU, signal.SIGPROF):
            return "timeout", "out of processor time"
        return "error", f"killed by signal {number} before its tests were done"
    return "error", f"exited with status {os.WEXITSTATUS(code)} before its tests were done"
