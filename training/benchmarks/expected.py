"""Expected outputs of the plus sets and the time that the reference takes for each, kept on disk.

The reference runs in a sandbox worker of its own (`Sandbox.evaluate`), never in one that runs candidates. Results
are stored by the hash of everything that they depend on, one file a task, so a run that was stopped goes on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import plain_data
from training.benchmarks import digests
from training.benchmarks.oracles import is_not_none_task
from training.sandbox import Program, Sandbox

Row = dict[str, Any]

_FORMAT = 1
_REFERENCE_LIMIT_S = 300.0


@dataclass(frozen=True)
class Expected:
    """For each call of a problem, base calls first: the reference's output, whether that is only its digest
    (`digests.py`), and the reference's seconds.
    """

    outputs: list[Any]
    is_digest: list[bool]
    seconds: list[float]


def default_cache() -> Path:
    """`$STRUCTLOSS_CACHE/expected`, or the same below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STRUCTLOSS_CACHE") or Path(home, "structloss"), "expected")


def calls_of(problem: Row) -> list[list[Any]]:
    """A plus problem's calls, encoded, base calls first."""
    return [*problem["tests"]["base"], *problem["tests"]["plus"]]


def expected_of(problem: Row, sandbox: Sandbox, cache: Path | None) -> Expected:
    """What the reference of a plus problem returns, from `cache` or, where it is not there, by running it.

    Raises RuntimeError where the reference fails, which means that the data file is not what it should be.
    """
    program, calls = _reference_program(problem), calls_of(problem)
    # Of the machine only Python's version changes outputs; `seconds` are those of whoever ran it first.
    content = [_FORMAT, sys.version_info[:2], program.source, calls]
    path = cache and cache / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()}.json.gz"
    if path and path.is_file():
        stored = json.loads(gzip.decompress(path.read_bytes()))
        outputs = [plain_data.decode(output) for output in stored["outputs"]]
        return Expected(outputs, stored["is_digest"], stored["seconds"])
    arguments = [[plain_data.decode(argument) for argument in call] for call in calls]
    results = sandbox.evaluate(program, arguments)
    is_digest, outputs, seconds = (list(column) for column in zip(*results, strict=True))
    if path:
        row = {
            "id": problem["id"],
            "outputs": [plain_data.encode(output) for output in outputs],
            "is_digest": is_digest,
            "seconds": [round(value, 6) for value in seconds],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(gzip.compress(json.dumps(row).encode(), mtime=0))
        os.replace(part, path)
    return Expected(outputs, is_digest, seconds)


def _reference_program(problem: Row) -> Program:
    """The reference with a clock around it, which returns (whether the output is a digest, output, seconds)."""
    result = "result is not None" if is_not_none_task(problem) else "result"
    clock = (
        "def _timed_reference(*arguments):\n"
        "    from time import perf_counter\n"
        "    start = perf_counter()\n"
        f"    result = {problem['entry_point']}(*arguments)\n"
        f"    result = {result}\n"
        "    try:\n"
        "        output = _digest(result)\n"
        "    except ValueError:\n"
        "        output = result\n"
        "    return output is not result, output, perf_counter() - start\n"
    )
    source = f"{problem['reference']}\n{digests.SOURCE}\n{clock}"
    return Program(f"the reference of {problem['id']}", source, "_timed_reference", [], _REFERENCE_LIMIT_S)


def prepare(problems: Iterable[Row], sandbox: Sandbox, cache: Path | None) -> None:
    """Fills the cache for all plus problems among `problems`."""
    for problem in problems:
        if needs_expected(problem):
            expected_of(problem, sandbox, cache)


def needs_expected(problem: Row) -> bool:
    """Whether a problem's tests are calls whose expected outputs come from its reference."""
    return isinstance(problem["tests"], dict) and "plus" in problem["tests"]
