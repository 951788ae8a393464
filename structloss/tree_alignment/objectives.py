"""Training objectives on top of the soft tree edit distance, one value a pair.

soft_tree_divergence  how different two trees are: 0 for equal trees, where the soft distance is not
mapping_nll           how improbable a known mapping is: supervised alignment
tree_nll              how improbable a tree is under predictions made at the nodes of another one
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from structloss.tree_alignment.edit_distance import _costs, _temperatures, soft_tree_edit_distance
from structloss.tree_alignment.op import inside_tree, unit_relabel
from structloss.trees import TreeBatch


def soft_tree_divergence(
    a: TreeBatch,
    b: TreeBatch,
    *,
    relabel: tuple[Tensor, Tensor, Tensor] | None = None,
    delete: Tensor | None = None,
    insert: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    method: str = "exact",
    max_cells: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Soft tree edit distance without its bias: 0 for equal trees.

    ``TED_soft(a, b) - TED_soft(a, a) / 2 - TED_soft(b, b) / 2``, as Blondel, Mensch and Vert (2021) do for soft-DTW.

    The soft distance of a tree to itself is not 0 and depends on the tree, so minimising it also moves towards trees
    that have many cheap mappings. Use the divergence where distances are compared or driven to 0; use the soft distance
    where one tree is fixed and only its gradient counts: it costs a third.

    It is never negative, beyond rounding, where ``exp(-relabel / temperature)`` is a positive semidefinite kernel of
    nodes, the same one in all three matrices: label disagreement, |x - y|, ||x - y|| and ||x - y||^2 of node vectors
    are such costs at every temperature. (The sum over mappings is then an inner product of the two trees, and this is
    the inequality of Cauchy and Schwarz.) Other costs can make it negative. It is no metric: the triangle inequality
    does not hold.

    Args:
        a, b: batches of B trees, padded to N and M nodes.
        relabel: costs >= 0 of matching nodes of a with b (B, N, M), a with a (B, N, N) and b with b (B, M, M), all
            three by one rule. Default: 0 where the labels agree, 1 where they differ.
        delete: (B, N) cost >= 0 of an unmatched node of `a`, insert: (B, M) of `b`, on whichever side the tree stands.
            Default 1. One rule for both here too, or equal trees do not give 0.
        temperature, backend, max_cells: as in :func:`soft_tree_edit_distance`.
        method: "exact" or "flattened", for all three distances.

    Returns:
        (B,) in the dtype of the costs (float32 for float16, bfloat16 and the defaults), differenced in float64.

    Raises:
        As :func:`soft_tree_edit_distance`, and ValueError for `method="auto"`, which could flatten one of the three.

    >>> a = TreeBatch.from_parents([[1, 2, 0]], [[2, 2, -1]])
    >>> b = TreeBatch.from_parents([[1, 3, 0]], [[2, 2, -1]])
    >>> soft_tree_divergence(a, a), soft_tree_divergence(a, b) > 0
    (tensor([0.]), tensor([True]))
    """
    if method == "auto":
        raise ValueError('method must be "exact" or "flattened" here, got "auto": the three distances need one method')
    if relabel is None:
        matched_ab = matched_aa = matched_bb = None
    elif isinstance(relabel, tuple) and len(relabel) == 3:
        matched_ab, matched_aa, matched_bb = relabel
    else:
        raise TypeError("relabel must be a tuple of three tensors, for a with b, a with a and b with b, or None")
    _, unmatched_a, unmatched_b, dtype, _ = _costs(a, b, matched_ab, delete, insert, method, max_cells)

    def distance(x: TreeBatch, y: TreeBatch, matched: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
        matched, left, right, _, _ = _costs(x, y, matched, left, right, method, max_cells)
        matched = None if matched is None else matched.double()
        return _soft_distance(x, y, (matched, left.double(), right.double()), temperature, method, max_cells, backend)

    own = distance(a, a, matched_aa, unmatched_a, unmatched_a) + distance(b, b, matched_bb, unmatched_b, unmatched_b)
    return (distance(a, b, matched_ab, unmatched_a, unmatched_b) - own / 2).to(dtype)


def mapping_nll(
    a: TreeBatch,
    b: TreeBatch,
    match_a: Tensor,
    *,
    relabel: Tensor | None = None,
    delete: Tensor | None = None,
    insert: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    method: str = "exact",
    max_cells: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Negative log-probability of a known mapping: supervised learning of the costs.

    ``(cost(M) - TED_soft(a, b)) / temperature = -log Pr(M)``, the Fenchel-Young loss of tree alignment (Blondel,
    Martins and Niculae, 2020): never negative beyond rounding, convex in the costs, and with the gradient
    ``(1[(i, j) in M] - P_ij) / temperature`` to `relabel`, which is zero where the posterior is the mapping.

    Use it where the correspondence is known, from :func:`align_trees` on other costs or from an edit script; use
    :func:`soft_tree_edit_distance` or :func:`tree_nll` where only the trees are known and every mapping counts.

    Args:
        a, b, relabel, delete, insert, temperature, method, max_cells, backend: as in :func:`soft_tree_edit_distance`.
        match_a: int64 (B, N), the node of `b` that each node of `a` is mapped to, -1 for none and at padding, as
            :func:`align_trees` gives it. A match whose relabel cost is infinite makes the value infinite.

    Returns:
        (B,) in the dtype of the costs (float32 for float16, bfloat16 and the defaults), differenced in float64.

    Raises:
        As :func:`soft_tree_edit_distance`; TypeError or ValueError where `match_a` has another dtype, shape or device;
        ValueError where it is no mapping: one-to-one, ancestors to ancestors, left to left. That last check is left out
        on other devices than the CPU, where it would wait, and under torch.compile.

    >>> a = TreeBatch.from_parents([[1, 2, 0]], [[2, 2, -1]])
    >>> b = TreeBatch.from_parents([[1, 0]], [[1, -1]])
    >>> nll = mapping_nll(a, b, torch.tensor([[0, -1, 1]]), temperature=0.5)
    >>> round(nll.neg().exp().item(), 3)  # the probability of the mapping
    0.846
    """
    relabel, delete, insert, dtype, max_cells = _costs(a, b, relabel, delete, insert, method, max_cells)
    delete, insert = delete.double(), insert.double()
    relabel = unit_relabel(a.label, b.label, torch.float64) if relabel is None else relabel.double()
    if match_a.dtype != torch.int64:
        raise TypeError(f"match_a must be int64, got {match_a.dtype}")
    if match_a.shape != delete.shape:
        raise ValueError(f"match_a must have shape {tuple(delete.shape)}, got {tuple(match_a.shape)}")
    if match_a.device != delete.device:
        raise ValueError(f"match_a is on {match_a.device}, the trees are on {delete.device}; put all on one device")
    if _may_read(match_a):
        _check_mapping(a, b, match_a)
    soft = _soft_distance(a, b, (relabel, delete, insert), temperature, method, max_cells, backend)
    chosen = match_a[:, :, None] == torch.arange(insert.shape[1], device=match_a.device)  # (B, N, M)
    deleted = inside_tree(delete.shape[1], a.sizes) & ~chosen.any(2)
    inserted = inside_tree(insert.shape[1], b.sizes) & ~chosen.any(1)
    cost = (
        torch.where(chosen, relabel, 0).sum((1, 2))
        + torch.where(deleted, delete, 0).sum(1)
        + torch.where(inserted, insert, 0).sum(1)
    )
    return ((cost - soft) / _temperatures(temperature, a)).to(dtype)


def _soft_distance(
    a: TreeBatch,
    b: TreeBatch,
    costs: tuple[Tensor | None, Tensor, Tensor],
    temperature: float | Tensor,
    method: str,
    max_cells: int | None,
    backend: str,
) -> Tensor:
    relabel, delete, insert = costs
    return soft_tree_edit_distance(
        a,
        b,
        relabel=relabel,
        delete=delete,
        insert=insert,
        temperature=temperature,
        method=method,
        max_cells=max_cells,
        backend=backend,
    )


def _may_read(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_mapping(a: TreeBatch, b: TreeBatch, match_a: Tensor) -> None:
    """In post-order a mapping increases, and every matched node has as many matched nodes below it as its partner."""

    def refuse(wrong: Tensor, wanted: str) -> None:
        if wrong.any():
            pair, node = wrong.nonzero()[0].tolist()
            raise ValueError(f"match_a[{pair}, {node}] = {match_a[pair, node].item()} {wanted}")

    matched = match_a >= 0
    refuse((match_a < -1) | (match_a >= b.sizes[:, None]), "is neither a node of the second tree nor -1")
    refuse(matched & ~inside_tree(match_a.shape[1], a.sizes), "is at padding, which wants -1")
    if not matched.any():
        return
    highest = match_a.cummax(1).values
    earlier = torch.nn.functional.pad(highest[:, :-1], (1, 0), value=-1)
    refuse(matched & (match_a <= earlier), "does not come after the partners of earlier nodes: mappings keep the order")

    def below(taken: Tensor, leftmost: Tensor) -> Tensor:
        """Matched nodes below every node."""
        before = taken.cumsum(1) - taken.long()
        return before - before.gather(1, leftmost.clamp_min(0))

    partner = match_a.clamp_min(0)
    taken_b = torch.zeros_like(b.leftmost).scatter_add(1, partner, matched.long())
    below_a, below_b = below(matched, a.leftmost), below(taken_b, b.leftmost).gather(1, partner)
    refuse(matched & (below_a != below_b), "has other matched nodes below it than its partner: mappings keep ancestry")


def tree_nll(
    log_probs: Tensor,
    student: TreeBatch,
    teacher: TreeBatch,
    *,
    kinds: Tensor | None = None,
    rho: float = 0.1,
    method: str = "exact",
    max_cells: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Negative log-likelihood of the teacher's tree, "CTC for trees".

    Every student node emits a kind or a blank. A node of the teacher's tree either is emitted by the student node that
    it is matched with or is an insertion, which has probability rho. Summed over all mappings that keep order and
    ancestry,

        -log sum over M of  prod_(i,j in M) (1 - rho) p_i(kind_j) * prod_(i unmatched) p_i(blank) * rho^(unmatched j)

    a soft tree edit distance at temperature 1. The sum is at most 1, so the value is never negative beyond rounding.
    The gradient to the logits of node i is ``p_i - [sum_j P_ij onehot(kind_j) + (1 - sum_j P_ij) onehot(blank)]``.

    Use it where predictions are made at the nodes of one tree and another tree is the target, and which node
    corresponds to which is not known.

    Args:
        log_probs: (B, N, K + 1) log-probabilities of K kinds and, last, the blank, whose entry must be finite. A
            student node that shall take no part gets 0 for the blank and -inf for every kind. Not read at padding.
        student, teacher: batches of B trees, padded to N and M nodes.
        kinds: (B, M) int64 kind of each teacher node, in [0, K); a negative one leaves the node out: it is neither
            matched nor paid for. Default `teacher.kind`.
        rho: probability of an insertion, in (0, 1). A node whose kind was emitted costs at least -log(1 - rho).
        method, max_cells, backend: as in :func:`soft_tree_edit_distance`.

    Returns:
        (B,) in the dtype of `log_probs` (float32 for float16 and bfloat16), differentiable once.

    Raises:
        As :func:`soft_tree_edit_distance`; ValueError for a `rho` outside (0, 1), a wrong shape or device, and a kind
        of K or above (the last on the CPU only, and not under torch.compile); TypeError for a wrong dtype.

    >>> tree = TreeBatch.from_parents([[0]], [[-1]], kinds=[[2]])
    >>> log_probs = torch.tensor([[[0.1, 0.1, 0.7, 0.1]]]).log()
    >>> round(tree_nll(log_probs, tree, tree, rho=0.1).exp().item(), 4)  # 1 / (0.9 * 0.7 + 0.1 * 0.1)
    1.5625
    """
    if not 0.0 < rho < 1.0:
        raise ValueError(f"rho must be a probability in (0, 1), got {rho}")
    kinds = teacher.kind if kinds is None else kinds
    if not log_probs.dtype.is_floating_point:
        raise TypeError(f"log_probs must be a floating point tensor, got {log_probs.dtype}")
    if kinds.dtype != torch.int64:
        raise TypeError(f"kinds must be int64, got {kinds.dtype}")
    batch, nodes = student.leftmost.shape
    if log_probs.dim() != 3 or tuple(log_probs.shape[:2]) != (batch, nodes) or log_probs.shape[2] < 2:
        raise ValueError(f"log_probs must have shape ({batch}, {nodes}, kinds + 1), got {tuple(log_probs.shape)}")
    if kinds.shape != teacher.leftmost.shape:
        raise ValueError(f"kinds must have shape {tuple(teacher.leftmost.shape)}, got {tuple(kinds.shape)}")
    if kinds.device != log_probs.device:
        raise ValueError(f"kinds is on {kinds.device}, log_probs is on {log_probs.device}; put all on one device")
    if _may_read(kinds) and (kinds >= log_probs.shape[2] - 1).any():
        raise ValueError(
            f"kinds must be below {log_probs.shape[2] - 1}, the blank of log_probs {tuple(log_probs.shape)}; got "
            f"{kinds.max().item()}"
        )
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    takes_part = kinds >= 0
    emitted = log_probs.gather(2, kinds.clamp_min(0)[:, None, :].expand(-1, nodes, -1))
    return soft_tree_edit_distance(
        student,
        teacher,
        relabel=torch.where(takes_part[:, None, :], -emitted - math.log1p(-rho), torch.inf),
        delete=-log_probs[..., -1],
        insert=log_probs.new_full(kinds.shape, -math.log(rho)).masked_fill(~takes_part, 0.0),
        temperature=1.0,
        method=method,
        max_cells=max_cells,
        backend=backend,
    )
