"""transformers' Trainer with the structure-aware loss: planned batches, the student's own code, exact resumption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from structloss import (
    StructureAwareLoss,
    StructureBatch,
    StructureCollator,
    StructureLossOutput,
    VisitCache,
    hidden_and_head,
)
from structloss.losses import Example
from training.progress import Progress
from training.threads import OtherLoad, adapt_threads

LOSS_STATE = "structure_loss.pt"
VISITS_STATE = "visits.npz"


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class StudentWithLoss(nn.Module):
    """The student and its loss as one module, so that both are optimised, wrapped and moved together."""

    def __init__(self, student: Any, loss: StructureAwareLoss) -> None:
        super().__init__()
        self.student = student
        self.loss = loss

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        structure: StructureBatch,
        progress: float,
        diagnostics: bool = False,
    ) -> StructureLossOutput:
        made = hidden_and_head(self.student, input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self.loss(
            made.hidden, made.weight, structure, progress=progress, diagnostics=diagnostics, **made.options
        )


class ExampleDataset(Dataset):
    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class PlannedBatches(Sampler):
    """Batches in the planned order."""

    def __init__(self, plan: list[list[int]]) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan)


class StructureTrainer(Trainer):
    """Trains on a plan of batches with `StructureAwareLoss`.

    Progress, which the loss's schedule needs, is the share of the plan's tokens already seen. The student's own
    code is remembered from visit to visit when the loss uses it, and saved with every checkpoint.
    """

    def __init__(
        self,
        model: StudentWithLoss,
        args: TrainingArguments,
        *,
        tokenizer: Any,
        examples: Sequence[Example],
        plan: list[list[int]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.examples = ExampleDataset(examples)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.examples,
            data_collator=StructureCollator(tokenizer.pad_token_id, with_groups=model.loss.lambda_path > 0.0),
            optimizers=(optimizer, None),
        )
        self.model_accepts_loss_kwargs = False
        self.tokenizer = tokenizer
        self.plan = plan
        tokens = np.array([sum(len(examples[i]) for i in batch) for batch in plan])
        self.tokens_after = np.cumsum(tokens)
        loss = model.loss
        uses_own_code = loss.alpha > 0.0 or loss.lambda_align > 0.0
        self.visits = VisitCache.for_loss(loss, tokenizer, workers=1) if uses_own_code else None
        self._seen: dict[str, list[float]] = {}
        self._parse_seconds = 0.0
        self._since = time.perf_counter()

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.examples,
            batch_sampler=PlannedBatches(self.plan),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        structure: StructureBatch = inputs["structure"].to(self.args.device)
        examples: list[Example] = inputs["examples"]
        started = time.perf_counter()
        if self.visits is not None:
            # Here and not in the collator: the loader works ahead of the step whose argmax it would need.
            structure = self.visits.attach(structure, examples)
        self._parse_seconds += time.perf_counter() - started
        step = self.state.global_step
        progress = float(self.tokens_after[step - 1] / self.tokens_after[-1]) if step else 0.0
        output: StructureLossOutput = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            structure=structure,
            progress=progress,
            # Elsewhere the parts of a step can only be timed by waiting for the device.
            diagnostics=self.args.device.type == "cpu" or (step + 1) % max(self.args.logging_steps, 1) == 0,
        )
        if self.visits is not None:
            self.visits.update(examples, output.argmax)
        self._output = output
        return (output.loss, output) if return_outputs else output.loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self.visits is None else self.visits:
            return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._remember(self._output)  # after the backward, which measures the terms' gradients
        return loss

    def _remember(self, output: StructureLossOutput) -> None:
        loss = output.loss.item()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {self.state.global_step + 1}; "
                "try a lower train.learning_rate, in a new run folder"
            )
        values = {f"loss_{name}": value for name, value in output.terms.items()} | output.metrics
        for name, value in values.items():
            self._seen.setdefault(name, []).append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each term's value, gradient and share of time, the gap's statistics, the time of reading own code."""
        if "loss" in logs:
            now = time.perf_counter()
            seconds, steps = max(now - self._since, 1e-9), len(self._seen.get("loss_token", ()))
            for name, values in self._seen.items():
                mean = sum(values) / len(values)
                if name.startswith("seconds_"):
                    logs["time_share_" + name.removeprefix("seconds_")] = mean * steps / seconds
                else:
                    logs[name] = mean
            logs["tokens"] = int(self.tokens_after[self.state.global_step - 1])
            logs["parse_time_share"] = self._parse_seconds / seconds
            self._seen, self._parse_seconds, self._since = {}, 0.0, now
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        model: StudentWithLoss = self.accelerator.unwrap_model(self.model)
        model.student.save_pretrained(folder)
        torch.save(model.loss.state_dict(), folder / LOSS_STATE)
        if self.visits is not None:
            np.savez(folder / VISITS_STATE, **self.visits.state_dict())  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        wrapped: StudentWithLoss = self.accelerator.unwrap_model(model or self.model)
        missing, unexpected = wrapped.student.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        tied = set(getattr(wrapped.student, "all_tied_weights_keys", None) or {})
        if unexpected or set(missing) - tied:
            raise ValueError(f"{folder}: the checkpoint does not fit the student ({missing=}, {unexpected=})")
        wrapped.loss.load_state_dict(torch.load(folder / LOSS_STATE, weights_only=True))
        if self.visits is not None:
            with np.load(folder / VISITS_STATE) as state:
                self.visits.load_state_dict(dict(state))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (the trainer's state is written last)."""
    steps = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.rpartition("-")[2]
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if step.isdigit():
            steps[int(step)] = path
    return steps[max(steps)] if steps else None


class RunCallback(TrainerCallback):
    """Shows progress in tokens, appends the loss curve to a file, and leaves cores to others that need them."""

    def __init__(self, trainer_log: Path, tokens_after: np.ndarray, progress: Progress, most_threads: int) -> None:
        self.trainer_log = trainer_log
        self.tokens_after = tokens_after
        self.progress = progress
        self.most_threads = most_threads
        self.load = OtherLoad()
        self._started = self._looked = time.monotonic()
        self._before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume, keep the rows of the curve up to the checkpoint."""
        kept = []
        if state.global_step and self.trainer_log.is_file():
            for line in self.trainer_log.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if row["step"] <= state.global_step:
                    kept.append(line + "\n")
                    self._before = row["seconds"]
            self.progress.update(int(self.tokens_after[state.global_step - 1]))
        self.trainer_log.write_text("".join(kept))

    def seconds(self) -> float:
        """Wall time of training so far, before a resume included (up to the last row that was kept)."""
        return self._before + time.monotonic() - self._started

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.update(int(self.tokens_after[state.global_step - 1]) - self.progress.done)
        if self.most_threads > 1 and time.monotonic() - self._looked > 5.0:
            adapt_threads(self.most_threads, self.load)
            self._looked = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            row = {"step": state.global_step, **logs, "seconds": self.seconds(), "threads": torch.get_num_threads()}
            with self.trainer_log.open("a") as file:
                file.write(json.dumps(row) + "\n")
