"""Runs model-written programs against tests behind real walls and says which pass.

    with Sandbox(workers=2) as sandbox:
        for verdict in sandbox.run(programs): ...

Expected values stay in this process: a program's process gets inputs only, its results come back as plain
data and are compared here. The walls are built by `sandbox_zygote.py`; `docs/sandbox.md` says what holds and
what does not.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import plain_data
from training.assertions import Case, Check, PreparedCall, Side, case_check, clean_prelude, split_assert
from training.sandbox_bubblewrap import BubblewrapRefuses, wrapper
from training.sandbox_worker import Worker, WorkerDied, packages_for_programs, readable
from training.verdicts import Status, Verdict, judge, read_events

__all__ = ["Program", "Sandbox", "SandboxUnavailable", "Verdict", "program_from_problem"]


@dataclass(frozen=True)
class Program:
    """A program and its tests.

    `tests` holds assert statements (str), cases ({"args": [...], "expected": value}, which call `entry_point`)
    or `PreparedCall`s of `entry_point`. `setup` runs after the source and before the tests. `time_limit_s` is
    wall-clock time for everything together; `call_limits_s`, one for each test, is for tests that are calls.
    """

    id: str
    source: str
    entry_point: str | None
    tests: list[Any]
    time_limit_s: float = 4.0
    setup: str = ""
    call_limits_s: Sequence[float] | None = None


def program_from_problem(
    problem: Mapping[str, Any],
    code: str,
    *,
    id: str | None = None,
    prelude: str = "",
    time_limit_s: float = 4.0,
) -> Program:
    """The program `prelude + code_prefix + code` with the tests of a problem row; blank code stays blank."""
    tests = problem["tests"]
    source = prelude + problem["code_prefix"] + code if code.strip() else ""
    name = problem["id"] if id is None else id
    if isinstance(tests, Mapping):
        return Program(
            name, source, problem["entry_point"], list(tests["asserts"]), time_limit_s, tests.get("setup", "")
        )
    return Program(name, source, problem["entry_point"], list(tests), time_limit_s)


class SandboxUnavailable(RuntimeError):
    """The walls that this machine allows are not the walls that model-written code needs."""


@dataclass
class _Job:
    index: int
    program: Program
    checks: list[Check]
    request: dict[str, Any]
    deaths: int = 0
    alone: bool = False


class Sandbox:
    """A pool of worker processes that run programs behind namespaces, without privileges, within limits.

    memory_mb: address space that a program's process may add to what Python takes. output_bytes, result_bytes: what it
    may print and return. packages: names of installed packages that programs may import, such as "numpy"; they are
    loaded once and cost a run nothing.
    retry_timeouts: a program that ran out of time runs once more, while nothing else runs, before it counts.
    bubblewrap: start the workers behind bubblewrap as well, which must be installed.
    unsafe: run even where walls are missing. `isolation`: which walls were *probed* from inside and hold; `hardening`:
    the same of what stands behind them where the system has it (seccomp, landlock, cgroup).
    Raises SandboxUnavailable on entry if a wall does not hold and `unsafe` is not set, if bubblewrap is asked for and
    does not start, or if this is not Linux.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        memory_mb: int = 512,
        output_bytes: int = 1 << 20,
        result_bytes: int = 4 << 20,
        packages: Sequence[str] = (),
        retry_timeouts: bool = True,
        bubblewrap: bool = False,
        unsafe: bool = False,
    ) -> None:
        if workers is None:
            workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if memory_mb < 64:
            raise ValueError(f"memory_mb must be at least 64 (Python itself needs about 40), got {memory_mb}")
        self.workers = workers
        self.memory_mb = memory_mb
        self.output_bytes = output_bytes
        self.result_bytes = result_bytes
        self.retry_timeouts = retry_timeouts
        self.bubblewrap = bubblewrap
        self.unsafe = unsafe
        self.isolation: dict[str, bool] = {}
        self.hardening: dict[str, bool] = {}
        self._packages = packages_for_programs(packages)
        self._wrapper: list[str] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._pool: list[Worker] = []
        self._oracle: Worker | None = None
        self._known: dict[tuple[str, str], Side] = {}
        self._runs = 0
        self._running = False

    def __enter__(self) -> Sandbox:
        if sys.platform != "linux":
            raise SandboxUnavailable(f"the sandbox needs Linux (namespaces), this is {sys.platform}")
        self._folder = tempfile.TemporaryDirectory(prefix="structloss-sandbox-")
        os.chmod(self._folder.name, 0o755)
        try:
            if self.bubblewrap:
                self._wrapper = wrapper(self._folder.name, self._packages["folders"])
            self._pool = [self._start_worker() for _ in range(self.workers)]
            probed = self._probe()
            self.hardening = {layer: probed.pop(layer) for layer in ("seccomp", "landlock")}
            self.hardening["cgroup"] = bool(self._pool[0].cgroups)
            self.isolation = probed
            missing = [layer for layer, holds in self.isolation.items() if not holds]
            if missing and not self.unsafe:
                reasons = "; ".join(self._pool[0].problems) or "no reason given by the system"
                raise SandboxUnavailable(
                    f"missing walls: {', '.join(missing)} ({reasons}). Model-written code is not run "
                    "without them: allow unprivileged user namespaces, run as root, or, inside a container "
                    "that you can lose, pass unsafe=True"
                )
        except BubblewrapRefuses as error:
            self.close()
            raise SandboxUnavailable(f"bubblewrap: {error}") from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every worker and removes the temporary folder. Safe to call twice."""
        for worker in [*self._pool, *([self._oracle] if self._oracle else [])]:
            worker.close()
        self._pool, self._oracle = [], None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def run(
        self, programs: Iterable[Program], progress: Callable[[Verdict], object] | None = None
    ) -> Iterator[Verdict]:
        """Yields one verdict a program, in input order; reads `programs` lazily, at most 16 a worker ahead.

        `progress` is called with each verdict as it is yielded. Raises RuntimeError outside of `with` or when
        another `run` of this sandbox has not ended.
        """
        if not self._pool:
            raise RuntimeError("Sandbox.run needs `with Sandbox(...) as sandbox:`")
        if self._running:
            raise RuntimeError("another run of this Sandbox has not ended; use one Sandbox a stream of programs")
        self._running = True
        busy: dict[Worker, _Job] = {}
        try:
            for verdict in self._schedule(iter(programs), busy):
                if progress is not None:
                    progress(verdict)
                yield verdict
        finally:
            for worker in busy:
                if worker in self._pool:  # not so when the sandbox was closed under an unfinished run
                    self._replace(worker)
            self._running = False

    def _schedule(self, programs: Iterator[Program], busy: dict[Worker, _Job]) -> Iterator[Verdict]:
        done: dict[int, Verdict] = {}
        waiting: deque[_Job] = deque()
        alone: deque[_Job] = deque()
        taken = given = 0
        exhausted = False
        while True:
            while not exhausted and len(waiting) < self.workers and taken - given < 16 * self.workers:
                program = next(programs, None)
                if program is None:
                    exhausted = True
                    break
                prepared = self._prepare(taken, program)
                if isinstance(prepared, Verdict):
                    done[taken] = prepared
                else:
                    waiting.append(prepared)
                taken += 1
            while given in done:
                yield done.pop(given)
                given += 1
            if exhausted and given == taken:
                return
            source = alone if alone else waiting
            idle = [worker for worker in self._pool if worker not in busy]
            if not (source is alone and busy) and not any(job.alone for job in busy.values()):
                for worker in idle[:1] if source is alone else idle:
                    if source:
                        self._dispatch(worker, source.popleft(), busy, waiting, done)
            self._collect(busy, waiting, alone, done)

    def _dispatch(
        self,
        worker: Worker,
        job: _Job,
        busy: dict[Worker, _Job],
        waiting: deque[_Job],
        done: dict[int, Verdict],
    ) -> None:
        self._runs += 1
        job.request["run"] = self._runs
        try:
            worker.send(job.request)
            busy[worker] = job
        except WorkerDied:
            self._after_death(worker, job, waiting, done)

    def _collect(
        self, busy: dict[Worker, _Job], waiting: deque[_Job], alone: deque[_Job], done: dict[int, Verdict]
    ) -> None:
        if not busy:
            return
        left = min(worker.deadline for worker in busy) - time.monotonic()
        ready = readable(busy, left)
        late = [worker for worker in busy if worker.deadline <= time.monotonic() and worker not in ready]
        for worker in [*ready, *late]:
            job = busy.pop(worker)
            try:
                header, result = worker.receive(job.request["run"])
            except WorkerDied:
                self._after_death(worker, job, waiting, done)
                continue
            verdict = judge(job.program.id, job.checks, len(job.request["calls"]), header, result)
            if verdict.status == "timeout" and self.retry_timeouts and not job.alone:
                job.alone = True
                alone.append(job)
            else:
                done[job.index] = verdict

    def _after_death(self, worker: Worker, job: _Job, waiting: deque[_Job], done: dict[int, Verdict]) -> None:
        self._replace(worker)
        job.deaths += 1
        if job.deaths == 1:
            waiting.appendleft(job)
        else:
            done[job.index] = Verdict(job.program.id, "sandbox_error", "the sandbox's worker died twice on it", 0.0)

    def _replace(self, worker: Worker) -> None:
        worker.close()
        self._pool[self._pool.index(worker)] = self._start_worker()

    def _start_worker(self) -> Worker:
        assert self._folder is not None
        try:
            return Worker(self._folder.name, self._packages, self.memory_mb, self._wrapper)
        except WorkerDied:
            raise SandboxUnavailable("a sandbox worker did not start") from None

    def _prepare(self, index: int, program: Program) -> _Job | Verdict:
        if not program.source.strip():
            return Verdict(program.id, "no_code", "the source is blank", 0.0)
        if not program.tests:
            return Verdict(program.id, "sandbox_error", "the program has no tests", 0.0)
        try:
            checks, calls = self._checks_of(program)
        except (ValueError, TypeError, KeyError, SyntaxError) as error:
            return Verdict(program.id, "sandbox_error", f"bad tests: {error}", 0.0)
        return _Job(index, program, checks, self._request(program, calls))

    def _checks_of(self, program: Program) -> tuple[list[Check], list[Any]]:
        checks: list[Check] = []
        calls: list[Any] = []
        for test in program.tests:
            if isinstance(test, str):
                for check in split_assert(test, program.entry_point, program.setup):
                    sides = tuple(self._resolve(side, program.setup) for side in check.sides)
                    checks.append(Check(sides, check.symbol, check.compare))
                    calls += [side.expression for side in sides if side.needs_program]
            elif program.entry_point is None:
                raise ValueError("a case needs an entry_point")
            elif isinstance(test, PreparedCall):
                checks.append(test.check)
                calls.append(test.call)
            else:
                checks.append(case_check(Case(test["args"], test["expected"])))
                calls.append([plain_data.encode(argument) for argument in test["args"]])
        if program.call_limits_s is not None and len(program.call_limits_s) != len(calls):
            raise ValueError(f"call_limits_s wants {len(calls)} limits, got {len(program.call_limits_s)}")
        return checks, calls

    def _resolve(self, side: Side, setup: str) -> Side:
        """Evaluates a side that is free of the program in a worker that runs none, and remembers it."""
        if side.expression is None or side.needs_program:
            return side
        key = (side.expression, setup)
        if key not in self._known:
            if len(self._known) >= 4096:
                self._known.clear()
            job = Program("expected", clean_prelude(side.expression, setup), None, [], 4.0)
            values, trouble = self._evaluate(job, [side.expression])
            # What cannot be had without the program is evaluated beside it.
            self._known[key] = (
                Side(value=values[0]) if trouble is None else Side(expression=side.expression, needs_program=True)
            )
        return self._known[key]

    def evaluate(self, program: Program, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """The results of a trusted program's entry point for the argument lists `calls`, as plain data.

        It runs in a worker of its own, which `run` never gives a program: this is how expected values are made.
        Raises RuntimeError outside of `with` and where the program fails.
        """
        if not self._pool:
            raise RuntimeError("Sandbox.evaluate needs `with Sandbox(...) as sandbox:`")
        encoded = [[plain_data.encode(argument) for argument in arguments] for arguments in calls]
        values, trouble = self._evaluate(program, encoded)
        if trouble is not None:
            raise RuntimeError(f"{program.id}: {trouble[0]}, {trouble[1]}")
        return values

    def _evaluate(self, program: Program, calls: list[Any]) -> tuple[list[Any], tuple[Status, str] | None]:
        request = self._request(program, calls)
        request["run"] = 0
        if self._oracle is None:
            self._oracle = self._start_worker()
        try:
            self._oracle.send(request)
            header, result = self._oracle.receive(0)
        except WorkerDied:
            self._oracle.close()
            self._oracle = None
            return [], ("error", "worker died")
        if header["ended"] == "timeout":
            return [], ("timeout", f"stopped after {header['seconds']:.1f} s")
        if header["ended"] == "result":
            return [], ("error", f"more than {self.result_bytes} bytes of results")
        return read_events(result, len(calls))

    def _request(self, program: Program, calls: list[Any]) -> dict[str, Any]:
        return {
            "source": program.source,
            "setup": program.setup,
            "entry_point": program.entry_point,
            "calls": calls,
            "call_limits_s": program.call_limits_s,
            "time_limit_s": program.time_limit_s,
            "memory_mb": self.memory_mb,
            "output_bytes": self.output_bytes,
            "result_bytes": self.result_bytes,
        }

    def _probe(self) -> dict[str, bool]:
        """Runs a program that tries each wall against something that really stands outside."""
        assert self._folder is not None
        libc = ctypes.CDLL(None)
        canary = Path(self._folder.name, "canary")
        canary.write_text("outside")
        segment = libc.shmget(0, 4096, 0o1666)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            facts = (str(canary), listener.getsockname()[1], os.getpid(), segment, self.memory_mb)
            source = f"CANARY, PORT, PARENT, SEGMENT, MEMORY_MB = {facts!r}\n" + _PROBE
            request = self._request(Program("probe", source, "probe", [], 10.0), ["probe()"])
            request["run"] = 0
            try:
                self._pool[0].send(request)
                header, result = self._pool[0].receive(0)
            except WorkerDied:
                raise SandboxUnavailable("the sandbox's worker died on its own probe") from None
            finally:
                libc.shmctl(segment, 0, None)
                canary.unlink()
        values, trouble = read_events(result, 1)
        if trouble is not None or not isinstance(values[0], dict):
            raise SandboxUnavailable(f"the sandbox cannot run its own probe: {trouble}, {header}")
        return {str(layer): holds is True for layer, holds in values[0].items()}


_PROBE = """
import ctypes, os, resource, socket
libc = ctypes.CDLL(None)

