"""Tree alignment in plain torch, in the log domain: the truth that the compiled kernels are tested against.

With ``v, w`` the last roots of the forests ``F, G`` and ``T_v`` the subtree of ``v``, the number ``Z`` of weighted
mappings obeys

    Z(F, G) = Z(F - v, G) + N(F, G)                     v is unmatched, or v is matched
    N(F, G) = N(F, G - w) + t(v, w) Z(F - T_v, G - T_w)  w is unmatched, or v and w are matched
    t(v, w) = exp(w_vw) Z(T_v - v, T_w - w)              Z(empty, .) = Z(., empty) = 1,  N(empty, .) = 0

which counts every mapping once (the recursion of Zhang and Shasha, 1989, with softmin in the place of min does not).
Logarithms of these lines, row by row, are below; (max, +) in the place of (logaddexp, +) gives the hard distance.
:func:`log_partition` is differentiable by autograd; :func:`soft_tree_alignment` has its reverse pass written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("exact", "flattened")
# Stands for log 0. Finite, so that differences of two of them are not NaN; exp of it is exactly 0.
_LOG_ZERO = -1e30


def parents_from_leftmost(leftmost: Sequence[int]) -> list[int]:
    """Parents (``len(leftmost)`` for roots) of a post-order forest; raises ValueError where it is none."""
    size = len(leftmost)
    parent = [size] * size
    open_roots: list[int] = []
    for i, first in enumerate(leftmost):
        covered = i
        while 0 <= first < covered:
            child = open_roots.pop()
            parent[child] = i
            covered = leftmost[child]
        if covered != first:
            raise ValueError(f"leftmost[{i}] = {first} is not the leftmost leaf of a node of a tree in post-order")
        open_roots.append(i)
    return parent


def exact_cells(leftmost_a: Sequence[int], leftmost_b: Sequence[int]) -> int:
    """Cells of the cheaper of the left-path and the right-path decomposition."""

    def work(leftmost: Sequence[int]) -> tuple[int, int]:
        size = len(leftmost)
        left = right = size
        for i, parent in enumerate(parents_from_leftmost(leftmost)):
            subtree = i - leftmost[i] + 1
            left += subtree if leftmost[i] != (0 if parent == size else leftmost[parent]) else 0
            right += subtree if parent != i + 1 else 0
        return left, right

    (left_a, right_a), (left_b, right_b) = work(leftmost_a), work(leftmost_b)
    return min(left_a * left_b, right_a * right_b)


def preorder(leftmost: Sequence[int]) -> list[int]:
    """Nodes in pre-order."""
    parent = parents_from_leftmost(leftmost)
    size = len(leftmost)
    depth = [0] * size
    order = [0] * size
    for i in reversed(range(size)):
        depth[i] = 0 if parent[i] == size else depth[parent[i]] + 1
        order[leftmost[i] + depth[i]] = i
    return order


def _tables(leftmost: Sequence[int]) -> list[tuple[int, int]]:
    """Node ranges ``[first, last]`` of the keyroots, the whole forest at the end."""
    highest = {first: i for i, first in enumerate(leftmost)}
    return [*sorted(((f, i) for f, i in highest.items() if f > 0), key=lambda t: t[1]), (0, len(leftmost) - 1)]


@dataclass
class _Columns:
    """All keyroot tables of the second tree side by side: (tables, 1 + longest) with a boundary column each.

    Tables of one node are left out: the inside of a leaf is empty, as every boundary column says.
    """

    tables: list[tuple[int, int]]
    node: Tensor  # (tables, longest)
    anchor: Tensor  # (tables, longest): column of the forest left of the node's subtree
    padding: Tensor  # (tables, longest)
    interior: Tensor  # (m,): flat position of the forest "subtree of j without j"

    @staticmethod
    def of(leftmost: Sequence[int]) -> _Columns:
        *inner, whole = _tables(leftmost)
        tables = [*((first, last) for first, last in inner if first < last), whole]
        longest = max(last - first + 1 for first, last in tables)
        node, anchor, padding = [], [], []
        interior = [0] * len(leftmost)
        for k, (first, last) in enumerate(tables):
            rest = longest - (last - first + 1)
            node.append(list(range(first, last + 1)) + [0] * rest)
            anchor.append([leftmost[j] - first for j in range(first, last + 1)] + [0] * rest)
            padding.append([False] * (longest - rest) + [True] * rest)
            for j in range(first, last + 1):
                if leftmost[j] == first:
                    interior[j] = k * (longest + 1) + j - first
        return _Columns(tables, *(torch.tensor(x) for x in (node, anchor, padding, interior)))


@dataclass
class _Forward:
    leftmost: Sequence[int]
    tables: list[tuple[int, int]]
    columns: _Columns
    subtree: list[Tensor]  # t, a row (m,) a node of the first tree
    rows: list[list[Tensor]]  # Z, a matrix a row, the boundary row first, for every table of the first tree

    @property
    def result(self) -> Tensor:
        last = self.columns.tables[-1]
        return self.rows[-1][-1][-1, last[1] - last[0] + 1]


def _forward(
    leftmost_a: Sequence[int],
    leftmost_b: Sequence[int],
    log_weight: Tensor,
    add: Callable[[Tensor, Tensor], Tensor],
    running: Callable[[Tensor], Tensor],
) -> _Forward:
    columns = _Columns.of(leftmost_b)
    tables = _tables(leftmost_a)
    boundary = log_weight.new_zeros(columns.node.shape[0], columns.node.shape[1] + 1)
    subtree: list[Tensor] = [boundary] * len(leftmost_a)
    rows: list[list[Tensor]] = []
    for first, last in tables:
        table = [boundary]
        for i in range(first, last + 1):
            if leftmost_a[i] == first:
                subtree[i] = log_weight[i] + table[-1].reshape(-1)[columns.interior]
            anchor = table[leftmost_a[i] - first].gather(1, columns.anchor)
            matched = (subtree[i][columns.node] + anchor).masked_fill(columns.padding, _LOG_ZERO)
            following = add(table[-1][:, 1:], running(matched))
            table.append(torch.cat([boundary[:, :1], following], dim=1))
        rows.append(table)
    return _Forward(leftmost_a, tables, columns, subtree, rows)


def _soft_forward(leftmost_a: Sequence[int], leftmost_b: Sequence[int], log_weight: Tensor) -> _Forward:
    finite = torch.where(torch.isneginf(log_weight), _LOG_ZERO, log_weight)
    return _forward(leftmost_a, leftmost_b, finite, torch.logaddexp, lambda x: x.logcumsumexp(1))


def log_partition(leftmost_a: Sequence[int], leftmost_b: Sequence[int], log_weight: Tensor) -> Tensor:
    """``log Z`` of one pair of non-empty trees from ``log_weight`` (n, m); once differentiable by autograd.

    >>> log_partition([0], [0], torch.zeros(1, 1)).exp()  # the empty mapping and the one match
    tensor(2.)
    """
    return _soft_forward(leftmost_a, leftmost_b, log_weight).result


def log_partition_and_posterior(
    leftmost_a: Sequence[int], leftmost_b: Sequence[int], log_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """``log Z`` and the match probabilities (n, m). Every gradient below is that of log Z, so it lies in [0, 1]."""
    forward = _soft_forward(leftmost_a, leftmost_b, log_weight)
    columns = forward.columns
    posterior = torch.zeros_like(log_weight)
    for k in reversed(range(len(forward.tables))):
        first, last = forward.tables[k]
        values = forward.rows[k]
        gradient = [torch.zeros_like(row) for row in values]
        if k == len(forward.tables) - 1:
            gradient[-1][-1, columns.tables[-1][1] - columns.tables[-1][0] + 1] = 1.0
        for i in range(last, first - 1, -1):
            row = i - first + 1
            # log(dZ_root / dZ_cell / Z_root), then its running sum from the right: N passes on what it gets.
            adjoint = gradient[row][:, 1:].log() - values[row][:, 1:]
            adjoint = adjoint.clamp_min(_LOG_ZERO).flip(1).logcumsumexp(1).flip(1)
            anchor_row = forward.leftmost[i] - first
            anchor = values[anchor_row].gather(1, columns.anchor)
            matched = (forward.subtree[i][columns.node] + anchor + adjoint).exp()
            matched = matched.masked_fill(columns.padding, 0.0)
            posterior[i].index_add_(0, columns.node.reshape(-1), matched.reshape(-1))
            gradient[anchor_row].scatter_add_(1, columns.anchor, matched)
            gradient[row - 1] += gradient[row] * (values[row - 1] - values[row]).exp()
            if forward.leftmost[i] == first:
                gradient[row - 1].view(-1).index_add_(0, columns.interior, posterior[i])
    return forward.result, posterior


def best_mapping(
    leftmost_a: Sequence[int], leftmost_b: Sequence[int], weight: Tensor
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Largest total weight of a mapping, and one that reaches it; ties: rather unmatched than matched."""
    forward = _forward(leftmost_a, leftmost_b, weight, torch.maximum, lambda x: x.cummax(1).values)
    table_of = {first: k for k, (first, _) in enumerate(forward.tables)}
    segment_of = {first: k for k, (first, _) in enumerate(forward.columns.tables)}
    matches: list[tuple[int, int]] = []
    # Forest pairs still to be explained: (first node, last node) of both, prefixes of the tables that begin there.
    pending = [(0, len(leftmost_a) - 1, 0, len(leftmost_b) - 1)]
    while pending:
        first, i, left, j = pending.pop()
        if i < first or j < left:
            continue
        rows = forward.rows[table_of[first]]
        segment = segment_of[left]
        while i >= first and j >= left:
            value = rows[i - first + 1][segment, j - left + 1]
            anchor = rows[leftmost_a[i] - first][segment, leftmost_b[j] - left]
            if value == rows[i - first][segment, j - left + 1]:
                i -= 1
            elif forward.subtree[i][j] + anchor != value:
                j -= 1
            else:
                matches.append((i, j))
                pending.append((leftmost_a[i], i - 1, leftmost_b[j], j - 1))
                i, j = leftmost_a[i] - 1, leftmost_b[j] - 1
    return forward.result, matches


