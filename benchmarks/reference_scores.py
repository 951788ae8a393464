"""Do all reference solutions pass? python -m benchmarks.reference_scores --data FOLDER [--out FILE.json].

Grades every benchmark's own solutions as if a model had written them: 974, 427, 378, 164 and 164 must pass (and
kata's), or the grader would fail right programs. FOLDER is laid out as `training.benchmarks.load_benchmark` says.
Expected outputs of the plus sets are made by the first run and kept in the cache (--cache).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import environment
from training.benchmarks import Grader, load_benchmark
from training.benchmarks.expected import prepare
from training.progress import Progress
from training.sandbox import Sandbox

SETS = ("mbpp_all", "mbpp_sanitized", "mbpp_plus", "humaneval", "humaneval_plus", "kata")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reference_scores", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmark files")
    parser.add_argument("--cache", type=Path, help="folder of expected outputs (default: the user's cache)")
    parser.add_argument("--only", choices=SETS, action="append", help="this set (may be given more than once)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    rows = [score(name, options.data, options.cache, options.workers) for name in options.only or SETS]
    if options.out:
        result = {"environment": environment([]), "workers": options.workers, "sets": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row["passed"] < row["problems"] for row in rows))


def score(name: str, data: Path, cache: Path | None, workers: int) -> dict[str, Any]:
    """How many references of a set pass, with the others by name, and the seconds of both stages."""
    benchmark = load_benchmark(name, data)
    with Sandbox(workers=workers, memory_mb=4096) as sandbox:
        grader = Grader(sandbox, cache=cache, time_limit_s=20)
        started = time.monotonic()
        prepare(benchmark.problems, sandbox, grader.cache)
        prepared = time.monotonic()
        failed = {}
        samples = ((problem, problem["reference"]) for problem in benchmark.problems)
        with Progress(f"grade {name}", len(benchmark.problems), unit="problem") as bar:
            for problem, grade in zip(benchmark.problems, grader.grade(samples), strict=True):
                if grade.verdict.status != "passed":
                    failed[problem["id"]] = f"{grade.verdict.status}: {grade.verdict.detail}"
                bar.update(1)
        row = {
            "set": name,
            "version": benchmark.version,
            "problems": len(benchmark.problems),
            "passed": len(benchmark.problems) - len(failed),
            "failed": failed,
            "isolation": sandbox.isolation,
            "seconds_for_expected_outputs": round(prepared - started, 1),
            "seconds": round(time.monotonic() - prepared, 1),
        }
    print(
        f"{name:16} {benchmark.version:16} {row['passed']:4} of {row['problems']:4}  {row['seconds']:6.1f} s",
        flush=True,
    )
    return row


if __name__ == "__main__":
    sys.exit(main())
