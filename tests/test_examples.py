"""The examples of docs/ run as they stand, stay short, and train."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
TRAINING = {
    "report_to": "none",
    "logging_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-2,
    "max_steps": 24,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@pytest.fixture
def load() -> Iterator:
    sys.path.insert(0, str(EXAMPLES))

    def one(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield one
    sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("name", ["plain_loop", "transformers_trainer", "trl_sft"])
def test_the_users_own_part_is_short_and_shown(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    own = text.split("# --- the user's own ---\n")[1].split("# --- end ---")[0]
    lines = [line for line in dedent(own).splitlines() if line.strip()]
    assert 5 < len(lines) <= 15
    assert text.count("# --- end ---") == 1
    page = (EXAMPLES.parent / "integrations.md").read_text()
    blocks = [block.splitlines() for block in re.findall(r"```python\n(.*?)\n```", page, flags=re.DOTALL)]
    assert lines in [[line for line in block if line] for block in blocks], "docs/integrations.md shows this part"


def test_the_plain_loop(load) -> None:
    history = load("plain_loop").main()
    assert history[-1]["token"] < 0.5 * history[0]["token"]
    assert "gap_mean" not in history[0], "the ramp begins at 0"
    assert max(row.get("gap_mean", 0.0) for row in history) > 0.02
    assert max(row.get("weight_max", 0.0) for row in history) > 1.05


def test_transformers_trainer(load, tmp_path) -> None:
    trainer = load("transformers_trainer").main(str(tmp_path), **TRAINING)
    first, *_, last, summary = trainer.state.log_history
    assert last["loss_token"] < 0.5 * first["loss_token"]
    assert last["loss_align"] < first["loss_align"]
    assert first["gap_mean"] > 0.001, "captured before training"
    assert last["loss"] == pytest.approx(last["loss_token"] + 0.1 * last["loss_align"], abs=0.05)
    assert "train_runtime" in summary


def test_trl(load, tmp_path) -> None:
    # float32: emulated bfloat16 is slow on a CPU.
    trainer = load("trl_sft").main(str(tmp_path), **(TRAINING | {"learning_rate": 2e-2, "bf16": False}))
    first, *_, last, _ = trainer.state.log_history
    assert last["loss_token"] < 0.8 * first["loss_token"]
    assert max(row.get("gap_mean", 0.0) for row in trainer.state.log_history) > 0.02
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert len(trainer.visits) == len(trainer.train_dataset)
