"""Tiny models of many architectures with random weights, from their configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,  # large enough that a softcap of 2 or a scale shows in the loss
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = SIZES | {"head_dim": 8}
EXPERTS = SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "initializer_range": 0.3,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON_SIZES = {key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_key_value_heads")}
MAMBA = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4}

# By `config.model_type`: what makes its head special stands last.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3},
    "codegen": GPT2_SIZES | {"n_ctx": 32, "n_head": 4, "rotary_dim": 4},
    "cohere": SIZES | {"logit_scale": 0.4},
    "cohere2": HEADS | {"logit_scale": 0.4},
    "ernie4_5": HEADS,
    "exaone4": HEADS,
    "falcon": FALCON_SIZES,
    "falcon_h1": HEADS | MAMBA | {"lm_head_multiplier": 0.3},
    "gemma": HEADS,
    "gemma2": HEADS | {"final_logit_softcapping": 2.0},
    "gemma3_text": HEADS | {"final_logit_softcapping": 3.0},
    "glm4": HEADS,
    "gpt2": GPT2_SIZES,
    "gpt_bigcode": GPT2_SIZES,
    "gpt_neo": {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global"], 2]],
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": SIZES,
    "gpt_oss": HEADS | {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gptj": GPT2_SIZES | {"rotary_dim": 4},
    "granite": SIZES | {"embedding_multiplier": 2.0, "logits_scaling": 3.0},
    "granitemoe": EXPERTS | {"logits_scaling": 3.0},
    "hyperclovax": SIZES | {"logits_scaling": 0.5},
    "llama": SIZES,
    "mistral": SIZES,
    "mixtral": EXPERTS,
    "nanochat": HEADS | {"final_logit_softcapping": 2.0},
    "nemotron": SIZES,
    "olmo": SIZES,
    "olmo2": SIZES,
    "opt": {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "word_embed_proj_dim": 8,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "init_std": 0.3,
    },
    "phi": SIZES,
    "phi3": SIZES,
    "qwen2": SIZES | {"tie_word_embeddings": True},
    "qwen3": HEADS | {"tie_word_embeddings": True},
    "qwen3_moe": HEADS | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    "recurrent_gemma": SIZES | {"lru_width": 16, "num_hidden_layers": 3, "logits_soft_cap": 0.5},
    "seed_oss": HEADS,
    "smollm3": SIZES,
    "stablelm": SIZES,
    "starcoder2": SIZES,
}


def build(model_type: str, **changes: Any) -> Any:
    """The same weights at every call, biases and norms included (they start as 0 and 1, which would hide a mistake)."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(ARCHITECTURES.get(model_type, SIZES) | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def padded_batch() -> dict[str, torch.Tensor]:
    """Two rows of 9 tokens, the second padded on the right from its sixth."""
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
