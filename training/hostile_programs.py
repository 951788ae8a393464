"""The programs of the hostile suite, as data. `hostile.py` says how they run and what counts as a breach."""

# ruff: noqa: E501 (the programs are written as their authors would)

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HONEST = "def f(x):\n    return x + 1\n"
SECRET = object()  # stands for an expected value that is drawn anew in each run of the suite
_SHORT_S = 0.4


@dataclass(frozen=True)
class HostileProgram:
    """`source` defines f(); the test expects `expected` from f(), or is the assert statement `test`.

    statuses: the right verdicts. layers: pattern in the report -> the layer that answers so, for attacks on the machine.
    """

    name: str
    group: str
    source: str
    statuses: frozenset[str]
    expected: Any = 1
    layers: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: float = 20.0
    test: str | None = None


def _fools(
    name: str, source: str, *statuses: str, group: str, expected: Any = 1, test: str | None = None
) -> HostileProgram:
    """An attack that is over with the verdict. What it leaves, or harms, the suite sees from outside."""
    layers = {}
    if group == "leftovers":
        layers = {"does not hold": "IPC namespace" if "shared memory" in name else "PID namespace"}
    elif name.startswith("kills"):
        layers = {"": "PID namespace"}
    limit = _SHORT_S if "timeout" in statuses else 20.0
    return HostileProgram(name, group, textwrap.dedent(source), frozenset(statuses), expected, layers, limit, test)


def _breaks(name: str, source: str, layers: Mapping[str, str], group: str) -> HostileProgram:
    """An attack on the machine: attempts, each of which reports what the system answered."""
    source = textwrap.dedent(source) + "\ndef f(): return outcome()\n"
    return HostileProgram(name, group, source, frozenset({"failed"}), "through", layers)


_EPERM, _EACCES, _ENOENT, _EROFS = "not permitted", "Permission denied", "No such file", "Read-only"

