"""A run folder with a few verified traces, and a tiny student."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import RunConfig
from training.jsonl import write_jsonl
from training.runs import RunFolder

TINY = {
    "name": "tiny",
    "data": {"max_tokens": 200},
    "student": {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2},
    "train": {"tokens": 12_000, "batch_size": 4, "log_every": 2, "checkpoint_every": 5},
    "loss": {"alpha": 1.0, "lambda_align": 0.1, "ramp_end": 0.3},
    "arms": {"cross_entropy": {"alpha": 0.0, "lambda_align": 0.0}, "structure_aware": {}},
    "evaluate": {"max_new_tokens": 12},
}


def tiny_traces(count: int = 24) -> list[dict]:
    """Verified traces of `add k to x` and the like."""
    rows = []
    for number in range(count):
        sign = "+-*"[number % 3]
        rows.append(
            {
                "id": f"t{number}",
                "problem_id": f"p{number}",
                "split": "train",
                "prompt": f"Return x {sign} {number}.\ndef f(x):",
                "code_prefix": "def f(x):\n",
                "reasoning": f"use {sign} with {number}",
                "code": f"    y = x {sign} {number}\n    return y",
                "teacher": "test",
                "passed": True,
                "status": "passed",
            }
        )
    return rows


@pytest.fixture
def tiny_run(tmp_path: Path) -> tuple[RunFolder, RunConfig]:
    config = RunConfig(**TINY)
    run = RunFolder.create(tmp_path / "run", config)
    write_jsonl(run.verified_path, tiny_traces())
    return run, config
