"""Tree alignment where a plain double would overflow, and for sizes that recursion would not survive."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from structloss.tree_alignment import align_trees, reference, soft_tree_edit_distance, tree_edit_distance
from structloss.trees import TreeBatch
from tests.structloss.test_tree_alignment_oracle import (
    Parents,
    chain,
    log_partition,
    padded_labels,
    random_parents,
    star,
)


def code_like_parents(size: int, rng: random.Random) -> Parents:
    """Bushy and shallow as syntax trees are."""
    parents = [-1] * size
    open_roots: list[int] = []
    for node in range(size):
        last = node == size - 1
        children = len(open_roots) if last else min(len(open_roots), rng.choice((0, 0, 0, 1, 2, 2, 3)))
        for _ in range(children):
            parents[open_roots.pop()] = node
        open_roots.append(node)
    return parents


def check_against_log_domain(
    tree_a: Parents, tree_b: Parents, relabel: torch.Tensor, temperature: float, tolerance: float
) -> torch.Tensor:
    """Value against the log-domain oracle; posterior by its directional derivative, along random directions."""
    a, b = (TreeBatch.from_parents([[0] * len(t)], [t]) for t in (tree_a, tree_b))
    value, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel[None], temperature=temperature, return_posterior=True
    )
    alone = soft_tree_edit_distance(a, b, relabel=relabel[None], temperature=temperature)
    log_weight = (2.0 - relabel.numpy()) / temperature
    base = len(tree_a) + len(tree_b)
    expected = base - temperature * log_partition(tree_a, tree_b, log_weight)
    assert torch.isfinite(posterior).all()
    assert value.item() == pytest.approx(expected, abs=tolerance)
    assert alone.item() == pytest.approx(expected, abs=tolerance)
    assert posterior.sum(1).max() <= 1 + 1e-9
    direction = np.random.default_rng(0).normal(size=log_weight.shape)
    step = 1e-4
    slope = (
        log_partition(tree_a, tree_b, log_weight + step * direction)
        - log_partition(tree_a, tree_b, log_weight - step * direction)
    ) / (2 * step)
    assert (posterior[0].numpy() * direction).sum() == pytest.approx(slope, abs=2e-5)
    return posterior[0]


def unit_relabel(tree_a: Parents, tree_b: Parents, seed: int, kinds: int = 20) -> torch.Tensor:
    x, y = (torch.tensor(padded_labels([t], s, kinds)[0]) for t, s in ((tree_a, seed), (tree_b, seed + 1)))
    return (x[:, None] != y[None, :]).double()


def test_identical_trees_of_400_nodes_at_temperature_a_tenth() -> None:
    """log Z is near 8 000: far beyond any double, and the posterior is near the identity."""
    tree = code_like_parents(400, random.Random(0))
    labels = torch.arange(400)
    relabel = (labels[:, None] != labels[None, :]).double()
    posterior = check_against_log_domain(tree, tree, relabel, 0.1, tolerance=1e-9)
    assert posterior.diagonal().min() > 0.99


@pytest.mark.parametrize("temperature", [0.5, 0.25, 0.15])
def test_first_guess_of_the_range_is_too_low(temperature: float) -> None:
    """Identical trees have the largest log Z that there is: the forward pass overflows and is run again."""
    tree = code_like_parents(300, random.Random(7))
    a = TreeBatch.from_parents([list(range(300))], [tree])
    value, posterior = soft_tree_edit_distance(a, a, temperature=temperature, return_posterior=True)
    alone = soft_tree_edit_distance(a, a, temperature=temperature)
    relabel = (a.label[0, :, None] != a.label[0, None, :]).numpy()
    expected = 600 - temperature * log_partition(tree, tree, (2.0 - relabel) / temperature)
    assert value.item() == pytest.approx(expected, abs=1e-5)  # float32 out
    assert alone.item() == pytest.approx(expected, abs=1e-5)
    assert posterior[0].diagonal().min() > 0.5
    assert posterior.sum(2).max() <= 1 + 1e-6


@pytest.mark.parametrize("free", [40, 46, 49, 51, 53, 55, 60])
def test_mass_that_underflows_on_the_way(free: int) -> None:
    """Nothing is gained over the first nodes and much over the rest: on a plain double the early forests shrink to
    denormals, with a result that looks sound and has few right digits. `free` walks across that border."""
    size = free + 200
    relabel = torch.full((1, size, size), 2.0, dtype=torch.float64)
    index = torch.arange(free, size)
    relabel[0, index, index] = 0.0
    a = TreeBatch.from_parents([[0] * size], [chain(size)])
    how = {"relabel": relabel, "temperature": 0.1, "return_posterior": True}
    value, posterior = soft_tree_edit_distance(a, a, **how)
    expected, twin = soft_tree_edit_distance(a, a, **how, backend="reference")
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    torch.testing.assert_close(posterior, twin, rtol=0, atol=1e-10)


def test_rows_that_do_not_fit_are_computed_again() -> None:
    """One way round the reverse pass would keep more rows than it may; the swapped pair keeps a single one."""
    tree, line = code_like_parents(1200, random.Random(8)), chain(5000)
    a, b = TreeBatch.from_parents([[0] * 1200], [tree]), TreeBatch.from_parents([[0] * 5000], [line])
    relabel = 2 * torch.rand(1, 1200, 5000, generator=torch.Generator().manual_seed(3))
    value, posterior = soft_tree_edit_distance(a, b, relabel=relabel, return_posterior=True)
    expected, twin = soft_tree_edit_distance(b, a, relabel=relabel.transpose(1, 2), return_posterior=True)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(posterior, twin.transpose(1, 2), rtol=0, atol=1e-6)


def test_50_against_400_nodes_at_temperature_a_tenth() -> None:
    rng = random.Random(1)
    small, large = code_like_parents(50, rng), code_like_parents(400, rng)
    relabel = unit_relabel(small, large, seed=3)
    check_against_log_domain(small, large, relabel, 0.1, tolerance=1e-9)
    check_against_log_domain(large, small, relabel.T.contiguous(), 0.1, tolerance=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1, 0.02, 1e-3, 1e-5])
def test_every_temperature_against_the_log_domain(temperature: float) -> None:
    """On the way the choice goes from a safe tilt to a certified one to numbers with an exponent of their own."""
    rng = random.Random(2)
    tree_a, tree_b = code_like_parents(90, rng), code_like_parents(70, rng)
    a, b = (TreeBatch.from_parents([[0] * len(t)], [t]) for t in (tree_a, tree_b))
    # Continuous costs: with ties, differences of order 1e-16 in a weight of 1e5 would choose between mappings.
    relabel = unit_relabel(tree_a, tree_b, seed=4) + 0.3 * torch.rand(
        90, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    value, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel[None], temperature=temperature, return_posterior=True
    )
    expected, twin = soft_tree_edit_distance(
        a, b, relabel=relabel[None], temperature=temperature, return_posterior=True, backend="reference"
    )
    assert value.item() == pytest.approx(expected.item(), abs=1e-11)
    # The log domain itself loses |log Z| * 2^-52 a step.
    torch.testing.assert_close(posterior, twin, rtol=0, atol=1e-12 + 1e-10 * min(1.0, 0.01 / temperature))


@pytest.mark.parametrize("temperature", [0.25, 0.1, 0.02])
@pytest.mark.parametrize("swap", [False, True])
def test_weight_far_from_the_diagonal(temperature: float, swap: bool) -> None:
    """All matches lie in a corner of the table, so no tilt fits; saturation would pass for a result here."""
    size, block = 300, 120
    relabel = torch.full((1, size, size), 2.0, dtype=torch.float64)
    relabel[0, :block, -block:] = torch.rand(
        block, block, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    if swap:
        relabel = relabel.transpose(1, 2).contiguous()
    for tree in (chain(size), star(size)):
        a = TreeBatch.from_parents([[0] * size], [tree])
        how = {"relabel": relabel, "temperature": temperature, "return_posterior": True}
        value, posterior = soft_tree_edit_distance(a, a, **how)
        expected, twin = soft_tree_edit_distance(a, a, **how, backend="reference")
        assert value.item() == pytest.approx(expected.item(), abs=1e-10)
        torch.testing.assert_close(posterior, twin, rtol=0, atol=1e-10)


def test_huge_and_nearly_forbidden_costs() -> None:
    """A relabel cost of 1e12 behaves as infinity does; deletion at 1e6 forces every match that there is."""
    tree = random_parents(20, random.Random(4))
    a = TreeBatch.from_parents([[0] * 20], [tree])
    relabel = torch.rand(1, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    relabel[0, ::3] = 1e12
    forbidden = relabel.clone()
    forbidden[0, ::3] = math.inf
    value, posterior = soft_tree_edit_distance(a, a, relabel=relabel, temperature=0.1, return_posterior=True)
    expected, twin = soft_tree_edit_distance(a, a, relabel=forbidden, temperature=0.1, return_posterior=True)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(posterior, twin, rtol=0, atol=1e-12)
    dear = torch.full((1, 20), 1e6, dtype=torch.float64)
    relabel = torch.rand(1, 20, 20, dtype=torch.float64)
    value, posterior = soft_tree_edit_distance(a, a, relabel=relabel, delete=dear, insert=dear, return_posterior=True)
    torch.testing.assert_close(posterior[0], torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-12)
    assert value.item() == pytest.approx(relabel[0].diagonal().sum().item(), abs=1e-8)


def test_chains_of_5000_nodes() -> None:
    """Without a saving by matching, every mapping weighs the same and there are (n + m choose n) of them."""
    n, m = 5000, 400
    a, b = TreeBatch.from_parents([[0] * n], [chain(n)]), TreeBatch.from_parents([[0] * m], [chain(m)])
    relabel = torch.full((1, n, m), 2.0)
    value, posterior = soft_tree_edit_distance(a, b, relabel=relabel, return_posterior=True)
    count = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
    assert value.item() == pytest.approx(n + m - count, rel=1e-6)
    # Of the positions in the merged order, a node of the short chain is matched with probability n / (n + m).
    assert posterior.sum(1).mean().item() == pytest.approx(n / (n + m), abs=1e-3)
    long = TreeBatch.from_parents([list(range(n))], [chain(n)])
    result = align_trees(long, long)
    assert result.distance.item() == 0.0
    assert torch.equal(result.match_a[0], torch.arange(n))


def test_stars_of_5000_nodes() -> None:
    """Leaves align in order, 2 * (a + b choose a) times (roots matched or not), and a root may match one leaf."""
    n, m = 5000, 300
    a, b = TreeBatch.from_parents([[0] * n], [star(n)]), TreeBatch.from_parents([[0] * m], [star(m)])
    relabel = torch.full((1, n, m), 2.0, dtype=torch.float64)
    value, posterior = soft_tree_edit_distance(a, b, relabel=relabel, return_posterior=True)
    count = math.lgamma(n + m - 1) - math.lgamma(n) - math.lgamma(m) + math.log(2)
    assert value.item() == pytest.approx(n + m - count, abs=1e-8)
    assert posterior[0, -1, -1].item() == pytest.approx(0.5, abs=1e-9)
    assert tree_edit_distance(a, b).item() == n - m


def caterpillar(size: int) -> tuple[Parents, Parents]:
    """A spine with one leaf a joint, on the right side and on the left: cheap one way round, dear the other."""
    right: Parents = [1]
    for node in range(1, size - 1):
        right.append(node + 1 if node % 2 == 0 else node + 2)
    right[-1] = size - 1
    left = [-1] * size
    joints = size // 2
    for k in range(joints):
        left[k] = size - 1 - k
    for node in range(joints, size - 1):
        left[node] = node + 1
    return [*right, -1], left


def test_the_cheaper_side_is_chosen() -> None:
    """The left-path and right-path costs of a caterpillar differ by two orders; its mirror image costs the same."""
    _, left = caterpillar(401)
    leftmost = TreeBatch.from_parents([[0] * 401], [left]).leftmost[0].tolist()
    cells = reference.exact_cells(leftmost, leftmost)
    assert cells < 1000**2
    a = TreeBatch.from_parents([[0] * 401], [left])
    assert tree_edit_distance(a, a, max_cells=cells).item() == 0.0
    with pytest.raises(ValueError, match=f"needs {cells} cells"):
        tree_edit_distance(a, a, max_cells=cells - 1)


def test_auto_flattens_only_what_is_too_large() -> None:
    rng = random.Random(6)
    trees = [random_parents(size, rng) for size in (5, 60, 8)]
    a = TreeBatch.from_parents(padded_labels(trees, 0), trees)
    b = TreeBatch.from_parents(padded_labels(trees, 1), trees)
    result = align_trees(a, b, method="auto", max_cells=2000)
    assert result.method == ("exact", "flattened", "exact")
    exact, flat = align_trees(a, b), align_trees(a, b, method="flattened")
    assert result.distance.tolist() == [exact.distance[0], flat.distance[1], exact.distance[2]]
    assert (flat.distance <= exact.distance).all()
    assert align_trees(a, b, method="auto").method == ("exact",) * 3
    with pytest.raises(ValueError, match="pair 1"):
        tree_edit_distance(a, b, max_cells=2000)