def check_costs(name: str, costs: Tensor, infinite: bool, pair: int) -> None:
    """Raises ValueError for the first entry that is no cost. `infinite`: whether infinity is one."""
    bad = ~(costs >= 0) if infinite else ~((costs >= 0) & torch.isfinite(costs))
    if bad.any():
        where = [pair, *(int(x) for x in bad.nonzero()[0])]
        wanted = ">= 0 and not NaN (infinity forbids the match)" if infinite else ">= 0 and not NaN and finite"
        raise ValueError(f"{name}{where} = {costs[bad][0].item()}; costs must be {wanted}")


@dataclass
class _Pair:
    leftmost_a: list[int]
    leftmost_b: list[int]
    order_a: Tensor | None  # node -> input position, None where they are the same
    order_b: Tensor | None
    weight: Tensor  # delete_i + insert_j - relabel_ij in that order
    base: Tensor  # sum of delete and insert
    method: int

    def positions(self, matches: Tensor) -> Tensor:
        """(n, m) back into the order of the inputs."""
        if self.order_a is None or self.order_b is None:
            return matches
        return matches[self.order_a.argsort()][:, self.order_b.argsort()]


def _pairs(
    relabel: Tensor,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    method: str,
    max_cells: int,
) -> list[_Pair]:
    pairs = []
    for p, (n, m) in enumerate(zip(sizes_a.tolist(), sizes_b.tolist(), strict=True)):
        if not (0 <= n <= relabel.shape[1] and 0 <= m <= relabel.shape[2]):
            raise ValueError(
                f"sizes of pair {p} are {n} and {m}, outside the padded widths {relabel.shape[1]} and "
                f"{relabel.shape[2]}"
            )
        a, b = leftmost_a[p, :n].tolist(), leftmost_b[p, :m].tolist()
        cells = exact_cells(a, b)
        if method == "exact" and cells > max_cells:
            raise ValueError(
                f'method="exact" needs {cells} cells for pair {p} ({n} and {m} nodes), more than '
                f'max_cells = {max_cells}; raise max_cells or use method="auto" or "flattened"'
            )
        d, e, c = delete[p, :n], insert[p, :m], relabel[p, :n, :m]
        check_costs("delete", d, False, p)
        check_costs("insert", e, False, p)
        check_costs("relabel", c, True, p)
        weight = d[:, None] + e[None, :] - c
        flatten = method == "flattened" or (method == "auto" and cells > max_cells)
        order_a = order_b = None
        if flatten:
            order_a, order_b = (torch.tensor(preorder(x), dtype=torch.int64) for x in (a, b))
            weight = weight[order_a][:, order_b]
            a, b = list(range(n)), list(range(m))
        pairs.append(_Pair(a, b, order_a, order_b, weight, d.sum() + e.sum(), int(flatten)))
    return pairs


