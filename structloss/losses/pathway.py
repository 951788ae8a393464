"""L_path: which of several solutions of a problem is right."""

from __future__ import annotations

import torch

from structloss.tree_alignment import tree_edit_distance
from structloss.trees import TreeBatch


def distance_to_right(trees: TreeBatch, group_id: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
    """How far each wrong candidate is from the nearest right one of its group, as trees.

    ``Delta_k = min over right g of TED(T_k, T_g) / (n_k + n_g)`` for a wrong k; 0 for right rows, for rows in
    no group (`group_id` -1) and for groups without a right row.

    Returns: (B,) float32 in [0, 1].
    """
    delta = torch.zeros(len(trees), dtype=torch.float32, device=group_id.device)
    groups, verdicts = group_id.tolist(), passed.tolist()
    pairs = [
        (wrong, right)
        for wrong in range(len(trees))
        for right in range(len(trees))
        if groups[wrong] >= 0 and groups[wrong] == groups[right] and not verdicts[wrong] and verdicts[right]
    ]
    if not pairs:
        return delta
    wrong_rows = torch.tensor([wrong for wrong, _ in pairs], device=group_id.device)
    right_rows = torch.tensor([right for _, right in pairs], device=group_id.device)
    wrong_trees, right_trees = trees.select(wrong_rows), trees.select(right_rows)
    nodes = (wrong_trees.sizes + right_trees.sizes).clamp_min(1)
    distance = (tree_edit_distance(wrong_trees, right_trees) / nodes).to(delta)
    delta[wrong_rows.unique()] = torch.inf
    return delta.scatter_reduce(0, wrong_rows, distance, reduce="amin")


def pathway_loss(
    mean_logprob: torch.Tensor,
    group_id: torch.Tensor,
    passed: torch.Tensor,
    delta: torch.Tensor,
    *,
    beta: float = 10.0,
    margin: float = 0.5,
    margin_per_distance: float = 2.0,
) -> tuple[torch.Tensor, int]:
    """Log-odds of the right candidates of each group, with a margin that grows with structural distance.

    ``s_k = beta * mean_logprob_k`` and, a group at a time,
    ``L = -log sum_{right} exp(s_k) + log sum_k exp(s_k + [k wrong] * (margin + margin_per_distance * Delta_k))``,
    averaged over the groups. Every right candidate is pulled up, none is pushed down by another right one's
    being better; groups without both kinds are skipped. The constant `margin` is needed because programs that
    are wrong by one edit have a Delta of almost 0.

    Args:
        mean_logprob: (B,) mean log-probability of each row's code tokens; differentiable.
        group_id: (B,) int64, -1 = in no group.
        passed: (B,) bool.
        delta: (B,) structural distance of wrong rows, see `distance_to_right`.

    Returns: the loss (0 without a usable group) and the number of groups used.
    """
    score = beta * mean_logprob
    shifted = score + torch.where(passed, 0.0, margin + margin_per_distance * delta).to(score)
    losses = []
    for group in group_id[group_id >= 0].unique().tolist():
        member = group_id == group
        right = member & passed
        if not bool(right.any()) or bool(right.sum() == member.sum()):
            continue
        losses.append(shifted[member].logsumexp(0) - score[right].logsumexp(0))
    if not losses:
        return score.sum() * 0.0, 0
    return torch.stack(losses).mean(), len(losses)
