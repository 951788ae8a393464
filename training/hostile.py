"""The hostile suite: programs that attack the sandbox, what must become of each, and what stopped it.

    with Sandbox(workers=2) as sandbox:
        for row in attack(sandbox): ...

An attack on the verdict must not pass. An attack on the machine returns "through" only if something got through, prints
the system's answer to each attempt, and is expected to return "through": so there, too, a pass is a breach. Which layer
stopped a program is read from that answer, not assumed. Honest programs run between the attacks, beside them and after
them on the same workers; all must pass. Standard library only: an ordinary user without this environment can run it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.hostile_programs import HONEST, PROGRAMS, SECRET, HostileProgram
from training.sandbox import Program, Sandbox, Verdict

_PRELUDE = """
import os, sys
PORT, CANARY, GRADER = {facts!r}
_through = []
def attempt(name, action):
    try:
        answer = action()
    except BaseException as error:
        print(name + ": " + type(error).__name__ + ": " + str(error))
    else:
        _through.append(name)
        print(name + ": THROUGH: " + str(answer)[:80])
def outcome():
    return "through" if _through else "shut"
def libc(name, *arguments):
    import ctypes
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""

# What a verdict's words say about the layer behind it; a program's own table comes first.
_BY_DETAIL = {
    r"stopped after|out of processor time": "time limit",
    r"out of memory": "address space limit",
    r"its processes together": "memory cgroup",
    r"BlockingIOError|can't start new thread": "process limit",
    r"SystemExit|exited with status|were killed|ended before": "a pass needs every value",
    r"killed by signal": "a process of its own",
    r"printed too much": "output limit",
    r"results are too large": "result limit",
    r"not plain data": "plain data only",
    r"does not hold": "comparison in the grader",
    r"malformed report": "strict reading of the report",
    r"call \d+: \w|at import: \w": "exception in the program",
}


@dataclass(frozen=True)
class Row:
    """An attack and its end. `layers`: what stopped it; `harm`: what it did outside, "" if nothing."""

    program: HostileProgram
    verdict: Verdict
    layers: tuple[str, ...]
    harm: str

    @property
    def ok(self) -> bool:
        return self.verdict.status in self.program.statuses and bool(self.layers) and not self.harm


class Outside:
    """Real things for programs to attack: a listening socket, a file, this process. `harm()` names what was touched."""

    def __enter__(self) -> Outside:
        self.secret = secrets.token_hex(8)
        self._folder = tempfile.TemporaryDirectory(prefix="structloss-hostile-")
        os.chmod(self._folder.name, 0o777)  # nothing but the sandbox keeps a program from writing here
        self.canary = Path(self._folder.name, "canary")
        self.canary.write_text("untouched")
        self.canary.chmod(0o666)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.setblocking(False)
        self._processes = descendants()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
        self._folder.cleanup()

    def facts(self) -> tuple[int, str, int]:
        return self._listener.getsockname()[1], str(self.canary), os.getpid()

    def harm(self) -> str:
        found = []
        if sorted(os.listdir(self._folder.name)) != ["canary"] or self.canary.read_text() != "untouched":
            found.append("files")
        try:
            self._listener.accept()
            found.append("network")
        except BlockingIOError:
            pass
        return ", ".join(found)

    def left_behind(self) -> set[int]:
        """Processes that were not there before; a worker that had to be replaced counts too."""
        return descendants() - self._processes


def attack(sandbox: Sandbox, programs: Sequence[HostileProgram] = PROGRAMS) -> Iterator[Row]:
    """Runs every program with an honest one after it. Yields a row an attack.

    A row's harm also names honest programs that did not pass and processes that are left when all has ended.
    """
    warm = Program("warm", HONEST, "f", [{"args": [1], "expected": 2}])
    list(sandbox.run([warm] * sandbox.workers))
    with Outside() as outside:
        stream = []
        for number, program in enumerate(programs):
            stream.append(_program(program, outside))
            stream.append(Program(f"honest {number}", HONEST, "f", [{"args": [number], "expected": number + 1}]))
        verdicts = sandbox.run(stream)
        last = None
        for program in programs:
            verdict, honest = next(verdicts), next(verdicts)
            harm = [outside.harm()]
            if honest.status != "passed":
                harm.append(f"an honest program: {honest.status} ({honest.detail})")
            if last is not None:
                yield last
            last = Row(program, verdict, stopped_by(program, verdict), ", ".join(filter(None, harm)))
        if last is not None:
            left = outside.left_behind()
            if left:
                last = Row(last.program, last.verdict, last.layers, f"{last.harm} {len(left)} processes left".strip())
            yield last


def _program(program: HostileProgram, outside: Outside) -> Program:
    source = _PRELUDE.format(facts=outside.facts()) + program.source
    expected = outside.secret if program.expected is SECRET else program.expected
    test: Any = program.test or {"args": [], "expected": expected}
    return Program(program.name, source, "f", [test], program.time_limit_s)


def stopped_by(program: HostileProgram, verdict: Verdict) -> tuple[str, ...]:
    """The layers that the verdict's words and the program's own report name; () where a line is unexplained."""
    if program.layers:
        layers = []
        lines = [line for line in verdict.output.splitlines() if line]
        for line in lines or [verdict.detail]:
            found = [layer for pattern, layer in program.layers.items() if re.search(pattern, line)]
            if not found:
                return ()
            layers.append(found[0])
        return tuple(dict.fromkeys(layers))
    return next(((layer,) for pattern, layer in _BY_DETAIL.items() if re.search(pattern, verdict.detail)), ())


def descendants(root: int | None = None) -> set[int]:
    """Processes below `root` (this one), zombies included."""
    parent: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent[int(entry.name)] = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: set[int] = set()
    layer = {root or os.getpid()}
    while layer:
        layer = {pid for pid, above in parent.items() if above in layer}
        found |= layer
    return found


def as_data(row: Row) -> dict[str, Any]:
    return {
        "program": row.program.name,
        "expected": sorted(row.program.statuses),
        "got": row.verdict.status,
        "layers": list(row.layers),
        "detail": row.verdict.detail,
        "output": row.verdict.output[:400],
        "seconds": round(row.verdict.seconds, 3),
        "harm": row.harm,
        "ok": row.ok,
    }


def main(options: Sequence[str]) -> int:
    """`python -m training.hostile [OPTIONS AS JSON]`: the suite in this user's sandbox, as one JSON object."""
    settings = json.loads(options[0]) if options else {}
    started = time.monotonic()
    with Sandbox(**{"workers": 2, "memory_mb": 256, **settings}) as sandbox:
        rows = [as_data(row) for row in attack(sandbox)]
        isolation, hardening = sandbox.isolation, sandbox.hardening
    print(
        json.dumps(
            {
                "user": os.getuid(),
                "isolation": isolation,
                "hardening": hardening,
                "seconds": round(time.monotonic() - started, 2),
                "rows": rows,
            }
        )
    )
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
