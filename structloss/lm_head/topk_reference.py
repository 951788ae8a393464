"""The top-k divergence written down: all logits at once, differentiated by autograd. The truth for the row pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from structloss.lm_head.topk_formula import TopkFormula


def reference_topk_loss(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    target: Tensor,
    formula: TopkFormula,
    *,
    token_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    denominator: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, kl, logprob, lse, argmax) from logits (N, V), a teacher (N, k) and target (N,).

    Loss of a kept token: w * (kl_weight * kl + cross_entropy_weight * -log softmax(z)[target]).
    """
    weight = torch.ones_like(logits[:, 0]) if token_weight is None else token_weight.to(logits.dtype)
    target = target.to(torch.int64)
    keep = (target != ignore_index) & (weight != 0)
    kl = divergence_from_topk(logits, ids, logprobs, formula)
    logp = logits.log_softmax(-1)
    logp_target = logp.gather(1, torch.where(keep, target, 0)[:, None]).squeeze(1)
    per_token = formula.kl_weight * kl - formula.cross_entropy_weight * logp_target
    per_token = torch.where(keep, weight * per_token, 0)
    outputs = (
        torch.where(keep, kl, 0).detach(),
        torch.where(keep, logp_target, 0).detach(),
        torch.where(keep, logits.logsumexp(-1), 0).detach(),
        torch.where(keep, logits.argmax(-1), -1),
    )
    if reduction == "none":
        return (per_token, *outputs)
    total = per_token.sum()
    if reduction == "mean":
        if denominator is None:
            denominator = torch.where(keep, weight, 0).sum()
        total = torch.where(keep.any(), total / denominator, total)
    return (total, *outputs)


def divergence_from_topk(logits: Tensor, ids: Tensor, logprobs: Tensor, formula: TopkFormula) -> Tensor:
    """(N,) divergence of softmax(logits[:, :shared]) and the teacher, both coarsened to the k classes and a tail."""
    dtype, shared = logits.dtype, formula.shared
    lowest = torch.finfo(dtype).min
    named = (ids >= 0) & (ids < shared)
    column = torch.where(named, ids.to(torch.int64), shared)  # the place behind the last class stands for none
    is_named = torch.zeros(ids.shape[0], shared + 1, dtype=torch.bool, device=ids.device).scatter(1, column, True)
    logp = logits[:, :shared].log_softmax(-1)
    student = logp.gather(1, column.clamp(max=shared - 1))
    student_tail = torch.where(is_named[:, :shared], lowest, logp).logsumexp(-1, keepdim=True)
    has_tail = (student_tail > lowest / 2) & (formula.tail != "renormalize")
    teacher = torch.where(named, logprobs.to(dtype), lowest)
    mass = teacher.exp().sum(-1, keepdim=True)
    teacher_tail = torch.log1p(-mass.clamp(max=1)).clamp(min=math.log(formula.tail_floor))

    member = torch.cat([named, has_tail], -1)
    log_p = torch.cat([student, student_tail], -1) / formula.temperature
    log_q = torch.cat([teacher, teacher_tail], -1) / formula.temperature
    log_p = torch.where(member, log_p, lowest).log_softmax(-1)
    log_q = torch.where(member, log_q, lowest).log_softmax(-1)
    if formula.kind == "forward":
        terms = _weighted(log_q, log_q - log_p)
    elif formula.kind == "reverse":
        terms = _weighted(log_p, log_p - log_q)
    else:
        log_m = torch.logaddexp(math.log(formula.beta) + log_q, math.log1p(-formula.beta) + log_p)
        terms = formula.beta * _weighted(log_q, log_q - log_m) + (1 - formula.beta) * _weighted(log_p, log_p - log_m)
    if formula.tail == "ignore":
        member = torch.cat([named, torch.zeros_like(has_tail)], -1)
    return torch.where(member, terms, 0).sum(-1)


def _weighted(log_weight: Tensor, value: Tensor) -> Tensor:
    """exp(log_weight) * value, and 0 where the weight is 0 whatever the value."""
    weight = log_weight.exp()
    return weight * torch.where(weight > 0, value, 0)
