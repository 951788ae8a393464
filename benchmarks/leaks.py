"""What the leak guard drops of MBPP's training pool: python -m benchmarks.leaks --data FOLDER [--out FILE.json].

Guarded are MBPP's test split, MBPP+ and HumanEval. Screened are MBPP's training and validation problems, and the stored
answers of large models to its training problems. All rules are applied, the last one by running code in the sandbox.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.timing import environment
from training.benchmarks import Grader, LeakGuard, load_benchmark, screen
from training.jsonl import read_jsonl
from training.sandbox import Sandbox

GUARDED = ("mbpp", "mbpp_plus", "humaneval")
TRACES = "traces/mbpp_gpt_traces.jsonl.gz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaks", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmark files")
    parser.add_argument("--cache", type=Path, help="folder of expected outputs (default: the user's cache)")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    guard = LeakGuard(problem for name in GUARDED for problem in load_benchmark(name, options.data).problems)
    problems = {row["id"]: row for row in load_benchmark("mbpp_all", options.data).problems}
    pool = [row for row in problems.values() if row["split"] in ("train", "validation")]
    traces = [
        {
            "id": f"trace-{number}",
            "problem_id": f"mbpp/{source['task_id']}",
            "prompt": problems[f"mbpp/{source['task_id']}"]["prompt"],
            "code": source["code"],
        }
        for number, source in enumerate(read_jsonl(options.data / TRACES))
        if problems[f"mbpp/{source['task_id']}"]["split"] == "train"
    ]
    rows: dict[str, Any] = {}
    with Sandbox(workers=2, memory_mb=4096) as sandbox:
        grader = Grader(sandbox, cache=options.cache, prelude="from typing import *\n")
        for name, screened in (("problems", pool), ("traces", traces)):
            kept, dropped = screen(screened, guard, grader)
            rows[name] = {"rows": len(screened), "kept": len(kept), "dropped": dropped}
            print(f"{name}: {len(kept)} of {len(screened)} kept; {dropped}", flush=True)
    if options.out:
        result = {"environment": environment([]), "guarded": GUARDED, **rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
