"""How the studies measure: interleaved calls, medians with quartiles, and what a number needs beside it to be read."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_WARM_SECONDS = 0.03


class WrongResult(Exception):
    """A result disagrees with the truth in this run, so no time of this run is worth printing."""


@dataclass(frozen=True)
class Variant:
    """A call on `pairs` pairs of trees. `rounds`: most often that it is timed, for what takes seconds."""

    name: str
    call: Callable[[], object]
    pairs: int
    threads: int = 1
    rounds: int | None = None


def interleave(
    variants: Sequence[Variant], rounds: int, tick: Callable[[], object] = lambda: None
) -> list[list[float]]:
    """Seconds of every call, for each variant. The order rotates, so that a drifting clock hits all of them.

    A call without a limit of rounds is timed in the middle of a loop over it: its threads are awake, which takes some
    milliseconds on a virtual machine whose second core had nothing to do. `tick` is called after every round.
    """
    seconds: list[list[float]] = [[] for _ in variants]
    before = torch.get_num_threads()
    try:
        for turn in range(rounds):
            for k in range(len(variants)):
                index = (turn + k) % len(variants)
                variant = variants[index]
                if variant.rounds is not None and turn >= variant.rounds:
                    continue
                torch.set_num_threads(variant.threads)
                warm = time.perf_counter() + _WARM_SECONDS
                while variant.rounds is None and time.perf_counter() < warm:
                    variant.call()
                start = time.perf_counter()
                variant.call()
                seconds[index].append(time.perf_counter() - start)
            tick()
    finally:
        torch.set_num_threads(before)
    return seconds


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN where one is NaN, which `max` would lose."""
    return torch.tensor(list(errors), dtype=torch.float64).max().item()


def spread(seconds: Sequence[float], pairs: int) -> dict[str, float]:
    """Median and quartiles in milliseconds a pair."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * [seconds[0]]
    return {
        "median_ms": 1e3 * middle / pairs,
        "p25_ms": 1e3 * low / pairs,
        "p75_ms": 1e3 * high / pairs,
        "rounds": len(seconds),
    }


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Date, commit, machine and versions; a package that is not installed has the version None."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "structloss", *packages)},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with "+" behind it where tracked files differ from it; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
