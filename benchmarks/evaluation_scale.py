"""Does grading keep flat memory, and every row? python -m benchmarks.evaluation_scale [--out FILE.json].

Three parts, each with its own process whose peak memory is read from the kernel:
reading: samples files of growing size whose verdicts are all there, so that what runs is reading, checking and summing;
grading: real programs through the sandbox; killed: the same, with the grader killed by SIGKILL again and again, and the
rows counted at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.timing import WrongResult, environment
from training.benchmarks import Benchmark
from training.evaluation.samples import by_task_id, read_samples
from training.evaluation.verdict_file import Limits, grade_file, key_of
from training.jsonl import read_jsonl, write_jsonl

Row = dict[str, Any]

PROBLEMS = 164
FILLER = "    # " + "about as long as an answer of a real model is " * 12 + "\n"


def benchmark() -> Benchmark:
    """As many problems as HumanEval has; problem k asks for a function that adds k."""
    rows = [
        {
            "id": f"adding/{k}",
            "task_id": f"Adding/{k}",
            "set": "adding",
            "version": "1",
            "prompt": f'def add(x):\n    """Add {k}."""\n',
            "completion_prefix": f'def add(x):\n    """Add {k}."""\n',
            "code_prefix": "",
            "entry_point": "add",
            "tests": [{"args": [x], "expected": x + k} for x in range(5)],
            "reference": f'def add(x):\n    """Add {k}."""\n    return x + {k}\n',
        }
        for k in range(PROBLEMS)
    ]
    return Benchmark("adding", "1", rows, "benchmarks.evaluation_scale")


def sample_rows(count: int) -> Iterator[Row]:
    """Samples task by task, every third of them wrong."""
    each = -(-count // PROBLEMS)
    for number in range(count):
        task, index = divmod(number, each)
        yield {"task_id": f"Adding/{task}", "completion": f"{FILLER}    return x + {task + (index % 3 == 2)}\n"}


def grade(folder: Path, structure: bool) -> Row:
    """What the measured process does; its peak memory before (after all imports) and behind."""
    before = peak_mb()
    started = time.perf_counter()
    results = grade_file(
        folder / "samples.jsonl", benchmark(), folder, partial=True, structure=structure, limits=Limits(memory_mb=512)
    )
    return {
        "samples": results["samples"],
        "seconds": round(time.perf_counter() - started, 2),
        "imports_mb": before,
        "peak_mb": peak_mb(),
        "pass@1": results["pass@1"],
    }


def peak_mb() -> float:
    """Peak resident memory of this process since it started, in MB of 2^20 bytes."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


