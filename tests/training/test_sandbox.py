"""The sandbox's verdicts, its walls against hostile programs, and what it leaves behind (nothing)."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hostile_suite import python_for
from tests.training.sandboxes import WITHOUT_NAMESPACES, sandbox_or_skip
from training import plain_data
from training.assertions import PreparedCall, result_check
from training.hostile import descendants
from training.sandbox import Program, Sandbox, Verdict, program_from_problem

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip(workers=2, memory_mb=256) as opened:
        yield opened


def run(sandbox: Sandbox, source: str, *tests: Any, limit: float = 4.0, setup: str = "") -> Verdict:
    program = Program("p", textwrap.dedent(source), "f", list(tests), limit, setup)
    (verdict,) = sandbox.run([program])
    return verdict


ADD = "def f(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("source", "test", "status"),
    [
        (ADD, "assert f(1, 2) == 3", "passed"),
        (ADD, "assert f(1, 2) == 4", "failed"),
        (ADD, {"args": [1, 2], "expected": 3}, "passed"),
        (ADD, {"args": [1, 2], "expected": 4}, "failed"),
        (ADD, {"args": [[1], [2]], "expected": [1, 2]}, "passed"),
        (ADD, {"args": [0.1, 0.2], "expected": 0.3}, "passed"),
        (ADD, {"args": [0.1, 0.2], "expected": 0.3001}, "failed"),
        # An assertion is Python's own, without a tolerance.
        (ADD, "assert f(0.1, 0.2) == 0.3", "failed"),
        (ADD, "assert f((1,), (2,)) == (1, 2)", "passed"),
        (ADD, "assert f((1,), (2,)) == [1, 2]", "failed"),
        (ADD, "assert f(True, False) == True", "passed"),
        (ADD, "assert f(1, 2)", "passed"),
        (ADD, "assert f(1, -1)", "failed"),
        (ADD, "assert not f(1, -1)", "passed"),
        (ADD, "assert not f(1, 1)", "failed"),
        (ADD, "assert f(1, 2) != 4", "passed"),
        (ADD, "assert f(1, 2) != 3", "failed"),
        (ADD, "assert 2 < f(1, 2)", "passed"),
        (ADD, "assert 3 < f(1, 2)", "failed"),
        (ADD, "assert f(1, 2) in (3, 4)", "passed"),
        (ADD, "assert f(1, 2) not in (3, 4)", "failed"),
        (ADD, "assert 2 < f(1, 2) < 4", "passed"),
        (ADD, "assert f(1, 2) == 4 or f(2, 2) == 4", "passed"),
        (ADD, "assert f(1, 2) == 3 and f(2, 2) == 5", "failed"),
        (ADD, "assert set(f([1], [2])) == set((2, 1))", "passed"),
        (ADD, "assert set(f([1], [2])) == set((2, 3))", "failed"),
        (ADD, "assert math.isclose(f(1, 2), 3.001, rel_tol=0.01)", "passed"),
        (ADD, "assert math.isclose(f(1, 2), 3.1, rel_tol=0.01)", "failed"),
        (ADD, "assert f(1, 2) == math.sqrt(9)", "passed"),
        (ADD, "assert f('a', 'b') == 'ab', 'with a message'", "passed"),
        (ADD, "assert f(1, 2) == f(2, 1)", "passed"),
        (ADD, "assert f(1, 2) == f(2, 2)", "failed"),
        (ADD, "assert f(2, 10**400) == 10**400 + 2", "passed"),
        (ADD, "assert f(1, 'x') == 3", "error"),
        (ADD, "assert f(1) == 3", "error"),
        ("def g(a, b): return 3", "assert f(1, 2) == 3", "error"),
        ("def g(a, b): return 3", {"args": [1, 2], "expected": 3}, "error"),
        ("def f(a, b) return 3", "assert f(1, 2) == 3", "error"),
        ("def f(a, b):\n    assert False", "assert f(1, 2) == 3", "error"),
        ("def f(a, b): pass", "assert f(1, 2) is None", "passed"),
        ("def f(a, b): return 1", "assert f(1, 2) is True", "failed"),
        ("def f(a, b): return float('nan')", "assert f(1, 2) == float('nan')", "failed"),
        ("def f(a, b): return [float('nan'), a]", {"args": [1, 2], "expected": [float("nan"), 1.0]}, "passed"),
        ("def f(a, b): return -float('inf')", {"args": [1, 2], "expected": float("inf")}, "failed"),
        ("def f(a, b): return {(a, b): {1}, None: b'x'}", "assert f(1, 2) == {(1, 2): {1}, None: b'x'}", "passed"),
        ("from collections import Counter\ndef f(a, b): return Counter([a, b])", "assert f(1, 1) == {1: 2}", "passed"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(a, b): return P(a, b)",
         "assert f(1, 2) == (1, 2)", "passed"),
        ("def f(a, b): return (x for x in (a, b))", "assert f(1, 2) == [1, 2]", "failed"),
        ("def f(a, b): return f", "assert f(1, 2)", "failed"),
        ("if __name__ == '__main__': 1 / 0\ndef f(a, b): return 3", "assert f(1, 2) == 3", "passed"),
        ("", "assert f(1, 2) == 3", "no_code"),
        (ADD, "f(1, 2) == 3", "sandbox_error"),
        (ADD, "assert f(1, 2) ==", "sandbox_error"),
    ],
)  # fmt: skip
def test_verdicts(sandbox: Sandbox, source: str, test: Any, status: str) -> None:
    verdict = run(sandbox, source, test)
    assert verdict.status == status, verdict


def test_every_test_counts_and_none_is_no_pass(sandbox: Sandbox) -> None:
    assert run(sandbox, ADD, "assert f(1, 2) == 3", "assert f(1, 3) == 4", "assert f(1, 4) == 6").status == "failed"
    assert run(sandbox, ADD).status == "sandbox_error"


def test_an_entry_point_named_like_a_builtin_is_the_programs(sandbox: Sandbox) -> None:
    program = Program("p", "def sum(a): return 7\n", "sum", ["assert sum([1]) == sum([2])", "assert sum([1]) == 7"])
    (verdict,) = sandbox.run([program])
    assert verdict.status == "passed", verdict


def test_setup_runs_beside_the_program_and_its_imports_serve_both_sides(sandbox: Sandbox) -> None:
    source = "class Node:\n    def __init__(self, v): self.v = v\ndef f(n): return n.v\n"
    assert run(sandbox, source, "assert f(root) == 5", setup="root = Node(5)").status == "passed"
    assert run(sandbox, source, "assert f(root) == 6", setup="root = Node(5)").status == "failed"
    assert run(sandbox, ADD, "assert f(1, 2) == pi // 1", setup="from math import pi").status == "passed"


def test_a_problem_row_becomes_a_program(sandbox: Sandbox) -> None:
    row = {"id": "k", "code_prefix": "def f(a, b):\n", "entry_point": "f", "tests": [{"args": [1, 2], "expected": 3}]}
    good = program_from_problem(row, "    return a + b\n")
    bad = program_from_problem(row, "    return a - b\n", id="other")
    blank = program_from_problem(row, "  \n")
    verdicts = [(v.id, v.status) for v in sandbox.run([good, bad, blank])]
    assert verdicts == [("k", "passed"), ("other", "failed"), ("k", "no_code")]


def test_order_is_kept_and_reading_is_lazy(sandbox: Sandbox) -> None:
    taken = 0

    def programs() -> Iterator[Program]:
        nonlocal taken
        for number in range(120):
            taken += 1
            pause = "import time; time.sleep(0.1)\n" if number % 40 == 0 else ""
            yield Program(str(number), pause + ADD, "f", [f"assert f({number}, 1) == {number + 1}"])

    for given_back, verdict in enumerate(sandbox.run(programs())):
        assert (verdict.id, verdict.status) == (str(given_back), "passed")
        assert taken <= given_back + 1 + 16 * sandbox.workers


def test_an_abandoned_run_leaves_the_sandbox_usable(sandbox: Sandbox) -> None:
    endless = Program("x", "while True: pass", "f", ["assert f()"], 30.0)
    quick = Program("q", ADD, "f", ["assert f(1, 2) == 3"])
    verdicts = sandbox.run([quick, endless, endless, quick])
    assert next(verdicts).status == "passed"
    with pytest.raises(RuntimeError, match="has not ended"):
        next(sandbox.run([quick]))
    verdicts.close()  # type: ignore[attr-defined]
    assert run(sandbox, ADD, "assert f(1, 2) == 3").status == "passed"


def test_walls_were_probed(sandbox: Sandbox) -> None:
    assert set(sandbox.isolation) == {"network", "files", "processes", "ipc", "privileges", "limits"}
    assert all(sandbox.isolation.values())


def test_files_secrets_and_privileges_are_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    paths = ["/proc", "/sys", "/etc/passwd", "/bin", "/var", __file__, str(outside)]
    source = f"""
        import ctypes, os
        def f():
            libc = ctypes.CDLL(None)
            seen = [path for path in {paths} if os.path.exists(path)]
            refused = 0
            for path in ("/x", os.path.dirname(os.__file__) + "/x", "/dev/x"):
                try: open(path, "w")
                except OSError: refused += 1
            powers = [libc.unshare(flag) == 0 for flag in (0x10000000, 0x20000, 0x40000000)]
            powers += [libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0, libc.ptrace(16, os.getppid(), 0, 0) == 0]
            names = set(os.environ) - {{"PYTHONHASHSEED", "LC_ALL", "LC_CTYPE"}}
            return seen, refused, any(powers), sorted(names), os.getuid() == 0, os.listdir("/tmp")
    """
    monkeypatch.setenv("STRUCTLOSS_TEST_SECRET", "x")
    with sandbox_or_skip(workers=1) as fresh:
        verdict = run(fresh, source, "assert f() == ([], 3, False, [], False, [])")
    assert verdict.status == "passed", verdict


def test_scratch_files_do_not_reach_the_next_program() -> None:
    source = "import os\nopen('mine', 'w').write('x' * 1000)\ndef f(): return os.listdir('/tmp')\n"
    with sandbox_or_skip(workers=1) as sandbox:
        for _ in range(2):
            verdict = run(sandbox, source, "assert f() == ['mine']")
            assert verdict.status == "passed", verdict
        big = "f = lambda: open('/tmp/big', 'w').write('x' * (64 << 20))\n"
        assert run(sandbox, big, "assert f() == 1").status == "error"


def test_expected_values_are_nowhere_in_the_programs_process(sandbox: Sandbox) -> None:
    needle = secrets.token_hex(8)
    mark = "mark"
    source = textwrap.dedent(f"""
        import gc, sys
        def f():
            found, stack, seen = [], [], set()
            frame = sys._getframe()
            while frame:
                stack += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
                frame = frame.f_back
            stack += gc.get_objects()
            while stack and len(seen) < 10**6:
                item = stack.pop()
                if id(item) in seen: continue
                seen.add(id(item))
                if type(item) is str:
                    if item.startswith("{mark}:"): found.append(item)
                elif type(item) is dict: stack += list(item.values()) + list(item)
                elif type(item) in (list, tuple, set): stack += list(item)
            return max((x for x in found if len(x) == {len(mark) + 17}), default="none")
    """)
    for test in (f"assert f() == '{mark}:{needle}'", {"args": [], "expected": f"{mark}:{needle}"}):
        verdict = run(sandbox, source, test)
        assert verdict.status == "failed", verdict
        assert verdict.detail.startswith("check 1 does not hold: 'none' =="), verdict
    # The same search does find what was put within its reach.
    reachable = source + f"secret = '{mark}:{needle}'\n"
    assert run(sandbox, reachable, f"assert f() == '{mark}:{needle}'").status == "passed"


def test_sets_are_in_the_same_order_every_time() -> None:
    program = Program("p", "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f'})", "f", ["assert f() == []"])
    details = set()
    for _ in range(3):
        with sandbox_or_skip(workers=1) as sandbox:
            details |= {verdict.detail for verdict in sandbox.run([program])}
    assert len(details) == 1


def test_timeouts_can_be_given_a_second_chance() -> None:
    """The first attempt finds the machine busy (two sleepers side by side), the second runs alone."""
    with sandbox_or_skip(workers=2, retry_timeouts=True) as sandbox:
        started = time.monotonic()
        endless = Program("e", "while True: pass", "f", ["assert f()"], 0.3)
        quick = Program("q", ADD, "f", ["assert f(1, 2) == 3"])
        statuses = [verdict.status for verdict in sandbox.run([endless, quick, endless, quick])]
    assert statuses == ["timeout", "passed", "timeout", "passed"]
    assert time.monotonic() - started > 0.9  # 0.3 s together, then twice 0.3 s alone


def test_a_worker_that_dies_is_replaced_and_its_program_tried_twice() -> None:
    def direct_children() -> list[int]:
        listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []

    others = set(direct_children())
    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("this kernel does not list children")
    slow = Program("slow", "import time; time.sleep(0.5)\n" + ADD, "f", ["assert f(1, 2) == 3"])
    quick = Program("quick", ADD, "f", ["assert f(1, 2) == 3"])
    for kills, expected in ((1, "passed"), (2, "sandbox_error")):
        with sandbox_or_skip(workers=1) as sandbox:

            def kill(times: int = kills) -> None:
                for _ in range(times):
                    time.sleep(0.3)
                    victims = set(direct_children()) - others
                    for pid in victims:
                        os.kill(pid, signal.SIGKILL)
                    while set(direct_children()) & victims:
                        time.sleep(0.005)

            killer = threading.Thread(target=kill)
            killer.start()
            statuses = [verdict.status for verdict in sandbox.run([slow, quick])]
            killer.join()
        assert statuses == [expected, "passed"]


def test_nothing_is_left_after_exit_or_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = descendants()
    endless = Program("e", "while True: pass", "f", ["assert f()"], 60.0)
    with pytest.raises(KeyError), Sandbox(workers=2) as sandbox:  # noqa: PT012
        assert len(list(tmp_path.iterdir())) == 1
        verdicts = sandbox.run([Program("q", ADD, "f", ["assert f(1, 2) == 3"]), endless, endless])
        next(verdicts)
        raise KeyError
    assert descendants() == before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="with Sandbox"):
        next(sandbox.run([endless]))


def test_everything_dies_with_a_killed_grader(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os
        from training.sandbox import Program, Sandbox
        with Sandbox(workers=1) as sandbox:
            source = "import os, time\\nif os.fork(): pass\\ntime.sleep(60)"
            print("ready", flush=True)
            list(sandbox.run([Program("e", source, "f", ["assert f()"], 60.0)]))
    """)
    grader = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ".", "TMPDIR": str(tmp_path)},
    )
    assert grader.stdout is not None
    assert grader.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    names = descendants(grader.pid)
    assert len(names) >= 5  # starter, zygote, supervisor, program and its child
    grader.kill()
    grader.wait()
    grader.stdout.close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in names) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in names if Path(f"/proc/{pid}").exists()]


