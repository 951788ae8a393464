"""Command line: write the kata data set as JSON lines, or report its figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.kata.dataset import make_kata
from training.kata.report import as_table, report

_EXAMPLES = """\
examples:
  python -m training.kata --report
      print the figures of the default data set (about half a minute)
  python -m training.kata --report --out build/kata
      the same, and write them to build/kata/report.json
  python -m training.kata --out build/kata --num-train 4000 --num-test 300
      write build/kata/problems.jsonl and build/kata/traces.jsonl
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.kata",
        description="Python programming problems from a grammar: lists, strings, ranges, nested loops, early exit, "
        "two inputs, state. Each has a sentence, a signature, hidden tests and a teacher's trace.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--num-train", type=int, default=4000, metavar="N", help="training problems (default 4000)")
    parser.add_argument("--num-validation", type=int, default=100, metavar="N", help="validation problems (100)")
    parser.add_argument(
        "--num-test", type=int, default=300, metavar="N", help="problems in each of the two test splits (300)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the problems and the splits (0)")
    parser.add_argument("--traces", type=int, default=1, metavar="N", help="teacher traces for each problem (1)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write; made if it is not there")
    parser.add_argument("--report", action="store_true", help="print figures as a table instead of writing problems")
    parser.add_argument(
        "--kill-sample", type=int, default=160, metavar="N", help="problems whose tests are judged by mutants (160)"
    )
    return parser


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.report and options.out is None:
        parser.error("nothing to do: give --out FOLDER to write the data set, or --report for its figures")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    numbers = (options.num_train, options.num_validation, options.num_test, options.seed)
    try:
        if options.report:
            figures = report(*numbers, options.kill_sample)
            print(as_table(figures))
            if options.out is not None:
                (options.out / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            return
        data = make_kata(*numbers, options.traces)
    except ValueError as error:
        parser.error(str(error))
    _write_lines(options.out / "problems.jsonl", (row for rows in data.problems.values() for row in rows))
    _write_lines(options.out / "traces.jsonl", data.traces)
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in data.problems.items())
    print(f"{options.out}: {counts} problems, {len(data.traces)} traces")


if __name__ == "__main__":
    main()
