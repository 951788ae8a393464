"""A sandbox worker: a small, clean process that walls itself in and forks one process a program.

    grader (training.sandbox)       trusted, holds the expected values
      starter (this script)         builds the walls: own user, mount, network and IPC namespaces, a file
        |                           tree with only Python in it; then waits
        zygote                      PID 1 of the worker: its death kills everything below
          supervisor                PID 1 of one run: fresh network, IPC, host name and /tmp
            program                 no capabilities, resource limits, one pipe to the zygote

Run as `python -s -S sandbox_zygote.py SETTINGS` with an empty environment but for PYTHONHASHSEED (`-I` would
ignore it, and set order would make verdicts random) and numbers of threads; SETTINGS is JSON. Frames on stdin and
stdout are a 4-byte little-endian length and JSON. The zygote never parses what a program wrote. It never sees an
expected value, so there is none to find in its memory.
"""

# ruff: noqa: E402 (the path must be clean before anything is imported)

import sys

del sys.path[0]  # the script's own folder: the standard library must not be shadowed by the project's modules

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

_Json = dict[str, Any]
_Harness = tuple[Callable[..., None], Callable[[Any], Any], Callable[[Any], Any]]

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_NOBODY = 65534
_TMP_BYTES = 16 << 20
_PROCESSES = 32
_PACKAGES = "/packages"  # where programs find packages: their own place may lie below /tmp, which is private

