"""The data set: rows, splits, traces, the command line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from training.kata import OPERATIONS, make_kata, teacher_trace
from training.kata.__main__ import main
from training.kata.dataset import KataData, fingerprint, is_held_out
from training.kata.execution import load, passes
from training.kata.frames import FRAMES, HARD_FAMILIES
from training.kata.problems import Shape, rebuild
from training.kata.report import copy_nearest

SPLITS = ("train", "validation", "test_unseen", "test_composition")


@pytest.fixture(scope="module")
def data() -> KataData:
    return make_kata(2500, 30, 60, seed=0)


def test_sizes_and_rows(data: KataData) -> None:
    assert {split: len(rows) for split, rows in data.problems.items()} == dict(
        zip(SPLITS, (2500, 30, 60, 60), strict=True)
    )
    rows = [row for rows in data.problems.values() for row in rows]
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert json.loads(json.dumps(row)) == row
        sentence, signature = row["prompt"].split("\n")
        assert sentence.endswith(".")
        assert row["code_prefix"] == signature + "\n"
        assert row["entry_point"] == "f"
        assert len(row["tests"]) >= 10
        assert passes(row["code_prefix"] + row["reference"], row["tests"])


def test_every_structure_passes_every_test(data: KataData) -> None:
    for split in SPLITS[1:]:
        for row in data.problems[split]:
            for code in rebuild(row).bodies.values():
                assert passes(row["code_prefix"] + code, row["tests"]), (row["id"], code)


def test_no_two_problems_share_sentence_code_or_meaning(data: KataData) -> None:
    rows = [row for rows in data.problems.values() for row in rows]
    for key in ("prompt", "reference"):
        values = [(row["code_prefix"], row[key]) for row in rows]
        assert len(set(values)) == len(values), key
    meanings = [fingerprint(rebuild(row)) for row in rows]
    assert len(set(meanings)) == len(meanings)


def test_hardly_any_training_program_passes_a_test_problem(data: KataData) -> None:
    """Tens of thousands of pairs, by running them: one pair that agrees by chance was seen, ten before the tests
    looked at other parameter values and at rare results."""
    train: dict[str, list] = {}
    for row in data.problems["train"]:
        train.setdefault(row["code_prefix"], []).append(load(row["code_prefix"] + row["reference"]))
    pairs = alike = 0
    for row in data.problems["test_unseen"] + data.problems["test_composition"]:
        for call in train.get(row["code_prefix"], []):
            pairs += 1
            alike += all(call(test["args"]) == test["expected"] for test in row["tests"])
    assert pairs > 40_000
    assert alike <= 3


def test_unseen_problems_have_shapes_of_training(data: KataData) -> None:
    shapes = {row["shape"] for row in data.problems["train"]}
    for split in ("test_unseen", "validation"):
        assert {row["shape"] for row in data.problems[split]} <= shapes


def test_composition_combines_what_training_never_combines(data: KataData) -> None:
    trained = [Shape.parse(row["shape"]) for row in data.problems["train"]]
    pairs = {pair for shape in trained for pair in shape.pairs()}
    operations = {operation.name for shape in trained for operation in shape.operations}
    families = Counter()
    for row in data.problems["test_composition"]:
        shape = Shape.parse(row["shape"])
        assert set(shape.pairs()) - pairs
        assert {operation.name for operation in shape.operations} <= operations
        families[row["family"]] += 1
    assert len(families) == 7
    assert operations == set(OPERATIONS)


def test_harder_families_are_a_quarter_to_a_third(data: KataData) -> None:
    hard = sum(row["family"] in HARD_FAMILIES for row in data.problems["train"])
    assert 0.25 <= hard / 2500 <= 0.4
    assert {Shape.parse(row["shape"]).frame for row in data.problems["train"]} == set(FRAMES)


def test_same_seed_same_data_and_fixed_test_splits() -> None:
    first, again, more, other = (
        make_kata(40, 5, 8, seed=1),
        make_kata(40, 5, 8, seed=1),
        make_kata(60, 9, 8, seed=1),
        make_kata(40, 5, 8, seed=2),
    )
    assert first == again
    for split in ("test_unseen", "test_composition"):
        assert first.problems[split] == more.problems[split]
    assert first.problems["test_unseen"] != other.problems["test_unseen"]
    assert is_held_out(Shape.parse(first.problems["test_composition"][0]["shape"]), 1)


def test_traces(data: KataData) -> None:
    owners = {row["id"]: row for split in ("train", "validation") for row in data.problems[split]}
    assert [trace["problem_id"] for trace in data.traces] == list(owners)
    assert all(trace["passed"] is True for trace in data.traces)
    structures = Counter(trace["reasoning"].split(".")[0] for trace in data.traces)
    assert len(structures) >= 7
    trace = data.traces[0]
    assert set(trace) == {"id", "problem_id", "prompt", "code_prefix", "reasoning", "code", "teacher", "passed"}
    row = owners[trace["problem_id"]]
    assert {teacher_trace(row, seed)["code"] for seed in range(30)} == set(rebuild(row).bodies.values())


def test_several_traces_a_problem() -> None:
    data = make_kata(12, 2, 2, seed=4, traces_per_problem=3)
    assert len(data.traces) == 3 * 14
    assert len({trace["id"] for trace in data.traces}) == 42


def test_copying_the_nearest_training_program_is_hopeless(data: KataData) -> None:
    for split in ("test_unseen", "test_composition"):
        assert copy_nearest(data.problems[split], data.problems["train"]) < 0.1 * 60
    # The baseline itself works: it finds a problem that is there.
    assert copy_nearest(data.problems["train"][:20], data.problems["train"]) == 20


@pytest.mark.parametrize(
    ("numbers", "named"),
    [((7, 6, 2), "num_train"), ((7, 2, 6), "num_train"), ((5, 2, 2, 0, 0), "traces_per_problem")],
)
def test_wrong_arguments_are_named(numbers: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_kata(*numbers)


def test_command_line_writes_rows_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-train", "30", "--num-validation", "4", "--num-test", "6", "--out", str(tmp_path)]
    main(sizes)
    problems = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    traces = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    assert (len(problems), len(traces)) == (46, 34)
    main([*sizes, "--report", "--kill-sample", "5"])
    assert json.loads((tmp_path / "report.json").read_text())["kill_rate"]["problems"] == 5
    assert "| distinct shapes |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([])
