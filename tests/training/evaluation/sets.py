"""A small benchmark, and samples of it whose verdicts are known."""

from __future__ import annotations

from typing import Any

from training.benchmarks import Benchmark

Row = dict[str, Any]

STATUSES = {
    "    return x + {k}\n": "passed",
    "    return x - {k} - 1\n": "failed",
    "    return y\n": "error",
    "": "no_code",
}


def benchmark(count: int = 4) -> Benchmark:
    """Problem k asks for a function that adds k; the prompt ends in its signature, as in HumanEval."""
    problems = [
        {
            "id": f"adding/{k}",
            "task_id": f"Adding/{k}",
            "set": "adding",
            "version": "1",
            "prompt": f'def add(x):\n    """Add {k}."""\n',
            "completion_prefix": f'def add(x):\n    """Add {k}."""\n',
            "code_prefix": "",
            "entry_point": "add",
            "tests": [{"args": [2], "expected": 2 + k}, {"args": [-5], "expected": k - 5}],
            "split": "test",
            "family": "adding",
            "shape": "",
            "reference": f'def add(x):\n    """Add {k}."""\n    return x + {k}\n',
        }
        for k in range(count)
    ]
    return Benchmark("adding", "1", problems, "here")


def sample_rows(count: int = 4, each: int = 4) -> list[tuple[Row, str]]:
    """Rows of a samples file, task by task, each with the status that it deserves."""
    rows = []
    for k in range(count):
        for index in range(each):
            body, status = list(STATUSES.items())[(k + index) % len(STATUSES)]
            rows.append(({"task_id": f"Adding/{k}", "completion": body.format(k=k)}, status))
    return rows