def start(folder: Path, *, structure: bool = False) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "benchmarks.evaluation_scale", "--grade", str(folder)]
    return subprocess.Popen(words + ["--structure"] * structure, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> Row:
    output, _ = process.communicate()
    if process.returncode:
        raise WrongResult(f"the grader ended with status {process.returncode}")
    return json.loads(output)


def prepare(place: Path, count: int) -> None:
    """A samples file, and a verdict file in which every sample has passed."""
    write_jsonl(place / "samples.jsonl", sample_rows(count))
    problems = by_task_id(benchmark().problems)
    keys = (key_of(sample, problems) for sample in read_samples(place / "samples.jsonl"))
    names = ("task_id", "sample", "digest")
    verdict = {"status": "passed", "detail": "", "seconds": 0.0}
    write_jsonl(place / "verdicts.jsonl", (dict(zip(names, key, strict=True)) | verdict for key in keys))
    (place / "isolation.json").write_text("{}")


def reading(folder: Path, counts: list[int]) -> list[Row]:
    """Peak memory and time where every verdict is there already."""
    found = []
    for count in counts:
        place = folder / f"reading{count}"
        prepare(place, count)
        row = finish(start(place)) | {"megabytes": round((place / "samples.jsonl").stat().st_size / 2**20, 1)}
        if (row["samples"], row["pass@1"]) != (count, 1.0):
            raise WrongResult(f"{count} samples came out as {row}")
        found.append(row)
        print(f"reading {count:7d} samples: {row['seconds']:6.1f} s, peak {row['peak_mb']} MB", flush=True)
    return found


def check(place: Path, count: int) -> None:
    """Every sample has its one verdict, in its place."""
    rows = [(row["task_id"], row["sample"], row["status"]) for row in read_jsonl(place / "verdicts.jsonl")]
    each = -(-count // PROBLEMS)
    expected = [
        (f"adding/{number // each}", number % each, "failed" if number % each % 3 == 2 else "passed")
        for number in range(count)
    ]
    if rows != expected:
        raise WrongResult(f"{len(rows)} verdicts on {count} samples, {len(set(expected) - set(rows))} are missing")


def grading(folder: Path, counts: list[int]) -> list[Row]:
    """Peak memory and programs a second through the real sandbox, with structure metrics."""
    found = []
    for count in counts:
        place = folder / f"grading{count}"
        write_jsonl(place / "samples.jsonl", sample_rows(count))
        row = finish(start(place, structure=True))
        check(place, count)
        found.append(row | {"per_second": round(count / row["seconds"], 1)})
        print(f"grading {count:7d} samples: {found[-1]['per_second']} a second, peak {row['peak_mb']} MB", flush=True)
    return found


def killed(folder: Path, count: int, kills: int) -> Row:
    """The grader is killed at `kills` random places and started again; then every row is looked at."""
    place = folder / "killed"
    write_jsonl(place / "samples.jsonl", sample_rows(count))
    verdicts = place / "verdicts.jsonl"
    draw = random.Random(0)
    places = []
    for goal in sorted(draw.sample(range(1, count - 100), kills)):
        process = start(place)
        while process.poll() is None and rows_in(verdicts) < goal:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        places.append(rows_in(verdicts))
    finish(start(place))
    check(place, count)
    print(f"killed after {places} of {count} rows: none lost, none doubled", flush=True)
    return {"samples": count, "killed_after_rows": places, "lost": 0, "doubled": 0}


def rows_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def table_lines(result: Row) -> list[str]:
    """The figures as the table of docs/evaluation.md."""
    lines = [
        "| what runs | samples | samples a second | peak memory, MB | of it imports, MB |",
        "|---|---|---|---|---|",
    ]
    for title, rows in (
        ("reading, checking, summing", result["reading"]),
        ("grading, 2 workers, structure metrics", result["grading"]),
    ):
        for row in rows:
            rate = row["samples"] / row["seconds"]
            figures = (f"{row['samples']:,}", f"{rate:,.0f}", f"{row['peak_mb']:.0f}", f"{row['imports_mb']:.0f}")
            lines.append(f"| {title} | {' | '.join(figures)} |")
    killed = result["killed"]
    places = ", ".join(map(str, killed["killed_after_rows"]))
    return [
        *lines,
        "",
        f"Killed after {places} of {killed['samples']} rows: {killed['lost']} lost, {killed['doubled']} doubled.",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation_scale", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--samples", type=int, default=100_000, help="most samples that are read")
    parser.add_argument("--programs", type=int, default=4000, help="most programs that run")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--grade", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--structure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grade:
        print(json.dumps(grade(options.grade, options.structure)))
        return 0
    try:
        with tempfile.TemporaryDirectory() as name:
            result = measure(Path(name), options.samples, options.programs, options.kills)
    except WrongResult as wrong:
        print(f"refused: {wrong}", file=sys.stderr)
        return 1
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(folder: Path, samples: int, programs: int, kills: int) -> Row:
    return {
        "environment": environment([]),
        "workers": Limits().workers,
        "reading": reading(folder, [samples // 100, samples // 10, samples]),
        "grading": grading(folder, [programs // 8, programs]),
        "killed": killed(folder, max(programs // 2, 200), kills),
    }


if __name__ == "__main__":
    sys.exit(main())
