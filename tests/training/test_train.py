"""Training: learns, stops at its budget, and a killed run continues on the same loss curve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.batches import plan_batches
from training.config import ConfigError, RunConfig
from training.jsonl import read_jsonl, write_jsonl
from training.runs import RunFolder
from training.train import imitated_traces, tokenizer_of, train_arm, training_examples
from training.trainer import DivergedError, last_complete_checkpoint

from .conftest import TINY, tiny_traces

ALONE = """
import sys
from pathlib import Path
from training.runs import RunFolder
from training.train import train_arm
run, config = RunFolder.existing(Path(sys.argv[1]))
train_arm(run, config, sys.argv[2], threads=1)
"""


def curve(run: RunFolder, arm: str) -> list[dict]:
    rows = list(read_jsonl(run.arm(arm) / "log.jsonl"))
    return [
        {key: value for key, value in row.items() if "time_share" not in key and key not in ("epoch", "seconds")}
        for row in rows
    ]


def test_training_learns_and_ends_by_its_budget(tiny_run: tuple[RunFolder, RunConfig]) -> None:
    run, config = tiny_run
    summary = train_arm(run, config, "structure_aware", threads=1)
    rows = curve(run, "structure_aware")
    assert summary["tokens"] >= config.train.tokens
    assert summary["tokens"] - config.train.tokens < 4 * config.data.max_tokens
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    logged = list(read_jsonl(run.arm("structure_aware") / "log.jsonl"))[-1]
    assert {"loss_token", "gradient_norm_token", "time_share_token", "gap_mean", "parse_time_share"} <= set(logged)
    assert 0 < logged["time_share_token"] < 1
    assert rows[-1]["tokens"] == summary["tokens"] or rows[-1]["step"] < summary["steps"]
    assert {"loss_token", "loss_align", "gap_mean", "student_confidence", "code_accuracy"} <= set(rows[-1])
    assert (run.arm("structure_aware") / "model" / "model.safetensors").is_file()
    assert not list(run.arm("structure_aware").glob("checkpoint-*"))
    assert train_arm(run, config, "structure_aware") == summary, "a finished arm is not trained again"


@pytest.mark.parametrize("arm", ["cross_entropy", "structure_aware"])
def test_a_killed_run_continues_on_the_same_curve(tmp_path: Path, arm: str) -> None:
    config = RunConfig(**TINY)
    runs = []
    for name in ("whole", "killed"):
        run = RunFolder.create(tmp_path / name, config)
        write_jsonl(run.verified_path, tiny_traces())
        runs.append(run)
    whole, killed = runs
    train_arm(whole, config, arm, threads=1)

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", ALONE, str(killed.root), arm], env=environment)
    deadline = time.monotonic() + 120
    while last_complete_checkpoint(killed.arm(arm)) is None:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed.arm(arm) / "train.json").is_file()

    summary = train_arm(killed, config, arm, threads=1)
    assert summary["resumed_from_step"] > 0
    before, after = curve(whole, arm), curve(killed, arm)
    assert [row["step"] for row in before] == [row["step"] for row in after]
    for row, again in zip(before, after, strict=True):
        # The first row after the resume averages over the steps since the checkpoint only.
        if row["step"] - config.train.log_every < summary["resumed_from_step"] < row["step"]:
            continue
        for name, value in row.items():
            assert again[name] == pytest.approx(value, rel=1e-5, abs=1e-7), (row["step"], name)


def test_a_checkpoint_without_its_end_is_not_used(tmp_path: Path) -> None:
    for step, text in ((5, "{}"), (10, '{"global_step": 1'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    found = last_complete_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-5"


def test_pathway_groups_share_a_batch(tiny_run: tuple[RunFolder, RunConfig]) -> None:
    run, config = tiny_run
    candidates = []
    for row in tiny_traces(6):
        wrong = row | {"id": row["id"] + "-wrong", "code": "    return x", "passed": False, "status": "failed"}
        candidates += [row | {"id": row["id"] + "-right"}, wrong]
    write_jsonl(run.verified_candidates_path, candidates)
    tokenizer = tokenizer_of(run, config)
    examples, units, _ = training_examples(run, config, tokenizer, with_pathways=True)
    groups = [unit for unit in units if len(unit) > 1]
    assert len(groups) == 6
    for unit in groups:
        assert len({examples[i].group_id for i in unit}) == 1
        assert {examples[i].passed for i in unit} == {True, False}
    plan = plan_batches(units, [len(e) for e in examples], batch_size=4, tokens=5000, seed=0)
    assert all(sum(i in batch for i in groups[0]) in (0, 2) for batch in plan)
    with_path = RunConfig(**(TINY | {"name": "path", "arms": {"path": {"lambda_path": 0.5}}}))
    again = RunFolder.create(run.root.with_name("path"), with_path)
    write_jsonl(again.verified_path, tiny_traces())
    write_jsonl(again.verified_candidates_path, candidates)
    train_arm(again, with_path, "path", threads=1)
    rows = curve(again, "path")
    assert max(row["path_groups"] for row in rows) >= 1
    assert all(row["loss_path"] >= 0 for row in rows)


def test_nothing_verified_is_an_error(tiny_run: tuple[RunFolder, RunConfig]) -> None:
    run, config = tiny_run
    write_jsonl(run.verified_path, [row | {"passed": False} for row in tiny_traces(3)])
    with pytest.raises(ConfigError, match="no trace passed its tests"):
        imitated_traces(run)
    with pytest.raises(ConfigError, match="no arm 'other'"):
        config.loss_of("other")


def test_a_folder_with_another_configuration_is_refused(tiny_run: tuple[RunFolder, RunConfig]) -> None:
    run, config = tiny_run
    RunFolder.create(run.root, config)
    changed = RunConfig(**(TINY | {"seed": 1}))
    with pytest.raises(ConfigError, match=r"other values of seed \(seed was 0, now 1\)"):
        RunFolder.create(run.root, changed)
    other_arm = RunConfig(**(TINY | {"arms": {"cross_entropy": TINY["arms"]["cross_entropy"], "another": {}}}))
    with pytest.raises(ConfigError, match=r"other values of arms\.another, arms\.structure_aware"):
        RunFolder.create(run.root, other_arm)
    assert json.loads(run.environment_path.read_text())["versions"]["torch"]


def test_one_process_at_a_time_works_on_a_run(tiny_run: tuple[RunFolder, RunConfig]) -> None:
    run, _ = tiny_run
    with run.lock():
        code = "import sys; from pathlib import Path; from training.runs import RunFolder; "
        code += "exec('with RunFolder(Path(sys.argv[1])).lock(): pass')"
        other = subprocess.run([sys.executable, "-c", code, str(run.root)], capture_output=True, text=True)
        assert other.returncode != 0
        assert "another process is working on" in other.stderr
    with run.lock():
        pass


def test_a_diverging_run_stops_with_a_sentence(tiny_run: tuple[RunFolder, RunConfig]) -> None:
    run, _ = tiny_run
    wild = TINY | {"train": TINY["train"] | {"learning_rate": 1e30, "optimizer": "adamw", "max_grad_norm": 1e30}}
    again = RunFolder.create(run.root.with_name("wild"), RunConfig(**wild))
    write_jsonl(again.verified_path, tiny_traces())
    with pytest.raises(DivergedError, match=r"the loss is .* at step \d+; try a lower"):
        train_arm(again, RunConfig(**wild), "cross_entropy", threads=1)
    assert not (again.arm("cross_entropy") / "train.json").is_file()
