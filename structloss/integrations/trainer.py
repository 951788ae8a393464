"""The structure-aware loss in `transformers.Trainer` and whatever is made of it, TRL's `SFTTrainer` for one."""

from __future__ import annotations

import functools
import os
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from structloss.integrations.rows import RowCollator
from structloss.integrations.step import model_loss, require, token_weight_sum
from structloss.losses.structure_aware import StructureAwareLoss, StructureLossOutput
from structloss.losses.visits import VisitCache
from structloss.models.head import model_parts

LOSS_STATE = "structure_loss.pt"
VISITS_STATE = "visits.npz"


class StructureLossMixin:
    """Trains a causal language model with `StructureAwareLoss`::

        class StructureTrainer(StructureLossMixin, SFTTrainer): ...

    All that the trainer takes, it still takes; the data set holds rows as `encode_row` wants them (or examples, for a
    trainer that takes any data set).

    Args:
        structure_loss: the loss. Its alignment head is trained with the model's optimiser and saved beside the model.
        language: of the code.
        own_code_workers: threads that read the student's own code, see `VisitCache`.
        args: wanted by name. Its `max_length`, where there is one, cuts rows; columns are not removed and TRL's own
            preparation of the data set is skipped.
        processing_class: wanted by name: the student's fast tokenizer.

    Attributes:
        visits: the `VisitCache`, or None where the loss needs no code of the student; `capture` and
            `refresh_rollouts` take it.

    Logged beside the trainer's own: `loss_token`, `loss_align`, ... (each term), the loss's metrics (`gap_mean`,
    `token_accuracy`, ...). `eval_loss` is L_token without gaps, so it compares with other runs. Checkpoints hold the
    alignment head and the visits; a resumed run goes on with both.

    Raises:
        ValueError: arguments that are missing or that cannot be served: packing, `compute_metrics` (no logits are
            made), `compute_loss_func`, an alignment head with several processes, a model that `hidden_and_head`
            refuses, batches of a collator that gives no `structure`.
    """

    # For type checkers: what the trainer behind this class has.
    args: Any
    state: Any
    accelerator: Any
    model: Any
    optimizer: Any

    # The mean of each batch's loss, to be divided by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *positional: Any,
        structure_loss: StructureAwareLoss,
        language: str = "python",
        own_code_workers: int = 1,
        **trainer: Any,
    ) -> None:
        for name in ("args", "processing_class"):
            if trainer.get(name) is None:
                raise ValueError(f"{name}: StructureLossMixin wants it, by name")
        args, tokenizer = trainer["args"], trainer["processing_class"]
        if getattr(args, "packing", False) or getattr(args, "padding_free", False):
            raise ValueError("args.packing, args.padding_free: a row has to stay one program, set both to False")
        if trainer.get("compute_metrics") is not None:
            raise ValueError("compute_metrics: no logits are made here; evaluate what the model generates instead")
        if trainer.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func: structure_loss stands in its place; give one of the two")
        args.remove_unused_columns = False
        if hasattr(args, "dataset_kwargs"):
            args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if trainer.get("data_collator") is None:
            trainer["data_collator"] = RowCollator(
                tokenizer,
                language=language,
                max_length=getattr(args, "max_length", None),
                with_groups=structure_loss.lambda_path > 0.0,
            )
        super().__init__(*positional, **trainer)
        if self.accelerator.num_processes > 1 and any(True for _ in structure_loss.parameters()):
            raise ValueError(
                "structure_loss: its alignment head is not synchronised between processes; "
                "set lambda_align=0, or train with one process"
            )
        # Else the trainer leaves the division by the accumulated batches to the loss.
        self.model_accepts_loss_kwargs = False
        self.structure_loss = structure_loss.to(self.args.device)
        _accept_structure(self.model, self.structure_loss)
        uses_own_code = structure_loss.alpha > 0.0 or structure_loss.lambda_align > 0.0
        self.visits = (
            VisitCache.for_loss(structure_loss, tokenizer, language, workers=own_code_workers)
            if uses_own_code
            else None
        )
        self._denominator: torch.Tensor | None = None
        self._sums: dict[str, tuple[torch.Tensor, int]] = {}

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one optimiser step; what they weigh together divides L_token of each."""
        self.structure_loss.zero_grad()  # the trainer clears the gradients of its model only
        samples = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        batches = samples[0]
        for batch in batches:
            require(batch, "structure")
        if batches:
            weights = torch.stack([token_weight_sum(self.structure_loss, batch["structure"]) for batch in batches])
            mean = self.accelerator.reduce(weights.mean().to(self.args.device), "mean")
            self._denominator = mean.clamp_min(1e-6)
        return samples

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch; in evaluation L_token alone, and nothing is remembered."""
        require(inputs, "input_ids", "attention_mask", "structure", "examples")
        structure, examples = inputs["structure"].to(self.args.device), inputs["examples"]
        training = model.training
        if training and self.visits is not None:
            # Here and not in the collator: the loader works ahead of the step whose argmax it would need.
            structure = self.visits.attach(structure, examples)
        output: StructureLossOutput = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            structure=structure,
            progress=min(self.state.global_step / max(self.state.max_steps, 1), 1.0) if self.state else 0.0,
            denominator=self._denominator if training else None,
        )
        if training and self.visits is not None:
            self.visits.update(examples, output.argmax)
        prefix = "" if training else "eval_"
        for name, value in {
            f"loss_{name}": term for name, term in output.terms.items()
        }.items() | output.metrics.items():
            total, count = self._sums.get(prefix + name, (torch.zeros((), device=self.args.device), 0))
            self._sums[prefix + name] = total + value.detach().to(total.device), count + 1
        loss = output.loss if training else output.terms["token"]
        return (loss, output) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of an evaluation batch; there are no logits."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            return self.compute_loss(model, inputs), None, None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's optimiser, with the alignment head in a group of its own."""
        super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        there = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        missing = [parameter for parameter in self.structure_loss.parameters() if id(parameter) not in there]
        if missing:
            self.optimizer.add_param_group({"params": missing, "weight_decay": 0.0})
        return self.optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means of the loss's terms and metrics since the last row."""
        prefix = "eval_" if "eval_loss" in logs else "" if "loss" in logs else None
        if prefix is not None:
            for name in [name for name in self._sums if name.startswith("eval_") == bool(prefix)]:
                total, count = self._sums.pop(name)
                logs[name] = float(total) / count
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        if self.visits is not None:
            self.visits.drain()
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model and beside it the alignment head; in a checkpoint also the visits, which hold training data."""
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            torch.save(self.structure_loss.state_dict(), folder / LOSS_STATE)
            if self.visits is not None and folder.name.startswith("checkpoint-"):
                np.savez(folder / VISITS_STATE, **self.visits.state_dict())  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        folder = Path(resume_from_checkpoint)
        wanted = [LOSS_STATE] if self.visits is None else [LOSS_STATE, VISITS_STATE]
        if missing := [name for name in wanted if not (folder / name).is_file()]:
            raise ValueError(
                f"resume_from_checkpoint: {folder} has no {' and no '.join(missing)}; wants a checkpoint of a run with "
                "the same loss. To start from another run's model, load the model and train anew"
            )
        self.structure_loss.load_state_dict(torch.load(folder / LOSS_STATE, weights_only=True))
        if self.visits is not None:
            with np.load(folder / VISITS_STATE) as state:
                self.visits.load_state_dict(dict(state))


def _accept_structure(model: Any, loss: StructureAwareLoss) -> None:
    """Make ``model(..., structure=batch, progress=...)`` give the loss's output.

    The forward itself is replaced, so that wrappers around it (autocast, data parallelism, adapters) stay in force.
    Every other call goes the old way.
    """
    inner = model_parts(model).model
    original = inner.forward

    @functools.wraps(type(inner).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, structure: Any = None, **kwargs: Any) -> Any:
        if structure is None:
            return original(*args, **kwargs)
        options = {name: kwargs.pop(name) for name in ("progress", "denominator")}
        return model_loss(self, loss, {**kwargs, "structure": structure}, **options)

    inner.forward = types.MethodType(forward, inner)
