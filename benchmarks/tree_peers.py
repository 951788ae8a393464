"""Other packages that compute the tree edit distance, called on the same trees at unit costs.

Each function converts the trees and returns a call that gives the distance of every pair; only the call is timed.

* x-ted: C++, unit delete and insert costs, a matrix of rename costs or "equal labels cost 0, others 1". Its batch call
  goes through the pairs one by one and gives its threads to each.
* apted: Python, chooses a path for every pair of subtrees.
* zss: Python, Zhang and Shasha; it always makes the list of operations too.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from structloss.trees import Tree

Pairs = Sequence[tuple[Tree, Tree]]
Distances = Callable[[], list[float]]
PACKAGES = {"x-ted": "xted", "apted": "apted", "zss": "zss"}  # distribution -> module


def missing_packages() -> list[str]:
    return [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]


def children(tree: Tree) -> list[list[int]]:
    """Children of every node, left to right, by post-order number."""
    found: list[list[int]] = [[] for _ in range(tree.size)]
    for node, parent in enumerate(tree.parent.tolist()):
        if parent >= 0:
            found[parent].append(node)
    return found


def _preorder(tree: Tree) -> tuple[list[int], list[str]]:
    """Parents and labels in pre-order, as x-ted takes them."""
    below, labels, old_parent = children(tree), tree.label.tolist(), tree.parent.tolist()
    position: dict[int, int] = {-1: -1}
    parents: list[int] = []
    names: list[str] = []
    waiting = [tree.size - 1]
    while waiting:
        node = waiting.pop()
        position[node] = len(parents)
        parents.append(position[old_parent[node]])
        names.append(str(labels[node]))
        waiting += reversed(below[node])
    return parents, names


def x_ted(pairs: Pairs) -> Distances:
    """One call a pair."""
    compute = importlib.import_module("xted").x_ted_compute
    flat = [(*_preorder(a), *_preorder(b)) for a, b in pairs]
    return lambda: [compute(*pair) for pair in flat]


def x_ted_batch(pairs: Pairs, threads: int) -> Distances:
    compute = importlib.import_module("xted").x_ted_batch_compute
    flat = [(*_preorder(a), *_preorder(b)) for a, b in pairs]
    return lambda: compute(flat, num_threads=threads)


def x_ted_renamed(pairs: Pairs, rename: Callable[[int, int], int]) -> Distances:
    """With its matrix of rename costs, `rename(label of a, label of b)`."""
    compute = importlib.import_module("xted").x_ted_compute
    flat = [(*_preorder(a), *_preorder(b)) for a, b in pairs]
    matrices = [[[rename(int(x), int(y)) for y in labels_b] for x in labels_a] for _, labels_a, _, labels_b in flat]
    return lambda: [compute(*pair, matrix) for pair, matrix in zip(flat, matrices, strict=True)]


class _Node:
    """What both Python packages want of a node."""

    def __init__(self, label: int) -> None:
        self.name = label
        self.children: list[_Node] = []


def _linked(tree: Tree) -> _Node:
    nodes = [_Node(label) for label in tree.label.tolist()]
    for node, below in zip(nodes, children(tree), strict=True):
        node.children = [nodes[k] for k in below]
    return nodes[-1]


def apted(pairs: Pairs) -> Distances:
    compute: Any = importlib.import_module("apted").APTED
    linked = [(_linked(a), _linked(b)) for a, b in pairs]
    return lambda: [compute(a, b).compute_edit_distance() for a, b in linked]


def zss(pairs: Pairs) -> Distances:
    compute = importlib.import_module("zss").distance
    linked = [(_linked(a), _linked(b)) for a, b in pairs]

    def distance(a: _Node, b: _Node) -> float:
        return compute(
            a,
            b,
            get_children=lambda node: node.children,
            insert_cost=lambda node: 1,
            remove_cost=lambda node: 1,
            update_cost=lambda x, y: int(x.name != y.name),
        )

    return lambda: [distance(a, b) for a, b in linked]
