"""What does isolation cost? python -m benchmarks.sandbox_throughput [--out FILE.json].

Short programs a second through the sandbox, by mode, with and without numpy and with one and two workers, beside two
floors in the same run: a fork of a small interpreter without walls that runs the same program, and a cold `python -I`.
Every round measures every variant, in rotating order; a wrong verdict ends the study.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import WrongResult, environment
from training.sandbox import Program, Sandbox

Row = dict[str, Any]
SOURCE = "def f(x):\n    return x + 1\n"
NUMPY_SOURCE = "import numpy as np\ndef f(x):\n    return int(np.add(x, 1))\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sandbox_throughput", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--programs", type=int, default=100, help="in each round of each variant")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    report = {"environment": environment(["numpy"]), "rows": measure(options.rounds, options.programs)}
    print(table(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(rounds: int, programs: int) -> list[Row]:
    with contextlib.ExitStack() as stack:
        variants: list[tuple[Row, Callable[[int], float]]] = []
        for packages in ((), ("numpy",)):
            for bubblewrap in (False, True) if shutil.which("bwrap") else (False,):
                for workers in (1, 2):
                    sandbox = Sandbox(workers, packages=packages, bubblewrap=bubblewrap)
                    stack.enter_context(sandbox)
                    name = {"variant": "bubblewrap" if bubblewrap else "namespaces", "workers": workers}
                    name |= {"numpy": bool(packages)} | {"layers": [k for k, v in sandbox.hardening.items() if v]}
                    source = NUMPY_SOURCE if packages else SOURCE
                    variants.append((name, lambda count, s=sandbox, t=source: through(s, t, count)))  # type: ignore[misc]
        variants.append(({"variant": "bare fork", "workers": 1, "numpy": False}, bare_fork))
        variants.append(({"variant": "cold python -I", "workers": 1, "numpy": False}, cold_python))
        seconds: list[list[float]] = [[] for _ in variants]
        for turn in range(rounds + 1):
            for k in range(len(variants)):
                index = (turn + k) % len(variants)
                count = max(programs // 10, 1) if variants[index][1] is cold_python else programs
                took = variants[index][1](count)
                if turn:  # the first round warms up
                    seconds[index].append(took / count)
    return [name | rates(times) for (name, _), times in zip(variants, seconds, strict=True)]


def rates(times: list[float]) -> Row:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else 3 * times
    return {"per_second": 1 / middle, "p25": 1 / high, "p75": 1 / low, "rounds": len(times)}


def through(sandbox: Sandbox, source: str, count: int) -> float:
    started = time.perf_counter()
    programs = (Program(str(k), source, "f", [{"args": [k], "expected": k + 1}]) for k in range(count))
    for verdict in sandbox.run(programs):
        if verdict.status != "passed":
            raise WrongResult(f"a right program got {verdict}")
    return time.perf_counter() - started


_FORKS = """
import os, sys, time
count, source = int(sys.argv[1]), sys.argv[2]
started = time.perf_counter()
for k in range(count):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        namespace = {}
        exec(compile(source, "<program>", "exec"), namespace)
        os.write(writing, str(namespace["f"](k)).encode())
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 64) == str(k + 1).encode()
    os.close(reading)
    os.waitpid(child, 0)
print(time.perf_counter() - started)
"""


def bare_fork(count: int) -> float:
    """The same programs, each in a fork of a small interpreter, with no wall."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _FORKS, str(count), SOURCE], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise WrongResult(f"a fork is wrong: {done.stderr[-300:]}")
    return float(done.stdout)


def cold_python(count: int) -> float:
    started = time.perf_counter()
    for k in range(count):
        command = [sys.executable, "-I", "-c", f"{SOURCE}\nprint(f({k}))"]
        if subprocess.run(command, capture_output=True, check=True).stdout.strip() != str(k + 1).encode():
            raise WrongResult("the cold interpreter is wrong")
    return time.perf_counter() - started


def table(report: Row) -> str:
    lines = ["| way | numpy | workers | programs a second |", "|---|---|---|---|"]
    for row in report["rows"]:
        lines.append(
            f"| {row['variant']} | {'yes' if row['numpy'] else 'no'} | {row['workers']} | "
            f"{row['per_second']:.0f} [{row['p25']:.0f}, {row['p75']:.0f}] |"
        )
    return "\n".join(lines)


def tables(report: Row) -> dict[str, str]:
    around, rounds = report["environment"], report["rows"][0]["rounds"]
    return {
        "throughput": f"{table(report)}\n\nMedian [quartiles] of {rounds} rounds. {around['machine']}, "
        f"{around['cores']} cores; Python {around['python']}; commit {around['commit']}, {around['date'][:10]}, load "
        f"{around['load_average']:.1f} at the start."
    }


if __name__ == "__main__":
    sys.exit(main())
