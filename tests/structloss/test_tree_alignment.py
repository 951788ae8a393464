"""Tree alignment against enumeration of all mappings, and properties that hold for trees of any size."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from structloss.tree_alignment import align_trees, soft_tree_edit_distance, tree_edit_distance
from structloss.tree_alignment.reference import log_partition, log_partition_and_posterior
from structloss.trees import TreeBatch
from tests.structloss.test_tree_alignment_oracle import (
    Parents,
    all_mappings,
    chain,
    enumerate_alignment,
    mapping_cost,
    mirrored,
    padded_labels,
    random_costs,
    random_parents,
    star,
)

BACKENDS = ("cpu", "reference")
# Largest errors measured against enumeration are near 5e-15 in value and 1e-13 in posterior (at temperature 0.01).
VALUE_TOLERANCE = 1e-13
POSTERIOR_TOLERANCE = 2e-12


def tree_batch(trees: list[Parents], seed: int = 0) -> TreeBatch:
    return TreeBatch.from_parents(padded_labels(trees, seed), trees)


def small_trees(seed: int, pairs: int) -> tuple[list[Parents], list[Parents]]:
    rng = random.Random(seed)
    sizes = [(0, 0), (0, 3), (2, 0), (1, 1), (6, 6)]
    sizes += [(rng.randint(1, 6), rng.randint(1, 6)) for _ in range(pairs - len(sizes))]
    a = [random_parents(n, rng) for n, _ in sizes]
    b = [random_parents(m, rng) for _, m in sizes]
    a[4], b[4] = chain(6), star(6)
    return a, b


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [5.0, 1.0, 0.25, 0.01])
def test_agrees_with_enumeration(backend: str, temperature: float) -> None:
    """0.01 leaves the range of a plain double: w reaches 250 and 6 nodes 1500."""
    trees_a, trees_b = small_trees(1, 60)
    a, b = tree_batch(trees_a), tree_batch(trees_b, 1)
    relabel, delete, insert = random_costs(len(a), a.label.shape[1], b.label.shape[1], seed=2)
    costs = {"relabel": relabel, "delete": delete, "insert": insert}
    value, posterior = soft_tree_edit_distance(
        a, b, **costs, temperature=temperature, return_posterior=True, backend=backend
    )
    alignment = align_trees(a, b, **costs, backend=backend)
    alone = soft_tree_edit_distance(a, b, **costs, temperature=temperature, backend=backend)
    for p, (tree_a, tree_b) in enumerate(zip(trees_a, trees_b, strict=True)):
        n, m = len(tree_a), len(tree_b)
        c, d, e = relabel[p, :n, :m].numpy(), delete[p, :n].numpy(), insert[p, :m].numpy()
        soft, matched, hard = enumerate_alignment(tree_a, tree_b, c, d, e, temperature)
        scale = VALUE_TOLERANCE * max(1.0, temperature)
        assert value[p].item() == pytest.approx(soft, abs=scale)
        assert alone[p].item() == pytest.approx(soft, abs=scale)
        np.testing.assert_allclose(posterior[p, :n, :m].numpy(), matched, atol=POSTERIOR_TOLERANCE, rtol=0)
        assert posterior[p, n:].eq(0).all()
        assert posterior[p, :, m:].eq(0).all()
        assert alignment.distance[p].item() == pytest.approx(hard, abs=VALUE_TOLERANCE)
        mapping = [(i, j) for i, j in enumerate(alignment.match_a[p].tolist()) if j >= 0]
        assert mapping in list(all_mappings(tree_a, tree_b))
        assert mapping_cost(mapping, c, d, e) == pytest.approx(hard, abs=VALUE_TOLERANCE)
        assert [(i, j) for j, i in enumerate(alignment.match_b[p].tolist()) if i >= 0] == sorted(
            mapping, key=lambda match: match[1]
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_every_mapping_once(backend: str) -> None:
    """With all weights 1, exp(-value) counts mappings: an ambiguous recursion counts too many."""
    trees_a, trees_b = small_trees(3, 40)
    a, b = tree_batch(trees_a), tree_batch(trees_b)
    zero_a = torch.zeros(a.label.shape, dtype=torch.float64)
    zero_b = torch.zeros(b.label.shape, dtype=torch.float64)
    relabel = torch.zeros(len(a), a.label.shape[1], b.label.shape[1], dtype=torch.float64)
    value = soft_tree_edit_distance(a, b, relabel=relabel, delete=zero_a, insert=zero_b, backend=backend)
    counts = [len(list(all_mappings(x, y))) for x, y in zip(trees_a, trees_b, strict=True)]
    torch.testing.assert_close((-value).exp(), torch.tensor(counts, dtype=torch.float64), rtol=1e-13, atol=0)


def test_reference_is_differentiated_by_autograd() -> None:
    """The reverse pass of the reference is written out by hand; autograd of its forward pass must agree."""
    rng = random.Random(5)
    for size in (1, 2, 5, 13, 31):
        a, b = (TreeBatch.from_parents([[0] * size], [random_parents(size, rng)]) for _ in range(2))
        weight = torch.randn(size, size, dtype=torch.float64, requires_grad=True)
        left = a.leftmost[0].tolist(), b.leftmost[0].tolist()
        value, posterior = log_partition_and_posterior(*left, weight.detach())
        twin = log_partition(*left, weight)
        torch.testing.assert_close(torch.autograd.grad(twin, weight)[0], posterior, rtol=0, atol=1e-12)
        assert twin.item() == pytest.approx(value.item(), abs=1e-13)


tree_strategy = st.lists(st.integers(0, 3), max_size=24).map(
    lambda pops: parents_of(pops)  # shrinks towards fewer nodes and fewer children
)


def parents_of(pops: list[int]) -> Parents:
    parents = [-1] * len(pops)
    open_roots: list[int] = []
    for node, children in enumerate(pops):
        for _ in range(len(open_roots) if node == len(pops) - 1 else min(children, len(open_roots))):
            parents[open_roots.pop()] = node
        open_roots.append(node)
    return parents


@settings(max_examples=60, deadline=None)
@given(tree_strategy, tree_strategy, st.sampled_from([2.0, 0.4, 0.05]), st.integers(0, 1000))
def test_properties_of_random_trees(tree_a: Parents, tree_b: Parents, temperature: float, seed: int) -> None:
    n, m = len(tree_a), len(tree_b)
    a, b = tree_batch([tree_a]), tree_batch([tree_b])
    relabel, delete, insert = random_costs(1, n, m, seed)

    def soft(x: TreeBatch, y: TreeBatch, c: Tensor, d: Tensor, e: Tensor, **how: str) -> tuple[Tensor, Tensor]:
        value, posterior = soft_tree_edit_distance(
            x, y, relabel=c, delete=d, insert=e, temperature=temperature, return_posterior=True, **how
        )
        return value, posterior

    value, posterior = soft(a, b, relabel, delete, insert)
    hard = tree_edit_distance(a, b, relabel=relabel, delete=delete, insert=insert)
    close = {"rtol": 0.0, "atol": 1e-11}

    reference_value, reference_posterior = soft(a, b, relabel, delete, insert, backend="reference")
    torch.testing.assert_close(value, reference_value, **close)
    torch.testing.assert_close(posterior, reference_posterior, **close)

    swapped_value, swapped = soft(b, a, relabel.transpose(1, 2), insert, delete)
    torch.testing.assert_close(swapped_value, value, **close)
    torch.testing.assert_close(swapped.transpose(1, 2), posterior, **close)

    (mirror_a, to_a), (mirror_b, to_b) = mirrored(tree_a), mirrored(tree_b)
    index_a, index_b = torch.tensor(to_a).long(), torch.tensor(to_b).long()
    costs = torch.empty_like(relabel)
    costs[0, index_a[:, None], index_b[None, :]] = relabel[0]
    mirror_costs = (costs, torch.zeros_like(delete), torch.zeros_like(insert))
    mirror_costs[1][0, index_a], mirror_costs[2][0, index_b] = delete[0], insert[0]
    mirror_value, mirror_posterior = soft(tree_batch([mirror_a]), tree_batch([mirror_b]), *mirror_costs)
    torch.testing.assert_close(mirror_value, value, **close)
    torch.testing.assert_close(mirror_posterior[0, index_a[:, None], index_b[None, :]], posterior[0], **close)

    assert (posterior >= 0).all()
    assert (posterior.sum(1) <= 1 + 1e-11).all()
    assert (posterior.sum(2) <= 1 + 1e-11).all()
    # Between the best mapping and as many copies of it as there are mappings, 2^(n + m) at most.
    gap = (hard - value).item()
    assert -1e-11 <= gap <= temperature * (n + m) * math.log(2) + 1e-11
    flat_value, _ = soft(a, b, relabel, delete, insert, method="flattened")
    flat = tree_edit_distance(a, b, relabel=relabel, delete=delete, insert=insert, method="flattened")
    assert (flat_value <= value + 1e-11).all()
    assert (flat <= hard + 1e-11).all()


def test_flattened_is_sequence_alignment_of_preorders() -> None:
    """Three lines of Needleman and Wunsch over the nodes in pre-order."""
    rng = random.Random(11)
    for _ in range(10):
        tree_a, tree_b = random_parents(rng.randint(1, 20), rng), random_parents(rng.randint(1, 20), rng)
        a, b = tree_batch([tree_a]), tree_batch([tree_b])
        relabel, delete, insert = random_costs(1, len(tree_a), len(tree_b), rng.randrange(100))
        order_a, order_b = (sorted(range(len(t)), key=lambda i, t=t: mirror_rank(t, i)) for t in (tree_a, tree_b))
        row = [0.0, *np.cumsum(insert[0].numpy()[order_b])]
        for i in order_a:
            following = [row[0] + delete[0, i].item()]
            for y, j in enumerate(order_b):
                best = min(row[y + 1] + delete[0, i].item(), following[y] + insert[0, j].item())
                following.append(min(best, row[y] + relabel[0, i, j].item()))
            row = following
        result = align_trees(a, b, relabel=relabel, delete=delete, insert=insert, method="flattened")
        assert result.distance.item() == pytest.approx(row[-1], abs=1e-13)
        assert result.method == ("flattened",)
        pairs = [(i, j) for i, j in enumerate(result.match_a[0].tolist()) if j >= 0]
        cost = mapping_cost(pairs, relabel[0].numpy(), delete[0].numpy(), insert[0].numpy())
        assert cost == pytest.approx(row[-1], abs=1e-13)


def mirror_rank(tree: Parents, node: int) -> int:
    """Rank in pre-order: the mirrored post-order backwards."""
    return -mirrored(tree)[1][node]


def test_limit_of_temperature_is_the_hard_distance() -> None:
    rng = random.Random(2)
    trees = [random_parents(25, rng) for _ in range(8)]
    a, b = tree_batch(trees[:4]), tree_batch(trees[4:], 1)
    relabel, delete, insert = random_costs(4, 25, 25, seed=9)
    hard = align_trees(a, b, relabel=relabel, delete=delete, insert=insert)
    value, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel, delete=delete, insert=insert, temperature=1e-6, return_posterior=True
    )
    torch.testing.assert_close(value, hard.distance, rtol=0, atol=1e-5)
    matched = hard.match_a[:, :, None] == torch.arange(25)
    torch.testing.assert_close(posterior, matched.double(), rtol=0, atol=1e-5)


def test_defaults_are_unit_costs() -> None:
    """f(g, h) to f(h): one deletion; to f(g, x): one relabel; to nothing: three deletions."""
    a = TreeBatch.from_parents([[1, 2, 0]] * 4, [[2, 2, -1]] * 4)
    b = TreeBatch.from_parents([[2, 0], [1, 9, 0], [], [1, 2, 0]], [[1, -1], [2, 2, -1], [], [2, 2, -1]])
    result = align_trees(a, b)
    assert result.distance.tolist() == [1.0, 1.0, 3.0, 0.0]
    assert result.distance.dtype == torch.float32
    assert result.match_a.tolist() == [[-1, 0, 1], [0, 1, 2], [-1, -1, -1], [0, 1, 2]]
    assert result.match_b.tolist() == [[1, 2, -1], [0, 1, 2], [-1, -1, -1], [0, 1, 2]]
    assert result.method == ("exact",) * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_empty_trees(backend: str) -> None:
    nothing = TreeBatch.from_parents([], [])
    assert soft_tree_edit_distance(nothing, nothing, backend=backend).shape == (0,)
    assert align_trees(nothing, nothing, backend=backend).method == ()
    none, three = TreeBatch.from_parents([[]], [[]]), TreeBatch.from_parents([[1, 1, 1]], [[2, 2, -1]])
    insert = torch.tensor([[0.5, 1.0, 2.0]], requires_grad=True)
    value, posterior = soft_tree_edit_distance(none, three, insert=insert, return_posterior=True, backend=backend)
    assert value.item() == 3.5
    assert posterior.shape == (1, 0, 3)
    assert torch.autograd.grad(value, insert)[0].tolist() == [[1.0, 1.0, 1.0]]
    assert soft_tree_edit_distance(none, none, backend=backend).item() == 0.0


def test_nothing_can_be_matched() -> None:
    """Z = 1: the value is the cost of deleting and inserting everything."""
    a, b = tree_batch([chain(5)]), tree_batch([star(7)])
    relabel = torch.full((1, 5, 7), math.inf)
    value, posterior = soft_tree_edit_distance(a, b, relabel=relabel, return_posterior=True)
    assert value.item() == 12.0
    assert posterior.eq(0).all()
    assert tree_edit_distance(a, b, relabel=relabel).item() == 12.0
