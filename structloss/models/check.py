"""Does the model make its logits as `hidden_and_head` believes? A comparison on a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from structloss.models.head import HiddenAndHead, ModelParts, head_with, model_parts

TOKENS = 8
# The probe's logits reach this far: beyond any softcap in use, so that one shows, and short of overflow in float16.
REACH = 64.0


@torch.no_grad()
def check_head(model: Any, **inputs: Any) -> float:
    """Compare the logits of `hidden_and_head` with the model's own, and say what differs.

    The model's own forward runs once in eval mode, and the trunk once more. Hidden states are enlarged before the head,
    because a soft cap does not show at the small logits of an untrained model.

    Args:
        model: as in `hidden_and_head`.
        inputs: what the model takes; by default `input_ids` (1, 8), spread over the vocabulary.

    Returns:
        The largest difference of a logit, relative to the largest logit.

    Raises:
        ValueError: what `hidden_and_head` refuses; logits that differ by more than rounding; a head that is all zero,
            which hides every difference.
    """
    parts = model_parts(model)
    with _evaluating(parts.model):
        if inputs:
            return _check(parts, inputs)
        try:
            return _check(parts, _few_tokens(parts.model))
        except (TypeError, AttributeError, RuntimeError, LookupError) as error:
            raise ValueError(
                f"model: {type(parts.model).__name__} cannot be checked on input_ids (1, {TOKENS}) alone "
                f"({type(error).__name__}: {error}); call check_head(model, **inputs) once with all that its forward "
                "takes, then hidden_and_head with verify=False"
            ) from error


def _check(parts: ModelParts, inputs: dict[str, Any]) -> float:
    made = head_with(last_hidden_state(parts.trunk(**inputs)), parts)
    reach = _logits(made._replace(softcap=None)).abs().max().item()
    if reach == 0.0:
        raise ValueError("model: every logit is 0, so nothing can be compared; check a model whose head has weights")
    factor = REACH / reach
    enlarged = []

    def enlarge(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        enlarged.append(True)
        return (args[0] * factor, *args[1:])

    handle = parts.head.register_forward_pre_hook(enlarge)
    try:
        output = parts.model(**inputs)
    finally:
        handle.remove()
    own = output.logits if hasattr(output, "logits") else output[0]
    if enlarged:
        made = made._replace(hidden=made.hidden * factor)
    ours = _logits(made)
    name = type(parts.model).__name__
    if own.shape != ours.shape:
        raise ValueError(f"model: {name} makes logits {tuple(own.shape)}, its head gives {tuple(ours.shape)}; {_MEND}")
    # Each elementwise step that the model takes in its own dtype rounds once more.
    tolerance = max(1e-3, 4 * torch.finfo(ours.dtype).eps)
    own, ours = own.float(), ours.float()
    error = ((own - ours).abs().max() / own.abs().max().clamp_min(1e-6)).item()
    if not error <= tolerance:
        raise ValueError(
            f"model: {name} makes other logits than its head with logit_scale={made.logit_scale:g} and "
            f"softcap={made.softcap} gives: {_difference(own, ours, error, tolerance)}; {_MEND}"
        )
    return error


_MEND = (
    "this model is not understood. Call hidden_and_head(model, verify=False, ...), put right what differs with "
    "_replace(logit_scale=..., softcap=...), and compare with the model's own loss; or use that loss"
)


def _difference(own: torch.Tensor, ours: torch.Tensor, error: float, tolerance: float) -> str:
    """The simplest explanation that fits."""
    ratio = ((own * ours).sum() / (ours * ours).sum()).item()
    largest = own.abs().max()
    if ((own - ratio * ours).abs().max() / largest).item() <= tolerance:
        return f"they are {ratio:.6g} times these, a scale that the configuration does not give under a known name"
    offset = (own - ours).mean((0, 1))
    if ((own - ours - offset).abs().max() / largest).item() <= tolerance:
        return f"a bias of up to {offset.abs().max():.3g} is added that the head does not hold"
    order = ours.flatten().argsort()
    if (own.flatten()[order].diff() >= -tolerance * largest).all():
        return f"they end at {largest:.3g} where these reach {ours.abs().max():.3g}, as under a soft cap"
    return f"they differ by up to {100 * error:.3g} % of the largest"


def _logits(made: HiddenAndHead) -> torch.Tensor:
    """(B, T, V), all at once: for a few tokens."""
    weight, bias, lora_a, lora_b = (_whole(t) for t in (made.weight, made.bias, made.lora_a, made.lora_b))
    assert weight is not None
    logits = F.linear(made.hidden, weight, bias)
    if lora_a is not None and lora_b is not None:
        logits = logits + made.lora_scale * F.linear(F.linear(made.hidden, lora_a), lora_b)
    logits = made.logit_scale * logits
    return logits if made.softcap is None else made.softcap * torch.tanh(logits / made.softcap)


def _whole(tensor: Any) -> torch.Tensor | None:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def last_hidden_state(output: Any) -> torch.Tensor:
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]


def _few_tokens(model: Any) -> dict[str, Any]:
    embedding = model.get_input_embeddings().weight
    return {"input_ids": torch.linspace(0, embedding.shape[0] - 1, TOKENS, device=embedding.device).long()[None]}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Neither dropout nor activation checkpointing; every module's own mode comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
