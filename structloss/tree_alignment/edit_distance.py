"""The public functions of tree alignment: arguments, defaults and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from structloss.tree_alignment import op
from structloss.tree_alignment.reference import METHODS
from structloss.trees import TreeBatch

# Cells of the dynamic program of one pair, about 15 times the cells of two real programs of 800 nodes each.
DEFAULT_MAX_CELLS = 64 * 1024 * 1024


@dataclass(frozen=True)
class TreeAlignment:
    """An optimal mapping for every pair: node i of the first tree is matched with node `match_a[p, i]` of the second.

    Attributes:
        distance: (B,) tree edit distance.
        match_a: (B, N) int64, partner of each node of the first tree, -1 for deleted nodes and padding.
        match_b: (B, M) int64, partner of each node of the second tree, -1 for inserted nodes and padding.
        method: "exact" or "flattened" for every pair.
    """

    distance: Tensor
    match_a: Tensor
    match_b: Tensor
    method: tuple[str, ...]


def _costs(
    a: TreeBatch,
    b: TreeBatch,
    relabel: Tensor | None,
    delete: Tensor | None,
    insert: Tensor | None,
    method: str,
    max_cells: int | None,
) -> tuple[Tensor | None, Tensor, Tensor, torch.dtype, int]:
    """Costs in a dtype that the kernels take (relabel costs stay None for the default), the dtype of the result, the
    cell budget.
    """
    for name, trees in (("a", a), ("b", b)):
        if not isinstance(trees, TreeBatch):
            raise TypeError(f"{name} must be a TreeBatch, got {type(trees).__name__}")
    batch, width_a = a.leftmost.shape
    width_b = b.leftmost.shape[1]
    if b.leftmost.shape[0] != batch:
        raise ValueError(f"a and b must hold the same number of trees, got {batch} and {b.leftmost.shape[0]}")
    if method not in ("exact", "flattened", "auto"):
        raise ValueError(f'method must be "exact", "flattened" or "auto", got {method!r}')
    if max_cells is None:
        max_cells = DEFAULT_MAX_CELLS
    elif not isinstance(max_cells, int) or max_cells < 1:
        raise ValueError(f"max_cells must be an integer >= 1, got {max_cells!r}")
    device = a.leftmost.device
    shapes = {
        "relabel": (relabel, (batch, width_a, width_b)),
        "delete": (delete, (batch, width_a)),
        "insert": (insert, (batch, width_b)),
    }
    dtype: torch.dtype | None = None
    for name, (cost, shape) in shapes.items():
        if cost is None:
            continue
        if not isinstance(cost, Tensor):
            raise TypeError(f"{name} must be a tensor or None, got {type(cost).__name__}")
        if not cost.dtype.is_floating_point:
            raise TypeError(f"{name} must be a floating point tensor, got {cost.dtype}")
        if tuple(cost.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(cost.shape)}")
        dtype = cost.dtype if dtype is None else torch.promote_types(dtype, cost.dtype)
        if cost.device != device:
            raise ValueError(f"{name} is on {cost.device}, the trees are on {device}; put all on one device")
    for name, tensor in (("a.sizes", a.sizes), ("b.leftmost", b.leftmost), ("b.sizes", b.sizes)):
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, a.leftmost is on {device}; put all on one device")
    if dtype is None:
        dtype = torch.get_default_dtype()
    full = dtype in (torch.float32, torch.float64)
    compute = dtype if full else torch.float64
    if delete is None:
        delete = torch.ones(batch, width_a, dtype=compute, device=device)
    if insert is None:
        insert = torch.ones(batch, width_b, dtype=compute, device=device)
    relabel = None if relabel is None else relabel.to(compute)
    return relabel, delete.to(compute), insert.to(compute), dtype if full else torch.float32, max_cells


def _temperatures(temperature: float | Tensor, a: TreeBatch) -> Tensor:
    """One float64 temperature a pair. The values of a tensor are checked by the operator, where they are on the CPU."""
    batch, device = len(a.leftmost), a.leftmost.device
    if not isinstance(temperature, Tensor):
        if not isinstance(temperature, int | float):
            raise TypeError(f"temperature must be a number or a tensor, got {type(temperature).__name__}")
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature must be finite and > 0, got {temperature}")
        # Not torch.full: torch.compile would compile again for every number that a schedule makes.
        return torch.ones(batch, dtype=torch.float64, device=device) * temperature
    if not temperature.dtype.is_floating_point:
        raise TypeError(f"temperature must be a number or a floating point tensor, got {temperature.dtype}")
    if temperature.dim() > 0 and tuple(temperature.shape) != (batch,):
        raise ValueError(f"temperature must be a number or have shape () or ({batch},), got {tuple(temperature.shape)}")
    if temperature.device != device and (temperature.dim() > 0 or temperature.device.type != "cpu"):
        raise ValueError(f"temperature is on {temperature.device}, the trees are on {device}; put all on one device")
    return temperature.to(device, torch.float64).expand(batch)


def _table_columns(a: TreeBatch, b: TreeBatch) -> int:
    """Columns of the widest keyroot tables among all trees, 0 where a batch does not know."""
    if a.table_columns is None or b.table_columns is None:
        return 0
    return max(a.table_columns, b.table_columns)


def _needs_gradient(inputs: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _align(
    a: TreeBatch,
    b: TreeBatch,
    relabel: Tensor | None,
    delete: Tensor | None,
    insert: Tensor | None,
    method: str,
    max_cells: int | None,
    backend: str,
    need_mapping: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *costs, dtype, max_cells = _costs(a, b, relabel, delete, insert, method, max_cells)
    need_mapping = need_mapping or _needs_gradient(costs)
    trees = (a.leftmost, b.leftmost, a.sizes, b.sizes, a.label, b.label)
    distance, match_a, match_b, used = op.hard_tree_alignment(
        *costs, *trees, method, max_cells, _table_columns(a, b), backend, need_mapping
    )
    return distance.to(dtype), match_a, match_b, used


def tree_edit_distance(
    a: TreeBatch,
    b: TreeBatch,
    *,
    relabel: Tensor | None = None,
    delete: Tensor | None = None,
    insert: Tensor | None = None,
    method: str = "exact",
    max_cells: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Tree edit distance of each pair of ordered trees.

    ``min over mappings M of  sum_(i,j in M) relabel_ij + sum_(i unmatched) delete_i + sum_(j unmatched) insert_j``,
    where a mapping is one-to-one and keeps ancestry and left-right order. Exact (Zhang and Shasha, 1989, on the cheaper
    of the left-path and right-path decompositions).

    Args:
        a, b: batches of B trees, padded to N and M nodes.
        relabel: (B, N, M) cost of matching two nodes, >= 0; infinity forbids the match. Default: 0 where the labels
            agree, 1 where they differ.
        delete: (B, N) cost >= 0 of an unmatched node of `a`. Default 1.
        insert: (B, M) cost >= 0 of an unmatched node of `b`. Default 1. Entries at padding are never read.
        method: "exact"; "flattened", the alignment of the two pre-orders, a lower bound; or "auto", which flattens
            the pairs that need more than `max_cells`.
        max_cells: budget of "exact" for one pair, cells of the dynamic program; default 64 Mi.
        backend: "auto", "reference", "cpu", "cuda" or "triton". "auto" copies the costs of CUDA tensors to the CPU and
            the result back, which waits for the device; the others serve the call or raise. "cuda" does not wait, so
            wrong costs on the device make the value of their pair NaN instead of raising, unless the environment has
            STRUCTLOSS_CUDA_CHECK=1.

    Returns:
        (B,) distances in the dtype of the costs (float32 for float16, bfloat16 and for the defaults). Differentiable
        once, by the subgradient of the mapping found.

    Raises:
        ValueError: wrong shapes, devices or batch sizes, negative or NaN costs, a pair over `max_cells`.
        TypeError: costs that are not floating point tensors.
        RuntimeError: a backend that cannot serve the call.

    >>> import structloss
    >>> a = structloss.TreeBatch.from_parents([[1, 2, 0]], [[2, 2, -1]])
    >>> b = structloss.TreeBatch.from_parents([[1, 0]], [[1, -1]])
    >>> tree_edit_distance(a, b)
    tensor([1.])
    """
    return _align(a, b, relabel, delete, insert, method, max_cells, backend, need_mapping=False)[0]


