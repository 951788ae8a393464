"""What the tree-edit dynamic program does with a batch of tree pairs, as flat integer arrays; no number in it.

The rows of a pair's tables come from its smaller tree, the columns from the larger one. All trees of a side are laid
end to end, so that every step below is one numpy operation for the whole batch.

A *table* belongs to a keyroot: the nodes ``first .. last`` whose prefixes are its rows (or columns). The table of
everything comes last; tables of one node are left out (they are "closed": their subtree term is the match weight).
A row ``i`` is computed from the row before it and from its *anchor*, the row before the leftmost leaf below ``i``.
Columns of all tables stand side by side; each table is a segment that begins with a boundary column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from structloss.tree_alignment import reference

Ints = NDArray[np.int64]

AS_GIVEN, MIRRORED, FLATTENED = 0, 1, 2
# Bits of a row's code; the adjoint level of the row's anchor is above them.
SPINE, TOP, LEAF, LAST, WHOLE = 1, 2, 4, 8, 16
LEVEL_SHIFT = 5


def _ranges(counts: Ints) -> tuple[Ints, Ints, Ints]:
    """(begins, owner of every element, position inside its owner) of ranges laid end to end."""
    begin = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(counts)), counts)
    return begin, owner, np.arange(len(owner)) - begin[owner]


@dataclass(frozen=True)
class _Forest:
    """One side of all pairs. Nodes in post-order of the oriented trees; `left` and `node` count inside the tree."""

    sizes: Ints
    begin: Ints
    tree: Ints
    position: Ints
    left: Ints  # leftmost leaf
    node: Ints  # position in the arrays that were given

    @staticmethod
    def of(leftmost: Ints, sizes: Ints) -> _Forest:
        """From padded (B, N) leftmost leaves; raises ValueError where a row is no tree in post-order."""
        begin, tree, position = _ranges(sizes)
        left = leftmost[np.arange(leftmost.shape[1]) < sizes[:, None]]
        valid = (left >= 0) & (left <= position)
        if valid.all() and len(left):
            # Laminar: no node inside a subtree reaches further left than the subtree's own leaf.
            base = begin[tree]
            bounds = np.stack([base + left, base + position + 1], 1).reshape(-1)
            valid = np.minimum.reduceat(np.append(left, 0), bounds)[::2] >= left
        for bad in tree[~valid][:1]:
            reference.parents_from_leftmost(leftmost[bad, : sizes[bad]].tolist())
        return _Forest(sizes, begin, tree, position, left, position)

    def _covered(self, first: Ints, last: Ints) -> Ints:
        """How many of the node ranges [first, last] (positions in the whole forest) hold each node."""
        size = len(self.left) + 1
        return np.cumsum(np.bincount(first, minlength=size) - np.bincount(last + 1, minlength=size))[:-1]

    def keyroots(self) -> NDArray[np.bool_]:
        """Whether a node is the highest one on its left path."""
        leaf = self.begin[self.tree] + self.left
        highest = np.zeros(len(leaf), dtype=np.int64)
        np.maximum.at(highest, leaf, self.position)
        return highest[leaf] == self.position

    def levels(self) -> Ints:
        """How many keyroot subtrees hold each node."""
        roots = np.flatnonzero(self.keyroots())
        return self._covered(self.begin[self.tree[roots]] + self.left[roots], roots)

    def work(self) -> tuple[Ints, Ints]:
        """Rows of all tables of each tree, tables of one node included, as given and mirrored."""
        subtree = self.position - self.left + 1
        inner = self.keyroots() & (self.left > 0)
        # A node is no last child where the next node in post-order is a leaf.
        leaf = np.append(self.left == self.position, False)
        not_last = leaf[1:] & (self.position + 1 < self.sizes[self.tree])
        count = len(self.sizes)
        sums = [np.zeros(count, dtype=np.int64) for _ in range(2)]
        for total, chosen in zip(sums, (inner, not_last), strict=True):
            np.add.at(total, self.tree[chosen], subtree[chosen])
            total += self.sizes
        return sums[0], sums[1]

    def oriented(self, orientation: Ints) -> _Forest:
        code = orientation[self.tree]
        first = self.begin[self.tree]
        nodes = first + self.position
        # The pre-order rank of a node counts the nodes left of its subtree and its ancestors.
        preorder = self.left + self._covered(first + self.left, nodes) - 1
        mirrored = self.sizes[self.tree] - 1 - preorder
        position = np.choose(code, [self.position, mirrored, preorder])
        left, node = np.empty_like(self.left), np.empty_like(self.node)
        left[first + position] = np.where(code == FLATTENED, position, position - (self.position - self.left))
        node[first + position] = self.position
        return _Forest(self.sizes, self.begin, self.tree, self.position, left, node)

    def tables(self) -> tuple[Ints, Ints, Ints]:
        """(tree, first, last) of every table, in the order of computation, the whole tree at the end."""
        inner = self.keyroots() & (self.left > 0) & (self.left < self.position)
        whole = np.flatnonzero(self.sizes)
        tree = np.concatenate([self.tree[inner], whole])
        first = np.concatenate([self.left[inner], np.zeros_like(whole)])
        last = np.concatenate([self.position[inner], self.sizes[whole] - 1])
        order = np.lexsort((np.arange(len(tree)), last, tree))  # inner tables stand before the whole one
        return tree[order], first[order], last[order]

    def closed(self) -> NDArray[np.bool_]:
        """Leaves whose table is left out."""
        return self.keyroots() & (self.left > 0) & (self.left == self.position)


@dataclass(frozen=True)
class Rows:
    """Row r of a pair writes slot r + 1 of its scratch; slot 0 is the boundary row."""

    begin: Ints  # (B,)
    count: Ints
    record: Ints  # (rows, 4): node, slot of the row before, slot of the anchor, code
    levels: Ints  # (B,) adjoint rows needed
    closed_begin: Ints
    closed_count: Ints
    closed: Ints  # nodes
    node_begin: Ints
    nodes: Ints
    left: Ints
    table: Ints  # leaf -> slot before the first row of its table

    @staticmethod
    def of(forest: _Forest) -> Rows:
        batch = len(forest.sizes)
        tree, first, last = forest.tables()
        table_begin, table, within = _ranges(last - first + 1)
        count = np.bincount(tree[table], minlength=batch)
        begin = np.cumsum(count) - count
        position = first[table] + within
        at = forest.begin[tree[table]] + position
        left = forest.left[at]
        spine, leaf, final = left == first[table], left == position, position == last[table]
        slot = np.arange(len(at)) - begin[tree[table]] + 1
        anchor = (table_begin - begin[tree])[table] + left - first[table]  # slot of node left - 1
        level = forest.levels()[forest.begin[tree[table]] + left] - 1
        whole = np.append(tree[1:] != tree[:-1], True)[table] if len(tree) else spine
        code = SPINE * spine + TOP * (~spine & forest.keyroots()[at]) + LEAF * leaf + LAST * final + WHOLE * whole
        record = [
            forest.node[at],
            np.where(within == 0, 0, slot - 1),
            np.where(spine, 0, anchor),
            code + (level << LEVEL_SHIFT),
        ]
        levels = np.zeros(batch, dtype=np.int64)
        np.maximum.at(levels, tree[table], level + 1)
        table_slot = np.full(len(forest.node), -1, dtype=np.int64)
        table_slot[forest.begin[tree] + first] = table_begin - begin[tree]
        closed = forest.closed()
        closed_count = np.bincount(forest.tree[closed], minlength=batch)
        return Rows(
            begin,
            count,
            np.stack(record, 1),
            levels,
            np.cumsum(closed_count) - closed_count,
            closed_count,
            forest.node[closed],
            forest.begin,
            forest.node,
            forest.left,
            table_slot,
        )


@dataclass(frozen=True)
class Columns:
    """Columns of all tables; column numbers count inside the pair.

    Several columns belong to one node, and several share an anchor. The reverse pass sums over them: `by_node` and
    `by_anchor` list the columns in such an order that what is summed stands together.
    """

    begin: Ints  # (B,)
    width: Ints
    node: Ints  # -1 at boundary columns
    anchor: Ints
    by_node_begin: Ints
    by_node_count: Ints
    by_node: Ints
    by_anchor_begin: Ints  # columns whose anchor is a boundary column are left out: nothing depends on it
    by_anchor_count: Ints
    by_anchor: Ints
    node_begin: Ints
    nodes: Ints
    left: Ints
    interior: Ints  # node -> column of the forest below it; nothing is below a closed node, as boundary column 0 says
    table: Ints  # leaf -> boundary column of its table

    @staticmethod
    def of(forest: _Forest) -> Columns:
        batch = len(forest.sizes)
        tree, first, last = forest.tables()
        table_begin, table, within = _ranges(last - first + 2)
        width = np.bincount(tree[table], minlength=batch)
        begin = np.cumsum(width) - width
        number = np.arange(len(table)) - begin[tree[table]]
        boundary = within == 0
        at = forest.begin[tree[table]] + np.maximum(first[table] + within - 1, 0)
        reach = forest.left[at] - first[table]
        spine = ~boundary & (reach == 0)
        anchor = np.where(boundary, number, (table_begin - begin[tree])[table] + reach)
        interior = np.zeros(len(forest.node), dtype=np.int64)
        interior[at[spine]] = number[spine] - 1

        def grouped(chosen: NDArray[np.bool_], key: Ints) -> tuple[Ints, Ints, Ints]:
            """(begin, count) of each pair's part of the list, and the list of the columns chosen, by their key."""
            columns = np.flatnonzero(chosen)
            columns = columns[np.argsort(key[columns], kind="stable")]
            per_pair = np.bincount(tree[table[columns]], minlength=batch)
            return np.cumsum(per_pair) - per_pair, per_pair, number[columns]

        by_node = grouped(~boundary, at)
        by_anchor = grouped(~boundary & ~spine, begin[tree[table]] + anchor)
        node = np.where(boundary, -1, forest.node[at])
        segment = np.full(len(forest.node), -1, dtype=np.int64)
        segment[forest.begin[tree] + first] = table_begin - begin[tree]
        return Columns(
            begin, width, node, anchor, *by_node, *by_anchor, forest.begin, forest.node, forest.left, interior, segment
        )