# Imported once here, so that every forked program finds them loaded.
_PRELOAD = """bisect cmath collections copy datetime decimal fractions functools heapq itertools math operator
random re statistics string time typing"""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int | bytes | None) -> None:
    """Calls a libc function; raises OSError where it returns a negative number."""
    if getattr(_libc, name)(*[ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encode = os.fsencode
    _call(
        "mount",
        encode(source),
        encode(target),
        encode(kind) if kind else None,
        flags,
        encode(data) if data else None,
    )


class _Walls:
    """`problems`: what could not be built; `tree`: files are walled; `pid_namespace`: a descriptor of it.

    `readable`: where Python and the packages lie. `restrict`: the system call filter and the landlock domain, what the
    kernel has of them. `cgroup`: counts what all processes of a run use together, or None. `mapped`: bytes of address
    space before any program.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.tree = False
        self.pid_namespace: int | None = None
        self.readable: list[str] = []
        self.restrict: Any = None
        self.cgroup: Any = None
        self.mapped = 0

    def attempt(self, name: str, function: Callable[..., None], *arguments: Any) -> bool:
        try:
            function(*arguments)
        except OSError as error:
            self.problems.append(f"{name}: {error}")
            return False
        return True


def _build_walls(scratch: str, settings: _Json) -> _Walls:
    """Puts this process behind its walls and goes on in a child that is PID 1 there. The order matters."""
    walls = _Walls()
    walls.restrict = _load("sandbox_filters")
    with contextlib.suppress(OSError):
        walls.cgroup = _load("sandbox_cgroup").Cgroup(settings["cgroup_bytes"], _PROCESSES + 8)
    walls.readable = _python_paths()
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    root = os.geteuid() == 0
    if not root:
        walls.attempt("user namespace", _enter_user_namespace, proc)
    if walls.attempt("mount namespace", _call, "unshare", _NEWNS):
        folders = settings["packages"]["folders"]
        walls.tree = walls.attempt("own file tree", _build_file_tree, scratch, walls.readable, folders)
    if root:
        # The tree was built with root's rights; from here on nobody has any.
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)  # otherwise /proc/self/uid_map belongs to root
        walls.attempt("user namespace", _enter_user_namespace, proc)
    walls.attempt("network namespace", _call, "unshare", _NEWNET)
    walls.attempt("IPC namespace", _call, "unshare", _NEWIPC)
    with contextlib.suppress(OSError):
        # No user namespaces below this one: they are the usual way to a kernel's less tested code.
        _write_at(proc, "sys/user/max_user_namespaces", "0")
    with contextlib.suppress(OSError):
        for capability in range(64):
            _call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    # Programs share this process' user id; undumpable processes cannot be traced or read by their equals.
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    if walls.attempt("PID namespace", _call, "unshare", _NEWPID):
        _continue_in_child()
        walls.pid_namespace = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.path += [_PACKAGES] if walls.tree else settings["packages"]["path"]
    walls.readable += [_PACKAGES] if walls.tree else settings["packages"]["folders"]
    for name in settings["packages"]["names"]:
        importlib.import_module(name)
    walls.mapped = _mapped_bytes(proc)
    os.close(proc)
    return walls


def _continue_in_child() -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _write_at(directory: int, path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _enter_user_namespace(proc: int) -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEWUSER)
    _write_at(proc, "self/setgroups", "deny")
    _write_at(proc, "self/uid_map", f"1000 {user} 1")
    _write_at(proc, "self/gid_map", f"1000 {group} 1")


def _python_paths() -> list[str]:
    """The standard library and shared libraries."""
    library = os.path.dirname(os.__file__)
    shared = [
        os.path.join(sys.base_prefix, "lib"),
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/etc/ld.so.cache",
    ]
    return sorted({library, *filter(os.path.isdir, sys.path), *shared}, key=len)


def _build_file_tree(scratch: str, wanted: list[str], packages: list[str]) -> None:
    """Replaces the root by a read-only tmpfs: what is `wanted`, the `packages` in one folder, and three devices."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", scratch, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in wanted:
        inside = scratch + path
        if os.path.lexists(inside) or not os.path.lexists(path):
            continue
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        else:
            _bind_read_only(path, inside)
    os.mkdir(scratch + _PACKAGES)
    for folder in packages:
        _bind_read_only(folder, os.path.join(scratch + _PACKAGES, os.path.basename(folder)))
    os.makedirs(scratch + "/dev")
    for device in ("null", "zero", "urandom"):
        _bind(f"/dev/{device}", f"{scratch}/dev/{device}")
    os.mkdir(scratch + "/tmp")
    os.chdir(scratch)
    _call("syscall", _PIVOT_ROOT, b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}.get(os.uname().machine, -1)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, None, _MS_BIND | _MS_REC)


def _bind_read_only(source: str, target: str) -> None:
    _bind(source, target)
    # Flags of the original mount are locked in a user namespace and must be given again.
    kept = os.statvfs(target).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount("none", target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | kept)


def _run_one(request: _Json, harness: _Harness, walls: _Walls, lifeline: int) -> tuple[_Json, bytes]:
    """Forks the program, watches it, kills what is left of it. Returns the header and the result bytes."""
    killed_before = walls.cgroup.killed() if walls.cgroup is not None else 0
    result_read, result_write = os.pipe()
    output_read, output_write = os.pipe()
    status_read, status_write = os.pipe()
    started = time.monotonic()
    if walls.pid_namespace is not None:
        # Back to the worker's own PID namespace: a new one cannot be made from inside the last, dead one.
        _call("setns", walls.pid_namespace, _NEWPID)
        _call("unshare", _NEWPID)
    supervisor = os.fork()
    if supervisor == 0:
        try:
            _supervise(request, harness, walls, result_write, output_write, status_write)
        finally:
            os._exit(1)
    with contextlib.suppress(OSError):
        os.setpgid(supervisor, supervisor)
    for descriptor in (result_write, output_write, status_write):
        os.close(descriptor)
    watch = _Watch(request, lifeline, result_read, output_read, status_read)
    try:
        ended = watch.until(started + request["time_limit_s"])
    finally:
        seconds = time.monotonic() - started
        with contextlib.suppress(OSError):
            os.killpg(supervisor, signal.SIGKILL)
        _reap(supervisor, walls)
    watch.drain()
    for descriptor in (result_read, output_read, status_read):
        os.close(descriptor)
    status = watch.taken[status_read]
    header = {
        "run": request["run"],
        "ended": ended,
        "status": json.loads(status) if status.endswith(b"}") else None,
        "seconds": seconds,
        "output": watch.taken[output_read][:2000].decode("utf-8", "replace"),
        "out_of_memory": walls.cgroup is not None and walls.cgroup.killed() > killed_before,
    }
    return header, bytes(watch.taken[result_read])


class _Watch:
    """Reads the three pipes of a run within their limits until the supervisor ends or something runs out."""

    def __init__(self, request: _Json, lifeline: int, result: int, output: int, status: int) -> None:
        self.lifeline = lifeline
        self.status = status
        self.limit = {result: request["result_bytes"], output: request["output_bytes"], status: 4096}
        self.reason = {result: "result", output: "output", status: "status"}
        self.taken = {descriptor: bytearray() for descriptor in self.limit}
        self.count = dict.fromkeys(self.limit, 0)
        self.poll = select.poll()
        self.poll.register(lifeline, 0)  # reports only that the grader hung up
        for descriptor in self.limit:
            os.set_blocking(descriptor, False)
            self.poll.register(descriptor, select.POLLIN)

    def until(self, deadline: float) -> str:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            for descriptor, _ in self.poll.poll(left * 1000 + 1):
                if descriptor == self.lifeline:
                    return "hangup"
                alive = self._take(descriptor)
                if self.count[descriptor] > self.limit[descriptor]:
                    return self.reason[descriptor]
                if not alive:
                    self.poll.unregister(descriptor)
                    if descriptor == self.status:
                        return "exit"

    def _take(self, descriptor: int) -> bool:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        self.count[descriptor] += len(chunk)
        room = self.limit[descriptor] - len(self.taken[descriptor])
        self.taken[descriptor] += chunk[: max(room, 0)]
        return bool(chunk)

    def drain(self) -> None:
        """Takes what lies in the pipes once every writer is dead."""
        for descriptor in self.limit:
            while self.count[descriptor] <= self.limit[descriptor]:
                before = self.count[descriptor]
                if not self._take(descriptor) or self.count[descriptor] == before:
                    break


def _reap(supervisor: int, walls: _Walls) -> None:
    """Waits until no process of the run is left."""
    if walls.pid_namespace is not None:
        os.waitpid(supervisor, 0)  # returns when its whole PID namespace is dead
        return
    # Without a namespace a process that left the group may live on: what ends within two seconds is buried.
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
        except ChildProcessError:
            return


def _supervise(request: _Json, harness: _Harness, walls: _Walls, result: int, output: int, status: int) -> None:
    os.setpgid(0, 0)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for flag in (_NEWNS, _NEWNET, _NEWIPC, _NEWUTS):
        with contextlib.suppress(OSError):
            _call("unshare", flag)
    if walls.tree:
        size = f"size={_TMP_BYTES},nr_inodes=1024,mode=1777"
        _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, size)
        os.chdir("/tmp")
    program = os.fork()
    if program == 0:
        try:
            _become_program(request, harness, walls, result, output)
        finally:
            os._exit(1)
    os.close(result)
    os.close(output)
    while True:
        pid, code, usage = os.wait4(-1, 0)
        if pid == program:
            break
    cpu = usage.ru_utime + usage.ru_stime
    os.write(status, json.dumps({"code": code, "cpu": cpu, "peak_kb": usage.ru_maxrss}).encode())
    os._exit(0)


