"""What the public functions of the LM head refuse, each with a sentence that names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")
NEGATIVE = ("unlikelihood", "clamp", "raw")
OUTPUTS = ("logprob", "lse", "entropy", "argmax")
MODES = ("auto", "min_memory")
BACKENDS = ("auto", "reference", "torch", "cpu", "cuda", "triton")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_outputs(outputs: Sequence[str], choices: Sequence[str]) -> None:
    if isinstance(outputs, str):
        raise TypeError(f"outputs must be a sequence of names, got the string {outputs!r}")
    for name in outputs:
        check_choice("outputs", name, choices)


def check_tensors(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    shared: bool,
) -> None:
    if input.dtype not in DTYPES:
        raise TypeError(f"input must be float32, bfloat16 or float64, got {input.dtype}")
    if input.dim() < 1 or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear_weight must be (V, D) for input (..., D); got input {tuple(input.shape)}, "
            f"linear_weight {tuple(weight.shape)}"
        )
    if weight.shape[0] == 0 and not shared:  # the ranks of a process group find it out together
        raise ValueError("linear_weight must have at least one row (V >= 1), got 0")
    if target.shape != input.shape[:-1]:
        raise ValueError(f"target must be {tuple(input.shape[:-1])} like input, got {tuple(target.shape)}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target must hold integer class ids, got {target.dtype}")
    if target.device != input.device:
        raise ValueError(f"target must be on {input.device} like input, got {target.device}")
    if (lora_a is None) != (lora_b is None):
        raise ValueError("lora_a and lora_b must be given together")
    rank = 0 if lora_a is None else lora_a.shape[0]
    vocab, width = weight.shape
    shapes: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("linear_weight", weight, (vocab, width)),
        ("linear_bias", bias, (vocab,)),
        ("lora_a", lora_a, (rank, width)),
        ("lora_b", lora_b, (vocab, rank)),
    ]
    for name, tensor, shape in shapes:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != input.dtype:
            raise TypeError(f"{name} must be {input.dtype} like input, got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} like input, got {tensor.device}")


def check_process_group(process_group: object, backend: str) -> None:
    if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup that this rank belongs to, "
            f"got {type(process_group).__name__}"
        )
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend={backend!r} does not serve process_group; use 'auto' or 'torch'")


def check_constants(
    input: Tensor, linear_weight: Tensor, target: Tensor, weight: Tensor | None, token_weight: Tensor | None
) -> None:
    for name, tensor, shape in (
        ("weight", weight, linear_weight.shape[:1]),
        ("token_weight", token_weight, target.shape),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(tensor.shape)}")
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} like input, got {tensor.device}")
        if tensor.is_complex():
            raise TypeError(f"{name} must be real, got {tensor.dtype}")
        if tensor.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient: it is a constant of the loss; detach it, or weight the "
                "tokens yourself after reduction='none'"
            )


def check_numbers(
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    lora_scale: float,
    chunk_bytes: int | None,
) -> None:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must be finite and >= 0, got {z_loss}")
    if softcap is not None and not 0.0 < softcap < float("inf"):
        raise ValueError(f"softcap must be None or finite and > 0, got {softcap}")
    for name, value in (("logit_scale", logit_scale), ("lora_scale", lora_scale)):
        if not abs(value) < float("inf"):
            raise ValueError(f"{name} must be finite, got {value}")
    if chunk_bytes is not None and chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be None or >= 1, got {chunk_bytes}")


def split_denominator(denominator: Tensor | float | None, reduction: str) -> tuple[Tensor | None, float | None]:
    if denominator is None:
        return None, None
    if reduction != "mean":
        raise ValueError(f"denominator is what reduction='mean' divides by; got it with reduction={reduction!r}")
    if not isinstance(denominator, Tensor):
        return None, float(denominator)
    if denominator.dim() != 0:
        raise ValueError(f"denominator must be a number or a 0-dim tensor, got {tuple(denominator.shape)}")
    if denominator.requires_grad:
        raise ValueError("denominator must not require a gradient: it is a constant of the loss")
    return denominator, None
