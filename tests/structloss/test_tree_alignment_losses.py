"""Divergence, mapping likelihood and tree likelihood: by hand, by enumeration of all mappings, and their gradients."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from structloss import TreeBatch, align_trees, mapping_nll, soft_tree_divergence, soft_tree_edit_distance, tree_nll
from tests.structloss.test_tree_alignment_oracle import (
    Parents,
    all_mappings,
    chain,
    enumerate_alignment,
    mapping_cost,
    padded_labels,
    random_costs,
    random_parents,
)

SIZES = [(5, 4), (1, 1), (0, 3), (4, 5), (2, 0), (5, 5)]
KINDS = 3


def some_trees(seed: int = 0) -> tuple[list[Parents], list[Parents], TreeBatch, TreeBatch]:
    rng = random.Random(seed)
    trees = [[random_parents(size[k], rng) for size in SIZES] for k in (0, 1)]
    batches = [
        TreeBatch.from_parents(padded_labels(x, seed + k), x, kinds=padded_labels(x, seed + k, KINDS))
        for k, x in enumerate(trees)
    ]
    return trees[0], trees[1], batches[0], batches[1]


def enumerated(
    a: list[Parents], b: list[Parents], relabel: Tensor, delete: Tensor, insert: Tensor, temperature: Tensor
) -> Tensor:
    values = []
    for p, (x, y) in enumerate(zip(a, b, strict=True)):
        n, m = len(x), len(y)
        costs = relabel[p, :n, :m].numpy(), delete[p, :n].numpy(), insert[p, :m].numpy()
        values.append(enumerate_alignment(x, y, *costs, temperature[p].item())[0])
    return torch.tensor(values, dtype=torch.float64)


def temperatures(count: int = len(SIZES)) -> Tensor:
    return torch.linspace(0.3, 1.2, count, dtype=torch.float64)


def vectors(tree: TreeBatch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*tree.label.shape, 3, generator=generator, dtype=torch.float64)


def squared(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, :, None] - y[:, None]).square().sum(3)


def test_divergence_by_hand() -> None:
    """One node against one: Z is 1 + e^2 where the labels agree and 1 + e where not; the costs of the nodes cancel."""
    a = TreeBatch.from_parents([[7], [7], []], [[-1], [-1], []])
    b = TreeBatch.from_parents([[7], [8], [7]], [[-1], [-1], [-1]])
    same, other = math.log1p(math.exp(2)), math.log1p(math.exp(1))
    expected = torch.tensor([0.0, same - other, same / 2])
    torch.testing.assert_close(soft_tree_divergence(a, b), expected)
    assert soft_tree_divergence(a, a).tolist() == [0.0, 0.0, 0.0]


def test_divergence_against_enumeration() -> None:
    trees_a, trees_b, a, b = some_trees()
    relabel, delete, insert = random_costs(len(a), a.label.shape[1], b.label.shape[1], seed=1)
    own_a = random_costs(len(a), a.label.shape[1], a.label.shape[1], seed=2)[0]
    own_b = random_costs(len(b), b.label.shape[1], b.label.shape[1], seed=3)[0]
    warm = temperatures()
    value = soft_tree_divergence(a, b, relabel=(relabel, own_a, own_b), delete=delete, insert=insert, temperature=warm)
    between = enumerated(trees_a, trees_b, relabel, delete, insert, warm)
    within_a = enumerated(trees_a, trees_a, own_a, delete, delete, warm)
    within_b = enumerated(trees_b, trees_b, own_b, insert, insert, warm)
    torch.testing.assert_close(value, between - within_a / 2 - within_b / 2, rtol=0, atol=1e-13)


@pytest.mark.parametrize("temperature", [2.0, 0.5, 0.1])
def test_divergence_is_zero_on_itself_and_not_negative(temperature: float) -> None:
    """The costs are kernels here. A cost that is none can be negative: the last case says so, as the docstring does."""
    _, _, a, b = some_trees(3)
    x, y = vectors(a, 0), vectors(b, 1)
    delete, insert = x.square().sum(2), y.square().sum(2)
    kernel = {"delete": delete, "insert": insert, "temperature": temperature}
    value = soft_tree_divergence(a, b, relabel=(squared(x, y), squared(x, x), squared(y, y)), **kernel)
    different = a.sizes != b.sizes
    assert (value >= -1e-12).all()
    assert (value[different] > 1e-9).all()
    itself = {"delete": delete, "insert": delete, "temperature": temperature}
    torch.testing.assert_close(
        soft_tree_divergence(a, a, relabel=(squared(x, x),) * 3, **itself),
        torch.zeros(len(a), dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )
    assert (soft_tree_divergence(a, b, temperature=temperature) >= -1e-6).all()
    flat = soft_tree_divergence(a, a, temperature=temperature, method="flattened")
    torch.testing.assert_close(flat, torch.zeros_like(flat), rtol=0, atol=1e-6)
    # Two nodes that fit each other better than themselves.
    one = TreeBatch.from_parents([[0]], [[-1]])
    zero, large = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    assert soft_tree_divergence(one, one, relabel=(zero, large, large)).item() < -0.1


def test_divergence_gradient() -> None:
    """In node vectors, and zero where the trees are equal: the minimum of a divergence that is never negative."""
    _, _, a, b = some_trees(4)
    x, y = vectors(a, 2).requires_grad_(), vectors(b, 3).requires_grad_()
    warm = temperatures().requires_grad_()
    delete = (0.5 + torch.rand(a.label.shape, dtype=torch.float64)).requires_grad_()

    def value(x: Tensor, y: Tensor, delete: Tensor, temperature: Tensor) -> Tensor:
        relabel = (squared(x, y), squared(x, x) + 0.01, squared(y, y) + 0.01)
        return soft_tree_divergence(a, b, relabel=relabel, delete=delete, temperature=temperature)

    assert torch.autograd.gradcheck(value, (x, y, delete, warm))
    same = x.detach().requires_grad_()
    at_rest = soft_tree_divergence(
        a, a, relabel=(squared(same, x.detach()), squared(same, same), squared(x.detach(), x.detach()))
    )
    gradient = torch.autograd.grad(at_rest.sum(), same)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def mapping_tensor(mapping: list[tuple[int, int]], width: int) -> list[int]:
    partner = dict(mapping)
    return [partner.get(i, -1) for i in range(width)]


@pytest.mark.parametrize("seed", [0, 1])
def test_mapping_nll_against_enumeration(seed: int) -> None:
    """Every mapping of every pair: the probabilities are those of the definition, and sum to one."""
    trees_a, trees_b, a, b = some_trees(seed)
    relabel, delete, insert = random_costs(len(a), a.label.shape[1], b.label.shape[1], seed=seed)
    warm = temperatures()
    for p, (x, y) in enumerate(zip(trees_a, trees_b, strict=True)):
        mappings = list(all_mappings(x, y))
        rows = torch.full((len(mappings),), p)
        match_a = torch.tensor([mapping_tensor(mapping, a.label.shape[1]) for mapping in mappings])
        nll = mapping_nll(
            a.select(rows),
            b.select(rows),
            match_a,
            relabel=relabel[rows],
            delete=delete[rows],
            insert=insert[rows],
            temperature=warm[rows],
        )
        n, m = len(x), len(y)
        c, d, e = relabel[p, :n, :m].numpy(), delete[p, :n].numpy(), insert[p, :m].numpy()
        soft, _, _ = enumerate_alignment(x, y, c, d, e, warm[p].item())
        costs = [mapping_cost(mapping, c, d, e) for mapping in mappings]
        expected = (torch.tensor(costs, dtype=torch.float64) - soft) / warm[p]
        torch.testing.assert_close(nll, expected, rtol=0, atol=1e-12)
        assert (nll >= 0).all()
        assert (-nll).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_mapping_nll_gradient() -> None:
    """1[M] - P to the costs of matches, in units of the temperature; gradcheck for all arguments."""
    _, _, a, b = some_trees(2)
    costs = [x + 0.05 for x in random_costs(len(a), a.label.shape[1], b.label.shape[1], seed=2, forbidden=0.0)]
    relabel, delete, insert = (x.requires_grad_() for x in costs)
    warm = temperatures().requires_grad_()
    match_a = align_trees(a, b, relabel=relabel, delete=delete, insert=insert).match_a

    def value(relabel: Tensor, delete: Tensor, insert: Tensor, temperature: Tensor) -> Tensor:
        how = {"relabel": relabel, "delete": delete, "insert": insert, "temperature": temperature}
        return mapping_nll(a, b, match_a, **how)

    assert torch.autograd.gradcheck(value, (relabel, delete, insert, warm))
    gradient = torch.autograd.grad(value(relabel, delete, insert, warm).sum(), relabel)[0]
    _, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel, delete=delete, insert=insert, temperature=warm, return_posterior=True
    )
    matched = (match_a[:, :, None] == torch.arange(b.label.shape[1])).double()
    torch.testing.assert_close(gradient, (matched - posterior) / warm.detach()[:, None, None])


def test_float32_costs_are_differenced_in_float64() -> None:
    """1000 for every node, matched or not, changes neither loss; float32 values of 4e5 would be 0.03 apart."""
    labels = list(range(200))
    a = TreeBatch.from_parents([labels], [chain(200)])
    b = TreeBatch.from_parents([[*labels[:-1], 777]], [chain(200)])
    node, identity = torch.ones(1, 200), torch.arange(200)[None]
    relabels = [(x.label[:, :, None] != y.label[:, None]).float() for x, y in ((a, b), (a, a), (b, b))]
    results = []
    for base in (0.0, 1000.0):
        how = {"delete": node + base, "insert": node + base, "temperature": 0.1}
        shifted = tuple(relabel + 2 * base for relabel in relabels)
        nll = mapping_nll(a, b, identity, relabel=shifted[0], **how)
        results.append(torch.cat([nll, soft_tree_divergence(a, b, relabel=shifted, **how)]))
    assert results[0].dtype == torch.float32
    assert 0 < results[0][0].item() < 0.05
    assert 0.9 < results[0][1].item() < 1.1
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)


def test_what_is_no_mapping_is_refused() -> None:
    """Every assignment of every small pair is accepted exactly where enumeration from the definition has it."""
    rng = random.Random(3)
    accepted = 0
    for n, m in ((3, 3), (4, 3), (3, 4), (4, 2), (1, 2), (2, 0)):
        x, y = random_parents(n, rng), random_parents(m, rng)
        a, b = TreeBatch.from_parents([[0] * n], [x]), TreeBatch.from_parents([[0] * m], [y])
        legal = {tuple(mapping_tensor(mapping, n)) for mapping in all_mappings(x, y)}
        for partners in product(range(-1, m), repeat=n):
            match_a = torch.tensor([partners])
            if partners in legal:
                accepted += 1
                assert mapping_nll(a, b, match_a).item() >= 0
            else:
                with pytest.raises(ValueError, match=r"match_a\[0, \d\] = \d .*mappings keep"):
                    mapping_nll(a, b, match_a)
    assert accepted > 100

    _, _, a, b = some_trees()
    good = align_trees(a, b).match_a
    for pair, node, partner, message in ((0, 1, 4, "neither"), (0, 1, -2, "neither"), (3, 4, 0, "padding")):
        bad = good.clone()
        bad[pair, node] = partner
        with pytest.raises(ValueError, match=rf"match_a\[{pair}, {node}\] = {partner} .*{message}"):
            mapping_nll(a, b, bad)
    with pytest.raises(TypeError, match="match_a must be int64, got torch.int32"):
        mapping_nll(a, b, good.int())
    with pytest.raises(ValueError, match="match_a must have shape"):
        mapping_nll(a, b, good[:, 1:])
    with pytest.raises(ValueError, match="match_a is on meta"):
        mapping_nll(a, b, good.to("meta"))


def log_probs_of(tree: TreeBatch, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*tree.label.shape, KINDS + 1, generator=generator, dtype=torch.float64).log_softmax(-1)


def enumerated_nll(student: Parents, teacher: Parents, log_probs: Tensor, kinds: list[int], rho: float) -> float:
    probability = log_probs.exp().tolist()
    total = 0.0
    for mapping in all_mappings(student, teacher):
        weight = 1.0
        partner, taken = dict(mapping), {j for _, j in mapping}
        for i in range(len(student)):
            weight *= (1 - rho) * probability[i][kinds[partner[i]]] if i in partner else probability[i][-1]
        total += weight * math.prod(rho for j in range(len(teacher)) if j not in taken)
    return -math.log(total)


@pytest.mark.parametrize("rho", [0.1, 0.6])
def test_tree_nll_against_enumeration(rho: float) -> None:
    students, teachers, a, b = some_trees(5)
    log_probs = log_probs_of(a)
    value = tree_nll(log_probs, a, b, rho=rho)
    for p, (x, y) in enumerate(zip(students, teachers, strict=True)):
        expected = enumerated_nll(x, y, log_probs[p], b.kind[p].tolist(), rho)
        assert value[p].item() == pytest.approx(expected, abs=1e-12)
    assert (value > 0).all()
    half = tree_nll(log_probs.bfloat16(), a, b, rho=rho)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, tree_nll(log_probs.bfloat16().float(), a, b, rho=rho))


def test_tree_nll_leaves_nodes_out() -> None:
    """A kind of -1, and a certain blank: as if the node were not there and its children its parent's."""
    student = TreeBatch.from_parents([[0] * 4], [[2, 2, 3, -1]])
    teacher = TreeBatch.from_parents([[0] * 4], [[1, 3, 3, -1]], kinds=[[0, 1, 2, 1]])
    log_probs = log_probs_of(student)
    log_probs[0, 2] = torch.tensor([-math.inf] * KINDS + [0.0])
    log_probs.requires_grad_()
    value = tree_nll(log_probs, student, teacher, kinds=torch.tensor([[0, -1, 2, 1]]))
    fewer_student = TreeBatch.from_parents([[0] * 3], [[2, 2, -1]])
    fewer_teacher = TreeBatch.from_parents([[0] * 3], [[2, 2, -1]], kinds=[[0, 2, 1]])
    expected = tree_nll(log_probs[:, [0, 1, 3]], fewer_student, fewer_teacher)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    (twin,) = torch.autograd.grad(expected.sum(), log_probs)
    torch.testing.assert_close(gradient[:, [0, 1, 3]], twin[:, [0, 1, 3]])
    assert gradient.isfinite().all()