def run_script(script: str, python: str = sys.executable, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-B", "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="already runs as an ordinary user")
def test_it_works_as_an_ordinary_user(sandbox: Sandbox, tmp_path: Path) -> None:
    copy = Path(tempfile.mkdtemp(prefix="structloss-test-"))
    try:
        copy.chmod(0o755)
        shutil.copytree(REPOSITORY / "training", copy / "training", ignore=shutil.ignore_patterns("__pycache__"))
        options: dict[str, Any] = {"user": 65533, "group": 65533, "extra_groups": [], "cwd": copy}
        python = python_for(options)
        if python is None:
            pytest.skip("an ordinary user can run no Python here")
        done = run_script(
            """
            import json
            from training.sandbox import Program, Sandbox
            tests = ["assert f(1, 2) == 3"]
            with Sandbox(workers=1) as sandbox:
                programs = [Program("a", "def f(a, b): return a + b", "f", tests),
                            Program("b", "import os\\nwhile True: os.fork()", "f", tests, 0.5),
                            Program("c", "import os\\nos.kill(os.getppid(), 9)\\nf = min", "f", tests)]
                print(json.dumps([sandbox.isolation, [v.status for v in sandbox.run(programs)]]))
            """,
            python,
            **options,
        )
        assert done.returncode == 0, done.stderr
        isolation, statuses = json.loads(done.stdout)
        assert all(isolation.values())
        assert statuses[0] == "passed"
        assert statuses[1] in ("error", "timeout")
        assert statuses[2] in ("error", "failed")
    finally:
        shutil.rmtree(copy)