def soft_tree_alignment(
    relabel: Tensor,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    temperature: Tensor,
    method: str,
    max_cells: int,
    need_posterior: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Value (B,), posterior (B, N, M) or None, entropy (B,), method index (B,); padded CPU tensors.

    `temperature` is (B,) float64; all is computed in float64 whatever the dtype of the costs is.
    """
    pairs = _pairs(
        relabel.double(), delete.double(), insert.double(), leftmost_a, leftmost_b, sizes_a, sizes_b, method, max_cells
    )
    value = torch.zeros(len(pairs), dtype=torch.float64)
    entropy = torch.zeros_like(value)
    posterior = torch.zeros(relabel.shape, dtype=torch.float64) if need_posterior else None
    for p, pair in enumerate(pairs):
        value[p] = pair.base
        n, m = pair.weight.shape
        if n == 0 or m == 0:
            continue
        log_weight = pair.weight / temperature[p]
        if log_weight.max() > 1e15:
            raise ValueError(
                f"costs of pair {p} are too large: (delete + insert - relabel) / temperature reaches "
                f"{log_weight.max().item()}, at most 1e15 is supported"
            )
        if posterior is None:
            log_z = log_partition(pair.leftmost_a, pair.leftmost_b, log_weight)
        else:
            log_z, matched = log_partition_and_posterior(pair.leftmost_a, pair.leftmost_b, log_weight)
            entropy[p] = log_z - torch.where(matched > 0, matched * log_weight, 0.0).sum()
            posterior[p, :n, :m] = pair.positions(matched)
        value[p] -= temperature[p] * log_z
    out = None if posterior is None else posterior.to(relabel.dtype)
    return value.to(relabel.dtype), out, entropy.to(relabel.dtype), torch.tensor([x.method for x in pairs]).long()


def hard_tree_alignment(
    relabel: Tensor,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    method: str,
    max_cells: int,
    need_mapping: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Distance (B,), partners (B, N) and (B, M) with -1 for none (or None), method index (B,); padded CPU tensors."""
    pairs = _pairs(
        relabel.double(), delete.double(), insert.double(), leftmost_a, leftmost_b, sizes_a, sizes_b, method, max_cells
    )
    distance = torch.zeros(len(pairs), dtype=torch.float64)
    match_a = torch.full(relabel.shape[:2], -1, dtype=torch.int64)
    match_b = torch.full((relabel.shape[0], relabel.shape[2]), -1, dtype=torch.int64)
    for p, pair in enumerate(pairs):
        distance[p] = pair.base
        if 0 in pair.weight.shape:
            continue
        best, matches = best_mapping(pair.leftmost_a, pair.leftmost_b, pair.weight)
        distance[p] -= best
        for i, j in matches:
            a = i if pair.order_a is None else int(pair.order_a[i])
            b = j if pair.order_b is None else int(pair.order_b[j])
            match_a[p, a], match_b[p, b] = b, a
    used = torch.tensor([x.method for x in pairs]).long()
    if not need_mapping:
        return distance.to(relabel.dtype), None, None, used
    return distance.to(relabel.dtype), match_a, match_b, used
