"""peft adapters on the trunk and on the head: the same loss and gradients as peft's own forward, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoKrConfig,
    LoraConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn

from structloss import StructureAwareLoss, StructureCollator, VisitCache, hidden_and_head, linear_cross_entropy
from structloss.models import HiddenAndHead
from tests.structloss.loss_examples import make_examples
from tests.structloss.model_zoo import build, padded_batch
from tests.structloss.test_models import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    distance,
    fused_loss,
    own_loss,
)

HEAD = ["q_proj", "lm_head"]


def lora(**options: Any) -> LoraConfig:
    """Factors that are not zero at the start; a scaling of 3 unless changed."""
    defaults = {"r": 4, "lora_alpha": 12, "target_modules": HEAD, "init_lora_weights": False, "lora_dropout": 0.0}
    return LoraConfig(task_type="CAUSAL_LM", **(defaults | options))


def with_lora(model_type: str = "llama", **options: Any) -> Any:
    return get_peft_model(build(model_type), lora(**options))


def assert_same(model: Any) -> None:
    batch = padded_batch()
    loss, gradients = own_loss(model, batch)
    ours, our_gradients = fused_loss(model, batch)
    assert gradients
    assert abs(ours - loss) <= LOSS_TOLERANCE * loss
    assert distance(our_gradients, gradients) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", {}),
        ("llama", {"use_rslora": True}),
        ("phi", {"lora_bias": True}),
        ("llama", {"lora_bias": True}),
        ("qwen3", {}),
        ("qwen3", {"target_modules": [*HEAD, "embed_tokens"], "ensure_weight_tying": True}),
        ("qwen3", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gemma2", {}),
        ("granite", {}),
        ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"use_dora": True, "target_modules": ["q_proj"]}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_loss_and_gradients_are_those_of_peft(model_type: str, options: dict[str, Any]) -> None:
    assert_same(with_lora(model_type, **options).train())


def test_factors_of_the_head_are_pefts_own_parameters() -> None:
    model = with_lora(use_rslora=True)
    made = hidden_and_head(model, input_ids=padded_batch()["input_ids"])
    layer = model.get_base_model().lm_head
    assert made.lora_a is layer.lora_A["default"].weight
    assert made.lora_b is layer.lora_B["default"].weight
    assert made.lora_scale == 12 / 4**0.5
    assert not made.weight.requires_grad


def test_the_tolerances_see_a_lora_head_that_is_dropped_or_scaled_wrongly() -> None:
    model, batch = with_lora(), padded_batch()
    loss, gradients = own_loss(model, batch)
    for wrong in ({"lora_a": None, "lora_b": None}, {"lora_scale": 2.9}):
        ours, our_gradients = fused_loss(model, batch, **wrong)
        our_gradients = {name: our_gradients.get(name, torch.zeros_like(g)) for name, g in gradients.items()}
        assert abs(ours - loss) > 100 * LOSS_TOLERANCE * loss
        assert distance(our_gradients, gradients) > 100 * GRADIENT_TOLERANCE


def test_only_active_adapters_count_and_several_add_up() -> None:
    model = with_lora()
    model.add_adapter("second", lora(r=2, lora_alpha=1))
    model.add_adapter("trunk_only", lora(target_modules=["v_proj"]))
    inputs = {"input_ids": padded_batch()["input_ids"]}
    ranks = []
    for active in ("default", "second", "trunk_only", ["default", "second"], ["second", "trunk_only"]):
        model.base_model.set_adapter(active)
        assert_same(model)
        made = hidden_and_head(model, **inputs)
        ranks.append(0 if made.lora_a is None else made.lora_a.shape[0])
    assert ranks == [4, 2, 0, 6, 2]


def test_disabled_and_merged_adapters_count_as_in_pefts_forward() -> None:
    model, batch = with_lora(), padded_batch()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    layer = model.get_base_model().lm_head
    weight = layer.base_layer.weight.clone()

    def ours() -> tuple[bool, float]:
        made = hidden_and_head(model, **inputs)
        loss = linear_cross_entropy(made.hidden[:, :-1], made.weight, batch["labels"][:, 1:], **made.options)
        return made.lora_a is not None, loss.item()

    adapted = pytest.approx(model(**batch).loss.item(), rel=LOSS_TOLERANCE)
    assert ours() == (True, adapted)
    with model.disable_adapter():
        plain = pytest.approx(model(**batch).loss.item(), rel=LOSS_TOLERANCE)
        assert ours() == (False, plain)
    assert adapted != plain
    model.merge_adapter()
    assert ours() == (False, adapted)
    with model.disable_adapter():  # a disabled layer of peft unmerges in its forward
        assert ours() == (False, plain)
        assert not layer.merged
    torch.testing.assert_close(layer.base_layer.weight, weight)


def test_an_adapter_that_transformers_added_is_seen() -> None:
    model = build("llama")
    model.add_adapter(lora())
    assert hidden_and_head(model, input_ids=padded_batch()["input_ids"]).lora_a is not None
    assert_same(model)


def test_a_bfloat16_head_takes_pefts_float32_factors() -> None:
    model = get_peft_model(build("llama").bfloat16(), lora())
    layer = model.get_base_model().lm_head
    assert layer.lora_A["default"].weight.dtype == torch.float32
    batch = padded_batch()
    made = hidden_and_head(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    loss = linear_cross_entropy(made.hidden[:, :-1], made.weight, batch["labels"][:, 1:], **made.options)
    loss.backward()
    ours = layer.lora_B["default"].weight.grad
    assert ours.dtype == torch.float32
    model.zero_grad()
    own = model(**batch).loss
    own.backward()
    # One rounding of each factor, of the logits and of their gradients: about 2^-8 each.
    torch.testing.assert_close(loss, own, rtol=1e-2, atol=0, check_dtype=False)
    own_gradient = layer.lora_B["default"].weight.grad
    assert (ours - own_gradient).norm() <= 0.03 * own_gradient.norm()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_structure_aware_loss_takes_what_hidden_and_head_returns(tokenizer: Any, alpha: float) -> None:
    """Equal to the loss of a head with the update merged into its weight, with weights known before or after."""
    model = get_peft_model(build("gemma2", vocab_size=len(tokenizer), max_position_embeddings=128), lora())
    examples = make_examples(tokenizer)
    inputs = StructureCollator(tokenizer.pad_token_id)(examples)
    visits = VisitCache(tokenizer)
    visits.update(examples, inputs["structure"].labels.roll(1, 0))
    batch = visits.attach(inputs["structure"], examples)
    loss = StructureAwareLoss(alpha=alpha, ramp_shape="constant")
    made = hidden_and_head(model, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    factor = model.get_base_model().lm_head.lora_B["default"].weight

    def loss_and_gradient(made: HiddenAndHead) -> tuple[torch.Tensor, torch.Tensor]:
        value = loss(made.hidden, made.weight, batch, progress=0.5, **made.options).loss
        return value, torch.autograd.grad(value, factor, retain_graph=True, allow_unused=True)[0]

    ours = loss_and_gradient(made)
    merged = made._replace(weight=made.weight + made.lora_scale * made.lora_b @ made.lora_a, lora_a=None, lora_b=None)
    torch.testing.assert_close(ours, loss_and_gradient(merged), rtol=1e-4, atol=1e-6)
    without = loss_and_gradient(made._replace(lora_a=None, lora_b=None))[0]
    assert abs(without - ours[0]) > 1e-2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora(use_dora=True), "adapter 'default' on the LM head is not plain LoRA but DoraLinearVariant; use plain"),
        (IA3Config(task_type="CAUSAL_LM", target_modules=HEAD, feedforward_modules=[]), "not plain LoRA but Linear"),
        (AdaLoraConfig(task_type="CAUSAL_LM", target_modules=HEAD, total_step=9), "not plain LoRA but SVDLinear"),
        (LoKrConfig(task_type="CAUSAL_LM", target_modules=HEAD), "not plain LoRA but Linear; use plain"),
        (lora(lora_dropout=0.1), "has lora_dropout=0.1, .*switch it off there"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "is PROMPT_TUNING, which acts in peft's own"),
        (lora(alora_invocation_tokens=[5], target_modules=["q_proj"]), "is an activated LoRA"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(config: Any, message: str) -> None:
    model = get_peft_model(build("llama"), config).train()
    with pytest.raises(ValueError, match=f"^model: adapter 'default' .*{message}|^model: {message}"):
        hidden_and_head(model, input_ids=padded_batch()["input_ids"])


def test_a_tied_head_with_trained_tokens_is_refused() -> None:
    model = with_lora("qwen3", target_modules=["q_proj"], trainable_token_indices=[3, 5])
    with pytest.raises(ValueError, match="^model: the LM head is wrapped in a TrainableTokensWrapper"):
        hidden_and_head(model, input_ids=padded_batch()["input_ids"])


def test_dropout_is_no_matter_in_evaluation_or_once_switched_off() -> None:
    model = with_lora(lora_dropout=0.5).eval()
    assert_same(model)
    model.get_output_embeddings().lora_dropout["default"] = nn.Identity()
    model.train()
    hidden_and_head(model, input_ids=padded_batch()["input_ids"])


def test_a_mixed_batch_of_adapters_is_refused() -> None:
    with pytest.raises(ValueError, match="^adapter_names: is for peft's own forward"):
        hidden_and_head(with_lora(), input_ids=padded_batch()["input_ids"], adapter_names=["default", "default"])


def test_a_quantised_sharded_or_offloaded_head_is_refused() -> None:
    model, ids = build("llama"), padded_batch()["input_ids"]
    weight = model.lm_head.weight.data
    model.lm_head.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="^model: the LM head Linear has a weight of torch.int8; wants a float tensor"):
        hidden_and_head(model, input_ids=ids)
    model.lm_head.weight = nn.Parameter(weight.flatten()[:0])
    with pytest.raises(ValueError, match=r"^model: the LM head Linear has a weight of shape \(0,\), wants \(V, D\)"):
        hidden_and_head(model, input_ids=ids)
    model.lm_head.weight = nn.Parameter(weight.to("meta"))
    with pytest.raises(ValueError, match="^model: the weight of the LM head Linear is offloaded"):
        hidden_and_head(model, input_ids=ids)
