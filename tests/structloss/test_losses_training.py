"""The loss inside training: accumulation, autocast, checkpointing, a compiled trunk, and what it reports."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from structloss import StructureAwareLoss, StructureCollator, hidden_and_head
from structloss.trees import num_kinds
from tests.structloss.loss_examples import grouped_batch, head_for, seen_batch


@pytest.fixture(scope="module")
def student(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


def full_loss(**options: float) -> StructureAwareLoss:
    torch.manual_seed(1)
    size = {"hidden_size": 32, "num_kinds": num_kinds("python")}
    return StructureAwareLoss(alpha=1.0, lambda_align=0.3, ramp_shape="constant", **size, **options)


def gradients(student, loss, inputs, structure, **options) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Value, and the gradients of every parameter of student and loss."""
    parameters = [*student.parameters(), *loss.parameters()]
    made = hidden_and_head(student, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    output = loss(made.hidden, made.weight, structure, progress=1.0, **options)
    return output.loss.detach(), list(torch.autograd.grad(output.loss, parameters))


def test_activation_checkpointing_changes_nothing(tokenizer, student, examples, batch) -> None:
    inputs, seen = StructureCollator(tokenizer.pad_token_id)(examples), seen_batch(tokenizer, examples, batch)
    loss = full_loss()
    plain = gradients(student, loss, inputs, seen)
    checkpointed = copy.deepcopy(student).train()
    checkpointed.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(checkpointed, loss, inputs, seen), plain)


def test_the_loss_itself_can_be_checkpointed(tokenizer, examples, batch) -> None:
    seen = seen_batch(tokenizer, examples, batch, literal=True)
    hidden, weight = head_for(tokenizer, batch, dtype=torch.float32, dim=32)
    loss = full_loss()

    def value(states: torch.Tensor) -> torch.Tensor:
        return loss(states, weight, seen, progress=1.0).loss

    plain = torch.autograd.grad(value(hidden), [hidden, weight])
    again = torch.autograd.grad(checkpoint(value, hidden, use_reentrant=False), [hidden, weight])
    torch.testing.assert_close(again, plain)


def test_autocast_is_a_bfloat16_head(tokenizer, student, examples, batch) -> None:
    """Value and gradients within what bfloat16 does to them; the parameters' gradients stay float32."""
    inputs, seen = StructureCollator(tokenizer.pad_token_id)(examples), seen_batch(tokenizer, examples, batch)
    loss = full_loss()
    value, exact = gradients(student, loss, inputs, seen)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_value, rounded = gradients(student, loss, inputs, seen)
    assert rounded_value == pytest.approx(value.item(), rel=1e-2)
    assert rounded_value != value
    for got, want in zip(rounded, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 0.015 * want.norm(), "0.007 measured: two layers of bfloat16 products"


def test_a_compiled_trunk_changes_nothing(tokenizer, student, examples, batch) -> None:
    inputs, seen = StructureCollator(tokenizer.pad_token_id)(examples), seen_batch(tokenizer, examples, batch)
    loss = full_loss()
    plain = gradients(student, loss, inputs, seen)
    compiled = copy.copy(student)
    compiled.__dict__ = student.__dict__ | {"_modules": dict(student._modules)}
    counter = CompileCounterWithBackend("aot_eager")
    compiled.model = torch.compile(student.model, backend=counter, fullgraph=True)
    torch.testing.assert_close(gradients(compiled, loss, inputs, seen), plain, rtol=1e-4, atol=1e-6)
    assert counter.frame_count == 1


def test_accumulation_adds_up_with_the_steps_denominator(tokenizer, student, examples, batch) -> None:
    """L_token of three micro-batches is that of their batch, gap weights included."""
    seen = seen_batch(tokenizer, examples, batch, literal=True)
    loss = StructureAwareLoss(alpha=1.0, ramp_shape="constant")
    tokens = (batch.labels[:, 1:] != -100).sum()
    whole = gradients(student, loss, StructureCollator(tokenizer.pad_token_id)(examples), seen, denominator=tokens)
    parts = []
    for example in examples:
        inputs = StructureCollator(tokenizer.pad_token_id)([example])
        one = seen_batch(tokenizer, [example], inputs["structure"], literal=True)
        parts.append(gradients(student, loss, inputs, one, denominator=tokens))
    torch.testing.assert_close(sum(value for value, _ in parts), whole[0])
    for index, want in enumerate(whole[1]):
        torch.testing.assert_close(sum(grads[index] for _, grads in parts), want, rtol=1e-4, atol=1e-6)


# --- what it reports ------------------------------------------------------------------------------------------------


def test_diagnostics_split_the_gradient_by_term(tokenizer, examples) -> None:
    batch = grouped_batch(tokenizer)
    seen = seen_batch(tokenizer, examples, batch, literal=True)
    hidden, weight = head_for(tokenizer, batch, dtype=torch.float32, dim=32)
    loss = full_loss()
    output = loss(hidden, weight, seen, progress=1.0, diagnostics=True)
    assert {name for name in output.metrics if name.startswith("seconds_")} == {
        "seconds_gap", "seconds_token", "seconds_align",
    }  # fmt: skip
    assert all(output.metrics[name] > 0 for name in output.metrics if name.startswith("seconds_"))
    assert not any(name.startswith("gradient_norm") for name in output.metrics), "known only after the backward"
    (2.0 * output.loss).backward()

    without = StructureAwareLoss(alpha=1.0, ramp_shape="constant")(hidden, weight, seen, progress=1.0).loss
    (token,) = torch.autograd.grad(2.0 * without, hidden)
    torch.testing.assert_close(output.metrics["gradient_norm_token"], token.norm())
    torch.testing.assert_close(output.metrics["gradient_norm_align"], (hidden.grad - token).norm(), rtol=1e-4, atol=0)


def test_without_diagnostics_nothing_is_measured(tokenizer, examples, batch) -> None:
    hidden, weight = head_for(tokenizer, batch, dtype=torch.float32, dim=32)
    output = full_loss()(hidden, weight, seen_batch(tokenizer, examples, batch), progress=1.0)
    output.loss.backward()
    assert not [name for name in output.metrics if name.startswith(("seconds", "gradient"))]


def test_every_metric_is_one_number(tokenizer, examples) -> None:
    batch = grouped_batch(tokenizer)
    seen = seen_batch(tokenizer, examples, batch, literal=True)
    hidden, weight = head_for(tokenizer, batch, dtype=torch.float32, dim=32)
    output = full_loss(lambda_path=0.5)(hidden, weight, seen, progress=1.0, diagnostics=True)
    output.loss.backward()
    documented = {"token_accuracy", "code_accuracy", "gap_mean", "gap_share", "weight_max", "student_confidence"}
    assert set(output.metrics) >= documented | {"path_groups", "seconds_path"}
    assert all(value.numel() == 1 and torch.isfinite(value) for value in output.metrics.values())
    assert output.metrics["weight_max"] > 1.0
