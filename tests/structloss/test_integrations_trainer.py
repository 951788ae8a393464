"""The trainer mixin in transformers' Trainer and TRL's SFTTrainer: one batch or several, resumed, evaluated."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from structloss import StructureAwareLoss
from structloss.integrations import StructureLossMixin, capture
from structloss.losses import OwnCodeError
from structloss.trees import num_kinds

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))
from tiny_student import make_model, make_rows, make_tokenizer

ROWS, TOKENIZER = make_rows(8), make_tokenizer()
QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-2,
}
SIZES = {"hidden_size": 64, "num_kinds": num_kinds("python")}


class OfTransformers(StructureLossMixin, Trainer):
    pass


class OfTrl(StructureLossMixin, SFTTrainer):
    pass


def make_trainer(out, *, trl=False, loss=None, model=None, rows=ROWS, captured=True, **config):
    args = SFTConfig(str(out), **(QUIET | {"bf16": False} | config)) if trl else TrainingArguments(
        str(out), **(QUIET | config)
    )  # fmt: skip
    torch.manual_seed(0)
    loss = loss or StructureAwareLoss(alpha=2.0, reasoning_weight=0.5, ramp_shape="constant")
    trainer = (OfTrl if trl else OfTransformers)(
        model or make_model(TOKENIZER),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
        structure_loss=loss,
    )
    if captured:
        capture(trainer.model, rows, trainer.visits, trainer.data_collator)
    return trainer


def parameters(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


trainers = pytest.mark.parametrize("trl", [False, True], ids=["transformers", "trl"])


@trainers
@pytest.mark.parametrize(("rows_a_batch", "batches"), [(2, 4), (3, 3)])
def test_accumulated_batches_give_the_step_of_one_large_batch(tmp_path, trl, rows_a_batch, batches) -> None:
    """Rows have other numbers of tokens, so a mean of the batches' means would be another gradient."""
    config = {"trl": trl, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
    uneven = [row | {"reasoning": row["reasoning"] * (1 + i % 4)} for i, row in enumerate(ROWS)]
    whole = make_trainer(tmp_path, rows=uneven, per_device_train_batch_size=8, **config)
    start = parameters(whole)
    whole.train()
    parts = make_trainer(
        tmp_path,
        rows=uneven,
        per_device_train_batch_size=rows_a_batch,
        gradient_accumulation_steps=batches,
        **config,
    )
    parts.train()
    assert_equal(parameters(parts), parameters(whole), rtol=1e-4, atol=1e-5)
    moved = max((parameters(whole)[name] - start[name]).abs().max() for name in start)
    assert moved > 1e-2
    first, again = whole.state.log_history[0], parts.state.log_history[0]
    assert first["loss"] == pytest.approx(again["loss"], rel=1e-5)
    assert first["gap_mean"] > 0


@trainers
def test_checkpointing_and_loader_processes_change_nothing(tmp_path, trl) -> None:
    results = []
    for options in (
        {"gradient_checkpointing": False, "own": 0},
        {"gradient_checkpointing": True, "dataloader_num_workers": 2, "own": 1},
    ):
        config = {name: value for name, value in options.items() if name != "own"}
        trainer = make_trainer(tmp_path, trl=trl, captured=False, **config)
        trainer.train()
        results.append((parameters(trainer), trainer.state.log_history))
    assert_equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1][:-1], results[1][1][:-1], strict=True):
        assert {k: v for k, v in a.items() if "time" not in k} == {k: v for k, v in b.items() if "time" not in k}
    assert results[0][1][-2]["gap_mean"] > 0


@trainers
def test_bfloat16_autocast_is_near_float32(tmp_path, trl) -> None:
    losses = []
    for bf16 in (False, True):
        loss = StructureAwareLoss(alpha=1.0, lambda_align=0.1, ramp_shape="constant", **SIZES)
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, trl=trl, loss=loss, bf16=bf16, max_steps=6)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history[:-1]])
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert losses[1][-1] < 0.8 * losses[1][0]


