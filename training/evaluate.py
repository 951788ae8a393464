"""The evaluation stage: greedy samples, verdicts from the sandbox, pass@1 with intervals, structure metrics."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from structloss import metrics
from training import text
from training.config import ConfigError, RunConfig
from training.data import prelude_of
from training.generate import generate
from training.jsonl import read_jsonl, write_jsonl
from training.nearest import nearest_solutions
from training.progress import Progress
from training.runs import RunFolder, read_json, write_json
from training.sandbox import Sandbox, program_from_problem
from training.students import build_student, load_tokenizer
from training.train import imitated_traces, quiet_libraries, tokenizer_of

BASELINES = ("untrained", "nearest")
EXTRACTOR = "text after the last </think>"


def test_problems(run: RunFolder, config: RunConfig) -> dict[str, list[dict[str, Any]]]:
    """Problems by test split."""
    problems = list(read_jsonl(run.problems_path))
    known = sorted({p["split"] for p in problems if p["split"].startswith("test")})
    splits = config.evaluate.splits or known
    if unknown := sorted(set(splits) - set(known)):
        raise ConfigError(f"evaluate.splits: no split {', '.join(unknown)} in this data; it has {', '.join(known)}")
    return {split: [p for p in problems if p["split"] == split] for split in splits}


def is_evaluated(run: RunFolder, config: RunConfig, arm: str) -> bool:
    """Whether the arm or baseline has results on every test split."""
    path = run.arm(arm) / "results.json"
    return path.is_file() and set(test_problems(run, config)) <= set(read_json(path))


def evaluate_arm(
    run: RunFolder,
    config: RunConfig,
    arm: str,
    *,
    threads: int | None = None,
    progress_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a trained arm, or a baseline ("untrained", "nearest"), on every test split.

    Splits that are done already are not done again. Writes `samples-<split>.jsonl` and `results.json` into the
    arm's folder and returns the results by split.
    """
    quiet_libraries()
    if threads:
        torch.set_num_threads(threads)
    folder = run.arm(arm)
    results_path = folder / "results.json"
    results = read_json(results_path) if results_path.is_file() else {}
    splits = {s: problems for s, problems in test_problems(run, config).items() if s not in results}
    if not splits:
        return results
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = None
    total = sum(len(problems) for problems in splits.values())
    with Progress(f"evaluate {arm}", 2 * total, unit="problem", file=progress_file) as progress:
        for split, problems in splits.items():
            started = time.monotonic()
            if arm == "nearest":
                samples = [
                    {"id": problem["id"], "code": trace["code"], "copied_from": trace["id"], "ended": True}
                    for problem, trace in zip(problems, nearest_solutions(problems, imitated_traces(run)), strict=True)
                ]
                progress.update(len(problems))
            else:
                if model is None:
                    model, tokenizer = load_arm(run, config, arm)
                    model.to("cuda" if torch.cuda.is_available() else "cpu")
                samples = sample(model, tokenizer, problems, config, progress)
            judge(samples, problems, config, progress)
            write_jsonl(folder / f"samples-{split}.jsonl", samples)
            results[split] = summarise(samples) | {
                "max_new_tokens": config.evaluate.max_new_tokens,
                "temperature": 0.0,
                "extractor": "copy" if arm == "nearest" else EXTRACTOR,
                "seconds": round(time.monotonic() - started, 2),
            }
            write_json(results_path, results)
    return results


def load_arm(run: RunFolder, config: RunConfig, arm: str) -> tuple[Any, Any]:
    """Model and tokenizer of an arm; "untrained" is the student as every arm started."""
    if arm == "untrained":
        tokenizer = tokenizer_of(run, config)
        return build_student(config.student, tokenizer, seed=config.seed, max_positions=config.max_positions), tokenizer
    folder = run.arm(arm) / "model"
    if not (folder / "config.json").is_file():
        raise ConfigError(f"arm {arm!r} is not trained yet: {folder} holds no model; run the verb train first")
    return AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(folder)


def sample(
    model: Any, tokenizer: Any, problems: list[dict[str, Any]], config: RunConfig, progress: Progress
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    batches = generate(
        model,
        tokenizer,
        problems,
        batch_size=config.evaluate.batch_size,
        max_new_tokens=config.evaluate.max_new_tokens,
    )
    for batch in batches:
        for completion, ended in batch:
            reasoning, code = text.split_completion(completion)
            problem = problems[len(rows)]
            rows.append({"id": problem["id"], "reasoning": reasoning, "code": code or "", "ended": ended})
        progress.update(len(batch))
    return rows


def judge(samples: list[dict[str, Any]], problems: list[dict[str, Any]], config: RunConfig, progress: Progress) -> None:
    """Fill in verdicts and structure metrics."""
    settings, prelude = config.sandbox, prelude_of(config)
    programs = (
        program_from_problem(problem, sample["code"], prelude=prelude, time_limit_s=settings.time_limit_s)
        for problem, sample in zip(problems, samples, strict=True)
    )
    with Sandbox(workers=settings.workers, memory_mb=settings.memory_mb, unsafe=settings.unsafe) as sandbox:
        for row, problem, verdict in zip(samples, problems, sandbox.run(programs), strict=True):
            if verdict.status == "sandbox_error":
                raise RuntimeError(
                    f"the sandbox failed on {problem['id']}, which says nothing about the program: {verdict.detail}"
                )
            row["status"] = verdict.status if row["ended"] or verdict.status == "passed" else "truncated"
            row["detail"] = verdict.detail
            candidate, reference = (problem["code_prefix"] + code for code in (row["code"], problem["reference"]))
            for name in ("syntax_match", "dataflow_match", "tsed"):
                row[name] = getattr(metrics, name)(candidate, reference)
            progress.update(1)


def summarise(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """pass@1 with its interval, mean structure metrics with the number of problems where each is defined."""
    passed = [int(sample["status"] == "passed") for sample in samples]
    rate = metrics.pass_at_k([1] * len(passed), passed, 1)
    summary: dict[str, Any] = {
        "n": len(samples),
        "pass@1": rate.value,
        "low": rate.low,
        "high": rate.high,
        "statuses": dict(Counter(sample["status"] for sample in samples).most_common()),
    }
    for name in ("syntax_match", "dataflow_match", "tsed"):
        values = [sample[name] for sample in samples if sample[name] is not None]
        summary[name] = {"mean": fmean(values) if values else None, "n": len(values)}
    return summary