@dataclass(frozen=True)
class TableProgram:
    swapped: NDArray[np.bool_]  # (B,) rows come from the second tree
    flattened: NDArray[np.bool_]
    cells: list[int]
    rows: Rows
    columns: Columns
    row_sizes: Ints
    column_sizes: Ints

    @staticmethod
    def of(
        leftmost_a: Ints, leftmost_b: Ints, sizes_a: Ints, sizes_b: Ints, method: str, max_cells: int
    ) -> TableProgram:
        """Programs of all pairs; raises ValueError for sizes, trees and budgets as the other backends do."""
        for p, (n, m) in enumerate(zip(sizes_a.tolist(), sizes_b.tolist(), strict=True)):
            if not (0 <= n <= leftmost_a.shape[1] and 0 <= m <= leftmost_b.shape[1]):
                raise ValueError(
                    f"sizes of pair {p} are {n} and {m}, outside the padded widths {leftmost_a.shape[1]} and "
                    f"{leftmost_b.shape[1]}"
                )
        swapped = sizes_a > sizes_b
        first, second = _Forest.of(leftmost_a, sizes_a), _Forest.of(leftmost_b, sizes_b)
        work = zip(*(x.tolist() for x in (*first.work(), *second.work())), strict=True)
        cells, orientation = [], np.zeros(len(sizes_a), dtype=np.int64)
        for p, (given_a, mirrored_a, given_b, mirrored_b) in enumerate(work):
            sides = (given_a * given_b, mirrored_a * mirrored_b)
            orientation[p] = AS_GIVEN if sides[0] <= sides[1] else MIRRORED
            cells.append(min(sides))
            if method == "exact" and cells[p] > max_cells:
                raise ValueError(
                    f'method="exact" needs {cells[p]} cells for pair {p} ({sizes_a[p]} and {sizes_b[p]} nodes), more '
                    f'than max_cells = {max_cells}; raise max_cells or use method="auto" or "flattened"'
                )
            if method == "flattened" or cells[p] > max_cells:
                orientation[p] = FLATTENED
                cells[p] = int(sizes_a[p] * sizes_b[p])
        rows, columns = _swap(first.oriented(orientation), second.oriented(orientation), swapped)
        return TableProgram(
            swapped, orientation == FLATTENED, cells, Rows.of(rows), Columns.of(columns), rows.sizes, columns.sizes
        )


def _swap(first: _Forest, second: _Forest, swapped: NDArray[np.bool_]) -> tuple[_Forest, _Forest]:
    """The same trees with those of the swapped pairs exchanged."""

    def pick(ours: _Forest, other: _Forest) -> _Forest:
        sizes = np.where(swapped, other.sizes, ours.sizes)
        begin, tree, position = _ranges(sizes)
        source = swapped[tree]
        at = np.where(source, len(ours.left) + other.begin[tree], ours.begin[tree]) + position
        left, node = (np.concatenate(x)[at] for x in ((ours.left, other.left), (ours.node, other.node)))
        return _Forest(sizes, begin, tree, position, left, node)

    return pick(first, second), pick(second, first)
