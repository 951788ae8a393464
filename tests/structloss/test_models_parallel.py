"""hidden_and_head inside the forward of a DDP or FSDP2 module: gradients are the mean over two processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from structloss import hidden_and_head, linear_cross_entropy
from tests.structloss.model_zoo import build, padded_batch
from tests.structloss.test_models import GRADIENT_TOLERANCE, Gradients, distance
from tests.structloss.test_models_adapters import lora
from tests.structloss.two_processes import run_in_two_processes

CHECKS = ["check_ddp", "check_fully_shard"]


class WithLoss(nn.Module):
    """As in docs/models.md, with plain cross-entropy."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.student = student

    def forward(self, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
        made = hidden_and_head(self.student, **inputs)
        return linear_cross_entropy(made.hidden[:, :-1], made.weight, labels[:, 1:], **made.options)


def student(kind: str) -> Any:
    if kind == "lora":
        return get_peft_model(build("gemma2"), lora())
    return build(kind)


def rows(rank: int) -> dict[str, torch.Tensor]:
    return {name: value[rank : rank + 1] for name, value in padded_batch().items()}


def expected_gradients(kind: str) -> Gradients:
    """The mean of both ranks' losses, from the model's own loss in one process."""
    model = student(kind)
    sum(model(**rows(rank)).loss / 2 for rank in range(2)).backward()
    return {f"student.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_ddp() -> None:
    for kind in ("qwen3", "lora"):
        model = nn.parallel.DistributedDataParallel(WithLoss(student(kind)))
        model(**rows(torch.distributed.get_rank())).backward()
        made = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
        assert distance(made, expected_gradients(kind)) <= GRADIENT_TOLERANCE


def check_fully_shard() -> None:
    mesh = init_device_mesh("cpu", (2,))
    for kind in ("qwen3", "phi", "lora"):
        model = WithLoss(student(kind))
        base = model.student.get_base_model() if kind == "lora" else model.student
        for layer in base.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        model(**rows(torch.distributed.get_rank())).backward()
        made = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
        assert distance(made, expected_gradients(kind)) <= GRADIENT_TOLERANCE


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_in_two_processes(__name__, CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("check", CHECKS)
def test_two_processes(check: str, reports: dict[str, str]) -> None:
    assert not reports[check]
