"""One more wall around a worker, made by an independent program: bubblewrap, where it is installed and asked for.

The worker starts behind bubblewrap's namespaces and read-only file tree and builds its own walls inside, so that every
run still has its own. Started by root, bubblewrap keeps the capabilities that the worker needs to build its walls; the
worker then becomes nobody, as it does without bubblewrap, before any program runs. An ordinary user has no capability
at any time but inside of user namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CAPABILITIES = ("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "DAC_OVERRIDE", "DAC_READ_SEARCH")
_INSTALL = "install it (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap), or leave it out"


class BubblewrapRefuses(Exception):
    """Why bubblewrap cannot be used here, in a sentence."""


def wrapper(folder: str, packages: Sequence[str]) -> list[str]:
    """What stands before a worker's command. `folder`: its scratch folder; `packages`: folders that it may read.

    Raises BubblewrapRefuses where bwrap is not installed, or does not start a Python.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise BubblewrapRefuses(f"bwrap is not installed; {_INSTALL}")
    command = [program, "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        for capability in _CAPABILITIES:
            command += ["--cap-add", f"CAP_{capability}"]
    else:
        command += ["--unshare-user"]
    for namespace in ("ipc", "pid", "net", "uts"):
        command.append(f"--unshare-{namespace}")
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in _readable(packages):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    command += ["--bind", folder, folder, "--chdir", folder, "--"]
    _try(command)
    return command


def _readable(packages: Sequence[str]) -> list[str]:
    own = [sys.base_prefix, sys.prefix, os.path.dirname(os.__file__), str(Path(__file__).parent), *packages]
    system = [path for path in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache") if os.path.lexists(path)]
    return sorted({*own, *system}, key=len)


def _try(command: Sequence[str]) -> None:
    done = subprocess.run([*command, sys.executable, "-I", "-S", "-c", ""], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise BubblewrapRefuses(f"bwrap does not start: {done.stderr.strip() or f'status {done.returncode}'}")
