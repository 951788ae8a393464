"""Packages for programs; what stands behind the walls: system call filter, landlock, cgroups; the doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.training.sandboxes import WITHOUT_NAMESPACES, sandbox_or_skip
from training import doctor
from training.__main__ import main
from training.sandbox import Program, Sandbox, Verdict
from training.sandbox_filters import filter_program, landlock_version


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip(workers=1, memory_mb=256, packages=["numpy"]) as opened:
        yield opened


def run(sandbox: Sandbox, source: str, *tests: str, seconds: float = 10.0) -> Verdict:
    (verdict,) = sandbox.run([Program("p", source, "f", list(tests), seconds)])
    return verdict


# --- packages -------------------------------------------------------------------------------------------------------


def test_numpy_works_and_nothing_else_is_there(sandbox: Sandbox) -> None:
    source = (
        "import numpy as np\n"
        "def f(n):\n    return np.linalg.inv(np.eye(n) * 2).tolist(), float(np.random.default_rng(0).random() < 1)\n"
        "def there(name):\n    try: return bool(__import__(name))\n    except ImportError: return False\n"
    )
    verdict = run(sandbox, source, "assert f(2) == ([[0.5, 0.0], [0.0, 0.5]], 1.0)", "assert not there('torch')")
    assert verdict.status == "passed", verdict
    assert run(sandbox, source, "assert there('numpy.fft')", "assert not there('training')").status == "passed"


def test_numbers_of_numpy_count_as_numbers(sandbox: Sandbox) -> None:
    """As in a plain run of the asserts; an array is no plain data, a long double has no Python number."""
    source = (
        "import numpy as np\n"
        "def f():\n    big = np.uint64(2**63)\n"
        "    return [np.int64(3), np.float32(0.5), np.bool_(True), np.str_('a')], {np.int8(1): big}\n"
        "def g(kind):\n    return getattr(np, kind)(1)\n"
    )
    right = "assert f() == ([3, 0.5, True, 'a'], {1: 2**63})"
    assert run(sandbox, source, right, "assert g('complex64') == 1").status == "passed"
    assert run(sandbox, source, right.replace("3,", "4,")).status == "failed"
    for kind in ("atleast_1d", "longdouble"):
        assert run(sandbox, source, f"assert g({kind!r}) == 1").status == "failed"


def test_without_packages_there_is_the_standard_library_alone() -> None:
    with sandbox_or_skip(workers=1) as bare:
        verdict = run(bare, "import numpy", "assert True")
    assert verdict.status == "error"
    assert "numpy" in verdict.detail


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match="^packages: 'no_such_package' is not an installed package"):
        Sandbox(packages=["no_such_package"])


def test_memory_is_what_a_program_adds(sandbox: Sandbox) -> None:
    """numpy's own address space does not count; 256 MiB are there, 300 are not."""
    assert (
        run(sandbox, "def f(mb):\n    return len(bytearray(mb << 20)) >> 20", "assert f(200) == 200").status == "passed"
    )
    verdict = run(sandbox, "def f(mb):\n    return len(bytearray(mb << 20)) >> 20", "assert f(300) == 300")
    assert verdict.status == "memory"


# --- system calls, files, groups --------------------------------------------------------------------------------------


def test_denied_system_calls_fail_and_honest_ones_do_not(sandbox: Sandbox) -> None:
    if not sandbox.hardening["seccomp"]:
        pytest.skip("this kernel has no seccomp filters")
    source = """
import ctypes, os, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
calls = {"ptrace": (101, 117), "keyctl": (250, 219), "bpf": (321, 280), "unshare": (272, 97), "io_uring": (425, 425),
         "userfaultfd": (323, 282), "perf_event_open": (298, 241)}
machine = 0 if os.uname().machine == "x86_64" else 1

def f():
    numbers = {}
    for name, by_machine in calls.items():
        result = libc.syscall(by_machine[machine], 0, 0, 0, 0, 0)
        numbers[name] = ctypes.get_errno() if result == -1 else 0
    return sorted(set(numbers.values()))

def families():
    refused = []
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_VSOCK, 38):
        try:
            socket.socket(family, socket.SOCK_DGRAM if family != 38 else 5).close()
        except PermissionError:
            refused.append(int(family))
        except OSError:
            pass
    return refused

def honest():
    done = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        os._exit(7)
    return done, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    verdict = run(
        sandbox, source, "assert f() == [1]", "assert families() == [16, 40, 38]", "assert honest() == ([1], 7)"
    )
    assert verdict.status == "passed", verdict


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_lands_inside(machine: str) -> None:
    """And every path ends in a return: the kernel refuses a filter where one does not."""
    code = filter_program(machine)
    for place, (operation, if_true, if_false, _) in enumerate(code):
        if operation & 7 == 5:
            assert place + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 6


def test_landlock_keeps_devices_and_ports(sandbox: Sandbox) -> None:
    if not sandbox.hardening["landlock"]:
        pytest.skip("this kernel has no landlock")
    source = """
import socket
def f(path):
    try:
        open(path, "wb").close()
    except PermissionError:
        return "refused"
    return "open"
def port():
    try:
        socket.socket().bind(("0.0.0.0", 0))
    except PermissionError:
        return "refused"
    return "bound"
"""
    expected = "refused" if landlock_version() >= 4 else "bound"
    verdict = run(
        sandbox, source, "assert [f(p) for p in ('/dev/zero', '/dev/null', '/tmp/x')] == ['refused', 'open', 'open']",
        f"assert port() == {expected!r}",
    )  # fmt: skip
    assert verdict.status == "passed", verdict


def test_many_processes_meet_one_memory_limit(sandbox: Sandbox) -> None:
    """Each takes less than a process may, together they take more than the run may."""
    if not sandbox.hardening["cgroup"]:
        pytest.skip("no cgroup may be made here")
    source = """
import os, time
def f():
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            hoard = bytearray(150 << 20)
            for page in range(0, len(hoard), 4096):
                hoard[page] = 1
            time.sleep(60)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""
    verdict = run(sandbox, source, "assert f().count(-9) > 0", seconds=3.0)
    assert verdict.status in ("memory", "passed", "timeout"), verdict
    ended = source.replace("time.sleep(60)", "time.sleep(1)\n            os._exit(0)")
    verdict = run(sandbox, ended, "assert f().count(-9) > 0")
    assert verdict.status == "passed", "the kernel killed some of them, and the program saw it"


def test_groups_are_gone_with_the_sandbox() -> None:
    with sandbox_or_skip(workers=2) as opened:
        folders = [folder for worker in opened._pool for folder in worker.cgroups]
        if not folders:
            pytest.skip("no cgroup may be made here")
        assert all(os.path.isdir(folder) for folder in folders)
    assert not any(os.path.exists(folder) for folder in folders)


# --- the doctor -----------------------------------------------------------------------------------------------------


def test_the_doctor_says_what_holds(capsys: pytest.CaptureFixture[str], sandbox: Sandbox) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    for layer in (*doctor.WALLS, *doctor.HARDENING):
        assert layer in printed
    assert "[MISSING] network" not in printed
    assert "programs a second" in printed
    assert "may be run here" in printed


def test_the_doctor_refuses_a_machine_without_walls(sandbox: Sandbox) -> None:
    script = WITHOUT_NAMESPACES + "import sys\nfrom training.doctor import examine\nsys.exit(examine(programs=5))\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "[MISSING] network" in done.stdout
    assert "is not run here" in done.stdout
    assert json.dumps(done.stdout).count("sysctl") == 1