def align_trees(
    a: TreeBatch,
    b: TreeBatch,
    *,
    relabel: Tensor | None = None,
    delete: Tensor | None = None,
    insert: Tensor | None = None,
    method: str = "exact",
    max_cells: int | None = None,
    backend: str = "auto",
) -> TreeAlignment:
    """An optimal mapping of each pair of trees; arguments and errors as in :func:`tree_edit_distance`.

    Ties are broken the same way every time: a pair whose match saves nothing stays unmatched.

    >>> import structloss
    >>> a = structloss.TreeBatch.from_parents([[1, 2, 0]], [[2, 2, -1]])
    >>> b = structloss.TreeBatch.from_parents([[1, 0]], [[1, -1]])
    >>> align_trees(a, b).match_a
    tensor([[ 0, -1,  1]])
    """
    distance, match_a, match_b, used = _align(
        a, b, relabel, delete, insert, method, max_cells, backend, need_mapping=True
    )
    return TreeAlignment(distance, match_a, match_b, tuple(METHODS[k] for k in used.tolist()))


@overload
def soft_tree_edit_distance(
    a: TreeBatch,
    b: TreeBatch,
    *,
    relabel: Tensor | None = ...,
    delete: Tensor | None = ...,
    insert: Tensor | None = ...,
    temperature: float | Tensor = ...,
    return_posterior: Literal[False] = ...,
    method: str = ...,
    max_cells: int | None = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def soft_tree_edit_distance(
    a: TreeBatch,
    b: TreeBatch,
    *,
    relabel: Tensor | None = ...,
    delete: Tensor | None = ...,
    insert: Tensor | None = ...,
    temperature: float | Tensor = ...,
    return_posterior: Literal[True],
    method: str = ...,
    max_cells: int | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def soft_tree_edit_distance(
    a: TreeBatch,
    b: TreeBatch,
    *,
    relabel: Tensor | None = None,
    delete: Tensor | None = None,
    insert: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    return_posterior: bool = False,
    method: str = "exact",
    max_cells: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Soft minimum over all mappings of each pair of trees, and the probability of every match.

    ``-temperature * log  sum over mappings M of  exp(-cost(M) / temperature)``, never above the tree edit distance and
    equal to it in the limit of temperature 0. It is negative where many mappings are cheap. It is the free energy
    ``E[cost] - temperature * H`` of the distribution ``Pr(M) ~ exp(-cost(M) / temperature)`` with entropy H, and its
    gradient is exact:

        d relabel      P_ij = Pr[i and j are matched]       d delete, d insert    Pr[unmatched]
        d temperature  -H

    so at any input ``value = sum of costs * their gradients + temperature * its gradient``: an identity to test with.

    Args:
        a, b, relabel, delete, insert, method, max_cells, backend: as in :func:`tree_edit_distance`.
        temperature: > 0, in the units of the costs: a number, or a tensor () or (B,), one a pair, whose values are
            checked where and when the costs are.
        return_posterior: also return the posterior P (B, N, M), zero at padding. It carries no gradient.

    Returns:
        (B,) values in the dtype of the costs, or (values, posterior). All is computed in float64 inside; float16 and
        bfloat16 costs come back as float32. Differentiable once, in the costs and in the temperature.

    Raises:
        ValueError: as :func:`tree_edit_distance`, and a temperature that is not finite and > 0 or of another shape.
        TypeError: as :func:`tree_edit_distance`, and a temperature that is neither.
        RuntimeError: a second derivative is asked for.

    >>> import structloss
    >>> a = structloss.TreeBatch.from_parents([[7]], [[-1]])
    >>> value, posterior = soft_tree_edit_distance(a, a, return_posterior=True)  # 2 - log(1 + e^2)
    >>> round(value.item(), 4), round(posterior.item(), 4)
    (-0.1269, 0.8808)
    """
    *costs, dtype, max_cells = _costs(a, b, relabel, delete, insert, method, max_cells)
    temperatures = _temperatures(temperature, a)
    need_posterior = return_posterior or _needs_gradient([*costs, temperatures])
    value, posterior, _, _ = op.soft_tree_alignment(
        *costs,
        a.leftmost,
        b.leftmost,
        a.sizes,
        b.sizes,
        a.label,
        b.label,
        temperatures,
        method,
        max_cells,
        _table_columns(a, b),
        backend,
        need_posterior,
    )
    value = value.to(dtype)
    return (value, posterior.to(dtype)) if return_posterior else value
