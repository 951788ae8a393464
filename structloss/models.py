"""Hidden states and head of a causal language model, without its logits."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import nn

# Architectures (`config.model_type`) whose head a test compares with the model's own: tests/structloss/test_models.py.
# fmt: off
TESTED = frozenset([
    "cohere", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "phi",
    "phi3", "qwen2", "qwen3", "starcoder2",
])
# fmt: on
_VERIFIED_TOKENS = 16
_verified: WeakSet[nn.Module] = WeakSet()


class HiddenAndHead(NamedTuple):
    """hidden (B, T, D), weight (V, D), bias (V,) or None, and how the model turns logits into its own.

    logits = softcap * tanh(logit_scale * (hidden weight^T + bias + lora_scale * hidden lora_a^T lora_b^T) / softcap)

    lora_a (r, D) and lora_b (V, r) are an adapter on the head, None where there is none.
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
    def head(self) -> dict[str, Any]:
        """What every function of the library that takes a head wants beside `hidden` and `weight`:

        ``linear_cross_entropy(made.hidden[:, :-1], made.weight, labels[:, 1:], **made.head)``
        """
        return {
            "linear_bias": self.bias,
            "softcap": self.softcap,
            "logit_scale": self.logit_scale,
            "lora_a": self.lora_a,
            "lora_b": self.lora_b,
            "lora_scale": self.lora_scale,
        }


def hidden_and_head(model: Any, *, verify: bool | None = None, **inputs: Any) -> HiddenAndHead:
    """Run only the trunk of a Hugging Face style causal LM (duck-typed: transformers is not imported).

    Softcap and scale are read from the model and its configuration (`final_logit_softcapping`; `logit_scale`, or the
    inverse of `logits_scaling`), an adapter on the head from peft's layer.

    Args:
        model: has `get_output_embeddings()`, `base_model` and `config`; a peft model of injected adapters.
        verify: compare with the model's own logits of a few tokens before the trunk runs. Default: once for each
            model of an architecture that the tests do not cover (`structloss.models.TESTED`).
        inputs: what the trunk takes (`input_ids`, `attention_mask`, ...).

    Raises:
        ValueError: a model without these, a data-parallel wrapper, a head or an adapter of an unknown kind, or one
            whose logits are not those of the formula.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(
            f"model: got a {type(model).__name__}; its forward must run for gradients to be synchronised, so wrap a "
            "module that calls hidden_and_head inside its own forward"
        )
    if hasattr(model, "get_base_model"):  # peft: adapters are injected into the base model
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError(
                "model: its adapter puts virtual tokens before the input (prompt learning), which only the wrapper's "
                "own forward does; use an adapter that lives in the layers, such as LoRA"
            )
        model = model.get_base_model()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    trunk = getattr(model, "base_model", None)
    if head is None or trunk is None or trunk is model:
        raise ValueError(
            f"model: wants a causal language model with an LM head and a trunk (base_model), got {type(model).__name__}"
        )
    described = _describe(model, _linear(head))
    if verify is None:
        tested = getattr(model.config, "model_type", None) in TESTED
        verify = not tested and model not in _verified and not torch.compiler.is_compiling()
    if verify:
        _compare(model, trunk, described, inputs)
        _verified.add(model)
    return described._replace(hidden=trunk(**inputs).last_hidden_state)


def _linear(head: Any) -> Any:
    """The layer that computes the logits, behind peft's copy of a trained head (`modules_to_save`)."""
    saved = getattr(head, "modules_to_save", None)
    if isinstance(saved, nn.ModuleDict):
        active = [name for name in getattr(head, "active_adapters", ()) if name in saved]
        head = saved[active[0]] if active and not head.disable_adapters else head.original_module
    base = getattr(head, "base_layer", head)
    if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
        raise ValueError(
            f"model: its head is a {type(base).__name__} of {getattr(getattr(base, 'weight', None), 'dtype', 'no')} "
            "weights, wants a torch.nn.Linear of floating point; leave the head out of quantisation, or call the "
            "losses with hidden states and a weight of your own"
        )
    return head


