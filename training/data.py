"""The data stages: problems and traces into the run folder, then verdicts on every trace."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from training import jsonl
from training.config import RunConfig
from training.kata import candidates as kata_candidates
from training.kata import make_kata
from training.mbpp import load_mbpp
from training.runs import RunFolder, file_hash, read_json, write_json
from training.sandbox import Sandbox
from training.verify import verify_traces


def wants_pathways(config: RunConfig) -> bool:
    return any(config.loss_of(arm).lambda_path > 0.0 for arm in config.arms)


def prelude_of(config: RunConfig) -> str:
    """What stands in front of every program: on MBPP, teachers write `List` and `Tuple` without importing them."""
    return "from typing import *\n" if config.data.source == "mbpp" else ""


def prepare_data(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Write problems, traces and, for the pathway term, candidates; returns (and stores) their counts."""
    if run.data_summary_path.is_file():
        return read_json(run.data_summary_path)
    if config.data.source == "kata":
        problems, traces, dropped = prepare_kata(run, config)
    else:
        assert config.data.mbpp is not None
        problems, traces, dropped = load_mbpp(
            config.data.mbpp.problems,
            traces=config.data.mbpp.traces,
            plus=config.data.mbpp.plus,
            humaneval=config.data.mbpp.humaneval,
            references=config.data.mbpp.references,
            test_limit=config.data.mbpp.test_limit,
        )
    jsonl.write_jsonl(run.problems_path, problems)
    jsonl.write_jsonl(run.traces_path, traces)
    summary = {
        "source": config.data.source,
        "problems": dict(Counter(problem["split"] for problem in problems)),
        "traces": len(traces),
        "dropped": dropped,
        "sha256": {path.name: file_hash(path) for path in (run.problems_path, run.traces_path)},
    }
    write_json(run.data_summary_path, summary)
    return summary


def prepare_kata(
    run: RunFolder, config: RunConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    kata = config.data.kata
    data = make_kata(
        kata.num_train,
        kata.num_validation,
        kata.num_test,
        seed=kata.seed,
        traces_per_problem=kata.traces_per_problem,
    )
    if wants_pathways(config):
        chosen = random.Random(kata.seed).sample(
            data.problems["train"], min(config.pathway.problems, len(data.problems["train"]))
        )
        rows = [
            row
            for problem in chosen
            for row in kata_candidates(problem, seed=kata.seed, count=config.pathway.candidates)
        ]
        jsonl.write_jsonl(run.candidates_path, rows)
    return [row for rows in data.problems.values() for row in rows], data.traces, {}


def verify_data(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Run every trace (and candidate) against its problem's tests; rows with verdicts land in `verified/`."""
    if run.verified_summary_path.is_file():
        return read_json(run.verified_summary_path)
    problems = list(jsonl.read_jsonl(run.problems_path))
    settings = config.sandbox
    summary: dict[str, Any] = {}
    with Sandbox(
        workers=settings.workers, memory_mb=settings.memory_mb, bubblewrap=settings.bubblewrap, unsafe=settings.unsafe
    ) as sandbox:
        summary["isolation"] = sandbox.isolation
        files = {"traces": (run.traces_path, run.verified_path)}
        if wants_pathways(config):
            files["candidates"] = (run.candidates_path, run.verified_candidates_path)
        for name, (source, target) in files.items():
            rows = list(jsonl.read_jsonl(source))
            summary[name] = verify_traces(
                problems, rows, sandbox, target, time_limit_s=settings.time_limit_s, prelude=prelude_of(config)
            )
    write_json(run.verified_summary_path, summary)
    return summary
