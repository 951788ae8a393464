"""What the student should not have written: negative weights on the surplus nodes of its rollouts."""

from __future__ import annotations

from typing import Any

import torch

from structloss.lm_head import linear_cross_entropy
from structloss.losses.batch import CODE, IGNORE_INDEX, StructureBatch
from structloss.losses.token_weights import gather_node_values, structural_surplus
from structloss.trees import TreeBatch


def surplus_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rollouts: StructureBatch,
    teacher: TreeBatch,
    *,
    temperature: float = 0.25,
    same_kind: float = 0.5,
    literal: float | None = None,
    negative: str = "unlikelihood",
    denominator: torch.Tensor | float | None = None,
    **head: Any,
) -> torch.Tensor:
    """Pushes down the tokens of a rollout that the teacher's tree has no place for.

    ``sum_t w_t * nll_t / denominator`` over the code of the rollouts with ``w_t = -surplus[node(t)] * confidence``,
    see `structural_surplus`. What a negative weight means says `negative`, as in `linear_cross_entropy`: by default
    unlikelihood, ``|w| * -log(1 - p_t)``, since ``-|w| * nll`` ("raw") has no lower bound and diverges.

    It needs a forward pass over the rollouts, so ask for it every few steps. Rows that pass their tests
    (`rollouts.passed`) are another right way to write the program and get no push.

    Args:
        hidden: (B, T, D) hidden states of the rollouts; weight: (V, D) LM head.
        rollouts: the rollouts as examples of their own (`encode_example`, `StructureCollator`): labels, regions,
            token_node, and their trees as `teacher`.
        teacher: the B trees of the teacher's code for the same problems.
        temperature, same_kind, literal: see `structural_gap`.
        denominator: default the number of code tokens of the rollouts.
        head: `linear_bias`, `softcap`, `logit_scale`, LoRA factors, as `linear_cross_entropy` takes them.

    Returns: a scalar.

    Raises:
        ValueError: hidden states that do not fit the labels, another number of trees.
    """
    if hidden.dim() != 3 or hidden.shape[:2] != rollouts.labels.shape:
        raise ValueError(
            f"hidden: wants (B, T, D) with (B, T) = {tuple(rollouts.labels.shape)} as the labels of the rollouts, "
            f"got {tuple(hidden.shape)}"
        )
    if len(teacher) != len(rollouts):
        raise ValueError(f"teacher: wants one tree a rollout ({len(rollouts)}), got {len(teacher)}")
    confidence = 1.0 - rollouts.teacher.error_share
    if rollouts.passed is not None:
        confidence = confidence * ~rollouts.passed
    surplus = structural_surplus(
        rollouts.teacher,
        teacher,
        temperature=temperature,
        same_kind=same_kind,
        literal=literal,
        confidence=confidence,
    )
    is_code = ((rollouts.regions == CODE) & (rollouts.labels != IGNORE_INDEX))[:, 1:]
    push = torch.where(is_code, gather_node_values(surplus, rollouts.token_node)[:, 1:], 0.0)
    if denominator is None:
        denominator = is_code.sum().clamp_min(1)
    return linear_cross_entropy(
        hidden[:, :-1],
        weight,
        torch.where(is_code, rollouts.labels[:, 1:], IGNORE_INDEX),
        token_weight=-push,
        negative=negative,
        denominator=denominator,
        **head,
    )
