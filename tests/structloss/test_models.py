"""hidden_and_head gives back the model's own loss and gradients, for many architectures and adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from structloss import hidden_and_head, linear_cross_entropy
from structloss.models import TESTED

VOCAB = 61
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
GEMMA = {**SMALL, "head_dim": 8}
GPT2 = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
# By name: the class without its ending, and its configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("Cohere", SMALL | {"logit_scale": 0.25}),
    "gemma": ("Gemma", GEMMA),
    "gemma2": ("Gemma2", GEMMA | {"final_logit_softcapping": 2.0}),
    "gemma3_text": ("Gemma3", GEMMA | {"final_logit_softcapping": 3.0}),
    "gpt2": ("GPT2", GPT2),
    "gpt_neox": ("GPTNeoX", SMALL),
    "granite": ("Granite", SMALL | {"logits_scaling": 4.0}),
    "llama": ("Llama", SMALL),
    "llama, tied": ("Llama", SMALL | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", SMALL),
    "olmo2": ("Olmo2", SMALL),
    "phi": ("Phi", SMALL | {"num_key_value_heads": 2}),
    "phi3": ("Phi3", SMALL),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", SMALL | {"head_dim": 8, "tie_word_embeddings": True}),
    "starcoder2": ("Starcoder2", SMALL),
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    family, options = MODELS[name]
    config = "Gemma3Text" if family == "Gemma3" else family
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    model = getattr(transformers, family + head)(getattr(transformers, config + "Config")(**options))
    bias = model.get_output_embeddings().bias
    if bias is not None:
        nn.init.normal_(bias)
    return model.double().eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Two rows, the second padded on the right."""
    ids = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def labels_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)


def own_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """By the model's own logits, in their type; transformers' loss casts them to float32."""
    logits = model(**inputs).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels_of(inputs)[:, 1:].flatten())


def our_loss(model: Any, inputs: dict[str, torch.Tensor], **changes: Any) -> torch.Tensor:
    made = hidden_and_head(model, **inputs)._replace(**changes)
    return linear_cross_entropy(made.hidden[:, :-1], made.weight, labels_of(inputs)[:, 1:], **made.head)


def assert_same(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Loss, and the gradient of every parameter that is trained, in float64."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    both = []
    for loss in (own_loss(model, inputs), our_loss(model, inputs)):
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        both.append((loss, dict(zip(trained, gradients, strict=True))))
    (want, wanted), (got, gotten) = both
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert any(gradient is not None and gradient.any() for gradient in wanted.values())
    for name in trained:
        torch.testing.assert_close(gotten[name], wanted[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_models_own(name: str, inputs) -> None:
    model = make(name)
    assert_same(model, inputs)
    theirs = model(**inputs, labels=labels_of(inputs)).loss.double()
    torch.testing.assert_close(our_loss(model, inputs), theirs, rtol=1e-5, atol=1e-6)


def test_every_architecture_that_counts_as_tested_is_tested() -> None:
    assert {make(name).config.model_type for name in MODELS} == TESTED
    page = Path("docs/models.md").read_text()
    assert all(f"`{name}`" in page for name in TESTED)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma2", {"softcap": None}),
        ("cohere", {"logit_scale": 1.0}),
        ("granite", {"logit_scale": 1.0}),
        ("phi", {"bias": None}),
    ],
)
def test_each_part_of_the_head_is_needed(name: str, change: dict[str, Any], inputs) -> None:
    model = make(name)
    assert abs(our_loss(model, inputs, **change) - own_loss(model, inputs)) > 1e-3


def test_bfloat16_autocast(inputs) -> None:
    model = make("qwen3").float()
    with torch.autocast("cpu", torch.bfloat16):
        want, got = model(**inputs, labels=labels_of(inputs)).loss, our_loss(model, inputs)
    assert got.item() == pytest.approx(want.item(), rel=2e-3)


def test_activation_checkpointing(inputs) -> None:
    model = make("llama").train()
    plain = torch.autograd.grad(our_loss(model, inputs), list(model.parameters()))
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(torch.autograd.grad(our_loss(model, inputs), list(model.parameters())), plain)


# --- adapters -------------------------------------------------------------------------------------------------------


def adapted(name: str = "llama", **options: Any) -> Any:
    """A peft model whose LoRA matrices are not zero."""
    return randomised(get_peft_model(make(name), LoraConfig(**{"r": 3, "lora_alpha": 5} | options)))


def randomised(model: Any) -> Any:
    torch.manual_seed(2)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["lm_head"], "use_rslora": True},
        {"target_modules": ["lm_head"], "lora_bias": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["trunk", "trunk and head", "rank-stabilised", "with a bias", "head trained whole"],
)
def test_lora(options: dict[str, Any], inputs) -> None:
    name = "phi" if options.get("lora_bias") else "llama"
    assert_same(adapted(name, **options).eval(), inputs)


