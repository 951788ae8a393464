"""Wrong input to the losses, the collator and the visit cache: the message names the argument, what it got, what it
wants, and the mend."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from structloss import StructureAwareLoss, StructureBatch, StructureCollator, VisitCache, encode_example
from structloss.losses import Example
from structloss.losses.batch import first_token_hidden_index
from structloss.trees import TreeBatch, num_kinds, parse
from tests.structloss.loss_examples import head_for, make_examples

ALIGN = {"lambda_align": 1.0, "ramp_shape": "constant", "hidden_size": 8, "num_kinds": num_kinds("python")}


class Case(NamedTuple):
    tokenizer: Any
    examples: list[Example]
    batch: StructureBatch

    def collate(self, *examples: Example) -> StructureBatch:
        return StructureCollator(self.tokenizer.pad_token_id)(examples)["structure"]

    def loss(self, batch: Any = None, hidden: Any = None, denominator: float | None = None, **options: Any) -> Any:
        made, weight = head_for(self.tokenizer, self.batch, dtype=torch.float32)
        loss = StructureAwareLoss(**options)
        hidden = made if hidden is None else hidden
        return loss(hidden, weight, self.batch if batch is None else batch, progress=0.5, denominator=denominator)

    def visits(self, language: str = "python") -> VisitCache:
        visits = VisitCache(self.tokenizer, language)
        visits.update(self.examples, self.batch.labels)
        return visits


@pytest.fixture
def case(tokenizer) -> Case:
    examples = make_examples(tokenizer)
    return Case(tokenizer, examples, StructureCollator(tokenizer.pad_token_id)(examples)["structure"])


def refused(call: Callable[[], object], *parts: str) -> None:
    """A ValueError that begins with the argument and holds every part."""
    with pytest.raises(ValueError, match=f"^{re.escape(parts[0])}:") as caught:
        call()
    message = str(caught.value)
    for part in parts[1:]:
        assert part in message, (part, message)


# --- encode_example -----------------------------------------------------------------------------------------------


def test_a_tokenizer_without_offsets(case: Case) -> None:
    refused(
        lambda: encode_example(object(), [("code", "x = 1")], id="a"),
        "tokenizer", "wants a fast tokenizer", "offsets", "got a object without", "use_fast=True",
    )  # fmt: skip
    refused(lambda: VisitCache(object()), "tokenizer", "wants a fast tokenizer", "got a slow one")


def test_an_unknown_language(case: Case) -> None:
    known = "java, javascript, python"
    refused(
        lambda: encode_example(case.tokenizer, [("code", "x")], id="a", language="cobol"), "language", "'cobol'", known
    )
    refused(lambda: VisitCache(case.tokenizer, "cobol"), "language", "'cobol'", known)


def test_group_ids_without_verdicts(case: Case) -> None:
    refused(
        lambda: encode_example(case.tokenizer, [("code", "x = 1")], id="a", group_id=3),
        "passed", "example 'a' is in group 3 without a verdict", "wants True or False", "run its tests",
    )  # fmt: skip
    refused(
        lambda: replace(case.batch, group_id=torch.zeros(3, dtype=torch.int64)),
        "group_id and passed", "needs both",
    )  # fmt: skip
    refused(lambda: case.loss(lambda_path=1.0), "batch.group_id", "wants group_id and passed")


@pytest.mark.parametrize("segments", ["x = 1", [("code",)], [("code", "x", "y")]])
def test_segments_that_are_no_pairs(case: Case, segments: Any) -> None:
    refused(lambda: encode_example(case.tokenizer, segments, id="a"), "segments", "wants (region, text) pairs", "got ")


@pytest.mark.parametrize("segments", [[], [("prompt", "x")], [("prompt", "x"), ("code", "")]])
def test_an_example_without_code(case: Case, segments: Any) -> None:
    refused(
        lambda: encode_example(case.tokenizer, segments, id="a"),
        "segments", "example 'a' has no code token", "wants a ('code', text) segment", "leave the example out",
    )  # fmt: skip


# --- StructureCollator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [None, "<pad>", 1.0, True])
def test_a_padding_id_that_is_none(pad: Any) -> None:
    refused(
        lambda: StructureCollator(pad),
        "pad_token_id", "wants a token id", f"got {pad!r}", "tokenizer.pad_token = tokenizer.eos_token",
    )  # fmt: skip


def test_a_batch_of_nothing_or_of_other_things(case: Case) -> None:
    collate = StructureCollator(0)
    refused(lambda: collate([]), "examples", "wants at least one", "got none")
    refused(
        lambda: collate([case.examples[0], {"input_ids": [1]}]),
        "examples", "wants what encode_example returns", "got a dict", "remove_unused_columns=False",
    )  # fmt: skip


def test_trees_of_other_kinds(case: Case) -> None:
    first = case.examples[0]
    stale = replace(first, tree=replace(first.tree, kind_version="python-0"))
    refused(lambda: case.collate(stale), "trees", "'python-0'", "this installation has 'python-1'", "parse the sources")
    java = encode_example(case.tokenizer, [("code", "int f() { return 1; }")], id="j", language="java")
    refused(lambda: case.collate(first, java), "trees", "java-1, python-1", "make a batch for each language")


# --- StructureBatch -----------------------------------------------------------------------------------------------


def test_trees_without_spans(case: Case) -> None:
    refused(
        lambda: replace(case.batch, teacher=TreeBatch.from_trees([e.tree for e in case.examples])),
        "teacher", "no node has a token span", "TreeBatch.from_trees(trees, tokens=",
    )  # fmt: skip


@pytest.mark.parametrize("trees", [None, [], "x = 1"])
def test_a_teacher_that_is_no_batch_of_trees(case: Case, trees: Any) -> None:
    refused(
        lambda: replace(case.batch, teacher=trees),
        "teacher", f"wants a TreeBatch, got {type(trees).__name__}", "TreeBatch.from_trees",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["labels", "regions", "token_node"])
def test_arrays_of_floats(case: Case, name: str) -> None:
    values = getattr(case.batch, name).float()
    refused(lambda: replace(case.batch, **{name: values}), name, "wants integers, got torch.float32", ".long()")


def test_verdicts_that_are_numbers(case: Case) -> None:
    group = torch.zeros(3, dtype=torch.int64)
    refused(
        lambda: replace(case.batch, group_id=group, passed=torch.ones(3)),
        "passed", "wants torch.bool, got torch.float32", "passed.bool()",
    )  # fmt: skip


def test_regions_and_nodes_out_of_range(case: Case) -> None:
    refused(
        lambda: replace(case.batch, regions=case.batch.regions + 1), "regions", "wants 0 (prompt)", "values in [1, 3]"
    )
    nodes = case.batch.token_node.clone()
    size = int(case.batch.teacher.sizes[1])
    nodes[1, 0] = size
    refused(
        lambda: replace(case.batch, token_node=nodes), "token_node", f"row 1 names node {size}", f"has {size} nodes"
    )


def test_one_row_without_any_node_is_fine(case: Case) -> None:
    """An answer that is only an end of text, after a signature in the prompt: no spans, and nothing to refuse."""
    empty = encode_example(case.tokenizer, [("prompt", "def f():"), ("code", "<eos>")], id="e", code_prefix="def f():")
    batch = case.collate(empty)
    assert (batch.teacher.token_span < 0).all()
    no_tree = replace(batch, teacher=TreeBatch.from_trees([parse("", "python")]))
    assert len(no_tree) == 1


# --- StructureAwareLoss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [{"structure": 1}, []])
def test_a_batch_of_another_type(case: Case, batch: Any) -> None:
    refused(
        lambda: case.loss(batch),
        "batch", f"wants a StructureBatch, got a {type(batch).__name__}", "StructureCollator returns it as 'structure'",
    )  # fmt: skip


def test_hidden_states_of_another_shape(case: Case) -> None:
    rows, width = case.batch.labels.shape
    for hidden in (torch.zeros(width, 8), torch.zeros(rows, width + 1, 8)):
        refused(
            lambda hidden=hidden: case.loss(hidden=hidden), "hidden", f"({rows}, {width})", str(tuple(hidden.shape))
        )


def test_an_alignment_head_of_other_sizes(case: Case) -> None:
    refused(
        lambda: case.loss(**(ALIGN | {"hidden_size": 5})),
        "hidden", "has width 8", "made for 5", "the model's config.hidden_size",
    )  # fmt: skip
    highest = int(case.batch.teacher.kind.max())
    refused(
        lambda: case.loss(**(ALIGN | {"num_kinds": 3})),
        "teacher", f"has kind {highest}", "made for 3 kinds", "structloss.trees.num_kinds(language)",
    )  # fmt: skip
    refused(lambda: StructureAwareLoss(lambda_align=1.0), "lambda_align", "wants hidden_size and num_kinds")


@pytest.mark.parametrize("denominator", [0, -1.0, float("nan")])
def test_a_denominator_that_is_not_positive(case: Case, denominator: float) -> None:
    group = torch.zeros(3, dtype=torch.int64)
    batch = replace(case.batch, group_id=group, passed=torch.tensor([True, False, True]))
    for options in ({}, {"lambda_path": 1.0}):
        refused(
            lambda options=options: case.loss(batch, denominator=denominator, **options),
            "denominator", "wants a number > 0", f"got {denominator}",
        )  # fmt: skip


# --- VisitCache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda x: x[:, :3], lambda x: x[:, 0], lambda x: x[:2]])
def test_argmax_of_another_shape(case: Case, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    argmax = change(case.batch.labels)
    refused(
        lambda: VisitCache(case.tokenizer).update(case.examples, argmax),
        "argmax", "wants (B, T) of 3 examples", f"got {tuple(argmax.shape)}", "StructureLossOutput.argmax",
    )  # fmt: skip


def test_other_examples_than_the_batchs(case: Case) -> None:
    refused(
        lambda: case.visits().attach(case.batch, case.examples[:1]),
        "examples", "wants the 3 that the batch was collated from", "got 1", "the collator returns them",
    )  # fmt: skip


def test_examples_of_another_language(case: Case) -> None:
    refused(
        lambda: case.visits("java").attach(case.batch, case.examples),
        "examples", "'sample-0' is python", "this cache reads java", "VisitCache(tokenizer, 'python')",
    )  # fmt: skip


def test_the_students_tree_without_its_hidden_states(case: Case) -> None:
    refused(
        lambda: replace(case.batch, student=case.batch.teacher),
        "student and student_hidden_index", "give both",
    )  # fmt: skip
    index = first_token_hidden_index(case.batch.teacher)
    refused(
        lambda: replace(case.batch, student=case.batch.teacher, student_hidden_index=index[:, 1:]),
        "student_hidden_index", f"(B, N) = {tuple(index.shape)}", f"got {tuple(index[:, 1:].shape)}",
    )  # fmt: skip


def test_numpy_padding_ids_are_ids(case: Case) -> None:
    assert StructureCollator(np.int64(0))(case.examples)["input_ids"].shape == case.batch.labels.shape


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"gap_temperature": 0.0}, "gap_temperature"),
        ({"same_kind": 2.0}, "same_kind"),
        ({"literal": -0.1}, "literal"),
        ({"path_beta": -1.0}, "path_beta"),
        ({"path_margin": -1.0}, "path_margin"),
        ({"kd_temperature": 0.0}, "kd_temperature"),
        ({"kd_kind": "both"}, "kd_kind"),
        ({"kd_tail": "cut"}, "kd_tail"),
    ],
)
def test_numbers_out_of_range_are_refused_where_the_loss_is_made(arguments, named) -> None:
    with pytest.raises(ValueError, match=f"^{named}: wants"):
        StructureAwareLoss(**arguments)


def test_progress_wants_a_number(tokenizer, batch) -> None:
    hidden, weight = head_for(tokenizer, batch)
    with pytest.raises(ValueError, match="^progress: wants the share of training done"):
        StructureAwareLoss()(hidden, weight, batch, progress=None)


def test_an_alignment_head_remembers_what_its_kinds_mean(tokenizer, batch, tmp_path) -> None:
    hidden, weight = head_for(tokenizer, batch, dtype=torch.float32)

    def make() -> StructureAwareLoss:
        return StructureAwareLoss(lambda_align=1.0, hidden_size=8, num_kinds=400, ramp_shape="constant")

    loss = make()
    loss(hidden, weight, batch, progress=1.0)
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    loaded = make()
    loaded.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    loaded(hidden, weight, batch, progress=1.0)
    other = replace(batch, teacher=replace(batch.teacher, kind_version="python-2"))
    with pytest.raises(ValueError, match="^teacher: its kinds are of version 'python-2', but the alignment head"):
        loaded(hidden, weight, other, progress=1.0)
