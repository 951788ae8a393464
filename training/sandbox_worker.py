"""The grader's end of a sandbox worker: starts the zygote, speaks its frames, ends it."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.sandbox_cgroup import remove

_ZYGOTE = Path(__file__).with_name("sandbox_zygote.py")
_GRACE_S = 15.0
_CGROUP_SPARE_MB = 192  # the zygote, a supervisor, the private /tmp


class WorkerDied(Exception):
    """The worker process ended, fell silent or lost step."""


def packages_for_programs(names: Sequence[str]) -> dict[str, list[str]]:
    """Where the packages lie: `path` for imports, `folders` that a program may read.

    Raises ValueError for one that is not installed.
    """
    folders, path = [], []
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"packages: {name!r} is not an installed package; pip install it, or leave it out")
        for location in map(Path, spec.submodule_search_locations):
            path.append(str(location.parent))
            folders += [str(p) for p in (location, location.with_name(f"{name}.libs")) if p.is_dir()]
    return {"names": list(names), "folders": folders, "path": sorted(set(path))}


class Worker:
    """The pipes to one zygote process.

    packages: from `packages_for_programs`. memory_mb: of a program; all processes of a run together get a little more.
    wrapper: a command that starts the worker's.
    """

    def __init__(
        self, folder: str, packages: Mapping[str, list[str]], memory_mb: int, wrapper: Sequence[str] = ()
    ) -> None:
        settings = {"packages": packages, "cgroup_bytes": (memory_mb + _CGROUP_SPARE_MB) << 20}
        self.cgroups: list[str] = []
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-s", "-S", str(_ZYGOTE), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            # A library's threads would not survive the fork.
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            bufsize=0,
            start_new_session=True,
        )
        self.deadline = time.monotonic() + _GRACE_S
        try:
            hello = json.loads(self._read_frame())
        except WorkerDied:
            self.close()
            raise
        self.problems: list[str] = hello["problems"]
        self.cgroups = hello["cgroups"]

    def send(self, request: Mapping[str, Any]) -> None:
        self.deadline = time.monotonic() + request["time_limit_s"] + _GRACE_S
        data = json.dumps(request).encode()
        view = memoryview(struct.pack("<I", len(data)) + data)
        assert self.process.stdin is not None
        try:
            while view:
                view = view[self.process.stdin.write(view) :]
        except OSError:
            raise WorkerDied from None

    def receive(self, run: int) -> tuple[dict[str, Any], bytes]:
        header = json.loads(self._read_frame())
        if header["run"] != run:
            raise WorkerDied
        return header, self._read_frame()

    def fileno(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def _read_frame(self) -> bytes:
        (size,) = struct.unpack("<I", self._read_exactly(4))
        return self._read_exactly(size)

    def _read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            left = self.deadline - time.monotonic()
            if left <= 0 or not readable([self], left):
                raise WorkerDied
            chunk = os.read(self.fileno(), size - len(data))
            if not chunk:
                raise WorkerDied
            data += chunk
        return bytes(data)

    def close(self) -> None:
        """Ends the worker and everything that it runs; nothing of it is left on return."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()  # the zygote's lifeline: it ends, as PID 1, with all that is below it
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        remove(self.cgroups)


def readable(workers: Iterable[Worker], timeout_s: float) -> list[Worker]:
    """The workers that have something to say, after at most `timeout_s`."""
    by_descriptor = {worker.fileno(): worker for worker in workers}
    poll = select.poll()  # not select(), which fails above descriptor 1023
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(max(timeout_s, 0) * 1000)]
