"""Hidden states and head of a causal language model, without its logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn


class HiddenAndHead(NamedTuple):
    """hidden (B, T, D), weight (V, D), bias (V,) or None, and how the model turns logits into its own."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None
    logit_scale: float


def hidden_and_head(model: Any, **inputs: Any) -> HiddenAndHead:
    """Run only the trunk of a Hugging Face style causal LM (duck-typed: transformers is not imported).

    The model's logits are ``softcap * tanh(logit_scale * (hidden W^T + bias) / softcap)``; softcap and scale are
    read from its configuration (`final_logit_softcapping`; `logit_scale`, or the inverse of `logits_scaling`).

    Args:
        model: has `get_output_embeddings()`, `base_model` and `config`.
        inputs: what the trunk takes (`input_ids`, `attention_mask`, ...).

    Raises:
        ValueError: a model without these, a data-parallel wrapper, or an adapter on the head.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(
            f"model: got a {type(model).__name__}; its forward must run for gradients to be synchronised, so wrap a "
            "module that calls hidden_and_head inside its own forward"
        )
    if hasattr(model, "get_base_model"):  # peft: adapters are injected into the base model
        model = model.get_base_model()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    trunk = getattr(model, "base_model", None)
    if head is None or trunk is None or trunk is model:
        raise ValueError(
            f"model: wants a causal language model with an LM head and a trunk (base_model), got {type(model).__name__}"
        )
    if hasattr(head, "lora_A"):
        raise ValueError("model: a LoRA adapter on the LM head is not supported by this version; adapt the trunk")
    hidden = trunk(**inputs).last_hidden_state
    config = model.config
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None)
    if scale is None:
        divisor = getattr(config, "logits_scaling", None)
        scale = 1.0 if divisor is None else 1.0 / divisor
    return HiddenAndHead(hidden, head.weight, getattr(head, "bias", None), softcap, float(scale))
