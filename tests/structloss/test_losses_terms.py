"""Each term of the loss against hand-computed cases and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structloss import TreeBatch, soft_tree_edit_distance
from structloss.losses import (
    AlignmentHead,
    distance_to_right,
    pathway_loss,
    ramp,
    relabel_costs,
    structural_factors,
    structural_gap,
)
from structloss.losses.batch import first_token_hidden_index
from structloss.losses.token_weights import gather_node_values


@pytest.mark.parametrize(
    ("shape", "progress", "expected"),
    [
        ("linear", 0.0, 0.0),
        ("linear", 0.2, 0.5),
        ("linear", 0.9, 1.0),
        ("cosine", 0.2, 0.5),
        ("cosine", 0.4, 1.0),
        ("constant", 0.0, 1.0),
    ],
)
def test_ramp(shape: str, progress: float, expected: float) -> None:
    assert ramp(progress, shape=shape, end=0.4) == pytest.approx(expected)
    assert ramp(np.float32(progress), shape=shape, end=0.4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"progress": 1.1}, "progress"),
        ({"progress": float("nan")}, "progress"),
        ({"progress": 0.5, "end": 0.0}, "end"),
        ({"progress": 0.5, "shape": "step"}, "shape"),
    ],
)
def test_ramp_names_the_faulty_argument(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}:"):
        ramp(**arguments)


def test_relabel_costs_tell_text_from_kind() -> None:
    trees = TreeBatch.from_sources(["x = 1", "x = 2"])
    costs = relabel_costs(trees.select(torch.tensor([0])), trees.select(torch.tensor([1])), same_kind=0.25)[0]
    size = int(trees.sizes[0])
    assert size == int(trees.sizes[1])
    differing = [i for i in range(size) if costs[i, i] > 0]
    assert len(differing) == 1, "the trees differ in one literal"
    assert costs[differing[0], differing[0]] == 0.25


def test_gap_is_near_zero_on_the_same_code_and_marks_what_is_missing() -> None:
    full = "def f(xs):\n    total = 0\n    for x in xs:\n        if x > 3:\n            total += x\n    return total\n"
    short = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return total\n"
    teacher = TreeBatch.from_sources([full, full])
    student = TreeBatch.from_sources([full, short])
    gap = structural_gap(student, teacher)
    size = int(teacher.sizes[0])
    assert gap[0, :size].mean() < 0.01
    condition = full.encode().index(b"x > 3")
    spans = teacher.byte_span[1, :size]
    in_condition = (spans[:, 0] >= condition) & (spans[:, 1] <= condition + 5)
    assert gap[1, :size][in_condition].mean() > 0.5
    assert gap[1, :size][~in_condition].mean() < 0.2


def test_gap_is_scaled_by_confidence_and_zero_at_padding() -> None:
    teacher = TreeBatch.from_sources(["x = 1", "for a in b:\n    print(a + 1)\n"])
    student = TreeBatch.from_sources(["y(2)", "pass"])
    gap = structural_gap(student, teacher)
    halved = structural_gap(student, teacher, confidence=torch.tensor([0.5, 0.0]))
    assert torch.allclose(halved, gap * torch.tensor([[0.5], [0.0]]))
    assert gap[0].max() > 0.5
    assert (gap[0, int(teacher.sizes[0]) :] == 0).all()


def test_structural_factors_by_hand() -> None:
    gap = torch.tensor([[0.0, 1.0, 0.5, 0.9]])
    prob = torch.tensor([[0.3, 0.5, 1.0, 0.0]], requires_grad=True)
    is_code = torch.tensor([[True, True, True, False]])
    factors = structural_factors(gap, prob, is_code, strength=2.0)
    # u = 1, 1 + 2 * 1 * 0.5 = 2, 1 + 2 * 0.5 * 0 = 1; mean 4 / 3
    assert torch.allclose(factors, torch.tensor([[0.75, 1.5, 0.75, 1.0]]))
    assert not factors.requires_grad


def test_tokens_without_a_node_get_zero() -> None:
    values = gather_node_values(torch.tensor([[0.1, 0.2]]), torch.tensor([[1, -1, 0]]))
    assert torch.allclose(values, torch.tensor([[0.2, 0.0, 0.1]]))
    assert (gather_node_values(torch.zeros(1, 0), torch.tensor([[-1, -1]])) == 0).all()


# --- alignment head ---------------------------------------------------------------------------------------------


@st.composite
def trees_with_tokens(draw: st.DrawFn, rows: int = 2, kinds: int = 3) -> TreeBatch:
    """Random ordered trees whose labels are kinds and whose nodes all have a token (node j: position j + 1)."""
    labels, parents = [], []
    for _ in range(rows):
        size = draw(st.integers(1, 6))
        pre_order_parent = [-1] + [draw(st.integers(0, i)) for i in range(size - 1)]
        children: list[list[int]] = [[] for _ in range(size)]
        for node, parent in enumerate(pre_order_parent):
            if parent >= 0:
                children[parent].append(node)
        order: list[int] = []

        def visit(node: int, children: list[list[int]] = children, order: list[int] = order) -> None:
            for child in children[node]:
                visit(child, children, order)
            order.append(node)

        visit(0)
        place = {node: position for position, node in enumerate(order)}
        parents.append([place[pre_order_parent[node]] if node else -1 for node in order])
        labels.append([draw(st.integers(0, kinds - 1)) for _ in order])
    batch = TreeBatch.from_parents(labels, parents)
    batch.kind.copy_(batch.label)
    for row, size in enumerate(batch.sizes.tolist()):
        batch.token_span[row, :size, 0] = torch.arange(1, size + 1)
        batch.token_span[row, :size, 1] = torch.arange(2, size + 2)
    return batch


@given(
    student=trees_with_tokens(),
    teacher=trees_with_tokens(),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 8.0]),
)
@settings(max_examples=60, deadline=None)
def test_likelihood_is_never_above_one(student: TreeBatch, teacher: TreeBatch, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    head = AlignmentHead(4, num_kinds=3)
    hidden = torch.randn(2, 8, 4) * scale
    index = first_token_hidden_index(student)
    logits = head.kinds(hidden.gather(1, index.clamp_min(0).unsqueeze(2).expand(-1, -1, 4)))
    distance = head.negative_log_likelihood(logits, index >= 0, student, teacher)
    assert (distance >= -1e-4).all()
    assert head(hidden, student, index, teacher) >= -1e-4


@given(student=trees_with_tokens(rows=1), teacher=trees_with_tokens(rows=1), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_gradient_to_the_logits_is_the_closed_form(student: TreeBatch, teacher: TreeBatch, seed: int) -> None:
    torch.manual_seed(seed)
    head = AlignmentHead(4, num_kinds=3)
    n, m = int(student.sizes[0]), int(teacher.sizes[0])
    logits = torch.randn(1, student.label.shape[1], 4, requires_grad=True)
    has_state = first_token_hidden_index(student) >= 0
    distance = head.negative_log_likelihood(logits, has_state, student, teacher)
    distance.sum().backward()
    log_p = logits.detach().log_softmax(-1)
    costs = {
        "relabel": -log_p[:, :, teacher.kind[0].clamp_min(0)] - math.log(0.9),
        "delete": -log_p[:, :, 3],
        "insert": torch.full(teacher.kind.shape, -math.log(0.1)),
    }
    by_hand, posterior = soft_tree_edit_distance(student, teacher, **costs, return_posterior=True)
    torch.testing.assert_close(by_hand, distance.detach(), rtol=1e-5, atol=1e-5)
    kinds = torch.nn.functional.one_hot(teacher.kind[0, :m], 4).float()
    matched = posterior[0, :n, :m].float()
    target = matched @ kinds
    target[:, 3] += 1 - matched.sum(1)
    expected = logits[0, :n].softmax(-1) - target
    assert torch.allclose(logits.grad[0, :n], expected, atol=2e-5)


def test_teacher_forcing_is_classification_with_a_floor() -> None:
    """One node in both trees: the likelihood is p(kind)(1 - rho) + p(blank) rho, by hand."""
    tree = TreeBatch.from_parents([[2]], [[-1]])
    tree.kind.copy_(tree.label)
    tree.token_span[0, 0] = torch.tensor([1, 2])
    head = AlignmentHead(2, num_kinds=3, rho=0.1)
    hidden = torch.randn(1, 3, 2)
    p = head.kinds(hidden[0, 0]).softmax(-1).tolist()
    expected = -math.log(p[2] * 0.9 + p[3] * 0.1)
    value = head(hidden, tree, first_token_hidden_index(tree), tree)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_nodes_without_tokens_are_left_out() -> None:
    sources = ["def f(a):\n    return a\n"]
    with_prefix = TreeBatch.from_sources(sources, tokens=[torch.tensor([[-1, -1], [14, 20], [21, 22]]).numpy()])
    head = AlignmentHead(4, num_kinds=400)
    hidden = torch.randn(1, 3, 4, requires_grad=True)
    index = first_token_hidden_index(with_prefix)
    assert (index >= 0).sum() < with_prefix.sizes[0]
    loss = head(hidden, with_prefix, index, with_prefix)
    loss.backward()
    assert torch.isfinite(loss)
    assert (hidden.grad[0, 0] != 0).any()
    assert (hidden.grad[0, 2] == 0).all(), "no node starts after the last position"


def test_rows_that_do_not_count_have_no_gradient() -> None:
    tokens = [torch.tensor([[0, 0], [0, 1], [2, 3], [4, 5]]).numpy()] * 2
    trees = TreeBatch.from_sources(["x = 1", "y = 2"], tokens=tokens)
    head = AlignmentHead(4, num_kinds=400)
    hidden = torch.randn(2, 4, 4, requires_grad=True)
    head(hidden, trees, first_token_hidden_index(trees), trees, rows=torch.tensor([True, False])).backward()
    assert (hidden.grad[0] != 0).any()
    assert (hidden.grad[1] == 0).all()


@pytest.mark.parametrize("rho", [0.0, 1.0, float("nan")])
def test_rho_is_checked(rho: float) -> None:
    with pytest.raises(ValueError, match="^rho:"):
        AlignmentHead(4, 3, rho=rho)


# --- pathway ----------------------------------------------------------------------------------------------------


def test_pathway_by_hand() -> None:
    logp = torch.tensor([-0.1, -0.3, -0.2], dtype=torch.float64, requires_grad=True)
    loss, groups = pathway_loss(
        logp,
        torch.tensor([7, 7, 7]),
        torch.tensor([True, True, False]),
        torch.tensor([0.0, 0.0, 0.25]),
        beta=10.0,
        margin=0.5,
        margin_per_distance=2.0,
    )
    scores = [-1.0, -3.0, -2.0 + 0.5 + 0.5]
    expected = -math.log(math.exp(-1.0) + math.exp(-3.0)) + math.log(sum(map(math.exp, scores)))
    assert groups == 1
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert (logp.grad[:2] < 0).all(), "every right candidate is pulled up"
    assert logp.grad[2] > 0


def test_groups_without_both_kinds_are_skipped() -> None:
    logp = torch.tensor([-0.1, -0.3, -0.2, -0.4], requires_grad=True)
    group = torch.tensor([0, 0, 1, -1])
    passed = torch.tensor([True, True, False, True])
    loss, groups = pathway_loss(logp, group, passed, torch.zeros(4))
    loss.backward()
    assert groups == 0
    assert loss.item() == 0.0
    assert (logp.grad == 0).all()


def test_distance_to_the_nearest_right_candidate() -> None:
    right, near, far = "x = 1", "x = 2", "for a in b:\n    print(a, 1, 2, 3)\n"
    trees = TreeBatch.from_sources([right, near, far, far, near])
    group = torch.tensor([0, 0, 0, 1, -1])
    passed = torch.tensor([True, False, False, False, False])
    delta = distance_to_right(trees, group, passed)
    assert delta[0] == 0
    assert 0 < delta[1] < delta[2] <= 1
    assert delta[3] == 0, "no right candidate in its group"
    assert delta[4] == 0, "in no group"
