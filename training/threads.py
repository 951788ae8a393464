"""How many threads torch should use, given what else the machine is doing.

Small models lose far more from sharing a core than from leaving one idle: two torch threads beside two other busy
processes run several times slower than one thread.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch


def usable_cores() -> int:
    """Cores that this process may run on, by affinity and by the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(limit) // int(period)))
    return max(1, cores)


class OtherLoad:
    """Measures how many cores other processes keep busy between two calls (Linux; elsewhere 0)."""

    def __init__(self) -> None:
        self._last = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Now, busy core-seconds of the machine, core-seconds of this process (not of its children)."""
        own = sum(os.times()[:2])
        stat = Path("/proc/stat")
        if not stat.is_file():
            return time.monotonic(), own, own
        user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.read_text().split()[1:8])
        busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, own

    def cores(self) -> float:
        """Average number of cores that others kept busy since the last call."""
        before, self._last = self._last, self._read()
        seconds = max(self._last[0] - before[0], 1e-3)
        return max(0.0, (self._last[1] - before[1] - (self._last[2] - before[2])) / seconds)


def idle_cores(others: float) -> float:
    """Cores left to this process when others keep so many of the machine's cores busy."""
    return min(usable_cores(), (os.cpu_count() or 1) - others)


def choose_threads(most: int, others: float) -> int:
    """Threads for this process: the cores that others leave free, at least 1, at most `most`."""
    return max(1, min(most, round(idle_cores(others))))


def adapt_threads(most: int, load: OtherLoad) -> int:
    """Set torch's threads from the load since the last call; returns the number."""
    threads = choose_threads(most, load.cores())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads
