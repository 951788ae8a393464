"""Two aligned trees as one list of lines in pre-order, each with its depth."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np

from structloss.trees import Tree

Status = Literal["matched", "changed", "missing", "extra"]


@dataclass(frozen=True)
class Line:
    """One node of the merged tree; `student` and `teacher` are post-order indices, None where the tree lacks it.

    nodes: how many nodes of each tree the line stands for: 1, or a whole sub-tree that is equal in both.
    """

    status: Status
    student: int | None
    teacher: int | None
    depth: int
    nodes: int = 1


def merged_lines(student: Tree, teacher: Tree, match: np.ndarray) -> list[Line]:
    """The lines of both trees in pre-order, a pair as one line.

    match: int64 (n,), for each node of the student its partner in the teacher's tree, -1 for none.

    A line stands deeper than its parents in both trees. There is not always a tree that holds two trees: where an
    extra node encloses a and b, and a missing one b and c, the line of b stands below the later one.
    """
    order = (_pre_order(student), _pre_order(teacher))
    pairs = _in_both_orders([(i, j) for i, j in enumerate(match.tolist()) if j >= 0], *order)
    # Ranks of the pairs in pre-order, the same in both trees.
    rank = {pair: k for k, pair in enumerate(sorted(pairs, key=lambda pair: order[0][pair[0]]))}
    ranks = (
        {i: k for (i, _), k in rank.items()},
        {j: k for (_, j), k in rank.items()},
    )

    entries: list[tuple[tuple[int, ...], int | None, int | None]] = [((k, 0), i, j) for (i, j), k in rank.items()]
    for side, tree in enumerate((student, teacher)):
        for key, node in _lone_nodes(tree, order[side], ranks[side], side):
            entries.append((key, None if side else node, node if side else None))
    entries.sort()

    equal = _equal_subtrees(student, teacher, dict(pairs))
    depths: tuple[dict[int, int], dict[int, int]] = ({}, {})
    lines: list[Line] = []
    last_hidden = -1  # the student's pre-order rank up to which an equal sub-tree hides everything
    for _, i, j in entries:
        if i is not None and order[0][i] <= last_hidden:
            continue
        depth = 0
        for tree, depth_of, one in ((student, depths[0], i), (teacher, depths[1], j)):
            if one is not None:
                depth = max(depth, depth_of.get(int(tree.parent[one]), -1) + 1)
        for depth_of, one in ((depths[0], i), (depths[1], j)):
            if one is not None:
                depth_of[one] = depth
        if i is None or j is None:
            lines.append(Line("missing" if i is None else "extra", i, j, depth))
        elif i in equal:
            nodes = int(i - student.leftmost[i]) + 1
            last_hidden = int(order[0][i]) + nodes - 1
            lines.append(Line("matched", i, j, depth, nodes))
        else:
            lines.append(Line("matched" if student.label[i] == teacher.label[j] else "changed", i, j, depth))
    return lines


def _pre_order(tree: Tree) -> np.ndarray:
    """Rank of each node in pre-order: nodes that start earlier, an ancestor before its first descendant."""
    node = np.arange(tree.size)
    rank = np.empty(tree.size, dtype=np.int64)
    rank[np.lexsort((-node, tree.leftmost))] = node
    return rank


def _in_both_orders(pairs: list[tuple[int, int]], one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """As many of `pairs` as keep post-order and pre-order, and so ancestry.

    All of an exact mapping; the flattened one keeps one order only. A longest increasing subsequence.
    """
    pairs = sorted(pairs, key=lambda pair: one[pair[0]])
    for rank in (other.tolist(), list(range(len(other)))):
        ends: list[int] = []  # smallest last rank of a chain of each length
        chain: list[int] = []
        before: list[int] = []
        for k, (_, j) in enumerate(pairs):
            at = bisect_left(ends, rank[j])
            before.append(chain[at - 1] if at else -1)
            ends[at : at + 1] = [rank[j]]
            chain[at : at + 1] = [k]
        kept = []
        k = chain[-1] if chain else -1
        while k >= 0:
            kept.append(pairs[k])
            k = before[k]
        pairs = sorted(kept)  # post-order of the student for the second round
    return pairs


def _lone_nodes(tree: Tree, order: np.ndarray, ranks: dict[int, int], side: int) -> list[tuple[tuple[int, ...], int]]:
    """Sort keys of the nodes without a partner.

    They stand behind the last pair before them in pre-order, those below the deepest pair first. Among these come, for
    both trees, first what is inside a lone node around that pair, last what opens around the next pair.
    """
    parents = tree.parent.tolist()
    encloses = [False] * tree.size
    for node, parent in enumerate(parents):
        if parent >= 0 and (encloses[node] or node in ranks):
            encloses[parent] = True
    keys: list[tuple[tuple[int, ...], int]] = []
    nearest: dict[int, int] = {}  # rank of the nearest pair above or at a node
    enclosed: dict[int, int] = {}  # of lone nodes that enclose a pair, and below: the last pair before it opened
    behind = -1
    for node in np.argsort(order).tolist():
        parent = parents[node]
        if node in ranks:
            behind = nearest[node] = ranks[node]
            continue
        nearest[node] = nearest.get(parent, -1)
        opened = behind if encloses[node] else enclosed.get(parent)
        stage = 1
        if opened is not None:
            enclosed[node] = opened
            stage = 2 if opened == behind else 0
        keys.append(((behind, 1, -nearest[node], stage, side, int(order[node])), node))
    return keys


def _equal_subtrees(student: Tree, teacher: Tree, partner: dict[int, int]) -> set[int]:
    """Nodes of the student whose whole sub-tree is matched, label by label, with that of their partner."""
    equal: set[int] = set()
    first, shift = 0, None  # of the run of equal nodes whose partners follow each other as they do
    for i in range(student.size):
        j = partner.get(i)
        if j is None or student.label[i] != teacher.label[j]:
            shift = None
            continue
        if j - i != shift:
            first, shift = i, j - i
        if first <= student.leftmost[i] == teacher.leftmost[j] - shift:
            equal.add(i)
    return equal
