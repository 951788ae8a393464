"""hidden_and_head gives back the model's own logits, for several kinds of models."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from structloss import hidden_and_head, linear_cross_entropy

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3-tied": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True)
    ),
    "gemma2-softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=32, n_embd=16, n_layer=2, n_head=2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_equal_the_models_own(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    ids = torch.randint(0, 61, (2, 9))
    own = model(input_ids=ids, labels=ids)
    own.loss.backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    hidden, weight, bias, softcap, scale = hidden_and_head(model, input_ids=ids)
    loss = linear_cross_entropy(
        hidden[:, :-1], weight, ids[:, 1:], linear_bias=bias, softcap=softcap, logit_scale=scale
    )
    loss.backward()
    torch.testing.assert_close(loss, own.loss, check_dtype=False, rtol=1e-6, atol=1e-6)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-5, atol=1e-7)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="^model: wants a causal language model"):
        hidden_and_head(torch.nn.Linear(2, 2))
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    with pytest.raises(ValueError, match="^model: got a DataParallel"):
        hidden_and_head(torch.nn.DataParallel(model))
    trunk = model.model
    with pytest.raises(ValueError, match="^model: wants a causal language model"):
        hidden_and_head(trunk, input_ids=torch.zeros(1, 2, dtype=torch.int64))
