"""All stages of a run, each resumable: data, verify, train, evaluate, report."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from training.config import RunConfig
from training.data import prepare_data, verify_data
from training.evaluate import evaluate_arm, is_evaluated
from training.progress import Watcher
from training.report import print_results, write_report
from training.runs import RunFolder
from training.threads import OtherLoad, idle_cores, usable_cores
from training.train import tokenizer_of, train_arm

Result = TypeVar("Result")


class StageError(RuntimeError):
    """A stage failed in another process; the message holds the end of its console."""


def timed(run: RunFolder, stage: str, work: Callable[[], Result]) -> Result:
    """Do a stage, say so, and record its wall time and the machine's load."""
    print(f"== {stage}", flush=True)
    started = time.monotonic()
    result = work()
    run.record_stage(stage, time.monotonic() - started)
    return result


def distill(run: RunFolder, config: RunConfig) -> None:
    """The whole run; stages that are done are skipped."""
    started = time.monotonic()
    summary = timed(run, "data", lambda: prepare_data(run, config))
    print(f"   {summary['traces']} traces; problems: {_counts(summary['problems'])}")
    verified = timed(run, "verify", lambda: verify_data(run, config))
    print(f"   {_counts(verified['traces'])}")
    tokenizer_of(run, config)
    jobs = list(config.arms) + ["untrained"] * config.evaluate.untrained + ["nearest"] * config.evaluate.nearest
    if unfinished := [name for name in jobs if not is_evaluated(run, config, name)]:
        timed(run, "train and evaluate", lambda: run_jobs(run, config, unfinished))
    path = timed(run, "report", lambda: write_report(run, config))
    print_results(run, config)
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"\n   {time.monotonic() - started:.0f} s on {usable_cores()} cores{load}; report: {path}")


def _counts(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if isinstance(value, int))


def train_and_evaluate(root: Path, name: str, threads: int, progress_file: Path) -> None:
    """One arm or baseline, in a process of its own, with its console in a file."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    run, config = RunFolder.existing(root)
    console = os.open(run.arm(name) / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(console, sys.stdout.fileno())
    os.dup2(console, sys.stderr.fileno())
    if name in config.arms:
        train_arm(run, config, name, threads=threads, progress_file=progress_file)
    evaluate_arm(run, config, name, threads=threads, progress_file=progress_file)


def exit_with_parent() -> None:
    """An arm must not go on when its run was killed: the resumed run would train it a second time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_jobs(run: RunFolder, config: RunConfig, jobs: list[str]) -> None:
    """Train and evaluate all arms and baselines; another job starts whenever its share of the cores is idle.

    Raises:
        StageError: a job failed; the others are stopped. What they finished is kept for the next call.
    """
    cores = usable_cores()
    threads = max(1, cores // min(len(config.arms), cores))
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)
    running: dict[str, multiprocessing.context.SpawnProcess] = {}
    files = {name: run.arm(name) / "progress.json" for name in jobs}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
    load = OtherLoad()  # running jobs are processes of their own and count as load
    next_look = time.monotonic() + 0.5
    watcher = Watcher(files)
    try:
        while waiting or running:
            time.sleep(0.2)
            watcher.refresh()
            check_jobs(run, running)
            if time.monotonic() < next_look:
                continue
            idle = idle_cores(load.cores())
            next_look = time.monotonic() + 4.0
            starts = max(round(idle / threads), not running)
            for name in waiting[:starts]:
                waiting.remove(name)
                arguments = (run.root, name, threads, files[name])
                running[name] = context.Process(target=train_and_evaluate, args=arguments)
                running[name].start()
    finally:
        watcher.close()
        for process in running.values():
            process.terminate()
            process.join()


def check_jobs(run: RunFolder, running: dict[str, multiprocessing.context.SpawnProcess]) -> None:
    """Forget the jobs that are done.

    Raises:
        StageError: one failed.
    """
    for name, process in list(running.items()):
        if process.exitcode is None:
            continue
        del running[name]
        if process.exitcode:
            console = run.arm(name) / "console.log"
            lines = console.read_text().splitlines()[-12:] if console.is_file() else []
            raise StageError(f"{name} failed (exit {process.exitcode}); the end of {console}:\n  " + "\n  ".join(lines))