def test_missing_walls_are_named_and_refused_unless_unsafe(sandbox: Sandbox) -> None:
    done = run_script(
        WITHOUT_NAMESPACES
        + textwrap.dedent("""
        import json
        from training.sandbox import Program, Sandbox, SandboxUnavailable
        try:
            with Sandbox(workers=1): print("opened")
        except SandboxUnavailable as error:
            print(json.dumps(str(error)))
        with Sandbox(workers=1, unsafe=True) as sandbox:
            leaves = "import os\\nif os.fork() == 0:\\n  while True: pass\\nf = int"
            programs = [Program("a", "def f(): return 1", "f", ["assert f() == 1"]),
                        Program("b", leaves, "f", ["assert f() == 0"], 0.5)]
            print(json.dumps([sandbox.isolation, [v.status for v in sandbox.run(programs)]]))
        """),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refusal, report = done.stdout.splitlines()
    for wall in ("network", "files", "processes", "user namespace"):
        assert wall in refusal
    isolation, statuses = json.loads(report)
    assert not isolation["network"]
    assert not isolation["processes"]
    assert isolation["limits"]
    assert statuses == ["passed", "passed"]


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="workers"):
        Sandbox(workers=0)
    with pytest.raises(ValueError, match="memory_mb"):
        Sandbox(memory_mb=8)


