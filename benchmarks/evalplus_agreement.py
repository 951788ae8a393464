"""Our grader and EvalPlus's on the same solutions: python -m benchmarks.evalplus_agreement --help.

Two studies, both outside of the default tests. `agreement` grades some 2,000 solutions with both and lists each
disagreement with its cause; stopped, it continues where it was. `throughput` times both on the same solutions, one
after the other. EvalPlus runs through its own command line in an environment of its own (`python -m venv V &&
V/bin/pip install evalplus==0.3.1`) and reads the same data files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.evalplus_samples import make_samples
from benchmarks.timing import environment
from training.benchmarks import Grader, load_benchmark
from training.benchmarks.expected import prepare
from training.benchmarks.loading import file_of
from training.jsonl import JsonlAppender, read_jsonl, write_jsonl
from training.progress import Progress
from training.sandbox import Sandbox

Row = dict[str, Any]

# Our name: EvalPlus's name, its variable for the data file.
SETS = {"mbpp_plus": ("mbpp", "MBPP_OVERRIDE_PATH"), "humaneval_plus": ("humaneval", "HUMANEVAL_OVERRIDE_PATH")}
CANDIDATES = "traces/mbpp_candidates.jsonl.gz"
MEMORY_MB = 4096  # as EvalPlus
UNEXPLAINED = "unexplained"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evalplus_agreement", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmark files")
    parser.add_argument("--evalplus", type=Path, required=True, help="EvalPlus's environment (holds bin/python)")
    parser.add_argument("--work", type=Path, required=True, help="folder for samples, verdicts and caches")
    parser.add_argument("--study", choices=("agreement", "throughput"), default="agreement")
    parser.add_argument("--only", choices=SETS, action="append", help="this set (may be given more than once)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", type=int, default=800, help="solutions by models (MBPP+)")
    parser.add_argument("--mutants", type=int, default=2, help="single edits a task")
    parser.add_argument("--wrapped", type=int, default=8, help="solutions of every wrapper")
    parser.add_argument("--every", type=int, default=4, help="throughput: of the tasks, every so manieth")
    parser.add_argument("--out", type=Path, help="write the result as JSON; sets that it holds already are kept")
    options = parser.parse_args()
    study = agreement if options.study == "agreement" else throughput
    for name in options.only or SETS:
        result = study(name, options)
        print(json.dumps({key: value for key, value in result.items() if key != "disagreements"}, indent=1), flush=True)
        if options.out:
            report = json.loads(options.out.read_text()) if options.out.is_file() else {}
            report.setdefault(options.study, {})[name] = {"environment": environment([]), **result}
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def agreement(name: str, options: argparse.Namespace) -> Row:
    """Grades the samples of a set with both; where they disagree, EvalPlus once more with that task only."""
    benchmark = load_benchmark(name, options.data)
    candidates = read_jsonl(options.data / CANDIDATES) if name == "mbpp_plus" else ()
    samples = make_samples(
        benchmark.problems, candidates, model=options.model, mutants=options.mutants, wrapped=options.wrapped
    )
    folder = options.work / name
    ours = grade_ours(benchmark.problems, samples, folder, options)
    data = file_of(name, options.data)
    theirs = grade_evalplus(name, samples, folder / "all", data, options.evalplus, options.workers)
    differing = [sample for sample in samples if outcome(ours[sample["id"]]) != outcome(theirs[sample["id"]])]
    alone: dict[str, Row] = {}
    for task in {sample["task_id"] for sample in differing}:
        again = [sample for sample in differing if sample["task_id"] == task]
        place = folder / f"alone-{task.rpartition('/')[2]}"
        only = write_tasks(name, {task}, place, data)
        alone |= grade_evalplus(name, again, place, only, options.evalplus, workers=1)
    disagreements = []
    for sample in differing:
        mine, first, second = ours[sample["id"]], theirs[sample["id"]], alone[sample["id"]]
        row = {
            "id": sample["id"],
            "kind": sample["kind"],
            "ours": [mine["base"], mine["plus"]],
            "detail": mine["detail"],
            "evalplus": [first["base"], first["plus"]],
            "evalplus_alone": [second["base"], second["plus"]],
        }
        row["cause"] = cause_of(row, sample)
        if row["cause"] == UNEXPLAINED:
            place = folder / f"memory-{sample['task_id'].rpartition('/')[2]}"
            only = write_tasks(name, {sample["task_id"]}, place, data)
            third = grade_evalplus(name, [sample], place, only, options.evalplus, workers=1, memory_gb=16)
            if outcome(third[sample["id"]]) == outcome(mine):
                row["cause"] = "EvalPlus's 4 GB must hold the expected outputs too: with 16 GB it agrees"
        disagreements.append(row)
    return {
        "version": benchmark.version,
        "samples": len(samples),
        "kinds": dict(Counter(sample["kind"] for sample in samples)),
        "statuses": dict(Counter(row["plus"] for row in ours.values())),
        "table": _table(samples, ours, theirs),
        "causes": dict(Counter(row["cause"] for row in disagreements)),
        "disagreements": disagreements,
    }


def outcome(row: Row) -> tuple[bool, bool]:
    """Passed on the base tests, passed on all: what pass@1 is made of."""
    passed = ("pass", "passed")
    return row["base"] in passed, row["base"] in passed and row["plus"] in passed


def _table(samples: list[Row], ours: dict[str, Row], theirs: dict[str, Row]) -> dict[str, dict[str, int]]:
    """By kind of sample: how many both pass, both fail, only one passes, on base and plus tests."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        mine, other = outcome(ours[sample["id"]])[1], outcome(theirs[sample["id"]])[1]
        same = {True: "both pass", False: "both fail"}[mine]
        table[sample["kind"]][same if mine == other else "only we pass" if mine else "only EvalPlus passes"] += 1
        table[sample["kind"]]["base differs"] += outcome(ours[sample["id"]])[0] != outcome(theirs[sample["id"]])[0]
    return {kind: dict(counts) for kind, counts in table.items()}


