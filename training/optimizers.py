"""The optimizer: AdamW, or Muon for the trunk's matrices with AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Together(torch.optim.Optimizer):
    """Several optimizers behind the interface of one; schedulers see all their parameter groups."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_optimizer(
    model: nn.Module, trunk_matrices: set[int], *, name: str, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters.

    Args:
        trunk_matrices: ids of the parameters that Muon may take: two-dimensional, no embedding and no head.
        name: "adamw" or "muon". Muon's rate is scaled so that AdamW's learning rate fits both.

    Weight decay applies to matrices only.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    muon = [p for p in parameters if name == "muon" and id(p) in trunk_matrices]
    taken = {id(parameter) for parameter in muon}
    rest = [parameter for parameter in parameters if id(parameter) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    if not muon:
        return adamw
    trunk = torch.optim.Muon(muon, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Together(trunk, adamw)


def trunk_matrices_of(student: Any) -> set[int]:
    """Ids of the two-dimensional parameters of a causal language model, without its embeddings and head."""
    outside = {id(p) for m in (student.get_input_embeddings(), student.get_output_embeddings()) for p in m.parameters()}
    return {id(p) for p in student.parameters() if p.dim() == 2} - outside