def test_calls_have_limits_of_their_own(sandbox: Sandbox) -> None:
    def program(source: str, limits: list[float]) -> Program:
        tests = [PreparedCall([number], result_check(number, plain_data.equal)) for number in range(3)]
        return Program("p", source, "f", tests, 30.0, call_limits_s=limits)

    swallow = "def f(x):\n    try:\n        while x == 1: pass\n    except Exception: pass\n    return x\n"
    in_c = "def f(x):\n    return x if x != 1 else sum(range(10**12))\n"
    verdicts = list(
        sandbox.run(
            [
                program("def f(x): return x\n", [0.5] * 3),
                program(swallow, [0.2] * 3),
                program(in_c, [0.2] * 3),
                program("while True: pass\n", [0.1] * 3),
                program("def f(x): return x\n", [0.5] * 2),
            ]
        )
    )
    assert [v.status for v in verdicts] == ["passed", "timeout", "timeout", "timeout", "sandbox_error"]
    assert all(v.seconds < 25 for v in verdicts)  # the limit of the whole run is 30
    assert verdicts[1].detail == "call 2: longer than 0.2 s"
    assert verdicts[3].detail == "at import: longer than 0.5 s"
    assert "call_limits_s wants 3 limits, got 2" in verdicts[4].detail


def test_a_trusted_program_is_evaluated_apart(sandbox: Sandbox) -> None:
    trusted = Program("reference", "def f(*x): return x\n", "f", [], 10.0)
    assert sandbox.evaluate(trusted, [[1, (2, 3j)], []]) == [(1, (2, 3j)), ()]
    assert sandbox._oracle not in sandbox._pool
    with pytest.raises(RuntimeError, match="reference: error, call 1: ZeroDivisionError"):
        sandbox.evaluate(Program("reference", "def f(x): return 1 / x\n", "f", [], 10.0), [[0]])
    with pytest.raises(RuntimeError, match="reference: timeout, stopped after"):
        sandbox.evaluate(Program("reference", "def f():\n    while True: pass\n", "f", [], 0.3), [[]])