def grade_ours(problems: list[Row], samples: list[Row], folder: Path, options: argparse.Namespace) -> dict[str, Row]:
    """Our verdicts by sample id; those that stand in the folder are not made again."""
    by_task = {problem["task_id"]: problem for problem in problems}
    path = folder / "ours.jsonl"
    done = {row["id"]: row for row in read_jsonl(path, tolerate_cut_end=True)} if path.is_file() else {}
    todo = [sample for sample in samples if sample["id"] not in done]
    with Sandbox(workers=options.workers, memory_mb=MEMORY_MB) as sandbox:
        grader = Grader(sandbox, cache=options.work / "expected")
        prepare(problems, sandbox, grader.cache)
        grades = grader.grade((by_task[sample["task_id"]], sample["solution"]) for sample in todo)
        with JsonlAppender(path) as out, Progress("ours", len(todo), unit="sample") as bar:
            for sample, grade in zip(todo, grades, strict=True):
                row = {"id": sample["id"], "base": grade.base, "plus": grade.plus or grade.base}
                row |= {"detail": grade.verdict.detail, "seconds": round(grade.verdict.seconds, 4)}
                out.append(row)
                done[sample["id"]] = row
                bar.update(1)
    return done


def write_tasks(name: str, tasks: set[str], folder: Path, data: Path) -> Path:
    """A data file with some tasks only: EvalPlus demands a sample for each task of its file."""
    path = folder / "tasks.jsonl"
    write_jsonl(path, (row for row in read_jsonl(data) if row["task_id"] in tasks))
    return path


def grade_evalplus(
    name: str, samples: list[Row], folder: Path, data: Path, evalplus: Path, workers: int, memory_gb: int = 4
) -> dict[str, Row]:
    """EvalPlus's verdicts by sample id; a whole run that stands in the folder is not made again."""
    path = folder / "samples.jsonl"
    results = results_of(path)
    ids = [sample["id"] for sample in samples]
    if not path.is_file() or [row["id"] for row in read_jsonl(path)] != ids:
        results.unlink(missing_ok=True)
        write_jsonl(path, samples)
    if not results.is_file():
        run_evalplus(name, path, data, evalplus, workers, memory_gb)
    order: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        order[sample["task_id"]].append(sample["id"])
    found = json.loads(results.read_text())["eval"]
    return {
        sample_id: {"base": row["base_status"], "plus": row["plus_status"]}
        for task, sample_ids in order.items()
        for sample_id, row in zip(sample_ids, found[task], strict=True)
    }


