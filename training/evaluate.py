"""The evaluation stage: samples, verdicts from the sandbox, pass@k with intervals, structure metrics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from structloss import metrics
from training import text
from training.config import ConfigError, RunConfig
from training.data import prelude_of
from training.evaluation.summary import STRUCTURE, Tally, problems_hash
from training.generate import generate
from training.jsonl import read_jsonl, write_jsonl
from training.nearest import nearest_solutions
from training.progress import Progress
from training.runs import RunFolder, read_json, write_json
from training.sandbox import Sandbox, program_from_problem
from training.students import build_student, load_tokenizer
from training.train import imitated_traces, quiet_libraries, tokenizer_of

BASELINES = ("untrained", "nearest")
EXTRACTOR = "after-think-1"
PROMPT = "think-1"


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
    total = sum(len(problems) for problems in splits.values()) * (1 if arm == "nearest" else config.evaluate.n)
    with Progress(f"evaluate {arm}", 2 * total, unit="problem", file=progress_file) as progress:
        for split, problems in splits.items():
            started = time.monotonic()
            if arm == "nearest":
                samples = [
                    {"id": problem["id"], "sample": 0, "code": trace["code"], "copied_from": trace["id"], "ended": True}
                    for problem, trace in zip(problems, nearest_solutions(problems, imitated_traces(run)), strict=True)
                ]
                progress.update(len(problems))
            else:
                if model is None:
                    model, tokenizer = load_arm(run, config, arm)
                    model.to("cuda" if torch.cuda.is_available() else "cpu")
                samples = sample(model, tokenizer, problems, config, progress)
            isolation = judge(samples, problems, config, progress)
            write_jsonl(folder / f"samples-{split}.jsonl", samples)
            results[split] = Tally(samples).summary() | {
                "set": f"{config.data.source}/{split}",
                "version": version_of(config),
                "problems_sha256": problems_hash(problems),
                "prompt": "none" if arm == "nearest" else PROMPT,
                "extractor": "copy" if arm == "nearest" else EXTRACTOR,
                "max_new_tokens": config.evaluate.max_new_tokens,
                "temperature": 0.0 if arm == "nearest" else config.evaluate.temperature,
                "isolation": isolation,
                "seconds": round(time.monotonic() - started, 2),
            }
            write_json(results_path, results)
    return results


def version_of(config: RunConfig) -> str:
    """The version of the test problems, as far as a name can tell it; their hash tells the rest."""
    return f"grammar, seed {config.data.kata.seed}" if config.data.source == "kata" else "2021"


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
    """`evaluate.n` samples a problem, those of one problem after the other."""
    settings = config.evaluate
    rows: list[dict[str, Any]] = []
    asked = [(problem, index) for problem in problems for index in range(settings.n)]
    batches = generate(
        model,
        tokenizer,
        [text.generation_prompt(problem) for problem, _ in asked],
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=config.seed,
    )
    for batch in batches:
        for completion, ended in batch:
            reasoning, code = text.split_completion(completion)
            problem, index = asked[len(rows)]
            row = {"id": problem["id"], "sample": index, "reasoning": reasoning, "code": code or "", "ended": ended}
            rows.append(row)
        progress.update(len(batch))
    return rows


def judge(
    samples: list[dict[str, Any]], problems: list[dict[str, Any]], config: RunConfig, progress: Progress
) -> dict[str, Any]:
    """Fill in verdicts and structure metrics; returns the isolation that held."""
    settings, prelude = config.sandbox, prelude_of(config)
    by_id = {problem["id"]: problem for problem in problems}
    programs = (
        program_from_problem(by_id[sample["id"]], sample["code"], prelude=prelude, time_limit_s=settings.time_limit_s)
        for sample in samples
    )
    with Sandbox(
        workers=settings.workers, memory_mb=settings.memory_mb, bubblewrap=settings.bubblewrap, unsafe=settings.unsafe
    ) as sandbox:
        for row, verdict in zip(samples, sandbox.run(programs), strict=True):
            problem = by_id[row["id"]]
            if verdict.status == "sandbox_error":
                raise RuntimeError(
                    f"the sandbox failed on {problem['id']}, which says nothing about the program: {verdict.detail}"
                )
            row["status"] = verdict.status if row["ended"] or verdict.status == "passed" else "truncated"
            row["detail"] = verdict.detail
            candidate, reference = (problem["code_prefix"] + code for code in (row["code"], problem["reference"]))
            for name in STRUCTURE:
                row[name] = getattr(metrics, name)(candidate, reference)
            progress.update(1)
        return dict(sandbox.isolation)
