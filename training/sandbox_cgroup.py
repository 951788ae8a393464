"""A memory and a pids cgroup for a worker of the sandbox, where the system lets us make one.

Resource limits count a process; a cgroup counts the run: 32 processes that allocate together meet one limit. Loaded by
path into the sandbox's starter, before it builds its walls; standard library only. Version 2 (one hierarchy) and
version 1 (one a controller) of the kernel's interface.
"""

from __future__ import annotations

import contextlib
import os
import time

_ROOT = "/sys/fs/cgroup"


class Cgroup:
    """Limits this process and all that it will fork.

    folders: the new groups, to be removed when the worker is dead. `killed()` counts processes that the kernel killed
    for memory; it reads a descriptor that was opened here, so it works behind the walls.

    Raises OSError where there is no controller that we may use.
    """

    def __init__(self, memory_bytes: int, processes: int) -> None:
        self.folders: list[str] = []
        name = f"structloss-{os.getpid()}"
        try:
            if os.path.isfile(f"{_ROOT}/cgroup.controllers"):
                events = self._version_2(name, memory_bytes, processes)
            else:
                events = self._version_1(name, memory_bytes, processes)
            self._events = os.open(events, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            remove(self.folders)
            raise

    def _version_2(self, name: str, memory_bytes: int, processes: int) -> str:
        folder = os.path.join(_ROOT, _own_group("").lstrip("/"), name)
        os.mkdir(folder)
        self.folders.append(folder)
        _write(f"{folder}/memory.max", memory_bytes)
        with contextlib.suppress(OSError):
            _write(f"{folder}/memory.swap.max", 0)
        _write(f"{folder}/pids.max", processes)
        _write(f"{folder}/cgroup.procs", os.getpid())
        return f"{folder}/memory.events"

    def _version_1(self, name: str, memory_bytes: int, processes: int) -> str:
        limits = {"memory": {"memory.limit_in_bytes": memory_bytes}, "pids": {"pids.max": processes}}
        for controller, files in limits.items():
            folder = os.path.join(_ROOT, controller, _own_group(controller).lstrip("/"), name)
            os.mkdir(folder)
            self.folders.append(folder)
            for file, value in files.items():
                _write(f"{folder}/{file}", value)
            _write(f"{folder}/cgroup.procs", os.getpid())
        return f"{self.folders[0]}/memory.oom_control"

    def killed(self) -> int:
        os.lseek(self._events, 0, os.SEEK_SET)
        for line in os.read(self._events, 4096).decode().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0


def remove(folders: list[str]) -> None:
    """Removes groups; their processes must be dead, which the kernel notices a moment later."""
    for folder in folders:
        for _ in range(100):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.01)
            else:
                break


def _own_group(controller: str) -> str:
    """Path of this process' group in the hierarchy of a controller ("" = version 2)."""
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controller in controllers.split(",") if controller else controllers == "":
                return path
    raise FileNotFoundError(f"no cgroup hierarchy of {controller or 'version 2'}")


def _write(path: str, value: int) -> None:
    with open(path, "w") as file:
        file.write(str(value))