def run_evalplus(name: str, samples: Path, data: Path, evalplus: Path, workers: int, memory_gb: int = 4) -> float:
    """EvalPlus's command line on a samples file; its results and its log are written beside it.

    Returns the seconds until the results were written. (It ends later: one of its threads sleeps for 20 s.)
    """
    dataset, variable = SETS[name]
    environ = os.environ | {
        variable: str(data.resolve()),
        "EVALPLUS_MAX_MEMORY_BYTES": str(memory_gb << 30),  # 4 GB is its own default
        "XDG_CACHE_HOME": str((samples.parent.parent / "evalplus-cache").resolve()),  # its expected outputs
    }
    environ.pop("PYTHONPATH", None)
    command = [str(evalplus / "bin" / "python"), "-m", "evalplus.evaluate", dataset]
    command += ["--samples", str(samples.resolve()), "--parallel", str(workers)]
    results = results_of(samples)
    results.unlink(missing_ok=True)
    started = time.time()
    with samples.with_suffix(".log").open("w") as log:
        subprocess.run(command, env=environ, stdout=log, stderr=log, check=True, cwd=samples.parent)
    return results.stat().st_mtime - started


def results_of(samples: Path) -> Path:
    """Where EvalPlus puts the results of a samples file."""
    return samples.with_name(f"{samples.stem}_eval_results.json")


def cause_of(row: Row, sample: Row) -> str:
    """Why the graders disagree on a sample; UNEXPLAINED if no known cause fits."""
    return next((cause for cause, holds in CAUSES.items() if holds(row, sample)), UNEXPLAINED)


CAUSES: dict[str, Callable[[Row, Row], bool]] = {
    "HumanEval/32: EvalPlus's oracle never records a pass": lambda row, sample: sample["task_id"] == "HumanEval/32",
    "an object that equals everything passes EvalPlus": lambda row, sample: sample["kind"] == "equals everything",
    "EvalPlus's time limit under load: alone, with that task only, it agrees": lambda row, _: (
        outcome({"base": row["ours"][0], "plus": row["ours"][1]})
        == outcome({"base": row["evalplus_alone"][0], "plus": row["evalplus_alone"][1]})
    ),
    "the result is no plain data": lambda row, sample: "not plain data" in row["detail"],
}


def throughput(name: str, options: argparse.Namespace) -> Row:
    """Samples a second of both on the same solutions: once with one, once with three of each task.

    The difference of the two runs is free of start-up; expected outputs are made before the clocks start.
    """
    benchmark = load_benchmark(name, options.data)
    problems = benchmark.problems[:: options.every]
    tasks = {problem["task_id"] for problem in problems}
    folder = options.work / f"throughput-{name}"
    subset = write_tasks(name, tasks, folder, file_of(name, options.data))
    once = make_samples(problems, (), model=0, mutants=0, wrapped=0)
    thrice = once + [sample | {"id": f"{sample['id']}-{copy}"} for copy in (1, 2) for sample in once]
    write_jsonl(folder / "once.jsonl", once)
    write_jsonl(folder / "thrice.jsonl", thrice)
    seconds: dict[str, list[float]] = {"ours": [], "evalplus": []}
    run_evalplus(name, folder / "once.jsonl", subset, options.evalplus, options.workers)
    for path in (folder / "once.jsonl", folder / "thrice.jsonl"):
        seconds["evalplus"].append(run_evalplus(name, path, subset, options.evalplus, options.workers))
    by_task = {problem["task_id"]: problem for problem in problems}
    cache = options.work / "expected"
    with Sandbox(workers=options.workers, memory_mb=MEMORY_MB) as sandbox:
        prepare(problems, sandbox, cache)
    for samples in (once, thrice):
        started = time.monotonic()
        with Sandbox(workers=options.workers, memory_mb=MEMORY_MB) as sandbox:
            pairs = ((by_task[sample["task_id"]], sample["solution"]) for sample in samples)
            statuses = Counter(grade.verdict.status for grade in Grader(sandbox, cache=cache).grade(pairs))
            isolation = sandbox.isolation
        seconds["ours"].append(time.monotonic() - started)
    rate = {who: (len(thrice) - len(once)) / (two - one) for who, (one, two) in seconds.items()}
    return {
        "tasks": len(problems),
        "samples": [len(once), len(thrice)],
        "workers": options.workers,
        "seconds": {who: [round(value, 2) for value in values] for who, values in seconds.items()},
        "samples_a_second": {who: round(value, 2) for who, value in rate.items()},
        "statuses": dict(statuses),
        "isolation": isolation,
        "evalplus": evalplus_version(options.evalplus),
    }


def evalplus_version(environment: Path) -> str:
    """The installed version of EvalPlus and its Python's."""
    script = "import importlib.metadata as m, platform; print(m.version('evalplus'), platform.python_version())"
    done = subprocess.run([environment / "bin" / "python", "-c", script], capture_output=True, text=True, check=True)
    return "evalplus {}, Python {}".format(*done.stdout.split())


if __name__ == "__main__":
    sys.exit(main())