def _describe(model: Any, head: Any) -> HiddenAndHead:
    """Everything but the hidden states, which are empty."""
    config = model.config
    softcap = getattr(config, "final_logit_softcapping", None)
    # Cohere's model holds its scale; Granite divides by its own.
    scale = getattr(config, "logit_scale", None)
    if scale is None:
        divisor = getattr(config, "logits_scaling", None)
        scale = 1.0 if divisor is None else 1.0 / divisor
    linear = getattr(head, "base_layer", head)
    made = HiddenAndHead(torch.empty(0), linear.weight, linear.bias, softcap, float(scale))
    if hasattr(head, "lora_A"):
        return _with_adapters(made, head)
    if head is not linear:
        raise ValueError(
            f"model: the adapter on its head is a {type(head).__name__}, wants LoRA; adapt the trunk alone, or merge it"
        )
    return made


def _with_adapters(made: HiddenAndHead, head: Any) -> HiddenAndHead:
    """With the active LoRA adapters of peft's layer, several of them side by side as one of their summed rank."""
    if head.disable_adapters and head.merged:
        raise ValueError("model: the adapter on its head is merged and disabled; call unmerge_adapter() on the model")
    names = [] if head.disable_adapters or head.merged else [n for n in head.active_adapters if n in head.lora_A]
    if not names:
        return made
    for name in names:
        if name in getattr(head, "lora_variant", {}) or name in head.lora_magnitude_vector:
            raise ValueError(
                f"model: the adapter {name!r} on its head is a variant of LoRA (DoRA or another), wants plain LoRA; "
                "target the head with a plain LoraConfig, or adapt the trunk alone"
            )
        if head.training and getattr(head.lora_dropout[name], "p", 0.0) > 0.0:
            raise ValueError(
                f"model: the adapter {name!r} on its head has dropout, which would need another input than the head's "
                "own; use lora_dropout=0 for the head"
            )
    down, up = ([layers[name] for name in names] for layers in (head.lora_A, head.lora_B))
    scales = [float(head.scaling[name]) for name in names]
    bias = made.bias
    for layer, scale in zip(up, scales, strict=True):
        if layer.bias is not None:
            bias = scale * layer.bias if bias is None else bias + scale * layer.bias
    if len(names) == 1:
        return made._replace(bias=bias, lora_a=down[0].weight, lora_b=up[0].weight, lora_scale=scales[0])
    lora_b = torch.cat([scale * layer.weight for layer, scale in zip(up, scales, strict=True)], 1)
    return made._replace(bias=bias, lora_a=torch.cat([layer.weight for layer in down]), lora_b=lora_b)


@torch.no_grad()
def _compare(model: Any, trunk: Any, described: HiddenAndHead, inputs: dict[str, Any]) -> None:
    """Raises ValueError where the model's logits of a few tokens are not what `described` says."""
    name = next((name for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None), None)
    if name is None:
        raise ValueError("verify: wants input_ids or inputs_embeds among the inputs")
    few = {name: inputs[name][:1, :_VERIFIED_TOKENS]}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        own = model(**few).logits.float()
        hidden = trunk(**few).last_hidden_state
    finally:
        for module, training in modes:
            module.training = training
    logits = torch.nn.functional.linear(hidden, described.weight, described.bias).float()
    if described.lora_a is not None and described.lora_b is not None:
        update = hidden.to(described.lora_a.dtype) @ described.lora_a.T @ described.lora_b.T
        logits += described.lora_scale * update.float()
    logits *= described.logit_scale
    if described.softcap is not None:
        logits = described.softcap * torch.tanh(logits / described.softcap)
    error, size = (logits - own).abs().max().item(), own.abs().max().item()
    # A few roundings of the head's own type.
    if not error <= max(16 * torch.finfo(described.weight.dtype).eps * size, 1e-5 * size):
        raise ValueError(
            f"model: the logits of {type(model).__name__} are not those of its head on its trunk's hidden states: they "
            f"differ by up to {error:.3g} where the largest is {size:.3g}. It does something in between that "
            "hidden_and_head does not know; call the losses with a hidden, weight, softcap and logit_scale of your own"
        )
