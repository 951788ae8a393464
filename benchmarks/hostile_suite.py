"""What becomes of hostile programs? python -m benchmarks.hostile_suite [--out FILE.json].

Runs `training.hostile` in each mode of the sandbox (its own namespaces, and bubblewrap around them where installed), as
the calling user and, from root, as an ordinary user. Prints a Markdown table: program, expected verdict, what it got,
the layers that stopped it by the system's own answers. Fails where a program got a wrong verdict, was stopped by
nothing that said so, left a process, or touched anything outside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import environment

Row = dict[str, Any]
ORDINARY_USER = 65533
_TRAINING = Path(__file__).parents[1] / "training"
_PYTHONS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile_suite", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    modes = {}
    for bubblewrap in (False, True):
        name = "bubblewrap" if bubblewrap else "namespaces"
        if bubblewrap and shutil.which("bwrap") is None:
            print("bwrap is not installed: that mode is left out", file=sys.stderr)
            continue
        modes[name] = suite({"bubblewrap": bubblewrap})
        if os.geteuid() == 0:
            found = suite({"bubblewrap": bubblewrap}, ordinary_user=True)
            if found is None:
                print("an ordinary user can run no Python here: left out", file=sys.stderr)
            else:
                modes[f"{name}, ordinary user"] = found
    report = {"environment": environment([]), "modes": modes}
    print(table(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    wrong = [(name, row) for name, found in modes.items() for row in found["rows"] if not row["ok"]]
    for name, row in wrong:
        print(f"WRONG in {name}: {json.dumps(row)}", file=sys.stderr)
    return int(bool(wrong))


def suite(settings: Row, *, ordinary_user: bool = False) -> Any:
    """The report of `python -m training.hostile`; as an ordinary user from a copy, None where that user has no Python.

    Raises RuntimeError where the suite does not run to its end.
    """
    options: Row = {"cwd": _TRAINING.parent}
    with tempfile.TemporaryDirectory(prefix="structloss-hostile-") as folder:
        python: str | None = sys.executable
        if ordinary_user:
            os.chmod(folder, 0o755)
            shutil.copytree(_TRAINING, Path(folder, "training"), ignore=shutil.ignore_patterns("__pycache__"))
            options = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": [], "cwd": folder}
            python = python_for(options)
        if python is None:
            return None
        command = [python, "-B", "-m", "training.hostile", json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    if not done.stdout:
        raise RuntimeError(f"the suite did not run: {done.stderr[-1000:]}")
    return json.loads(done.stdout)


def python_for(options: Row) -> str | None:
    """A Python of version 3.10 or later that a process with these options of `subprocess` may run, or None."""
    for python in _PYTHONS:
        command = [python, "-B", "-c", "import sys; assert sys.version_info >= (3, 10)"]
        try:
            if subprocess.run(command, capture_output=True, timeout=60, **options).returncode == 0:
                return python
        except (PermissionError, FileNotFoundError):
            continue
    return None


def table(report: Row) -> str:
    """One line a program: what each mode gave where they differ, else once."""
    modes = report["modes"]
    lines = ["| program | expected | got | stopped by |", "|---|---|---|---|"]
    for rows in zip(*(found["rows"] for found in modes.values()), strict=True):
        got = list(dict.fromkeys(row["got"] for row in rows))
        layers = list(dict.fromkeys(layer for row in rows for layer in row["layers"]))
        flaw = "" if all(row["ok"] for row in rows) else " **wrong**"
        expected = " or ".join(rows[0]["expected"])
        lines.append(f"| {rows[0]['program']} | {expected} | {' or '.join(got)}{flaw} | {', '.join(layers)} |")
    return "\n".join(lines)


def tables(report: Row) -> dict[str, str]:
    around, modes = report["environment"], report["modes"]
    said = []
    for name, found in modes.items():
        missing = [layer for layer, holds in found["hardening"].items() if not holds]
        said.append(f"{name} (without {', '.join(missing)})" if missing else name)
    count = len(next(iter(modes.values()))["rows"])
    return {
        "hostile": f"{table(report)}\n\n{count} programs, each run as: {'; '.join(said)}. "
        f"Python {around['python']}, commit {around['commit']}, {around['date'][:10]}."
    }


if __name__ == "__main__":
    sys.exit(main())