def test_tree_nll_gradient() -> None:
    _, _, a, b = some_trees(6)
    logits = log_probs_of(a, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tree_nll(x.log_softmax(-1), a, b), logits)
    gradient = torch.autograd.grad(tree_nll(logits.log_softmax(-1), a, b).sum(), logits)[0]
    probability = logits.detach().softmax(-1)
    kind = b.kind.clamp_min(0)
    emitted = -probability.log().gather(2, kind[:, None].expand(-1, logits.shape[1], -1)) - math.log(0.9)
    insert = torch.full(b.kind.shape, -math.log(0.1), dtype=torch.float64)
    _, posterior = soft_tree_edit_distance(
        a, b, relabel=emitted, delete=-probability[..., -1].log(), insert=insert, return_posterior=True
    )
    target = torch.zeros_like(probability).scatter_add(2, kind[:, None].expand_as(posterior), posterior)
    target[..., -1] += 1 - posterior.sum(2)
    inside = (torch.arange(logits.shape[1]) < a.sizes[:, None])[..., None]
    torch.testing.assert_close(gradient, (probability - target) * inside, rtol=0, atol=1e-12)


def test_wrong_arguments_are_refused_by_name() -> None:
    _, _, a, b = some_trees()
    relabel = torch.zeros(*a.label.shape, b.label.shape[1])
    with pytest.raises(ValueError, match="method must be .*three distances need one"):
        soft_tree_divergence(a, b, method="auto")
    for wrong in (relabel, (relabel, relabel)):
        with pytest.raises(TypeError, match="relabel must be a tuple of three"):
            soft_tree_divergence(a, b, relabel=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="relabel must have shape"):
        soft_tree_divergence(a, b, relabel=(relabel, relabel[:, 1:], relabel))
    log_probs = log_probs_of(a)
    for rho in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="rho"):
            tree_nll(log_probs, a, b, rho=rho)
    with pytest.raises(ValueError, match="kinds must be below 3, .* got 3"):
        tree_nll(log_probs, a, b, kinds=torch.where(b.kind == 2, 3, b.kind))
    with pytest.raises(ValueError, match="kinds must have shape"):
        tree_nll(log_probs, a, b, kinds=b.kind[:, 1:])
    with pytest.raises(TypeError, match="kinds must be int64"):
        tree_nll(log_probs, a, b, kinds=b.kind.double())
    with pytest.raises(TypeError, match="log_probs must be a floating"):
        tree_nll(log_probs.long(), a, b)
    with pytest.raises(ValueError, match="log_probs must have shape"):
        tree_nll(log_probs[:, 1:], a, b)
    with pytest.raises(ValueError, match="kinds is on meta"):
        tree_nll(log_probs, a, b, kinds=b.kind.to("meta"))
    with pytest.raises(ValueError, match="same number of trees"):
        tree_nll(log_probs, a, replace(b, leftmost=b.leftmost[1:], kind=b.kind[1:]))


def test_all_compile_without_a_graph_break() -> None:
    _, _, a, b = some_trees()
    logits = log_probs_of(a, 2).requires_grad_()
    match_a = align_trees(a, b).match_a

    def loss(logits: Tensor) -> Tensor:
        relabel = logits.square()[..., :1].expand(-1, -1, b.label.shape[1])
        terms = tree_nll(logits.log_softmax(-1), a, b), mapping_nll(a, b, match_a, relabel=relabel)
        return sum(terms).sum() + soft_tree_divergence(a, b, delete=logits[..., 0].square()).sum()

    torch._dynamo.reset()
    traced, plain = torch.compile(loss, fullgraph=True, backend="aot_eager")(logits), loss(logits)
    torch.testing.assert_close(traced, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (traced, plain)))
