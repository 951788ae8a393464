"""The CPU kernels beyond their agreement with the reference: instruction sets, threads, exactness, large trees."""

from __future__ import annotations

import os
import random
import signal

import pytest
import torch

from structloss.tree_alignment import align_trees, cpu, soft_tree_edit_distance, tree_edit_distance
from structloss.trees import TreeBatch
from tests.structloss.test_tree_alignment_oracle import random_costs, random_parents

pytestmark = pytest.mark.skipif(cpu.import_error is not None, reason="structloss._C was not built")

SIZES = (0, 1, 2, 7, 8, 9, 31, 33, 64, 65, 97, 150)


def batches(seed: int) -> tuple[TreeBatch, TreeBatch]:
    rng = random.Random(seed)
    trees = []
    for sizes in (SIZES, rng.sample(SIZES, len(SIZES))):
        parents = [random_parents(size, rng) if size else [] for size in sizes]
        labels = [[rng.randrange(5) for _ in tree] for tree in parents]
        trees.append(TreeBatch.from_parents(labels, parents))
    return trees[0], trees[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 0.01])
def test_every_instruction_set_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, temperature: float
) -> None:
    a, b = batches(0)
    relabel, delete, insert = (x.to(dtype) for x in random_costs(len(a), a.label.shape[1], b.label.shape[1], 1))
    costs = {"relabel": relabel, "delete": delete, "insert": insert}
    results = {}
    for name in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("STRUCTLOSS_CPU", name)
        try:
            soft = soft_tree_edit_distance(a, b, **costs, temperature=temperature, return_posterior=True)
        except ValueError as error:
            if "STRUCTLOSS_CPU" not in str(error):
                raise
            continue
        hard = align_trees(a, b, **costs)
        results[name] = (*soft, hard.distance, hard.match_a, tree_edit_distance(a, b))
    if len(results) < 2:
        pytest.skip("this processor has no second instruction set")
    expected = results.pop("baseline")
    for name, result in results.items():
        for got, wanted in zip(result, expected, strict=True):
            assert torch.equal(got, wanted), name


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = batches(0)
    monkeypatch.setenv("STRUCTLOSS_CPU", "sse9")
    with pytest.raises(ValueError, match=r"STRUCTLOSS_CPU=sse9.*baseline"):
        tree_edit_distance(a, b)


def test_threads_do_not_change_a_bit() -> None:
    a, b = batches(1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((*soft_tree_edit_distance(a, b, temperature=0.3, return_posterior=True),))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_aligns_without_the_threads_of_its_parent() -> None:
    a, b = batches(2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        costs = torch.ones(len(SIZES), 150, 150)  # torch itself must run nothing in parallel in the child
        tree_edit_distance(a, b, relabel=costs)  # the parent's threads exist from here on
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that waits for threads that it does not have
            os._exit(0 if tree_edit_distance(a, b, relabel=costs).isfinite().all() else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("scale", [1.0, 2.0**-10, 1.0 / 3.0, 0.7e-3, 1e6])
def test_hard_distances_are_exact_in_float_and_in_double(scale: float) -> None:
    """Multiples of 2^-10 run in float32, other costs in float64; both agree with the reference to the last bits."""
    a, b = batches(2)
    relabel = (a.label[:, :, None] != b.label[:, None, :]).double() * scale
    delete = torch.full(a.label.shape, scale, dtype=torch.float64)
    insert = torch.full(b.label.shape, scale, dtype=torch.float64)
    costs = {"relabel": relabel, "delete": delete, "insert": insert}
    unit = tree_edit_distance(a, b, backend="reference").double()
    got = tree_edit_distance(a, b, **costs, backend="cpu")
    torch.testing.assert_close(got, unit * scale, rtol=1e-13, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.25, 0.05])
def test_swapping_the_trees_transposes_the_posterior(temperature: float) -> None:
    """The smaller tree gives the rows, so one of the two calls swaps inside."""
    a, b = batches(3)
    relabel, delete, insert = random_costs(len(a), a.label.shape[1], b.label.shape[1], 2)
    value, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel, delete=delete, insert=insert, temperature=temperature, return_posterior=True
    )
    other, transposed = soft_tree_edit_distance(
        b,
        a,
        relabel=relabel.transpose(1, 2),
        delete=insert,
        insert=delete,
        temperature=temperature,
        return_posterior=True,
    )
    torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(transposed.transpose(1, 2), posterior, rtol=1e-10, atol=1e-12)


def test_trees_whose_columns_are_not_stored_agree_with_those_that_are() -> None:
    """A bushy pair beyond the stored size against the same pair inside a forest that forbids the rest."""
    rng = random.Random(5)
    large = [random_parents(700, rng)]
    labels = [[rng.randrange(6) for _ in large[0]]]
    a = TreeBatch.from_parents(labels, large)
    value, posterior = soft_tree_edit_distance(a, a, temperature=0.5, return_posterior=True)
    assert torch.isfinite(value).all()
    assert posterior.sum(2).max() <= 1 + 1e-6
    torch.testing.assert_close(posterior, posterior.transpose(1, 2), rtol=1e-4, atol=1e-6)
    value_only = soft_tree_edit_distance(a, a, temperature=0.5)
    torch.testing.assert_close(value_only, value, rtol=1e-6, atol=1e-4)


def chain(size: int) -> list[int]:
    return [*range(1, size), -1]


def where_mass_lies(case: str, rng: random.Random) -> tuple[list[int], list[int], torch.Tensor]:
    """Two trees and relabel costs that gain nothing over the first nodes and much over the rest, or in a corner."""
    if case == "far from the diagonal":
        relabel = torch.full((1, 110, 110), 2.0, dtype=torch.float64)
        relabel[0].diagonal()[50:] = 0.0
        return chain(110), chain(110), relabel
    if case == "in a corner":
        relabel = torch.full((1, 50, 53), 2.0, dtype=torch.float64)
        relabel[0, :20, 5:] = 0.5 * torch.rand(20, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return chain(50), chain(53), relabel
    relabel = torch.full((1, 28, 45), 2.0, dtype=torch.float64)
    index = torch.arange(8, 28)
    relabel[0, index, index] = 0.0
    return random_parents(28, rng), chain(45), relabel


@pytest.mark.parametrize("temperature", [0.1, 0.05, 0.02, 2 / 140])
@pytest.mark.parametrize("case", ["far from the diagonal", "in a corner", *(f"empty forests {k}" for k in (1, 47, 87))])
def test_what_shrinks_to_nothing_is_noticed(case: str, temperature: float) -> None:
    """Early forests underflow; without the certificate the result looks sound and is not."""
    first, second, relabel = where_mass_lies(case, random.Random(int(case.split()[-1]) if "empty" in case else 0))
    a, b = (TreeBatch.from_parents([[0] * len(tree)], [tree]) for tree in (first, second))
    for x, y, costs in ((a, b, relabel), (b, a, relabel.transpose(1, 2))):
        value, posterior = soft_tree_edit_distance(
            x, y, relabel=costs, temperature=temperature, return_posterior=True, backend="cpu"
        )
        expected, matched = soft_tree_edit_distance(
            x, y, relabel=costs, temperature=temperature, return_posterior=True, backend="reference"
        )
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(posterior, matched, rtol=0, atol=1e-9)
