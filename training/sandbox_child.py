"""What runs inside the sandbox, in the program's own process: execute the source, evaluate the calls, report.

Nothing here is trusted by the grader: the program shares this process and may rewrite any of it. It gains
nothing, because expected values never come here. Standard library only; loaded by path, never imported as a
package.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any


def run_program(
    request: dict[str, Any], channel: int, encode: Callable[[Any], Any], decode: Callable[[Any], Any]
) -> None:
    """Executes `request["source"]` and writes one JSON line an event to the descriptor `channel`.

    Events: ["value", i, data] result of call i, ["raised", i, text], ["not_plain", i, text], ["memory", i,
    text], ["late", i, text], ["done", n]. i = -1 stands for the source itself. The first event that is not a
    value is the last.

    `request["call_limits_s"]`, a limit in seconds for each call (the source may take five times the longest), is for
    honest programs: one that wants to can switch its alarm off, and then meets the limit of the whole run.
    """
    dumps, write = json.dumps, os.write

    def report(*event: Any) -> None:
        line = dumps(event).encode() + b"\n"
        if alarm and len(line) > select.PIPE_BUF:
            alarm.stop()  # it must not cut a line in two; shorter ones are written whole or not at all
        while line:
            line = line[write(channel, line) :]

    step = -1
    limits = request["call_limits_s"]
    alarm = _Alarm() if limits else None
    try:
        module = types.ModuleType("program")
        sys.modules["program"] = module
        namespace = module.__dict__
        if alarm:
            alarm.start(5 * max(limits))
        _execute(request["source"], "<program>", namespace)
        _execute(request["setup"], "<setup>", namespace)
        for step, call in enumerate(request["calls"]):
            if alarm:
                alarm.start(limits[step])
            result = _evaluate(call, request["entry_point"], namespace, decode)
            try:
                data = encode(result)
            except ValueError as error:
                report("not_plain", step, _text(error, bare=True))
                return
            report("value", step, data)
            del result, data
        if alarm:
            alarm.stop()
        report("done", len(request["calls"]))
    except _Late:
        report("late", step, f"longer than {5 * max(limits) if step < 0 else limits[step]:.1f} s")
    except MemoryError:
        report("memory", step, "MemoryError")
    except BaseException as error:
        report("raised", step, _text(error))


class _Late(BaseException):
    """Not an Exception: `except Exception` in a program must not swallow it."""


def _raise_late(*_: object) -> None:
    raise _Late


class _Alarm:
    """An exception after some seconds; death, by processor time, where one long C call keeps it from being raised.

    Setting timers takes longer than a short call, so an alarm that was set within the last 2 % of its time stays.
    """

    def __init__(self) -> None:
        self.seconds = self.since = 0.0
        signal.signal(signal.SIGALRM, _raise_late)

    def start(self, seconds: float) -> None:
        now = time.perf_counter()
        if seconds != self.seconds or now - self.since > seconds / 50:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            signal.setitimer(signal.ITIMER_PROF, seconds + 1.0)
            self.seconds, self.since = seconds, now

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.seconds = 0.0


def _execute(source: str, filename: str, namespace: dict[str, Any]) -> None:
    if source.strip():
        # dont_inherit: this file's own `from __future__ import annotations` would leak into the program.
        exec(compile(source, filename, "exec", dont_inherit=True), namespace)


def _evaluate(call: Any, entry_point: str | None, namespace: dict[str, Any], decode: Callable[[Any], Any]) -> Any:
    if isinstance(call, str):
        return eval(compile(call, "<test>", "eval", dont_inherit=True), namespace)
    if entry_point not in namespace:
        raise NameError(f"the program defines no {entry_point!r}")
    return namespace[entry_point](*[decode(item) for item in call])


def _text(error: BaseException, bare: bool = False) -> str:
    try:
        message = str(error)[:300]
    except BaseException:
        message = "(no message)"
    return message if bare else f"{type(error).__name__}: {message}"
