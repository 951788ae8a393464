"""The weight of an LM head that peft has wrapped: its low-rank factors, or a sentence why they cannot be had.

Duck-typed on the layers of peft (a tuner layer has `base_layer`, a fully trained copy `modules_to_save`), so that peft
is not imported. What counts is what the layer's own forward would do: disabled and merged adapters included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

MEND = (
    "use plain LoRA on the head, leave the head out of target_modules, or merge the adapter (merge_adapter) to only "
    "evaluate it"
)


class HeadFactors(NamedTuple):
    """weight (V, D), bias (V,), lora_a (r, D), lora_b (V, r): all that is added up before scale and softcap."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    lora_a: torch.Tensor | None = None
    lora_b: torch.Tensor | None = None
    lora_scale: float = 1.0


def head_factors(head: Any) -> HeadFactors:
    """Weight, bias and low-rank update of the head as its forward would use them now.

    The updates of several active LoRA adapters are one update of their summed rank.

    Raises:
        ValueError: an active adapter that is no plain LoRA, dropout in it, or a weight that is no (V, D) float tensor.
    """
    head = _saved_copy(head)
    if not hasattr(head, "base_layer"):
        return _plain(head)
    base = _plain(head.base_layer)
    if head.disable_adapters:
        if head.merged:  # as the layer's own forward does
            head.unmerge()
        return base
    if head.merged:
        return base
    holders = [getattr(head, name) for name in head.adapter_layer_names]
    active = [name for name in head.active_adapters if any(name in holder for holder in holders)]
    return _add_lora(head, base, active) if active else base


def _saved_copy(head: Any) -> Any:
    """The copy of the head that `modules_to_save` trains, where one is active."""
    if not hasattr(head, "original_module"):
        return head
    copies = getattr(head, "modules_to_save", None)
    active = [] if head.disable_adapters else list(head.active_adapters)
    if copies is not None:
        return copies[active[0]] if active and active[0] in copies else head.original_module
    if active:
        raise ValueError(
            f"model: the LM head is wrapped in a {type(head).__name__}, which hidden_and_head does not know; {MEND}"
        )
    return head.original_module


def _plain(head: nn.Module) -> HeadFactors:
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        got = "no weight" if not isinstance(weight, torch.Tensor) else f"a weight of {weight.dtype}"
        raise ValueError(
            f"model: the LM head {type(head).__name__} has {got}; wants a float tensor, so leave the head out of "
            "quantisation (llm_int8_skip_modules=['lm_head'], modules_to_not_convert)"
        )
    if weight.is_meta:
        raise ValueError(
            f"model: the weight of the LM head {type(head).__name__} is offloaded (on the meta device); keep the "
            "head on the device of the hidden states (device_map)"
        )
    shape = (getattr(head, "out_features", None), getattr(head, "in_features", None))
    if weight.dim() != 2 or (None not in shape and tuple(weight.shape) != shape):
        raise ValueError(
            f"model: the LM head {type(head).__name__} has a weight of shape {tuple(weight.shape)}, wants (V, D)"
            f"{'' if None in shape else f' = {shape}'}; a sharded weight (FSDP1, DeepSpeed ZeRO-3) must be gathered "
            "around the call"
        )
    return HeadFactors(weight, bias)


def _add_lora(head: Any, base: HeadFactors, active: list[str]) -> HeadFactors:
    for name in active:
        _refuse_other_than_lora(head, name)
    bias = base.bias
    for name in active:
        extra = head.lora_B[name].bias
        if extra is not None:
            extra = (head.scaling[name] * extra).to(base.weight.dtype)
            bias = extra if bias is None else bias + extra
    # peft keeps float32 factors beside a bfloat16 head; the head's products are made in one dtype.
    factors_a = [head.lora_A[name].weight.to(base.weight.dtype) for name in active]
    factors_b = [head.lora_B[name].weight.to(base.weight.dtype) for name in active]
    scale = float(head.scaling[active[0]])
    if len(active) == 1:
        return HeadFactors(base.weight, bias, factors_a[0], factors_b[0], scale)
    scaled = [head.scaling[name] * factor for name, factor in zip(active, factors_b, strict=True)]
    return HeadFactors(base.weight, bias, torch.cat(factors_a), torch.cat(scaled, dim=1), 1.0)


def _refuse_other_than_lora(head: Any, name: str) -> None:
    layers = getattr(head, "lora_A", {})
    variant = getattr(head, "lora_variant", {}).get(name)
    # Subclasses of the plain layer keep its factors; AdaLoRA's lora_A holds bare parameters.
    if name not in layers or not isinstance(layers[name], nn.Linear) or variant is not None:
        kind = type(head).__name__ if variant is None else type(variant).__name__
        raise ValueError(f"model: adapter {name!r} on the LM head is not plain LoRA but {kind}; {MEND}")
    dropout = head.lora_dropout[name]
    if head.training and getattr(dropout, "p", 0.0) > 0.0:
        raise ValueError(
            f"model: adapter {name!r} on the LM head has lora_dropout={dropout.p}, which needs a second copy of the "
            "hidden states; switch it off there: "
            f"model.get_output_embeddings().lora_dropout[{name!r}] = torch.nn.Identity()"
        )
