"""Programs that behave badly, what they deserve, and the layer of the sandbox that sees to it.

Used by the tests, and by `python -m benchmarks.hostile_suite`, which prints what each of them got.
"""

# ruff: noqa: E501 (the programs are written as their authors would)

from __future__ import annotations

from typing import NamedTuple

from training.sandbox import Program


class Hostile(NamedTuple):
    """`test`: one that an honest program would pass. `expected`: the statuses that are right."""

    name: str
    source: str
    test: str
    expected: frozenset[str]
    layer: str

    def program(self) -> Program:
        """With a short limit where only time can end it."""
        seconds = 0.5 if "timeout" in self.expected else 20.0
        return Program(self.name, self.source, "f", [self.test], seconds)


def _hostile(name: str, layer: str, expected: str, test: str, source: str) -> Hostile:
    return Hostile(name, source, test, frozenset(expected.split()), layer)


PROGRAMS = (
    _hostile('endless loop', 'wall-clock limit', 'timeout', 'assert f() == 1', '''\
def f():
    while True: pass
'''),
    _hostile('endless sleep', 'wall-clock limit', 'timeout', 'assert f() == 1', '''\
import time; time.sleep(60)
'''),
    _hostile('stops itself', 'wall-clock limit', 'timeout', 'assert f() == 1', '''\
import os, signal; os.kill(os.getpid(), signal.SIGSTOP)
'''),
    _hostile('memory bomb', 'address space limit', 'memory', 'assert f() == 1', '''\
x = []
while True: x.append(bytearray(1 << 20))
'''),
    _hostile('memory bomb in a call', 'address space limit', 'memory', 'assert f() == 1', '''\
def f(): return [0] * 10**10
'''),
    _hostile('fork bomb', 'process limit', 'error timeout', 'assert f() == 1', '''\
import os
while True: os.fork()
'''),
    _hostile('silent fork bomb', 'process limit', 'timeout', 'assert f() == 1', '''\
import os
while True:
    try: os.fork()
    except OSError: pass
'''),
    _hostile('thread bomb', 'process limit', 'error memory timeout', 'assert f() == 1', '''\
import threading, time
while True: threading.Thread(target=time.sleep, args=(60,)).start()
'''),
    _hostile('os._exit at import', 'a pass wants a value for each test', 'error', 'assert f() == 1', '''\
import os; os._exit(0)
'''),
    _hostile('os._exit in a call', 'a pass wants a value for each test', 'error', 'assert f() == 1', '''\
import os
def f(): os._exit(0)
'''),
    _hostile('sys.exit at import', 'a pass wants a value for each test', 'error', 'assert f() == 1', '''\
import sys; sys.exit(0)
'''),
    _hostile('sys.exit in a call', 'a pass wants a value for each test', 'error', 'assert f() == 1', '''\
import sys
def f(): sys.exit(0)
'''),
    _hostile('segfault', 'own process', 'error', 'assert f() == 1', '''\
import ctypes; ctypes.string_at(0)
'''),
    _hostile('always equal', 'plain data, compared outside', 'failed', 'assert f() == 1', '''\
class E:
    def __eq__(self, other): return True
def f(): return E()
'''),
    _hostile('always equal int', 'plain data, compared outside', 'failed', 'assert f() == 1', '''\
class E(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(): return E(7)
'''),
    _hostile('always equal, in a list', 'plain data, compared outside', 'failed', 'assert f() == [1]', '''\
class E:
    def __eq__(self, other): return True
def f(): return [E()]
'''),
    _hostile('claims to be an int', 'plain data, compared outside', 'failed', 'assert f() == 1', '''\
class E:
    __class__ = int
    def __eq__(self, o): return True
def f(): return E()
'''),
    _hostile('always true', 'plain data, compared outside', 'failed', 'assert f()', '''\
class E: pass
def f(): return E()
'''),
    _hostile('patched comparison', 'plain data, compared outside', 'error failed', 'assert f() == 1', '''\
import builtins
for n in ('all', 'any', 'bool', 'isinstance'): setattr(builtins, n, lambda *a: True)
def f(): return 2
'''),
    _hostile('patched json', 'expected values are outside', 'error failed', 'assert f() == 1', '''\
import json, os
json.dumps = lambda *a, **k: '["done", 1]'
os.write = lambda *a: 1
def f(): return 2
'''),
    _hostile('patched encoder', 'expected values are outside', 'error failed', "assert f() == 'yes'", '''\
import sys, gc
for o in gc.get_objects():
    if callable(o) and getattr(o, '__name__', '') == 'encode':
        o.__code__ = (lambda value: True).__code__
def f(): return 2
'''),
    _hostile('writes results to every descriptor', 'expected values are outside', 'error failed', "assert f() == 'yes'", '''\
import os
for d in range(1, 64):
    try: os.write(d, b'["value", 0, true]\\n["done", 1]\\n')
    except OSError: pass
os._exit(0)
'''),
    _hostile('reports done without values', 'a pass wants a value for each test', 'error', 'assert f() == 1', '''\
import os
os.write(3, b'["done", 1]\\n["done", 0]\\n')
os._exit(0)
'''),
    _hostile('writes garbage to its pipe', 'strict report', 'error', 'assert f() == 1', '''\
import os
os.write(3, bytes(range(256)))
def f(): return 1
'''),
    _hostile('floods its pipe', 'result limit', 'failed', 'assert f() == 1', '''\
import os
while True: os.write(3, b'x' * 65536)
'''),
    _hostile('prints results', 'results have a pipe of their own', 'failed', 'assert f() == 1', '''\
print('["value", 0, 1]')
print('passed')
def f(): return 2
'''),
    _hostile('200 MB of output', 'output limit', 'error', 'assert f() == 1', '''\
for _ in range(200): print('x' * (1 << 20))
def f(): return 1
'''),
    _hostile('closes every descriptor', 'a pass wants a value for each test', 'error', 'assert f() == 1', '''\
import os
os.closerange(0, 64)
def f(): return 1
'''),
    _hostile('kills its parent', 'PID namespace', 'error failed', 'assert f() == 1', '''\
import os
os.kill(os.getppid(), 9)
os.kill(os.getppid(), 15)
def f(): return 2
'''),
    _hostile('kills everyone', 'PID namespace', 'error failed', 'assert f() == 1', '''\
import os
os.kill(-1, 9)
def f(): return 2
'''),
    _hostile('kills its group', 'own process group', 'error', 'assert f() == 1', '''\
import os
os.killpg(0, 9)
def f(): return 2
'''),
    _hostile('limits its parent', 'no privileges', 'error failed', 'assert f() == 1', '''\
import os, resource
resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))
def f(): return 2
'''),
    _hostile('recursion', 'own process', 'error', 'assert f() == 1', '''\
def f(): return f()
'''),
    _hostile('deep recursion', 'own process', 'error memory timeout', 'assert f() == 1', '''\
import sys; sys.setrecursionlimit(10**9)
def f(): return f()
'''),
    _hostile('cyclic result', 'plain data, compared outside', 'failed', 'assert f() == []', '''\
def f():
    x = []
    x.append(x)
    return x
'''),
    _hostile('exploding result', 'plain data, compared outside', 'failed', 'assert f() == []', '''\
def f():
    x = [1]
    for _ in range(60): x = [x, x]
    return x
'''),
    _hostile('deep result', 'plain data, compared outside', 'failed', 'assert f() == []', '''\
def f():
    x = []
    for _ in range(10**5): x = [x]
    return x
'''),
    _hostile('huge result', 'result limit', 'failed', "assert f() == ''", '''\
def f(): return 'x' * (20 << 20)
'''),
    _hostile('huge number', 'plain data, compared outside', 'failed', 'assert f() == 1', '''\
def f(): return 1 << (1 << 20)
'''),
    _hostile('exception that bites', 'own process', 'error', 'assert f() == 1', '''\
class E(Exception):
    def __str__(self): raise E
def f(): raise E
'''),
    _hostile('swallows interrupts', 'wall-clock limit', 'timeout', 'assert f() == 1', '''\
import signal
for s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException: pass
'''),
    _hostile('waits for input', 'no input', 'error', 'assert f() == 1', '''\
def f(): return input()
'''),
    _hostile('network: connect', 'network namespace', 'failed', "assert f() == 'out'", '''\
import socket
def f():
    try:
        socket.create_connection(("1.1.1.1", 80), 0.3)
    except OSError:
        return "no way out"
    return "out"
'''),
    _hostile('network: name lookup', 'network namespace', 'failed timeout', 'assert f() == True', '''\
import socket
def f():
    try:
        return len(socket.getaddrinfo("example.com", 80)) > 0
    except OSError:
        return "no way out"
'''),
    _hostile('disk filler', 'private /tmp of 16 MiB', 'failed', 'assert f() == 1000', '''\
def f():
    written = 0
    try:
        for number in range(100):
            with open(f"/tmp/{number}", "wb") as file:
                for _ in range(10):
                    written += file.write(bytes(1 << 20))
    except OSError:
        pass
    return written >> 20
'''),
    _hostile('inode filler', 'private /tmp of 16 MiB', 'failed', 'assert f() == 99999', '''\
def f():
    made = 0
    try:
        for made in range(100000):
            open(f"/tmp/{made}", "w").close()
    except OSError:
        pass
    return made
'''),
    _hostile('reads /etc/passwd', 'own file tree', 'failed', 'assert f() == True', '''\
def f():
    try:
        return open("/etc/passwd").read() != ""
    except OSError:
        return "not there"
'''),
    _hostile('symlink out of /tmp', 'own file tree', 'failed', "assert 'passwd' in f()", '''\
import os
def f():
    os.symlink("/etc", "/tmp/link")
    os.symlink("../../../../root", "/tmp/up")
    try:
        return os.listdir("/tmp/link") + os.listdir("/tmp/up")
    except OSError:
        return "not there"
'''),
    _hostile('writes into Python', 'read-only file tree', 'failed', "assert f() == 'written'", '''\
import os
def f():
    try:
        with open(os.__file__, "a") as file:
            file.write("# mine")
    except OSError:
        return "read-only"
    return "written"
'''),
    _hostile('/proc of others', 'own file tree', 'failed', 'assert f() == True', '''\
import os
def f():
    try:
        return len([name for name in os.listdir("/proc") if name.isdigit()]) > 2
    except OSError:
        return "no /proc"
'''),
    _hostile('ptrace of its parent', 'seccomp, undumpable parent', 'failed', 'assert f() == True', '''\
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f():
    return libc.ptrace(16, os.getppid(), 0, 0) == 0 or libc.ptrace(0, 0, 0, 0) == 0
'''),
    _hostile("reads its parent's memory", 'seccomp, undumpable parent', 'failed', 'assert f() == True', '''\
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f():
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    return libc.process_vm_readv(os.getppid(), vector, 1, vector, 1, 0) == 8
'''),
    _hostile('signals the zygote and siblings', 'PID namespace', 'failed', 'assert f() == True', '''\
import os
def f():
    reached = []
    for pid in [os.getppid(), *range(2, 4000)]:
        if pid != os.getpid():
            try:
                os.kill(pid, 0)
                reached.append(pid)
            except OSError:
                pass
    return len(reached) > 1
'''),
    _hostile('looks for expected values in frames', 'expected values are outside', 'failed timeout', "assert f() == 'expected 7f3a9c'", '''\
import gc, re, sys
def f():
    pattern = re.compile("expected " + "[0-9a-f]" * 6)
    seen, frame = [], sys._getframe()
    while frame:
        seen += [repr(value)[:10000] for value in frame.f_locals.values()]
        frame = frame.f_back
    seen += [repr(o)[:10000] for o in gc.get_objects() if isinstance(o, (dict, list, tuple))][:20000]
    return next((found[0] for found in map(pattern.search, seen) if found), "not found")
'''),
    _hostile('patched unittest and builtins', 'plain data, compared outside', 'error failed', 'assert f() == 1', '''\
import builtins, sys, unittest, unittest.mock
unittest.TestCase.assertEqual = lambda *a: None
builtins.__import__ = lambda *a, **k: unittest.mock.MagicMock()
builtins.AssertionError = type("Quiet", (Exception,), {})
def f(): return 2
'''),
    _hostile('import hook', 'expected values are evaluated elsewhere', 'error failed', 'assert f() == math.sqrt(1)', '''\
import sys, types
class Hook:
    def find_spec(self, name, path=None, target=None):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__getattr__ = lambda item: (lambda *a, **k: True)
        return None
sys.meta_path.insert(0, Hook())
sys.modules.pop("math", None)
def f(): return 2
'''),
    _hostile('threads that outlive main', 'the run is killed when its program is done', 'failed', 'assert f() == 1', '''\
import threading, time
def spin():
    while True:
        time.sleep(0.01)
for _ in range(5):
    threading.Thread(target=spin).start()
def f(): return 2
'''),
    _hostile('children that outlive main', 'PID namespace', 'failed', 'assert f() == 1', '''\
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
def f(): return 2
'''),
    _hostile('zombies', 'PID namespace', 'failed', 'assert f() == 1', '''\
import os
for _ in range(20):
    if os.fork() == 0:
        os._exit(0)
def f(): return 2
'''),
    _hostile('1 GB of output', 'output limit', 'error', 'assert f() == 1', '''\
for _ in range(1024):
    print("x" * (1 << 20))
def f(): return 1
'''),
    _hostile('endless __repr__', 'plain data, compared outside', 'failed timeout', 'assert f() == 1', '''\
class Endless:
    def __repr__(self):
        while True: pass
    __str__ = __repr__
def f(): return Endless()
'''),
    _hostile('unpicklable result', 'plain data, compared outside', 'failed', 'assert f() == 1', '''\
def f(): return (lambda: 1), open("/dev/null")
'''),
    _hostile('NaN for everything', 'plain data, compared outside', 'failed', 'assert f() == 1', '''\
def f(): return float("nan")
'''),
    _hostile('nested 10,000 deep', 'plain data, compared outside', 'failed', 'assert f() == []', '''\
def f():
    x = []
    for _ in range(10_000): x = [x]
    return x
'''),
    _hostile('gains privileges', 'no privileges, seccomp', 'failed', 'assert f() == True', '''\
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f():
    tried = [libc.setuid(0), libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.chroot(b"/tmp")]
    return 0 in tried
'''),
)  # fmt: skip
