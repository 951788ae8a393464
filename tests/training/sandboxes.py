"""Sandboxes for tests, and whether this machine can have any: asked of the kernel, not of the code under test."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest

from training.sandbox import Sandbox

# What a script does first to lose its capabilities, in a user namespace that allows no further one.
WITHOUT_NAMESPACES = """import ctypes, os, struct
libc = ctypes.CDLL(None)
user, group = os.geteuid(), os.getegid()
assert libc.unshare(0x10000000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
    with open(f"/proc/self/{name}", "w") as file: file.write(text)
with open("/proc/sys/user/max_user_namespaces", "w") as file: file.write("0")
assert libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
"""


@functools.cache
def machine_has_namespaces() -> bool:
    """Whether an unprivileged process may make a user namespace and, inside it, the others."""
    script = (
        "import ctypes, os; libc = ctypes.CDLL(None); os.geteuid() or os.setuid(65534); "
        "raise SystemExit(libc.unshare(0x10000000) or libc.unshare(0x20000 | 0x8000000 | 0x20000000 | 0x40000000))"
    )
    return sys.platform == "linux" and subprocess.run([sys.executable, "-c", script]).returncode == 0


def sandbox_or_skip(**options: Any) -> Sandbox:
    """A Sandbox; where the machine allows no namespaces the test is skipped, anywhere else a refusal is a failure."""
    if not machine_has_namespaces():
        pytest.skip("this machine allows no user, network and PID namespaces")
    return Sandbox(**options)
