"""Every study, one after the other: python -m benchmarks [--out FOLDER].

Each study is a module of its own with its own options and `--help`: `python -m benchmarks.lm_head --help`. A study that
finds a wrong result prints no time for it and fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

STUDIES = (
    "tree_alignment_accuracy",
    "tree_alignment",
    "trees_to_batch",
    "lm_head",
    "loss_step",
    "own_code_workers",
    "evaluation_scale",
    "hostile_suite",
    "sandbox_throughput",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for one JSON file a study")
    parser.add_argument("--only", choices=STUDIES, action="append", help="this study (may be given more than once)")
    options = parser.parse_args()
    failed = []
    for study in options.only or STUDIES:
        print(f"== {study}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{study}"]
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            command += ["--out", str(options.out / f"{study}.json")]
        if subprocess.run(command).returncode:
            failed.append(study)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