PROGRAMS: tuple[HostileProgram, ...] = (
    # --- resources --------------------------------------------------------------------------------------------------
    _fools("endless loop", "def f():\n    while True: pass", "timeout", group="resources"),
    _fools("endless sleep", "import time\ntime.sleep(60)", "timeout", group="resources"),
    _fools("stops itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout", group="resources"),
    _fools(
        "swallows every signal and exception",
        """
        import signal
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
        "timeout",
        group="resources",
    ),
    _fools("memory bomb", "x = []\nwhile True: x.append(bytearray(1 << 20))", "memory", group="resources"),
    _fools("one huge allocation", "def f(): return [0] * 10**10", "memory", group="resources"),
    _fools(
        "memory bomb of many processes",
        """
        import os, time
        children = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                block = b'x' * (100 << 20)
                time.sleep(1)
                os._exit(0)
            children.append(child)
        if any(os.waitpid(child, 0)[1] for child in children): os._exit(0)
        def f(): return 2
        """,
        # Without a cgroup each child holds 100 MB, within its own limit, until it ends.
        "memory", "failed",
        group="resources",
    ),
    _fools("fork bomb", "import os\nwhile True: os.fork()", "error", "timeout", group="resources"),
    _fools(
        "silent fork bomb",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "timeout",
        group="resources",
    ),
    _fools(
        "thread bomb",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "error", "memory", "timeout",
        group="resources",
    ),
    _breaks(
        "fills the disk",
        """
        def fill():
            with open('/tmp/big', 'wb') as file:
                for _ in range(1 << 10): file.write(bytes(1 << 20))
        def many():
            for number in range(10**6): open(f'/tmp/{number}', 'wb').close()
        attempt("one file", fill)
        os.path.exists('/tmp/big') and os.remove('/tmp/big')
        attempt("a million files", many)
        """,
        {"File too large": "file size limit", "No space left": "private /tmp"},
        "resources",
    ),
    _fools("1 GB of output", "for _ in range(1024): print('x' * (1 << 20))\ndef f(): return 1", "error",
           group="resources"),
    _fools("1 GB of output past Python's buffer",
           "import os\nblock = b'x' * (1 << 20)\nfor _ in range(1024): os.write(2, block)\ndef f(): return 1", "error",
           group="resources"),
    _fools("recursion", "def f(): return f()", "error", group="resources"),
    _fools("recursion without a limit", "import sys; sys.setrecursionlimit(10**9)\ndef f(): return f()",
           "error", "memory", "timeout", group="resources"),
    # --- ends early -------------------------------------------------------------------------------------------------
    _fools("os._exit(0) at import", "import os; os._exit(0)", "error", group="ends early"),
    _fools("os._exit(0) in the call", "import os\ndef f(): os._exit(0)", "error", group="ends early"),
    _fools("sys.exit(0) at import", "import sys; sys.exit(0)", "error", group="ends early"),
    _fools("sys.exit(0) in the call", "import sys\ndef f(): sys.exit(0)", "error", group="ends early"),
    _fools("segmentation fault", "import ctypes; ctypes.string_at(0)", "error", group="ends early"),
    _fools("exits from atexit with 0", "import atexit, os\natexit.register(os._exit, 0)\ndef f(): return 2", "failed",
           group="ends early"),
    _fools("waits for input", "def f(): return input()", "error", group="ends early"),
    _fools("execs another program",
           "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])\ndef f(): return 1", "error",
           group="ends early"),
    # --- results ----------------------------------------------------------------------------------------------------
    _fools("always equal", "class E:\n    def __eq__(self, other): return True\ndef f(): return E()", "failed",
           group="results"),
    _fools("always equal int",
           "class E(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(): return E(7)",
           "failed", group="results"),
    _fools("always equal, in a list", "class E:\n    def __eq__(self, o): return True\ndef f(): return [E()]",
           "failed", expected=[1], group="results"),
    _fools("always true", "class E: pass\ndef f(): return E()", "failed", test="assert f()", group="results"),
    _fools("a list equal to everything",
           "class E(list):\n    def __eq__(self, o): return True\n    def __len__(self): return 1\ndef f(): return E()",
           "failed", expected=[1], group="results"),
    _fools("claims to be an int", "class E:\n    __class__ = int\n    def __eq__(self, o): return True\n"
           "def f(): return E()", "failed", group="results"),
    _fools("metaclass that answers every isinstance",
           "class M(type):\n    def __instancecheck__(c, o): return True\n    def __getattribute__(c, n): return int\n"
           "class E(metaclass=M): pass\ndef f(): return E()", "failed", group="results"),
    _fools("endless __repr__", "class E:\n    def __repr__(self):\n        while True: pass\ndef f(): return E()",
           "failed", group="results"),
    _fools("exception with an endless __str__",
           "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef f(): raise E", "timeout",
           group="results"),
    _fools("exception whose __str__ raises", "class E(Exception):\n    def __str__(self): raise E\ndef f(): raise E",
           "error", group="results"),
    _fools("cannot be pickled", "def f(): return (lambda: 1)", "failed", group="results"),
    _fools("unpickles to a call",
           "import os\nclass E:\n    def __reduce__(self): return os.system, ('touch ' + CANARY + '2',)\n"
           "def f(): return E()", "failed", group="results"),
    _fools("cyclic list", "def f():\n    x = []\n    x.append(x)\n    return x", "failed", expected=[], group="results"),
    _fools("cyclic dict", "def f():\n    x = {}\n    x[1] = x\n    return x", "failed", expected={}, group="results"),
    _fools("NaN", "def f(): return float('nan')", "failed", group="results"),
    _fools("NaN in a list", "def f(): return [float('nan')]", "failed", expected=[1.0], group="results"),
    _fools("nested 10,000 deep", "def f():\n    x = []\n    for _ in range(10**4): x = [x]\n    return x", "failed",
           expected=[], group="results"),
    _fools("doubles 60 times", "def f():\n    x = [1]\n    for _ in range(60): x = [x, x]\n    return x", "failed",
           expected=[], group="results"),
    _fools("20 MB of result", "def f(): return 'x' * (20 << 20)", "failed", group="results"),
    _fools("a number of a million bits", "def f(): return 1 << (1 << 20)", "failed", group="results"),
    _fools("keys with one hash", "def f(): return {k * (2**61 - 1) for k in range(1, 9000)}", "failed",
           group="results"),
    _fools("a range that ends in years", "def f(): return range(10**18)", "failed", test="assert 'x' in f()",
           group="results"),
    _fools("endless generator", "import itertools\ndef f(): return itertools.count()", "failed", group="results"),
    # --- the report -------------------------------------------------------------------------------------------------
    _fools("prints the result", "print('[\"value\", 0, 1]')\nprint('passed')\ndef f(): return 2", "failed",
           group="report"),
    _fools("writes passes to every descriptor",
           "import os\nfor d in range(64):\n    try: os.write(d, b'[\"value\", 0, true]\\n[\"done\", 1]\\n')\n"
           "    except OSError: pass\nos._exit(0)", "failed", "error", expected="yes", group="report"),
    _fools("reports done without values", "import os\nos.write(3, b'[\"done\", 1]\\n[\"done\", 0]\\n')\nos._exit(0)",
           "error", group="report"),
    _fools("writes garbage to the report", "import os\nos.write(3, bytes(range(256)))\ndef f(): return 1", "error",
           group="report"),
    _fools("a report nested 100,000 deep",
           "import os\nos.write(3, b'[\"value\", 0, ' + b'[' * 50000 + b']' * 50000 + b']\\n')\nos._exit(0)",
           "error", "failed", group="report"),
    _fools("a fraction that takes minutes to reduce",
           """
           import os
           numbers = [hex(int.from_bytes(os.urandom(900000), 'big') | 1).encode() for _ in range(2)]
           line = b'["value", 0, {"fraction": ["' + numbers[0] + b'", "' + numbers[1] + b'"]}]\\n'
           while line: line = line[os.write(3, line):]
           os._exit(0)
           """, "failed", group="report"),
    _fools("floods the report", "import os\nwhile True: os.write(3, b'x' * 65536)", "failed", group="report"),
    _fools("closes every descriptor", "import os\nos.closerange(0, 64)\ndef f(): return 1", "error", group="report"),
    # --- the harness ------------------------------------------------------------------------------------------------
    _fools("patched builtins",
           "import builtins\nfor n in ('all', 'any', 'bool', 'isinstance', 'type', 'len'):\n"
           "    setattr(builtins, n, lambda *a: True)\ndef f(): return 2", "failed", "error", group="harness"),
    _fools("patched json",
           "import json, os\njson.dumps = lambda *a, **k: '[\"done\", 1]'\nos.write = lambda *a: 1\ndef f(): return 2",
           "failed", "error", group="harness"),
    _fools("patched unittest and math",
           "import math, unittest\nmath.isclose = lambda *a, **k: True\n"
           "for n in dir(unittest.TestCase):\n    if n.startswith('assert'):\n"
           "        setattr(unittest.TestCase, n, lambda *a, **k: None)\ndef f(): return 2", "failed", group="harness"),
    _fools("patched encoder",
           """
           import gc
           for item in gc.get_objects():
               if callable(item) and getattr(item, '__name__', '') == 'encode' and hasattr(item, '__code__'):
                   try: item.__code__ = (lambda value: True).__code__
                   except ValueError: pass
           def f(): return 2
           """, "failed", "error", expected="yes", group="harness"),
    _fools("import hook",
           """
           import builtins, sys
           class Hook:
               def find_spec(self, *_): raise SystemExit(0)
               def __getattr__(self, name): return lambda *a, **k: True
           sys.meta_path.insert(0, Hook())
           builtins.__import__ = lambda *a, **k: Hook()
           for name in list(sys.modules): sys.modules[name] = Hook()
           def f(): return 2
           """, "failed", "error", group="harness"),
    _fools("trace and profile hooks that change locals",
           """
           import sys
           def hook(frame, event, arg):
               for name in ('result', 'data', 'actual', 'expected'):
                   if name in frame.f_locals: frame.f_locals[name] = 1
               return hook
           sys.settrace(hook); sys.setprofile(hook)
           def f(): return 2
           """, "failed", "error", group="harness"),
    _fools("searches frames and memory for the expected value",
           """
           import gc, re, sys
           def f():
               stack, seen = list(gc.get_objects()), set()
               frame = sys._getframe()
               while frame:
                   stack += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
                   frame = frame.f_back
               while stack and len(seen) < 10**6:
                   item = stack.pop()
                   if id(item) in seen: continue
                   seen.add(id(item))
                   if type(item) is str:
                       if re.fullmatch('[0-9a-f]{16}', item): return item
                   elif type(item) is dict: stack += [*item.values(), *item]
                   elif type(item) in (list, tuple, set): stack += list(item)
               return "not found"
           """, "failed", expected=SECRET, group="harness"),
    # --- network ----------------------------------------------------------------------------------------------------
    _breaks("network",
            """
            import socket
            for name, address in (("this machine", ("127.0.0.1", PORT)), ("a private network", ("10.0.0.1", 53)),
                                  ("IPv6", ("::1", PORT))):
                attempt(name + ", TCP", lambda: socket.create_connection(address, 0.5))
            attempt("UDP", lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT)))
            attempt("name lookup", lambda: socket.getaddrinfo("example.org", 80))
            attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
            attempt("raw packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            """,
            {"unreachable|Cannot assign|gaierror": "network namespace", _EACCES: "landlock",
             "(netlink|raw).*" + _EPERM: "seccomp", _EPERM: "no capabilities"}, "network"),
    # --- files ------------------------------------------------------------------------------------------------------
    _breaks("reads and writes files outside",
            """
            attempt("reads a file", lambda: open(CANARY).read())
            attempt("climbs up", lambda: open("/tmp/" + "../" * 20 + CANARY.lstrip("/")).read())
            attempt("writes a file", lambda: open(CANARY, "w").write("x"))
            attempt("writes beside it", lambda: open(CANARY + "2", "w").write("x"))
            for path in ("/etc/passwd", "/etc/shadow", "/root/.ssh", "/home", "/proc/1/environ", "/sys/kernel"):
                attempt("sees " + path, lambda: os.stat(path))
            attempt("writes to the root", lambda: open("/x", "w"))
            attempt("writes to Python's library", lambda: open(os.__file__, "a"))
            attempt("writes to a device", lambda: open("/dev/zero", "wb"))
            attempt("removes Python's library", lambda: os.remove(os.__file__))
            """,
            {_ENOENT: "own file tree", _EROFS: "read-only mount", _EACCES: "landlock or file modes"}, "files"),
    _breaks("symlinks and hard links",
            """
            os.symlink(CANARY, "/tmp/link")
            os.symlink("/", "/tmp/rootlink")
            attempt("reads through a link", lambda: open("/tmp/link").read())
            attempt("reads below a linked root", lambda: open("/tmp/rootlink" + CANARY).read())
            attempt("removes through a link", lambda: os.truncate("/tmp/link", 0))
            attempt("hard link", lambda: os.link(CANARY, "/tmp/hard"))
            attempt("hard link to Python", lambda: os.link(os.__file__, "/tmp/python"))
            attempt("device node", lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0)))
            """,
            {_ENOENT: "own file tree", "cross-device": "private /tmp", _EPERM: "no capabilities", _EACCES: "landlock"},
            "files"),
    _breaks("changes the mounts",
            """
            libc("chdir", b"/tmp")
            attempt("mounts proc", lambda: libc("mount", b"proc", b"/tmp", b"proc", 0, None))
            attempt("remounts the root", lambda: libc("mount", b"none", b"/", None, 32 | 4096, None))
            attempt("unmounts /tmp", lambda: libc("umount2", b"/tmp", 2))
            attempt("chroot", lambda: os.chroot("/tmp"))
            attempt("user namespace", lambda: libc("unshare", 0x10000000))
            attempt("mount namespace", lambda: libc("unshare", 0x20000))
            attempt("opens by handle", lambda: libc("open_by_handle_at", 3, b"\\0" * 64, 0))
            """,
            {_EPERM: "seccomp", _EACCES: "landlock"}, "files"),
    _breaks("/proc",
            """
            for path in ("/proc", "/proc/self/mem", "/proc/1/mem", "/proc/self/fd", "/proc/%d/environ" % os.getppid(),
                         "/proc/sys/kernel/core_pattern", "/sys/fs/cgroup"):
                attempt(path, lambda: os.stat(path))
            """,
            {_ENOENT: "own file tree"}, "files"),
    # --- other processes --------------------------------------------------------------------------------------------
    _breaks("signals the grader and its parent",
            """
            import signal
            attempt("kills the grader", lambda: os.kill(GRADER, signal.SIGKILL))
            attempt("asks for the grader", lambda: os.kill(GRADER, 0))
            attempt("pidfd of the grader", lambda: os.pidfd_open(GRADER))
            alive = []
            for number in range(3, 2000):
                if number == os.getpid(): continue
                try: os.kill(number, 9)
                except ProcessLookupError: continue
                except PermissionError: pass
                alive.append(number)
            attempt("sees 2,000 processes", lambda: alive or (_ for _ in ()).throw(ProcessLookupError("No such process")))
            """,
            {"No such process": "PID namespace", _EPERM: "landlock"}, "processes"),
    _fools("kills its supervisor", "import os\nfor s in (9, 15, 19):\n    try: os.kill(os.getppid(), s)\n"
           "    except OSError: pass\ndef f(): return 2", "failed", "error", group="processes"),
    _fools("kills everyone", "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\ndef f(): return 2", "failed",
           "error", group="processes"),
    _fools("kills its group", "import os\nos.killpg(0, 9)\ndef f(): return 2", "error", group="processes"),
    _breaks("takes hold of its supervisor",
            """
            parent = os.getppid()
            attempt("ptrace attach", lambda: libc("ptrace", 16, parent, None, None))
            attempt("ptrace seize", lambda: libc("ptrace", 0x4206, parent, None, None))
            attempt("reads its memory", lambda: libc("process_vm_readv", parent, b"\\0" * 16, 1, b"\\0" * 16, 1, 0))
            attempt("writes its memory", lambda: libc("process_vm_writev", parent, b"\\0" * 16, 1, b"\\0" * 16, 1, 0))
            attempt("its namespaces", lambda: libc("setns", os.pidfd_open(parent), 0x20000000))
            attempt("its descriptors", lambda: libc("syscall", 438, os.pidfd_open(parent), 3, 0))
            """,
            {_EPERM: "seccomp"}, "processes"),
    # It shares the supervisor's user, so this call succeeds; the supervisor then dies, and the run with it.
    _fools("limits its supervisor",
           "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))\ndef f(): return 2",
           "failed", "error", group="processes"),
    _breaks("raises its own rights",
            """
            import resource
            attempt("becomes root", lambda: os.setuid(0))
            attempt("joins a group", lambda: os.setgroups([0]))
            attempt("more memory", lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)))
            attempt("more processes", lambda: resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6)))
            attempt("higher priority", lambda: os.nice(-10))
            attempt("loads a BPF program", lambda: libc("syscall", 321, 0, None, 0))
            attempt("io_uring", lambda: libc("syscall", 425, 1, b"\\0" * 128))
            attempt("userfaultfd", lambda: libc("syscall", 323, 0))
            attempt("kernel log", lambda: libc("klogctl", 3, b"\\0" * 64, 64))
            attempt("keyring", lambda: libc("syscall", 250, 0, -3, 1))
            """,
            {"memory|processes": "resource limits", "becomes|joins|priority": "no capabilities", _EPERM: "seccomp"},
            "processes"),
    # --- what outlives the program ----------------------------------------------------------------------------------
    _fools("children that outlive it",
           """
           import os, time
           for _ in range(3):
               if os.fork() == 0:
                   os.setsid()
                   if os.fork() == 0: time.sleep(60)
                   os._exit(0)
           def f(): return 2
           """, "failed", group="leftovers"),
    _fools("threads that outlive it",
           "import threading, time\nfor _ in range(5): threading.Thread(target=time.sleep, args=(60,)).start()\n"
           "def f(): return 2", "failed", group="leftovers"),
    _fools("20 zombies",
           "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\ndef f(): return 2", "failed",
           group="leftovers"),
    _fools("a child that answers later",
           """
           import os, time
           if os.fork() == 0:
               time.sleep(0.2)
               os.write(3, b'["value", 0, 1]\\n["done", 1]\\n')
               os._exit(0)
           def f(): return 2
           """, "failed", group="leftovers"),
    _fools("shared memory for the next program",
           "import ctypes\nctypes.CDLL(None).shmget(4711, 4096, 0o1666)\ndef f(): return 2", "failed",
           group="leftovers"),
    _breaks("finds what the last program left",
            """
            def left(): raise FileNotFoundError("No such file")
            attempt("scratch files", lambda: os.listdir("/tmp") or left())
            attempt("shared memory", lambda: libc("shmget", 4711, 4096, 0o666))
            """,
            {"scratch.*No such file": "private /tmp", "shared.*No such file": "IPC namespace"}, "leftovers"),
)  # fmt: skip
