"""Oracles for tree alignment that share no code with it, and tests of the oracles themselves.

`all_mappings` enumerates, from the definition; `log_partition` is a float64 log-domain program for larger trees.
Trees are lists of parents in post-order, -1 for the root.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

Parents = list[int]
Mapping = list[tuple[int, int]]


def random_parents(size: int, rng: random.Random) -> Parents:
    """A random ordered tree: every node takes the last 0, 1, 2, ... open subtrees as its children."""
    parents = [-1] * size
    open_roots: list[int] = []
    for node in range(size):
        children = len(open_roots) if node == size - 1 else min(len(open_roots), rng.choice((0, 0, 0, 1, 1, 2, 3)))
        for _ in range(children):
            parents[open_roots.pop()] = node
        open_roots.append(node)
    return parents


def chain(size: int) -> Parents:
    return [*range(1, size), -1]


def star(size: int) -> Parents:
    return [*([size - 1] * (size - 1)), -1]


def mirrored(parents: Parents) -> tuple[Parents, list[int]]:
    """The tree with all children reversed, and the new position of each node."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    order: list[int] = []
    stack = [len(parents) - 1] if parents else []
    while stack:  # root first, children left to right: reversed, this is the post-order of the mirror image
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(children[node]))
    position = [0] * len(parents)
    for new, node in enumerate(reversed(order)):
        position[node] = new
    out = [-1] * len(parents)
    for node, parent in enumerate(parents):
        out[position[node]] = position[parent] if parent >= 0 else -1
    return out, position


def _relations(parents: Parents) -> list[list[int]]:
    """r[u][v]: 1 if u is an ancestor of v, -1 if a descendant, 2 if left of v, -2 if right of v."""
    ancestors = []
    for node in range(len(parents)):
        chain_up = set()
        while (node := parents[node]) >= 0:
            chain_up.add(node)
        ancestors.append(chain_up)
    size = range(len(parents))
    return [[1 if u in ancestors[v] else -1 if v in ancestors[u] else 2 if u < v else -2 for v in size] for u in size]


def all_mappings(a: Parents, b: Parents) -> Iterator[Mapping]:
    """Every one-to-one mapping that keeps ancestry and left-right order."""
    relation_a, relation_b = _relations(a), _relations(b)

    def extend(node: int, chosen: Mapping) -> Iterator[Mapping]:
        if node == len(a):
            yield chosen
            return
        yield from extend(node + 1, chosen)
        for j in range(len(b)):
            if all(q != j and relation_a[p][node] == relation_b[q][j] for p, q in chosen):
                yield from extend(node + 1, [*chosen, (node, j)])

    return extend(0, [])


def mapping_cost(mapping: Mapping, relabel: np.ndarray, delete: np.ndarray, insert: np.ndarray) -> float:
    kept_a, kept_b = {i for i, _ in mapping}, {j for _, j in mapping}
    return math.fsum(
        [relabel[i, j] for i, j in mapping]
        + [x for i, x in enumerate(delete) if i not in kept_a]
        + [x for j, x in enumerate(insert) if j not in kept_b]
    )


def enumerate_alignment(
    a: Parents, b: Parents, relabel: np.ndarray, delete: np.ndarray, insert: np.ndarray, temperature: float
) -> tuple[float, np.ndarray, float]:
    """Soft value, posterior and hard distance by enumeration."""
    mappings = list(all_mappings(a, b))
    costs = [mapping_cost(mapping, relabel, delete, insert) for mapping in mappings]
    best = min(costs)
    weights = [math.exp((best - cost) / temperature) for cost in costs]
    total = math.fsum(weights)
    terms: dict[tuple[int, int], list[float]] = {}
    for mapping, weight in zip(mappings, weights, strict=True):
        for match in mapping:
            terms.setdefault(match, []).append(weight)
    posterior = np.zeros((len(a), len(b)))
    for match, values in terms.items():
        posterior[match] = math.fsum(values) / total
    return best - temperature * math.log(total), posterior, best


def log_partition(a: Parents, b: Parents, log_weight: np.ndarray) -> float:
    """log Z in float64 for larger trees: forest pairs of every pair of keyroots, logarithms throughout."""

    def keyroots(parents: Parents) -> tuple[list[int], list[int]]:
        first = list(range(len(parents)))
        for node, parent in enumerate(parents):
            if parent >= 0:
                first[parent] = min(first[parent], first[node])
        return first, sorted({leaf: node for node, leaf in enumerate(first)}.values())

    (first_a, roots_a), (first_b, roots_b) = keyroots(a), keyroots(b)
    left_b = np.array(first_b)
    subtree = np.full((len(a), len(b)), -np.inf)
    table = np.zeros((1, 1))
    for root_a in roots_a:
        low_a = first_a[root_a]
        for root_b in roots_b:
            low_b = first_b[root_b]
            if low_b == root_b and root_b != roots_b[-1]:  # a leaf: nothing inside to sum over
                spine_a = [i for i in range(low_a, root_a + 1) if first_a[i] == low_a]
                subtree[spine_a, root_b] = log_weight[spine_a, root_b]
                continue
            columns = np.arange(low_b, root_b + 1)
            spine_b = left_b[columns] == low_b
            table = np.zeros((root_a - low_a + 2, root_b - low_b + 2))
            for i in range(low_a, root_a + 1):
                row = i - low_a + 1
                if first_a[i] == low_a:
                    spine = columns[spine_b]
                    subtree[i, spine] = log_weight[i, spine] + table[row - 1, spine - low_b]
                matched = subtree[i, columns] + table[first_a[i] - low_a, left_b[columns] - low_b]
                table[row, 1:] = np.logaddexp(table[row - 1, 1:], np.logaddexp.accumulate(matched))
    return float(table[-1, -1])


def random_costs(batch: int, n: int, m: int, seed: int, forbidden: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 relabel, delete and insert costs, some of them 0 and a share of the matches forbidden."""
    generator = torch.Generator().manual_seed(seed)
    relabel = 2 * torch.rand(batch, n, m, generator=generator, dtype=torch.float64)
    chance = torch.rand(batch, n, m, generator=generator)
    relabel[chance < 0.2] = 0.0
    relabel[chance > 1 - forbidden] = math.inf
    delete = torch.rand(batch, n, generator=generator, dtype=torch.float64)
    insert = 1.5 * torch.rand(batch, m, generator=generator, dtype=torch.float64)
    return relabel, delete, insert


def padded_labels(trees: Sequence[Parents], seed: int, kinds: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(kinds) for _ in tree] for tree in trees]


def test_number_of_mappings() -> None:
    """Chains: choose the matched nodes of both. Stars: closed form. One node: matched or not."""
    assert len(list(all_mappings(chain(4), chain(3)))) == math.comb(7, 3)
    assert len(list(all_mappings(star(4), star(5)))) == 2 * math.comb(7, 3) + 3 + 4
    assert len(list(all_mappings([-1], [-1]))) == 2
    assert list(all_mappings([], chain(3))) == [[]]


def test_log_partition_agrees_with_enumeration() -> None:
    rng = random.Random(0)
    for _ in range(20):
        a, b = random_parents(rng.randint(1, 6), rng), random_parents(rng.randint(1, 6), rng)
        weight = np.random.default_rng(len(a)).normal(size=(len(a), len(b)))
        counted = math.fsum(math.exp(sum(weight[i, j] for i, j in mapping)) for mapping in all_mappings(a, b))
        assert log_partition(a, b, weight) == pytest.approx(math.log(counted), abs=1e-12)
