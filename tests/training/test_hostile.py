"""The hostile suite: every verdict is right, nothing outside is harmed, and what stopped a program says so."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import sandbox_report, sandbox_throughput
from benchmarks.hostile_suite import ORDINARY_USER, suite
from benchmarks.timing import WrongResult
from benchmarks.tree_report import fill
from tests.training.sandboxes import machine_has_namespaces, sandbox_or_skip
from training import plain_data
from training.assertions import split_assert
from training.benchmarks.oracles import compare_for
from training.hostile import Outside, Row, attack, descendants, stopped_by
from training.hostile_programs import PROGRAMS, HostileProgram
from training.sandbox import Program, SandboxUnavailable, Verdict

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)


NO_BWRAP = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap here")
MODES = pytest.mark.parametrize(
    "bubblewrap",
    [
        pytest.param(False, id="namespaces"),
        pytest.param(True, id="bubblewrap", marks=NO_BWRAP),
    ],
)


@MODES
def test_no_hostile_program_gets_through(bubblewrap: bool) -> None:
    before = descendants()
    with sandbox_or_skip(workers=2, memory_mb=256, retry_timeouts=False, bubblewrap=bubblewrap) as sandbox:
        rows = list(attack(sandbox))
    assert [row.program for row in rows] == list(PROGRAMS)
    assert not [(row.program.name, row.verdict, row.layers, row.harm) for row in rows if not row.ok]
    assert not [row for row in rows if row.verdict.status == "passed"]
    assert all(row.verdict.seconds < 5 for row in rows)
    assert descendants() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="already runs as an ordinary user")
@MODES
def test_nor_as_an_ordinary_user(bubblewrap: bool) -> None:
    if not machine_has_namespaces():
        pytest.skip("this machine allows no user, network and PID namespaces")
    found = suite({"retry_timeouts": False, "bubblewrap": bubblewrap}, ordinary_user=True)
    if found is None:
        pytest.skip("an ordinary user can run no Python here")
    assert found["user"] == ORDINARY_USER
    assert [row["program"] for row in found["rows"]] == [program.name for program in PROGRAMS]
    assert not [row for row in found["rows"] if not row["ok"]]


def test_bubblewrap_is_asked_for_by_name_and_missed_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="bubblewrap: bwrap is not installed; install it"):
        sandbox_or_skip(bubblewrap=True).__enter__()
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(
        f"#!{shutil.which('sh', path='/bin')}\necho 'No permissions to create new namespace' >&2\nexit 1\n"
    )
    bwrap.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match="bwrap does not start: No permissions to create new namespace"):
        sandbox_or_skip(bubblewrap=True).__enter__()


@NO_BWRAP
def test_a_worker_behind_bubblewrap_is_behind_it() -> None:
    with sandbox_or_skip(workers=1, bubblewrap=True, packages=["numpy"]) as sandbox:
        assert all(sandbox.isolation.values())
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants()}
        source = "import numpy as np\ndef f(n): return int(np.arange(n).sum())"
        (verdict,) = sandbox.run([Program("numpy", source, "f", [{"args": [5], "expected": 10}])])
    assert "bwrap" in names
    assert verdict.status == "passed", verdict


def test_names_are_unique_and_every_kind_of_attack_is_there() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)
    groups = {"resources", "ends early", "results", "report", "harness", "network", "files", "processes", "leftovers"}
    assert {program.group for program in PROGRAMS} == groups


def row_of(program: HostileProgram) -> Row:
    with sandbox_or_skip(workers=1, memory_mb=256) as sandbox:
        (row,) = attack(sandbox, [program])
    return row


def test_a_breach_would_be_seen() -> None:
    """Programs that do get through, with what a sandbox without that wall would give."""
    honest = HostileProgram("right", "results", "def f(): return 1", frozenset({"failed"}))
    assert not row_of(honest).ok
    report = 'attempt("reads itself", lambda: open(os.__file__).read(3))\ndef f(): return outcome()'
    through = HostileProgram("reads", "files", report, frozenset({"failed"}), "through", {"No such": "file tree"})
    row = row_of(through)
    assert row.verdict.status == "passed"
    assert not row.ok
    unexplained = report.replace("open(os.__file__).read(3)", "1 / 0")
    row = row_of(dataclasses.replace(through, source=unexplained))
    assert row.verdict.status == "failed"
    assert row.layers == ()
    assert not row.ok
    assert stopped_by(honest, Verdict("x", "failed", "something new", 0.0)) == ()


def test_harm_outside_is_noticed() -> None:
    with Outside() as outside:
        assert outside.harm() == ""
        outside.canary.write_text("touched")
        assert outside.harm() == "files"
        outside.canary.write_text("untouched")
        outside.canary.with_name("more").touch()
        assert outside.harm() == "files"
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        try:
            assert outside.left_behind() == {child.pid}
        finally:
            child.communicate()
        assert outside.left_behind() == set()


def test_comparisons_in_the_grader_end_whatever_a_program_returned() -> None:
    endless = range(10**18)
    started = time.monotonic()
    for statement, holds in (("assert f() in g()", False), ("assert f() not in g()", True)):
        (check,) = split_assert(statement, "f")
        assert check.compare("x", endless) is holds
        assert check.compare(2.0, range(3)) is not holds
        assert check.compare(2.5, range(3)) is holds
        assert check.compare(2, endless) is not holds
    problem = {"family": "mbpp_plus", "entry_point": "Diff", "tests": {"atol": 0}}
    assert not compare_for(problem, [])(endless, [1])
    assert compare_for(problem, [])(range(2), [1, 0])
    root = {"family": "humaneval_plus", "entry_point": "find_zero", "tests": {"atol": 1e-4}}
    with pytest.raises(OverflowError):
        compare_for(root, [[1, 2, 3, 4]])(1 << 10**7, 0)
    assert compare_for(root, [[-2, 1]])(2, None)
    digits = "0x" + "f" * (plain_data.MAX_FRACTION_DIGITS + 1)
    with pytest.raises(plain_data.NotPlain, match="fraction"):
        plain_data.decode({"fraction": [digits, digits]})
    assert time.monotonic() - started < 5


def test_the_page_shows_what_the_studies_stored() -> None:
    page = sandbox_report.PAGE.read_text()
    assert fill(page, sandbox_report.tables(sandbox_report.RESULTS)) == page
    stored = json.loads((sandbox_report.RESULTS / "hostile_suite.json").read_text())
    assert {row["program"] for row in stored["modes"]["namespaces"]["rows"]} == {program.name for program in PROGRAMS}
    assert all(row["ok"] for mode in stored["modes"].values() for row in mode["rows"])


def test_throughput_measures_every_way_and_refuses_wrong_verdicts() -> None:
    if not machine_has_namespaces():
        pytest.skip("this machine allows no user, network and PID namespaces")
    rows = sandbox_throughput.measure(rounds=1, programs=2)
    assert {row["variant"] for row in rows} >= {"namespaces", "bare fork", "cold python -I"}
    assert all(row["per_second"] > 0 for row in rows)
    with sandbox_or_skip(workers=1) as sandbox, pytest.raises(WrongResult):
        sandbox_throughput.through(sandbox, "def f(x): return x", 1)
