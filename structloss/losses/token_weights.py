"""L_token's weights: which tokens of the teacher's code the student's own code shows to be missing."""

from __future__ import annotations

from typing import Any

import torch

from structloss.losses.batch import CODE, REASONING
from structloss.tree_alignment import soft_tree_edit_distance
from structloss.trees import TreeBatch
from structloss.trees.kinds import rules_of_version


def relabel_costs(a: TreeBatch, b: TreeBatch, *, same_kind: float = 0.5, literal: float | None = None) -> torch.Tensor:
    """(B, N, M) float32 relabel costs in [0, 1]: 0 where labels agree, `same_kind` where only the kinds do, else 1.

    A label holds the node's text (names, literals, operators), a kind does not, so another name in the right place
    costs `same_kind`. Another number or string costs `literal`, by default `same_kind` too: a renamed variable is often
    as good, a wrong constant hardly ever.

    Raises:
        ValueError: costs outside [0, 1], trees of two languages, or `literal` for trees whose kinds have no version
            (those of ``TreeBatch.from_parents``).
    """
    check_costs(same_kind, literal)
    check_same_kinds(a, b)
    other_text: float | torch.Tensor = same_kind
    if literal is not None:
        if a.kind_version is None:
            raise ValueError(
                "literal: which kinds are literals is known only of parsed trees (TreeBatch.from_sources, from_trees)"
            )
        rules = rules_of_version(a.kind_version)
        by_kind = [literal if name in rules.literals else same_kind for name in rules.kinds]
        other_text = torch.tensor(by_kind, device=a.kind.device)[a.kind.clamp_min(0)].unsqueeze(2)
    label = a.label.unsqueeze(2) == b.label.unsqueeze(1)
    kind = a.kind.unsqueeze(2) == b.kind.unsqueeze(1)
    costs = torch.where(kind, other_text, 1.0)
    return torch.where(label, 0.0, costs).to(torch.float32)


def check_costs(same_kind: float, literal: float | None) -> None:
    for name, value in (("same_kind", same_kind), ("literal", literal)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: wants a cost in [0, 1], got {value}")


def check_same_kinds(student: TreeBatch, teacher: TreeBatch) -> None:
    """Raises ValueError where the kinds of the two are ids of different vocabularies."""
    if None not in (student.kind_version, teacher.kind_version) and student.kind_version != teacher.kind_version:
        raise ValueError(
            f"student: its kinds are of version {student.kind_version!r}, the teacher's of {teacher.kind_version!r}; "
            "parse both as one language with one release of structloss"
        )


@torch.no_grad()
def structural_gap(
    student: TreeBatch,
    teacher: TreeBatch,
    *,
    temperature: float = 0.25,
    same_kind: float = 0.5,
    literal: float | None = None,
    confidence: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far each teacher node is missing from the student's own code.

    ``gap_j = 1 - sum_i P_ij (1 - c_ij)`` with P the posterior of the soft tree alignment at `temperature` (unit
    delete and insert costs) and c the relabel costs: the probability that node j has no partner, or a partner of
    another kind. At temperature 0.25 identical trees show a mean gap of about 0.

    Args:
        same_kind, literal: see `relabel_costs`.
        confidence: (B,) in [0, 1], multiplies the row's gaps (broken code is weak evidence).

    Returns: (B, M) float32 in [0, 1]; 0 at padding.
    """
    costs = relabel_costs(student, teacher, same_kind=same_kind, literal=literal)
    _, posterior = soft_tree_edit_distance(
        student, teacher, relabel=costs, temperature=temperature, return_posterior=True
    )
    present = (posterior.to(costs) * (1.0 - costs)).sum(1)
    real = torch.arange(teacher.label.shape[1], device=present.device) < teacher.sizes.unsqueeze(1)
    gap = torch.where(real, (1.0 - present).clamp(0.0, 1.0), 0.0)
    return gap if confidence is None else gap * confidence.to(gap).unsqueeze(1)


def structural_surplus(student: TreeBatch, teacher: TreeBatch, **costs: Any) -> torch.Tensor:
    """How far each node of the student's own code is one that the teacher's has no place for.

    The gap seen from the other side: ``1 - sum_j P_ij (1 - c_ij)``, with the keywords of `structural_gap`.

    Returns: (B, N) float32 in [0, 1]; 0 at padding.
    """
    return structural_gap(teacher, student, **costs)


def gather_node_values(values: torch.Tensor, token_node: torch.Tensor) -> torch.Tensor:
    """(B, T): `values` (B, M) of each token's node; 0 for tokens without one."""
    if values.shape[1] == 0:
        return torch.zeros(token_node.shape, dtype=values.dtype, device=values.device)
    return torch.where(token_node >= 0, values.gather(1, token_node.clamp_min(0)), 0.0)


def region_weights(regions: torch.Tensor, *, reasoning: float, code: float) -> torch.Tensor:
    """(B, T) float32: 0 on the prompt, `reasoning` and `code` elsewhere."""
    weights = torch.zeros(regions.shape, dtype=torch.float32, device=regions.device)
    weights.masked_fill_(regions == REASONING, reasoning)
    return weights.masked_fill_(regions == CODE, code)


def structural_factors(
    gap_at_token: torch.Tensor, prob: torch.Tensor, is_code: torch.Tensor, strength: float
) -> torch.Tensor:
    """The factor ``u_t / mean(u over the row's code)`` with ``u_t = 1 + strength * gap_t * (1 - p_t)``.

    The factor 1 - p_t spares flagged tokens that the student gets right already; the mean over the row's code
    keeps the learning rate's meaning.

    Args:
        gap_at_token: (B, T) gap of each token's node.
        prob: (B, T) the student's probability of each token; no gradient flows.
        is_code: (B, T) bool: tokens that count.
        strength: a(progress) * alpha.

    Returns: (B, T) float32; 1 outside the code.
    """
    u = 1.0 + strength * gap_at_token * (1.0 - prob.detach())
    count = is_code.sum(1, keepdim=True).clamp_min(1)
    mean = torch.where(is_code, u, 0.0).sum(1, keepdim=True) / count
    return torch.where(is_code, u / mean.clamp_min(1e-6), 1.0)