def refused(action):
    try:
        action()
    except OSError:
        return True
    return False

def memory():
    try:
        bytearray(2 * MEMORY_MB << 20)
    except MemoryError:
        return True
    return False

def probe():
    return {
        # Landlock, too, refuses the first, but not a datagram: that takes a network without a way out.
        "network": refused(lambda: socket.create_connection(("127.0.0.1", PORT), 1))
        and refused(lambda: socket.socket(type=socket.SOCK_DGRAM).connect(("127.0.0.1", PORT))),
        "files": not os.path.exists(CANARY) and refused(lambda: open(os.__file__ + ".new", "w")),
        "processes": os.getpid() < 10 and refused(lambda: os.kill(PARENT, 0)),
        "ipc": SEGMENT < 0 or libc.shmat(SEGMENT, None, 0) == -1,
        "privileges": os.getuid() != 0 and libc.unshare(0x40000000) != 0 and libc.prctl(39, 0, 0, 0, 0) == 1,
        "limits": memory() and resource.getrlimit(resource.RLIMIT_NPROC)[1] <= 32,
        "seccomp": libc.prctl(21, 0, 0, 0, 0) == 2 and refused(lambda: socket.socket(socket.AF_NETLINK)),
        "landlock": refused(lambda: open("/dev/zero", "wb")),
    }
"""
