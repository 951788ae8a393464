"""The training stage: one arm, to its token budget, resumable."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from structloss import StructureAwareLoss, encode_example
from structloss.losses import Example
from structloss.trees import num_kinds
from training import text
from training.batches import plan_batches
from training.config import ConfigError, RunConfig
from training.jsonl import read_jsonl
from training.optimizers import build_optimizer, trunk_matrices_of
from training.progress import Progress
from training.runs import RunFolder, commit, read_json, write_json
from training.students import build_student, load_tokenizer, train_tokenizer
from training.threads import OtherLoad, choose_threads
from training.trainer import RunCallback, StructureTrainer, StudentWithLoss, last_complete_checkpoint


def quiet_libraries() -> None:
    """Silence what a user cannot act on; errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch.utils.data")


def imitated_traces(run: RunFolder) -> list[dict[str, Any]]:
    """Verified teacher traces of the training split."""
    traces = [row for row in read_jsonl(run.verified_path) if row["passed"] and row["split"] == "train"]
    if not traces:
        raise ConfigError(f"{run.verified_path}: no trace passed its tests, there is nothing to train on")
    return traces


def tokenizer_of(run: RunFolder, config: RunConfig) -> Any:
    """The run's tokenizer: saved by an earlier stage, the pretrained student's, or trained on the traces now."""
    if (run.tokenizer_path / "tokenizer_config.json").is_file():
        return load_tokenizer(run.tokenizer_path)
    if config.student.pretrained:
        tokenizer = load_tokenizer(config.student.pretrained)
    else:
        texts = ("".join(part for _, part in text.segments(trace)) for trace in imitated_traces(run))
        tokenizer = train_tokenizer(texts, config.student.vocab_size)
    unfinished = run.tokenizer_path.with_name(f"tokenizer.{os.getpid()}")
    tokenizer.save_pretrained(str(unfinished))
    if run.tokenizer_path.exists():
        shutil.rmtree(run.tokenizer_path)
    unfinished.rename(run.tokenizer_path)
    return load_tokenizer(run.tokenizer_path)


def encode_traces(
    traces: list[dict[str, Any]], tokenizer: Any, max_tokens: int, groups: dict[str, int] | None = None
) -> tuple[list[Example], int]:
    """Examples of the traces, and how many were too long and dropped."""
    examples = []
    for trace in traces:
        example = encode_example(
            tokenizer,
            text.segments(trace, tokenizer.eos_token),
            id=trace["id"],
            code_prefix=trace["code_prefix"],
            group_id=-1 if groups is None else groups[trace["problem_id"]],
            passed=None if groups is None else bool(trace["passed"]),
        )
        if len(example) <= max_tokens:
            examples.append(example)
    return examples, len(traces) - len(examples)


def training_examples(
    run: RunFolder, config: RunConfig, tokenizer: Any, with_pathways: bool
) -> tuple[list[Example], list[list[int]], int]:
    """Examples, the units that must share a batch, and the number dropped for their length."""
    examples, dropped = encode_traces(imitated_traces(run), tokenizer, config.data.max_tokens)
    if not examples:
        raise ConfigError(f"data.max_tokens: all {dropped} examples are longer than {config.data.max_tokens} tokens")
    units = [[index] for index in range(len(examples))]
    if with_pathways:
        rows = [row for row in read_jsonl(run.verified_candidates_path) if row["status"] != "sandbox_error"]
        groups = {problem: number for number, problem in enumerate(sorted({row["problem_id"] for row in rows}))}
        candidates, too_long = encode_traces(rows, tokenizer, config.data.max_tokens, groups)
        dropped += too_long
        members: dict[int, list[int]] = {}
        for example in candidates:
            members.setdefault(example.group_id, []).append(len(examples))
            examples.append(example)
        units += list(members.values())
    return examples, units, dropped


def train_arm(
    run: RunFolder,
    config: RunConfig,
    arm: str,
    *,
    threads: int | None = None,
    progress_file: Path | None = None,
) -> dict[str, Any]:
    """Train one arm to the token budget; continues from its last checkpoint; does nothing when it is done.

    Returns: the summary that is also written to `train.json` in the arm's folder.
    """
    folder = run.arm(arm)
    summary_path = folder / "train.json"
    if summary_path.is_file():
        return read_json(summary_path)
    quiet_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    most_threads = threads or choose_threads(os.cpu_count() or 1, 0.0)
    torch.set_num_threads(most_threads)
    loss_config = config.loss_of(arm)
    tokenizer = tokenizer_of(run, config)
    examples, units, dropped = training_examples(run, config, tokenizer, loss_config.lambda_path > 0.0)
    plan = plan_batches(
        units,
        [len(example) for example in examples],
        batch_size=config.train.batch_size,
        tokens=config.train.tokens,
        seed=config.seed,
    )
    student = build_student(
        config.student,
        tokenizer,
        seed=config.seed,
        max_positions=config.max_positions,
    )
    torch.manual_seed(config.seed)
    loss = StructureAwareLoss(
        **loss_config.model_dump(), hidden_size=student.config.hidden_size, num_kinds=num_kinds("python")
    )
    model = StudentWithLoss(student, loss)
    trainer = StructureTrainer(
        model,
        training_arguments(config, folder, len(plan)),
        tokenizer=tokenizer,
        examples=examples,
        plan=plan,
        optimizer=build_optimizer(
            model,
            trunk_matrices_of(student),
            name=config.train.optimizer,
            learning_rate=config.train.learning_rate,
            weight_decay=config.train.weight_decay,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    load = OtherLoad()
    with Progress(f"train {arm}", int(trainer.tokens_after[-1]), unit="tok", file=progress_file) as progress:
        watch = RunCallback(folder / "log.jsonl", trainer.tokens_after, progress, most_threads)
        trainer.add_callback(watch)
        checkpoint = last_complete_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    student.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    summary = {
        "arm": arm,
        "steps": len(plan),
        "tokens": int(trainer.tokens_after[-1]),
        "examples": len(examples),
        "dropped_too_long": dropped,
        "parameters": sum(p.numel() for p in student.parameters()),
        "seconds": round(watch.seconds(), 2),
        "commit": commit(),
        "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        "threads_at_most": most_threads,
        "cores_busy_with_others": round(load.cores(), 2),
    }
    write_json(summary_path, summary)
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)
    return summary


def training_arguments(config: RunConfig, folder: Path, steps: int) -> TrainingArguments:
    train = config.train
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": train.final_learning_rate},
        warmup_steps=round(train.warmup * steps),
        max_grad_norm=train.max_grad_norm,
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,
        save_steps=train.checkpoint_every,
        save_total_limit=2,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel cannot scatter trees; several devices need torchrun
    return arguments
