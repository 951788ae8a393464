"""Where a causal language model keeps its trunk and its head, and how it turns hidden states into logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from structloss.models.adapters import head_factors

# `config.model_type` of the models whose loss and gradients the tests compare with the model's own. Any other model is
# checked at its first call.
TESTED = frozenset(
    (
        "bloom",
        "codegen",
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone4",
        "falcon",
        "falcon_h1",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "granite",
        "granitemoe",
        "hyperclovax",
        "llama",
        "mistral",
        "mixtral",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "recurrent_gemma",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
    )
)
# Names that configurations use. Other names, and another meaning of these, are what `check_head` is for.
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
FACTORS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)


class HiddenAndHead(NamedTuple):
    """What `linear_cross_entropy` and `StructureAwareLoss` need of a model.

    hidden (B, T, D), weight (V, D), bias (V,) or None, and the rest of

        a = hidden W^T + bias + lora_scale * (hidden A^T) B^T,   logits = softcap * tanh(logit_scale * a / softcap)

    with A = lora_a (r, D) and B = lora_b (V, r), both None where no adapter is active on the head.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None
    logit_scale: float
    lora_a: torch.Tensor | None = None
    lora_b: torch.Tensor | None = None
    lora_scale: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """The head beyond its weight, as keywords of `StructureAwareLoss`, `linear_cross_entropy` and the others:

        ``loss(made.hidden, made.weight, batch, progress=progress, **made.options)``
        """
        return {
            "linear_bias": self.bias,
            "softcap": self.softcap,
            "logit_scale": self.logit_scale,
            "lora_a": self.lora_a,
            "lora_b": self.lora_b,
            "lora_scale": self.lora_scale,
        }


class ModelParts(NamedTuple):
    """model: the causal LM below wrappers; trunk and head: its modules; the head's module may be an adapter's."""

    model: nn.Module
    trunk: nn.Module
    head: nn.Module


def model_parts(model: Any) -> ModelParts:
    """Find trunk and head, or say why this object has none that may be used.

    Raises:
        ValueError: a wrapper whose own forward has to run, a peft method that acts outside of the layers, or no head.
    """
    kind = type(model).__name__
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or kind == "FullyShardedDataParallel":
        raise ValueError(
            f"model: got a {kind}; its forward must run for gradients to be synchronised, so wrap a "
            "module that calls hidden_and_head inside its own forward"
        )
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "model: got a model compiled as a whole, whose compiled forward would not run; compile its trunk in place "
            "instead, `model.base_model.compile()`"
        )
    if hasattr(model, "get_base_model"):  # peft: adapters are injected into the base model
        refuse_outside_layers(model)
        model = model.get_base_model()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    trunk = getattr(model, "base_model", None)
    if trunk is model:
        trunk = getattr(model, "get_decoder", lambda: None)()
    if head is None or trunk is None or trunk is model:
        raise ValueError(
            f"model: wants a causal language model with an LM head and a trunk (base_model), got {type(model).__name__}"
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"model: wants a decoder-only language model, got the encoder-decoder {type(model).__name__}")
    return ModelParts(model, trunk, head)


def refuse_outside_layers(model: Any) -> None:
    """Methods of peft that work in the wrapper's forward, which is not called here."""
    configs = getattr(model, "peft_config", {})
    active = getattr(model, "active_adapters", [])
    for name in [active] if isinstance(active, str) else active:
        config = configs.get(name)
        method = str(getattr(config, "peft_type", "")).rpartition(".")[2]
        if getattr(config, "is_prompt_learning", False) or method in ("POLY", "XLORA"):
            raise ValueError(
                f"model: adapter {name!r} is {method}, which acts in peft's own forward; hidden_and_head runs the "
                "trunk below it. Use a method that changes layers (LoRA), or the model's own loss"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise ValueError(
                f"model: adapter {name!r} is an activated LoRA (alora_invocation_tokens), whose offsets peft's "
                "own forward computes; use plain LoRA, or the model's own loss"
            )


def text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def softcap_and_scale(model: Any) -> tuple[float | None, float]:
    """(softcap or None, logit_scale) from the configuration.

    Raises:
        ValueError: a value that is not a number.
    """
    config = text_config(model)

    def numbers(names: tuple[str, ...]) -> list[float]:
        values = [(name, getattr(config, name, None)) for name in names]
        for name, value in values:
            if value is not None and not isinstance(value, (int, float)):
                raise ValueError(f"model: config.{name} wants a number or None, got {value!r}")
        return [float(value) for _, value in values if value is not None]

    scale = 1.0
    for factor in numbers(FACTORS):
        scale *= factor
    for divisor in numbers(DIVISORS):
        # The one model that multiplies by what the others divide by.
        scale = scale * divisor if getattr(config, "model_type", None) == "hyperclovax" else scale / divisor
    softcaps = numbers(SOFTCAPS)
    return (softcaps[0] if softcaps else None), scale


def head_with(hidden: torch.Tensor, parts: ModelParts) -> HiddenAndHead:
    """The model's head as it is now, beside these hidden states."""
    head = head_factors(parts.head)
    softcap, scale = softcap_and_scale(parts.model)
    return HiddenAndHead(hidden, head.weight, head.bias, softcap, scale, head.lora_a, head.lora_b, head.lora_scale)
