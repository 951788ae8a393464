"""Fills the tables of the sandbox's page from the stored results: python -m benchmarks.sandbox_report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import hostile_suite, sandbox_throughput
from benchmarks.tree_report import fill

_ROOT = Path(__file__).parents[1]
RESULTS = _ROOT / "benchmarks" / "results"
PAGE = _ROOT / "docs" / "sandbox.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox_report", description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the studies' JSON files")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    options.page.write_text(fill(options.page.read_text(), tables(options.results)))
    return 0


def tables(results: Path) -> dict[str, str]:
    """Every table that there is a file for."""
    found = {}
    for name, study in (("hostile_suite", hostile_suite), ("sandbox_throughput", sandbox_throughput)):
        if (results / f"{name}.json").is_file():
            found |= study.tables(json.loads((results / f"{name}.json").read_text()))
    return found


if __name__ == "__main__":
    sys.exit(main())
