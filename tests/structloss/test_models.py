"""hidden_and_head with linear_cross_entropy gives the model's own loss and gradients, for many kinds of models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from structloss import check_head, hidden_and_head, linear_cross_entropy
from structloss.models import TESTED
from tests.structloss.model_zoo import ARCHITECTURES, build, padded_batch

# Measured over all architectures: 3e-7 of the loss, 7e-7 of the largest gradient. Float32 sums in another order.
LOSS_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 5e-6
Gradients = dict[str, torch.Tensor]


def gradients_of(model: Any) -> Gradients:
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return made


def own_loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, Gradients]:
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), gradients_of(model)


def fused_loss(model: Any, batch: dict[str, torch.Tensor], **replaced: Any) -> tuple[float, Gradients]:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    made = hidden_and_head(model, **inputs)._replace(**replaced)
    loss = linear_cross_entropy(made.hidden[:, :-1], made.weight, batch["labels"][:, 1:], **made.options)
    loss.backward()
    return loss.item(), gradients_of(model)


def distance(ours: Gradients, own: Gradients) -> float:
    """The largest difference of a gradient, relative to the largest gradient of the model."""
    assert ours.keys() == own.keys()
    largest = max(g.abs().max().item() for g in own.values())
    return max((ours[name] - own[name]).abs().max().item() for name in own) / largest


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_loss_and_every_gradient_are_the_models_own(model_type: str) -> None:
    model, batch = build(model_type), padded_batch()
    loss, gradients = own_loss(model, batch)
    ours, our_gradients = fused_loss(model, batch)
    assert abs(ours - loss) <= LOSS_TOLERANCE * loss
    assert distance(our_gradients, gradients) <= GRADIENT_TOLERANCE
    assert check_head(model) <= 1e-6


@pytest.mark.parametrize(
    ("model_type", "dropped"),
    [
        ("gemma2", {"softcap": None}),
        ("gemma3_text", {"softcap": None}),
        ("recurrent_gemma", {"softcap": None}),
        ("nanochat", {"softcap": None}),
        ("cohere", {"logit_scale": 1.0}),
        ("granite", {"logit_scale": 1.0}),
        ("granite", {"logit_scale": 3.0}),
        ("falcon_h1", {"logit_scale": 1.0}),
        ("hyperclovax", {"logit_scale": 2.0}),
        ("phi", {"bias": None}),
        ("gptj", {"bias": None}),
    ],
)
def test_the_tolerances_see_a_part_of_the_head_that_is_dropped(model_type: str, dropped: dict[str, Any]) -> None:
    model, batch = build(model_type), padded_batch()
    loss, gradients = own_loss(model, batch)
    ours, our_gradients = fused_loss(model, batch, **dropped)
    our_gradients = {name: our_gradients.get(name, torch.zeros_like(g)) for name, g in gradients.items()}
    assert abs(ours - loss) > 100 * LOSS_TOLERANCE * loss
    assert distance(our_gradients, gradients) > 100 * GRADIENT_TOLERANCE


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi", "granite"])
def test_under_bfloat16_autocast_the_error_is_no_larger_than_the_models_own(model_type: str) -> None:
    model, batch = build(model_type), padded_batch()
    exact, exact_gradients = own_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = own_loss(model, batch)
        ours, our_gradients = fused_loss(model, batch)
    assert all(g.dtype == torch.float32 for g in our_gradients.values())

    def error(made: Gradients) -> float:
        squares = sum((made[name] - g).square().sum() for name, g in exact_gradients.items())
        return float(squares) ** 0.5

    # The trunk's rounding is the same in both and the larger part; the head's differs by chance.
    assert error(our_gradients) <= 1.5 * error(gradients)
    assert abs(ours - exact) <= 1.5 * abs(loss - exact) + 2e-3 * exact


def test_gradient_checkpointing_changes_nothing() -> None:
    model, batch = build("qwen3").train(), padded_batch()
    loss, gradients = own_loss(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ours, our_gradients = fused_loss(model, batch)
    assert abs(ours - loss) <= LOSS_TOLERANCE * loss
    assert distance(our_gradients, gradients) <= GRADIENT_TOLERANCE


def test_the_trunk_can_be_compiled_in_place() -> None:
    model, batch = build("llama"), padded_batch()
    loss, gradients = own_loss(model, batch)
    model.base_model.compile(backend="aot_eager")
    ours, our_gradients = fused_loss(model, batch)
    assert abs(ours - loss) <= LOSS_TOLERANCE * loss
    assert distance(our_gradients, gradients) <= GRADIENT_TOLERANCE


def test_the_whole_step_compiles_without_a_break() -> None:
    model, batch = build("gemma2"), padded_batch()
    loss, gradients = own_loss(model, batch)

    def step(input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        made = hidden_and_head(model, input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return linear_cross_entropy(made.hidden[:, :-1], made.weight, labels[:, 1:], **made.options)

    ours = torch.compile(step, backend="aot_eager", fullgraph=True)(**batch)
    ours.backward()
    assert abs(ours.item() - loss) <= LOSS_TOLERANCE * loss
    assert distance(gradients_of(model), gradients) <= GRADIENT_TOLERANCE


def test_the_documented_table_is_the_tested_list() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text()
    table = page.partition("## Tested models")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| \w+ \|", table, re.MULTILINE)[1:]
    assert rows == sorted(rows)
    assert set(rows) == set(ARCHITECTURES) == TESTED


class OddModel(nn.Module):
    """Llama, with one more step between hidden states and logits."""

    def __init__(self, before: Any = None, after: Any = None) -> None:
        super().__init__()
        inner = build("llama")
        self.base_model, self.lm_head, self.config = inner.model, inner.lm_head, inner.config
        self.before, self.after = before or (lambda x: x), after or (lambda x: x)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, **inputs: Any) -> tuple[torch.Tensor]:
        hidden = self.base_model(**inputs).last_hidden_state
        return (self.after(self.lm_head(self.before(hidden))),)


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (lambda: OddModel(after=lambda z: 0.25 * z), "they are 0.25 times these"),
        (lambda: OddModel(before=lambda x: x / 4), "they are 0.25 times these"),
        (lambda: OddModel(after=lambda z: 30 * torch.tanh(z / 30)), "they end at 29.* as under a soft cap"),
        (lambda: OddModel(after=lambda z: z + torch.arange(61)), "a bias of up to 60 is added"),
        (lambda: OddModel(before=torch.tanh), "they differ by up to"),
        (lambda: OddModel(after=lambda z: z[..., :50]), r"makes logits \(1, 8, 50\), its head gives \(1, 8, 61\)"),
    ],
)
def test_a_model_that_is_not_understood_is_refused_with_what_differs(model: Any, difference: str) -> None:
    ids = padded_batch()["input_ids"]
    odd = model()
    with pytest.raises(ValueError, match=f"^model: OddModel .*{difference}.*not understood"):
        hidden_and_head(odd, input_ids=ids)
    hidden_and_head(odd, verify=False, input_ids=ids)


def test_an_unknown_model_is_checked_once_and_left_as_it_was() -> None:
    calls = []
    model = OddModel(after=lambda z: calls.append(z.shape) or z).train()
    model.base_model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    ids = padded_batch()["input_ids"]
    for _ in range(3):
        hidden_and_head(model, input_ids=ids)
    assert calls == [(1, 8, 61)]
    assert [module.training for module in model.modules()] == modes
    assert not model.lm_head._forward_pre_hooks
    known = build("llama")
    known.forward = None
    hidden_and_head(known, input_ids=ids)


class NeedsMore(OddModel):
    def forward(self, images: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor]:
        return super().forward(images=images, **inputs)


def test_a_model_that_needs_more_than_tokens_is_checked_with_what_it_needs() -> None:
    model, ids = NeedsMore(), padded_batch()["input_ids"]
    with pytest.raises(ValueError, match="^model: NeedsMore cannot be checked on .*images.*call check_head"):
        hidden_and_head(model, input_ids=ids)
    assert check_head(model, images=torch.zeros(1), input_ids=ids) <= 1e-6


def test_a_head_of_zeros_cannot_be_checked() -> None:
    model = build("llama")
    nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(ValueError, match="every logit is 0"):
        check_head(model)


def test_a_known_configuration_name_with_another_meaning_is_caught() -> None:
    """MPT's logit_scale is not used by transformers; read as a scale it would be silently wrong."""
    sizes = {"vocab_size": 61, "d_model": 16, "n_layers": 2, "n_heads": 2, "logit_scale": 0.5}
    with pytest.raises(ValueError, match="they are 2 times these"):
        hidden_and_head(build("mpt", **sizes), input_ids=padded_batch()["input_ids"])


def test_a_transformed_head_is_caught() -> None:
    """BERT as a decoder: a dense layer and a norm between the trunk and the output embeddings."""
    with pytest.raises(ValueError, match="BertLMHeadModel makes other logits"):
        hidden_and_head(build("bert", is_decoder=True), input_ids=padded_batch()["input_ids"])


def test_a_model_without_a_usable_head_is_refused() -> None:
    model = build("llama")
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="^model: wants a causal language model"):
        hidden_and_head(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="^model: got a DataParallel"):
        hidden_and_head(nn.DataParallel(model))
    with pytest.raises(ValueError, match="^model: wants a causal language model"):
        hidden_and_head(model.model, input_ids=ids)
    with pytest.raises(ValueError, match="compile its trunk in place"):
        hidden_and_head(torch.compile(model), input_ids=ids)
    with pytest.raises(ValueError, match="^labels: the trunk takes none"):
        hidden_and_head(model, input_ids=ids, labels=ids)
    model.config.logit_scale = "inv_sqrt_d_model"
    with pytest.raises(ValueError, match="config.logit_scale wants a number"):
        hidden_and_head(model, input_ids=ids)