def test_lora_on_a_tied_head(inputs) -> None:
    assert_same(adapted("llama, tied", target_modules=["lm_head"]).eval(), inputs)


def test_several_adapters_on_the_head(inputs) -> None:
    model = adapted(target_modules=["lm_head"])
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=7, target_modules=["lm_head", "q_proj"]))
    model = randomised(model).eval()
    assert_same(model, inputs)  # the first alone
    model.base_model.set_adapter(["default", "second"])
    assert hidden_and_head(model, **inputs).lora_a.shape == (5, 16)
    assert_same(model, inputs)
    with model.disable_adapter():
        assert hidden_and_head(model, **inputs).lora_a is None
        torch.testing.assert_close(our_loss(model, inputs), own_loss(model, inputs))
    model.merge_adapter()
    assert hidden_and_head(model, **inputs).lora_a is None
    torch.testing.assert_close(our_loss(model, inputs), own_loss(model, inputs))


def test_adapters_that_are_refused(inputs) -> None:
    with pytest.raises(ValueError, match="^model: the adapter 'default' on its head is a variant of LoRA"):
        hidden_and_head(adapted(target_modules=["lm_head"], use_dora=True), **inputs)
    model = adapted(target_modules=["lm_head"], lora_dropout=0.5)
    with pytest.raises(ValueError, match="^model: the adapter 'default' on its head has dropout"):
        hidden_and_head(model.train(), **inputs)
    assert_same(model.eval(), inputs)
    prompt = get_peft_model(make("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="^model: its adapter puts virtual tokens before the input"):
        hidden_and_head(prompt, **inputs)


# --- what is refused, and what is compared --------------------------------------------------------------------------


def test_a_model_without_a_head_is_refused(inputs) -> None:
    with pytest.raises(ValueError, match="^model: wants a causal language model"):
        hidden_and_head(nn.Linear(2, 2))
    model = make("llama")
    with pytest.raises(ValueError, match="^model: got a DataParallel"):
        hidden_and_head(nn.DataParallel(model))
    with pytest.raises(ValueError, match="^model: wants a causal language model"):
        hidden_and_head(model.model, **inputs)
    model.set_output_embeddings(nn.Sequential(model.lm_head))
    with pytest.raises(ValueError, match="^model: its head is a Sequential"):
        hidden_and_head(model, **inputs)


class Secretive(transformers.LlamaForCausalLM):
    """A model that does something to its logits which no configuration tells."""

    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        out = super().forward(*args, **kwargs)
        out.logits = self.config.secret * out.logits
        return out


def secretive(secret: float) -> Secretive:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL)
    config.model_type, config.secret = "secretive", secret
    return Secretive(config).train()


def test_an_unknown_model_is_compared_once(inputs, monkeypatch) -> None:
    monkeypatch.setattr(Secretive, "calls", 0)
    honest = secretive(1.0)
    modes = {name: module.training for name, module in honest.named_modules()}
    for _ in range(3):
        hidden_and_head(honest, **inputs)
    assert Secretive.calls == 1
    assert modes == {name: module.training for name, module in honest.named_modules()}
    with pytest.raises(ValueError, match="^model: the logits of Secretive are not those of its head"):
        hidden_and_head(secretive(1.01), **inputs)
    hidden_and_head(secretive(1.01), verify=False, **inputs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_comparison_accepts_the_tested_models(name: str, dtype: torch.dtype, inputs) -> None:
    hidden_and_head(make(name).to(dtype), verify=True, **inputs)


def test_the_comparison_sees_an_adapter(inputs) -> None:
    hidden_and_head(adapted(target_modules=["lm_head"]).eval(), verify=True, **inputs)
    with pytest.raises(ValueError, match="^verify: wants input_ids or inputs_embeds"):
        hidden_and_head(make("llama"), verify=True)


def test_a_compiled_trunk(inputs) -> None:
    model = make("llama")
    compiled = copy.copy(model)
    compiled.__dict__ = model.__dict__ | {"_modules": dict(model._modules)}
    compiled.model = torch.compile(model.model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(our_loss(compiled, inputs), own_loss(model, inputs))
