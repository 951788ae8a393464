"""The verify stage and JSON lines: verdicts, resuming after a kill, damaged files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.sandboxes import sandbox_or_skip
from training.jsonl import JsonlAppender, read_jsonl, write_jsonl
from training.sandbox import Sandbox
from training.verify import verify_traces

REPOSITORY = Path(__file__).parents[2]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip(workers=1) as opened:
        yield opened


def problem(name: str = "k", split: str = "train") -> Row:
    return {
        "id": name, "prompt": "Double x.\ndef f(x):", "code_prefix": "def f(x):\n", "entry_point": "f", "split": split,
        "tests": [{"args": [2], "expected": 4}, {"args": [3], "expected": 6}],
        "family": "", "shape": "", "reference": "",
    }  # fmt: skip


def trace(name: str, code: str, problem_id: str = "k") -> Row:
    return {
        "id": name, "problem_id": problem_id, "prompt": "", "code_prefix": "def f(x):\n", "reasoning": "r",
        "code": code, "teacher": "t", "passed": None,
    }  # fmt: skip


TRACES = [
    trace("good", "    return 2 * x\n"),
    trace("wrong", "    return x + 2\n"),
    trace("raises", "    return y\n"),
    trace("blank", " \n"),
    trace("slow", "    while True: pass\n"),
    trace("also good", "    return x + x\n"),
]
STATUSES = ["passed", "failed", "error", "no_code", "timeout", "passed"]
SUMMARY = {"traces": 6, "kept": 2, "dropped": {"failed": 1, "error": 1, "no_code": 1, "timeout": 1}}


def test_rows_keep_their_fields_and_get_a_verdict(sandbox: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "new" / "verified.jsonl"
    summary = verify_traces([problem()], TRACES, sandbox, out, time_limit_s=0.5)
    assert summary == {**SUMMARY, "resumed": 0}
    rows = list(read_jsonl(out))
    assert [row["status"] for row in rows] == STATUSES
    assert [row["passed"] for row in rows] == [status == "passed" for status in STATUSES]
    for row, original in zip(rows, TRACES, strict=True):
        assert {**original, "passed": row["passed"]}.items() <= row.items()
        assert row["split"] == "train"
    assert "5 == 6" in rows[1]["detail"]
    assert "NameError" in rows[2]["detail"]


@pytest.mark.parametrize("cut", [0, 1, 40, -1, -20])
def test_a_cut_file_resumes_without_a_lost_or_doubled_row(sandbox: Sandbox, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "verified.jsonl"
    quick = [row for row in TRACES if row["id"] != "slow"]
    verify_traces([problem()], quick, sandbox, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:cut])
    summary = verify_traces([problem()], quick, sandbox, out)
    assert out.read_bytes() == whole
    assert summary["resumed"] == whole[:cut].count(b"\n")
    assert summary["kept"] == 2
    again = verify_traces([problem()], quick, sandbox, out)
    assert again["resumed"] == 5
    assert out.read_bytes() == whole


def test_a_killed_run_goes_on_where_it_stopped(sandbox: Sandbox, tmp_path: Path) -> None:
    traces = [trace(str(n), f"    import time; time.sleep(0.02); return 2 * x + {n % 2}\n") for n in range(60)]
    write_jsonl(tmp_path / "problems.jsonl", [problem()])
    write_jsonl(tmp_path / "traces.jsonl", traces)
    out = tmp_path / "out.jsonl"
    script = textwrap.dedent("""
        import sys
        from training.jsonl import read_jsonl
        from training.sandbox import Sandbox
        from training.verify import verify_traces
        folder = sys.argv[1]
        with Sandbox(workers=1) as sandbox:
            rows = [list(read_jsonl(f"{folder}/{name}.jsonl")) for name in ("problems", "traces")]
            verify_traces(*rows, sandbox, f"{folder}/out.jsonl")
    """)
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": ".", "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (not out.exists() or out.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    _, errors = run.communicate()
    done = out.read_bytes().count(b"\n")
    assert 5 <= done < 60, errors
    assert b"verify" in errors  # the progress bar
    summary = verify_traces([problem()], traces, sandbox, out)
    assert summary == {"traces": 60, "kept": 30, "resumed": done, "dropped": {"failed": 30}}
    assert [row["id"] for row in read_jsonl(out)] == [str(n) for n in range(60)]


def test_asserts_setup_and_prelude(sandbox: Sandbox, tmp_path: Path) -> None:
    row = {**problem("m"), "code_prefix": "", "tests": {"asserts": ["assert f([1]) == n"], "setup": "n = 1"}}
    typed = {**trace("typed", "def f(xs: List[int]): return len(xs)\n", "m"), "code_prefix": ""}
    plain = verify_traces([row], [typed], sandbox, tmp_path / "a")
    helped = verify_traces([row], [typed], sandbox, tmp_path / "b", prelude="from typing import *\n")
    assert (plain["kept"], plain["dropped"], helped["kept"]) == (0, {"error": 1}, 1)


def test_a_fault_of_the_sandbox_is_no_verdict_on_the_trace(sandbox: Sandbox, tmp_path: Path) -> None:
    verify_traces([{**problem(), "tests": []}], TRACES[:1], sandbox, tmp_path / "a")
    (row,) = read_jsonl(tmp_path / "a")
    assert (row["passed"], row["status"]) == (None, "sandbox_error")


def test_wrong_input_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'good' more than once"):
        verify_traces([problem()], [TRACES[0], TRACES[0]], sandbox, tmp_path / "a")
    with pytest.raises(ValueError, match="'elsewhere'"):
        verify_traces([problem()], [trace("x", "", "elsewhere")], sandbox, tmp_path / "a")
    verify_traces([problem()], TRACES[:1], sandbox, tmp_path / "a")
    with pytest.raises(ValueError, match="not among these traces"):
        verify_traces([problem()], [trace("good", "    return x << 1\n")], sandbox, tmp_path / "a")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl_files_are_read_as_written(tmp_path: Path, name: str) -> None:
    rows: list[Row] = [{"a": 1}, {"text": "line\nbreak \u2028 \ud800 é"}, {"x": [None, 1.5]}]
    assert write_jsonl(tmp_path / "deep" / name, iter(rows)) == 3
    assert list(read_jsonl(tmp_path / "deep" / name)) == rows
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows() -> Iterator[Row]:
        yield {"a": 2}
        raise KeyError

    with pytest.raises(KeyError):
        write_jsonl(path, rows())
    assert list(read_jsonl(path)) == [{"a": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:3 is not JSON"):
        list(read_jsonl(path))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="must be a JSON object, got list"):
        list(read_jsonl(path))


def test_the_appender_mends_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    long = json.dumps({"text": "x" * 200_000})
    path.write_text('{"a": 1}\n' + long[:-1])
    assert list(read_jsonl(path, tolerate_cut_end=True)) == [{"a": 1}]
    with JsonlAppender(path) as out:
        out.append({"a": 2})
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match="gzip"):
        JsonlAppender(tmp_path / "rows.jsonl.gz")
