"""Heads whose tensors are DTensors: gathered where ranks hold different tokens, a vocabulary shard where they hold the
same.

Nothing in a DTensor says whether the ranks that share a head see the same tokens. The input does: a plain input is this
rank's own (data parallelism, FSDP2's `fully_shard`), a DTensor input that is replicated is everyone's (tensor
parallelism), and so is any input where the caller names a process group.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_OF_TOKENS = ("input", "target", "token_weight", "denominator")
_OF_VOCABULARY = ("linear_weight", "linear_bias", "weight", "lora_b")


def is_dtensor(value: object) -> bool:
    # Where the module was never imported there is no DTensor, and importing it takes as long as this library does.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_tensors(
    tensors: dict[str, Any], process_group: dist.ProcessGroup | None
) -> tuple[dict[str, Any], dist.ProcessGroup | None]:
    """Plain tensors in place of DTensors, and the process group that shares the vocabulary, if one does.

    A graph break: collectives of DTensor and their gradients stay outside the graph. Raises ValueError for placements
    that have no meaning here.
    """
    # Not a decorator: it imports torch._dynamo, which takes longer than all of this library.
    local: tuple[dict[str, Any], dist.ProcessGroup | None] = torch.compiler.disable(_local_tensors)(
        tensors, process_group
    )
    return local


def _local_tensors(
    tensors: dict[str, Any], process_group: dist.ProcessGroup | None
) -> tuple[dict[str, Any], dist.ProcessGroup | None]:
    local = dict(tensors)
    for name in _OF_TOKENS:
        if is_dtensor(local[name]):
            local[name] = _replicated(name, local[name], "and its own target, to have the loss of this rank's tokens")
    if process_group is None and is_dtensor(tensors["input"]):
        if not is_dtensor(tensors["linear_weight"]):
            return local, None
        process_group = _group_of_vocabulary(tensors)
    if process_group is None:
        for name in (*_OF_VOCABULARY, "lora_a"):
            if is_dtensor(local[name]):
                local[name] = _gather(name, local[name])
        return local, None
    for name in _OF_VOCABULARY:
        if is_dtensor(local[name]):
            local[name] = _shard(name, local[name], process_group)
    if is_dtensor(local["lora_a"]):
        local["lora_a"] = _replicated("lora_a", local["lora_a"], "of equal values on every rank")
    return local, process_group


def _replicated(name: str, tensor: DTensor, meaning: str) -> Tensor:
    if not all(placement.is_replicate() for placement in tensor.placements):
        raise ValueError(
            f"{name} must be a plain tensor or a replicated DTensor, got a DTensor with placements "
            f"{tensor.placements}; pass {name}.full_tensor(), or {name}.to_local() {meaning}"
        )
    return tensor.to_local()


def _group_of_vocabulary(tensors: dict[str, Any]) -> dist.ProcessGroup | None:
    """The group over which a head is sharded whose input is a replicated DTensor; None for a replicated head."""
    head = tensors["linear_weight"]
    if tensors["input"].device_mesh != head.device_mesh:
        raise ValueError(
            "input and linear_weight must be DTensors of one device mesh, got "
            f"{tensors['input'].device_mesh} and {head.device_mesh}; pass input.to_local()"
        )
    for name in _OF_VOCABULARY:
        if tensors[name] is not None and not (
            is_dtensor(tensors[name]) and tensors[name].placements == head.placements
        ):
            raise ValueError(f"{name} must be a DTensor with the placements of linear_weight, {head.placements}")
    if all(placement.is_replicate() for placement in head.placements):
        return None
    dims = [dim for dim, placement in enumerate(head.placements) if placement.is_shard(0)]
    return head.device_mesh.get_group(dims[0]) if dims else _refuse_shard("linear_weight", head)


def _shard(name: str, tensor: DTensor, process_group: dist.ProcessGroup) -> Tensor:
    """This rank's rows, where they are what `process_group` divides among its ranks in rank order."""
    mesh, sharded = tensor.device_mesh, [d for d, p in enumerate(tensor.placements) if not p.is_replicate()]
    if len(sharded) != 1 or not tensor.placements[sharded[0]].is_shard(0):
        _refuse_shard(name, tensor)
    ranks = mesh.mesh.movedim(sharded[0], -1).reshape(-1, mesh.size(sharded[0]))
    own = ranks[(ranks == dist.get_rank()).any(1)][0].tolist()
    members = dist.get_process_group_ranks(process_group)
    if own != members:
        raise ValueError(
            f"{name} must be sharded over the ranks of process_group in their order, {members}; "
            f"its mesh dimension has the ranks {own}"
        )
    return tensor.to_local()


def _refuse_shard(name: str, tensor: DTensor) -> Any:
    raise ValueError(
        f"{name} must be sharded by rows, Shard(0), over one mesh dimension and replicated over the others to share "
        f"the vocabulary, got placements {tensor.placements}; redistribute it, or pass a plain input "
        "without process_group to have it gathered"
    )


def _gather(name: str, tensor: DTensor) -> Tensor:
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError(f"{name} must not hold partial sums, got placements {tensor.placements}; redistribute it")
    whole: Tensor = _GatherWithMeanGradient.apply(tensor)
    return whole


class _GatherWithMeanGradient(torch.autograd.Function):
    """The whole tensor on every rank; its gradient is the mean over the ranks, as `fully_shard` makes it.

    Ranks with equal tokens have equal gradients, whose mean is the gradient: right for them too.
    """

    @staticmethod
    def forward(ctx: Any, tensor: DTensor) -> Tensor:
        ctx.mesh, ctx.placements = tensor.device_mesh, tensor.placements
        return tensor.full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Partial

        summands = DTensor.from_local(gradient, ctx.mesh, [Partial()] * ctx.mesh.ndim, run_check=False)
        return summands.redistribute(placements=ctx.placements) / ctx.mesh.size()
