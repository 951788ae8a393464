"""The verify stage: which traces hold a program that passes its problem's tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.jsonl import JsonlAppender, read_jsonl
from training.progress import Progress
from training.sandbox import Program, Sandbox, program_from_problem

Row = dict[str, Any]


def verify_traces(
    problems: Iterable[Row],
    traces: Sequence[Row],
    sandbox: Sandbox,
    out_path: str | Path,
    *,
    time_limit_s: float = 4.0,
    prelude: str = "",
) -> Row:
    """Runs each trace's program (`prelude + code_prefix + code`) and writes the trace with its verdict.

    The tests are the problem's, or the trace's own where it has `tests` (a teacher that was asked a reworded task).
    Rows land in `out_path` (JSON lines) in the order of `traces`, with `passed` (None if the sandbox failed),
    `status`, `detail`, and `split` of the problem. A run that was killed goes on where it stopped: rows that
    are there are neither run nor written again. Returns {"traces", "kept", "resumed", "dropped": {status: n}}.

    Raises ValueError for a repeated trace id, an unknown problem, or an `out_path` with rows of other traces.
    """
    by_id = {problem["id"]: problem for problem in problems}
    _check(traces, by_id)
    statuses = _statuses_so_far(traces, Path(out_path))
    todo = [row for row in traces if row["id"] not in statuses]
    resumed = len(statuses)

    def programs() -> Iterator[Program]:
        for row in todo:
            problem = by_id[row["problem_id"]]
            own: Row = {**problem, **{name: row[name] for name in ("code_prefix", "tests") if name in row}}
            yield program_from_problem(own, row["code"], id=row["id"], prelude=prelude, time_limit_s=time_limit_s)

    with JsonlAppender(out_path) as out, Progress("verify", len(todo), unit="program") as bar:
        for row, verdict in zip(todo, sandbox.run(programs()), strict=True):
            passed = None if verdict.status == "sandbox_error" else verdict.status == "passed"
            split = by_id[row["problem_id"]]["split"]
            out.append({**row, "passed": passed, "status": verdict.status, "detail": verdict.detail, "split": split})
            statuses[row["id"]] = verdict.status
            bar.update(1)
    counts = Counter(statuses.values())
    kept = counts.pop("passed", 0)
    return {"traces": len(traces), "kept": kept, "resumed": resumed, "dropped": dict(counts.most_common())}


def _check(traces: Sequence[Row], problems: dict[str, Row]) -> None:
    repeated = [name for name, count in Counter(row["id"] for row in traces).items() if count > 1]
    if repeated:
        raise ValueError(f"traces: ids must be unique, got {repeated[0]!r} more than once")
    for row in traces:
        if row["problem_id"] not in problems:
            raise ValueError(f"traces: {row['id']!r} wants the problem {row['problem_id']!r}, which is not given")


def _statuses_so_far(traces: Sequence[Row], out_path: Path) -> dict[str, str]:
    if not out_path.exists():
        return {}
    code = {row["id"]: row["code"] for row in traces}
    statuses: dict[str, str] = {}
    for row in read_jsonl(out_path, tolerate_cut_end=True):
        name = row["id"]
        if name not in code or row["code"] != code[name]:
            raise ValueError(f"out_path: {out_path} holds {name!r}, which is not among these traces; remove the file")
        statuses[name] = row["status"]
    return statuses