@trainers
def test_an_adapter_alone_is_trained(tmp_path, trl) -> None:
    model = get_peft_model(make_model(TOKENIZER), LoraConfig(r=4, target_modules="all-linear"))
    trainer = make_trainer(tmp_path, trl=trl, model=model, max_steps=8, learning_rate=3e-2, gradient_checkpointing=True)
    before = parameters(trainer)
    trainer.train()
    changed = {name for name, value in parameters(trainer).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    log = trainer.state.log_history
    assert log[-2]["loss_token"] < log[0]["loss_token"] - 0.3


@trainers
def test_a_resumed_run_is_the_same_run(tmp_path, trl) -> None:
    def make(folder, steps):
        torch.manual_seed(0)
        loss = StructureAwareLoss(alpha=2.0, lambda_align=0.3, ramp_shape="constant", **SIZES)
        schedule = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 3}
        return make_trainer(folder, trl=trl, loss=loss, captured=False, max_steps=steps, **schedule)

    whole = make(tmp_path / "whole", 6)
    whole.train()
    make(tmp_path / "parts", 3).train()
    folder = tmp_path / "parts" / "checkpoint-3"
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3
    with np.load(folder / "visits.npz") as visits:
        assert len(visits.files) == len(ROWS)
    resumed = make(tmp_path / "parts", 6)
    resumed.train(resume_from_checkpoint=str(folder))
    assert_equal(parameters(resumed), parameters(whole))
    assert_equal(dict(resumed.structure_loss.named_parameters()), dict(whole.structure_loss.named_parameters()))
    a, b = whole.state.log_history[-2], resumed.state.log_history[-2]
    assert a["step"] == b["step"] == 6
    for name in ("loss", "loss_align", "gap_mean", "student_confidence"):
        assert a[name] == b[name], name
    assert a["gap_mean"] > 0


@trainers
def test_evaluation_is_cross_entropy_and_remembers_nothing(tmp_path, trl) -> None:
    trainer = make_trainer(tmp_path, trl=trl, captured=False, per_device_eval_batch_size=8)
    result = trainer.evaluate(Dataset.from_list(ROWS))
    inputs = trainer.data_collator(ROWS)
    with torch.no_grad():
        logits = trainer.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    labels, regions = inputs["labels"][:, 1:], inputs["structure"].regions[:, 1:]
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    weights = torch.tensor([0.0, 0.5, 1.0])[regions] * (labels != -100)
    assert result["eval_loss"] == pytest.approx(float((weights * nll).sum() / weights.sum()), rel=1e-5)
    assert len(trainer.visits) == 0
    assert "eval_token_accuracy" in trainer.state.log_history[-1]
    trainer.train()
    assert len(trainer.visits) == len(ROWS)
    assert not any(name.startswith("eval_") for name in trainer.state.log_history[-2])


def test_the_alignment_head_is_trained_and_saved(tmp_path) -> None:
    loss = StructureAwareLoss(lambda_align=1.0, ramp_shape="constant", **SIZES)
    trainer = make_trainer(tmp_path, loss=loss)
    before = loss.align.kinds.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, loss.align.kinds.weight)
    trainer.save_model(str(tmp_path / "final"))
    saved = torch.load(tmp_path / "final" / "structure_loss.pt", weights_only=True)
    assert torch.equal(saved["align.kinds.weight"], loss.align.kinds.weight)
    assert not (tmp_path / "final" / "visits.npz").exists(), "a model that is passed on holds no training data"
    trainer.args.max_steps = 6
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: .* has no visits\.npz"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "final"))


def test_the_model_still_generates_and_calls_as_before(tmp_path) -> None:
    model = make_model(TOKENIZER).eval()
    ids = torch.tensor([[5, 6, 7]])
    before, written = model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    make_trainer(tmp_path, model=model)
    assert torch.equal(model.eval()(ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), written)


def test_an_adapter_outside_of_the_layers_is_refused(tmp_path) -> None:
    model = get_peft_model(make_model(TOKENIZER), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="^model: adapter 'default' is PROMPT_TUNING"):
        make_trainer(tmp_path, model=model, captured=False)


def failing_gap(student, teacher) -> torch.Tensor:
    raise MemoryError("no room")


def test_an_error_of_a_worker_ends_the_training(tmp_path) -> None:
    trainer = make_trainer(tmp_path, captured=False)
    trainer.visits._reader.gap = failing_gap
    with pytest.raises(OwnCodeError, match="no room"):
        trainer.train()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"args": None}, "args:"),
        ({"processing_class": None}, "processing_class:"),
        ({"compute_metrics": lambda prediction: {}}, "compute_metrics:"),
        ({"compute_loss_func": lambda outputs, labels: 0.0}, "compute_loss_func:"),
        ({"args": SFTConfig("out", **(QUIET | {"bf16": False, "packing": True}))}, "args.packing"),
    ],
)
def test_the_mixin_names_the_faulty_argument(tmp_path, change, named) -> None:
    given = {
        "args": SFTConfig(str(tmp_path), **(QUIET | {"bf16": False})),
        "processing_class": TOKENIZER,
        "train_dataset": Dataset.from_list(ROWS),
        "structure_loss": StructureAwareLoss(),
    }
    with pytest.raises(ValueError, match=f"^{named}"):
        OfTrl(make_model(TOKENIZER), **(given | change))


def test_a_collator_without_structure_is_named(tmp_path) -> None:
    trainer = make_trainer(tmp_path, captured=False)
    plain = trainer.data_collator
    trainer.data_collator = lambda rows: {k: v for k, v in plain(rows).items() if k != "structure"}
    with pytest.raises(ValueError, match=r"^inputs: no 'structure'.*RowCollator"):
        trainer.train()
