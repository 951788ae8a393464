"""`python -m training doctor`: what holds on this machine, found by trying, and how to get what does not."""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time

import structloss
from training.sandbox import Program, Sandbox, SandboxUnavailable

# What each layer keeps a program from, and where it comes from.
WALLS = {
    "network": ("reaching a listening socket of this machine", "network namespaces"),
    "files": ("seeing a file of this machine, or writing to Python's own", "mount namespaces"),
    "processes": ("seeing or signalling a process of this machine", "PID namespaces"),
    "ipc": ("attaching a shared memory segment of this machine", "IPC namespaces"),
    "privileges": ("being root, gaining privileges, making namespaces", "user namespaces, no_new_privs"),
    "limits": ("taking more memory or processes than it may", "resource limits"),
}
HARDENING = {
    "seccomp": ("system calls that no program needs", "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or arm64"),
    "landlock": ("files and TCP ports, a second time", "Linux 5.13 with landlock among its security modules"),
    "cgroup": ("taking memory with many processes together", "root, or a cgroup of your own (systemd: Delegate=yes)"),
}
_HELP = (
    "Model-written code is not run here. Allow unprivileged user namespaces "
    "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or run as root; in a "
    "container: --cap-add SYS_ADMIN --security-opt seccomp=unconfined. Inside a container that you can lose, "
    "sandbox.unsafe=true (--unsafe) runs it without these walls."
)


def examine(*, programs: int = 200) -> int:
    """Prints what was probed; 0 where model-written code may be run, else 1."""
    print(f"structloss {structloss.__version__}, Python {sys.version.split()[0]}, user {os.getuid()}")
    print(
        f"  compiled extension: {'yes' if structloss.has_extension() else 'no (tree alignment and parsing are slow)'}"
    )
    print("\nthe sandbox, probed from inside:")
    try:
        with Sandbox(workers=1, unsafe=True) as sandbox:
            held, hardening, problems = sandbox.isolation, sandbox.hardening, sandbox._pool[0].problems
            for layer, (keeps_from, _) in WALLS.items():
                print(f"  {_mark(held[layer])} {layer:11} keeps a program from {keeps_from}")
            print("behind it, where the system has it:")
            for layer, (keeps_from, wants) in HARDENING.items():
                print(
                    f"  {_mark(hardening[layer])} {layer:11} {keeps_from}"
                    + ("" if hardening[layer] else f"; wants {wants}")
                )
            rate = programs_a_second(sandbox, programs)
    except SandboxUnavailable as error:
        print(f"  the sandbox does not start: {error}\n\n{_HELP}")
        return 1
    print(f"\nshort programs a second: {rate:.0f} with one worker")
    _numpy()
    _bubblewrap()
    missing = [layer for layer in WALLS if not held[layer]]
    if missing:
        wanted = sorted({WALLS[layer][1] for layer in missing})
        print(f"\nmissing: {', '.join(missing)} ({'; '.join(problems) or 'no reason given by the system'}).")
        print(f"They want {', '.join(wanted)}.\n{_HELP}")
        return 1
    print("Model-written code may be run here.")
    return 0


def programs_a_second(sandbox: Sandbox, count: int) -> float:
    """Median over five parts of a run of `count` short programs."""
    times = []
    for part in range(5):
        batch = [
            Program(f"{part}/{k}", "def f(x):\n    return x + 1\n", "f", [{"args": [k], "expected": k + 1}])
            for k in range(max(count // 5, 1))
        ]
        started = time.perf_counter()
        wrong = [verdict for verdict in sandbox.run(batch) if verdict.status != "passed"]
        if wrong:
            raise RuntimeError(f"the sandbox is wrong about a right program: {wrong[0]}")
        times.append((time.perf_counter() - started) / len(batch))
    return 1.0 / statistics.median(times)


def _bubblewrap() -> None:
    try:
        with Sandbox(workers=1, bubblewrap=True, unsafe=True) as sandbox:
            rate = programs_a_second(sandbox, 50)
    except SandboxUnavailable as error:
        print(f"{error} (it is only wanted where sandbox.bubblewrap=true asks for it)")
    else:
        print(f"bubblewrap: it starts; {rate:.0f} short programs a second behind it")


def _numpy() -> None:
    if importlib.util.find_spec("numpy") is None:
        print("numpy: not installed; MBPP+ and HumanEval+ want it")
        return
    with Sandbox(workers=1, packages=["numpy"], unsafe=True) as sandbox:
        source = "import numpy as np\ndef f(n):\n    return int(np.arange(n).sum())\n"
        (verdict,) = sandbox.run([Program("numpy", source, "f", [{"args": [5], "expected": 10}])])
    print(
        f"numpy in the sandbox: {'yes' if verdict.status == 'passed' else f'no ({verdict.status}: {verdict.detail})'}"
    )


def _mark(holds: bool) -> str:
    return "[holds]  " if holds else "[MISSING]"