def _become_program(request: _Json, harness: _Harness, walls: _Walls, result: int, output: int) -> None:
    if walls.pid_namespace is not None:
        os.setsid()  # without a PID namespace the process group is what gets killed: the program stays in it
    null = os.open("/dev/null", os.O_RDWR)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    channel = 3
    if result != channel:
        os.dup2(result, channel)
    os.closerange(channel + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _set_limits(request, walls.mapped)
    _drop_privileges()
    with contextlib.suppress(OSError):
        walls.restrict.restrict_files([*walls.readable, "/dev"], ["/tmp", "/dev/null"])
    with contextlib.suppress(OSError):
        walls.restrict.restrict_system_calls()
    run_program, encode, decode = harness
    run_program(request, channel, encode, decode)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(0)


def _set_limits(request: _Json, mapped: int) -> None:
    memory = mapped + (request["memory_mb"] << 20)
    seconds = int(request["time_limit_s"]) + 1
    limits = {
        "RLIMIT_AS": (memory, memory),
        "RLIMIT_CPU": (seconds, seconds + 1),
        "RLIMIT_FSIZE": (_TMP_BYTES, _TMP_BYTES),
        "RLIMIT_NOFILE": (64, 64),
        "RLIMIT_NPROC": (_PROCESSES, _PROCESSES),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
    }
    for name, (soft, hard) in limits.items():
        kind = getattr(resource, name)
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def _drop_privileges() -> None:
    header = struct.pack("=Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(descriptor, size - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return bytes(data)


def _read_frame(descriptor: int) -> _Json:
    (size,) = struct.unpack("<I", _read_exactly(descriptor, 4))
    return json.loads(_read_exactly(descriptor, size))


def _write_frame(descriptor: int, data: bytes) -> None:
    view = memoryview(struct.pack("<I", len(data)) + data)
    while view:
        view = view[os.write(descriptor, view) :]


def _load(name: str) -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mapped_bytes(proc: int) -> int:
    """Address space of this process, which a program shares from its first moment."""
    descriptor = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    try:
        return int(os.read(descriptor, 256).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


def main() -> None:
    settings = json.loads(sys.argv[1])
    requests, replies = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    sys.dont_write_bytecode = True
    plain_data, child = _load("plain_data"), _load("sandbox_child")
    harness: _Harness = (child.run_program, plain_data.encode, plain_data.decode)
    for name in _PRELOAD.split():
        importlib.import_module(name)
    walls = _build_walls(os.getcwd(), settings)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    gc.collect()
    gc.freeze()  # a collection in a program would otherwise touch, and so copy, every page
    hello = {"problems": walls.problems, "cgroups": walls.cgroup.folders if walls.cgroup is not None else []}
    _write_frame(replies, json.dumps(hello).encode())
    while True:
        header, result = _run_one(_read_frame(requests), harness, walls, requests)
        _write_frame(replies, json.dumps(header).encode())
        _write_frame(replies, result)


if __name__ == "__main__":
    main()
