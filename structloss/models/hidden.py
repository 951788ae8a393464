"""Run only the trunk of a causal language model."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from structloss.models.check import check_head, last_hidden_state
from structloss.models.head import TESTED, HiddenAndHead, head_with, model_parts

# What the model or peft's wrapper takes and the trunk does not, or would ignore in silence.
NOT_FOR_THE_TRUNK = ("labels", "shift_labels", "num_items_in_batch", "logits_to_keep")
NOT_PAST_PEFT = ("adapter_names", "alora_offsets", "task_ids")
_checked: weakref.WeakSet[Any] = weakref.WeakSet()


def hidden_and_head(model: Any, *, verify: bool | None = None, **inputs: Any) -> HiddenAndHead:
    """Hidden states and head of a Hugging Face style causal LM, for a loss without all logits.

    Duck-typed: neither transformers nor peft is imported. Softcap and scale are read from the configuration, the
    head's LoRA factors from peft's layer, as its forward would use them now.

    Args:
        model: has `get_output_embeddings()`, `base_model` and `config`; a peft model around one.
        verify: compare with the model's own logits on eight tokens, once for each model object (`check_head`). None:
            where the class is not one of transformers or its `config.model_type` not among the tested ones
            (`structloss.models.TESTED`).
        inputs: what the trunk takes (`input_ids`, `attention_mask`, ...).

    Raises:
        ValueError: a model without these, a wrapper whose own forward must run, an adapter on the head that is no plain
            LoRA, inputs that only the model's own forward understands, or a head that `check_head` finds different.
    """
    for name in NOT_FOR_THE_TRUNK:
        if inputs.get(name) is not None:
            raise ValueError(f"{name}: the trunk takes none and makes no loss; give it to the loss instead")
    for name in NOT_PAST_PEFT:
        if inputs.get(name) is not None:
            raise ValueError(f"{name}: is for peft's own forward, which does not run here; make one adapter active")
    parts = model_parts(model)
    if verify is None:
        verify = not _is_tested(parts.model)
    if verify and parts.model not in _checked and not torch.compiler.is_compiling():
        check_head(model)
        _checked.add(parts.model)
    return head_with(last_hidden_state(parts.trunk(**inputs)), parts)


def _is_tested(model: Any) -> bool:
    """A subclass, or a class that came with a checkpoint, may do anything under a known model_type."""
    own_class = type(model).__module__.startswith("transformers.")
    return own_class and getattr(model.config, "model_type", None) in TESTED
