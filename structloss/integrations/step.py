"""One forward pass of a causal language model under the structure-aware loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from structloss.losses.batch import IGNORE_INDEX, StructureBatch
from structloss.losses.structure_aware import StructureAwareLoss, StructureLossOutput
from structloss.losses.token_weights import region_weights
from structloss.models import hidden_and_head


def model_loss(
    model: Any,
    loss: StructureAwareLoss,
    inputs: Mapping[str, Any],
    *,
    progress: float,
    denominator: torch.Tensor | float | None = None,
) -> StructureLossOutput:
    """`loss` of a Hugging Face style model on a batch of `RowCollator` or `StructureCollator`; makes no logits.

    Args:
        inputs: `input_ids`, `attention_mask` and `structure`, on the model's device.
        progress, denominator: see `StructureAwareLoss.forward`.

    Raises:
        ValueError: a batch of another collator, and what `hidden_and_head` and the loss refuse.
    """
    require(inputs, "input_ids", "attention_mask", "structure")
    made = hidden_and_head(
        model, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    )
    return loss(
        made.hidden, made.weight, inputs["structure"], progress=progress, denominator=denominator, **made.options
    )


def require(inputs: Mapping[str, Any], *names: str) -> None:
    """Raises ValueError where a batch lacks what the loss's collators give."""
    for name in names:
        if name not in inputs:
            raise ValueError(
                f"inputs: no {name!r}, only {sorted(inputs)}; wants what RowCollator or StructureCollator returns"
            )


def token_weight_sum(loss: StructureAwareLoss, structure: StructureBatch) -> torch.Tensor:
    """Sum of the region weights of the tokens that `loss` counts in a batch.

    It is the loss's own denominator. A step over several batches gives each the mean of theirs as `denominator` and
    averages the losses; then L_token is that of one large batch.
    """
    weights = region_weights(structure.regions[:, 1:], reasoning=loss.reasoning_weight, code=loss.code_weight)
    counts = structure.labels[:, 1:] != IGNORE_INDEX
    if structure.passed is not None:
        counts = counts & structure.passed.unsqueeze(1)
    return (weights * counts).sum()
