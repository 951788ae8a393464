"""The row pass of the top-k divergence in torch operations: logits in, per-token results out, gradient in place.

A row of logits is read as three parts: the *named* classes (the teacher's k, and the target where there is one), the
*rest* of the shared vocabulary, and the classes *outside* of it. The rest enters only through its log-sum-exp, so that
the student's tail is never 1 minus a sum, and all that is particular to divergence, temperature and tail happens on
k + 1 numbers a row, the logits `u` of the teacher's classes and of the tail. With `D = d kl / d u`,

    d kl / d z_j = D_j              named by the teacher
    d kl / d z_i = D_tail * exp(z_i - u_tail)     in the tail

and the softmax over the vocabulary is taken once, at temperature 1, for the divergence and the cross-entropy together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structloss.lm_head.row_pass import row_dtype
from structloss.lm_head.topk_formula import TopkFormula

# As in row_pass.py: on a CPU the sweeps over a block of rows should hit the cache. Elsewhere launches are what costs,
# and a chunk is one block unless the soft cap needs a second buffer of its size.
_CPU_BLOCK_BYTES = 4 << 20
_CAPPED_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class TopkInputs:
    """`target` is None where neither cross-entropy nor logprob is wanted, `upstream` as in RowInputs."""

    ids: Tensor  # (n, k) int64
    logprobs: Tensor  # (n, k) in the row dtype
    target: Tensor | None  # (n,)
    weight: Tensor | None  # (n,)
    upstream: Tensor | None  # (n,)

    def __getitem__(self, rows: slice) -> TopkInputs:
        target, weight, upstream = (None if t is None else t[rows] for t in (self.target, self.weight, self.upstream))
        return TopkInputs(self.ids[rows], self.logprobs[rows], target, weight, upstream)


@dataclass(frozen=True)
class TopkResults:
    """Per-row results (n,): loss with its weight but without 1 / denominator; kl without either."""

    loss: Tensor
    kl: Tensor
    logprob: Tensor  # of the target, where there is one
    lse: Tensor
    argmax: Tensor | None

    def __getitem__(self, rows: slice) -> TopkResults:
        argmax = None if self.argmax is None else self.argmax[rows]
        return TopkResults(self.loss[rows], self.kl[rows], self.logprob[rows], self.lse[rows], argmax)

    @staticmethod
    def empty(rows: int, like: Tensor, *, argmax: bool) -> TopkResults:
        loss, kl, logprob, lse = (like.new_empty(rows, dtype=row_dtype(like.dtype)) for _ in range(4))
        return TopkResults(loss, kl, logprob, lse, like.new_empty(rows, dtype=torch.int64) if argmax else None)


class TopkRowPass:
    """Fills the results of a chunk and, where `upstream` is given, overwrites its logits with their gradient."""

    def __init__(self, like: Tensor, vocab: int, formula: TopkFormula, *, max_rows: int) -> None:
        """`like` has the device of the logits; a chunk has at most `max_rows` rows."""
        self.formula = formula
        dtype, capped, on_cpu = row_dtype(like.dtype), formula.softcap is not None, like.device.type == "cpu"
        self.rows = max_rows
        if on_cpu or capped:
            budget = _CPU_BLOCK_BYTES * torch.get_num_threads() if on_cpu else _CAPPED_BLOCK_BYTES
            self.rows = min(max_rows, max(1, budget // (vocab * dtype.itemsize)))
        self.slope = like.new_empty(self.rows, vocab, dtype=dtype) if capped else None

    def __call__(self, logits: Tensor, inputs: TopkInputs, results: TopkResults) -> None:
        for start in range(0, logits.shape[0], self.rows):
            rows = slice(start, min(start + self.rows, logits.shape[0]))
            slope = None if self.slope is None else self.slope[: rows.stop - start]
            _row_block(logits[rows], inputs[rows], self.formula, slope, results[rows])


def _row_block(z: Tensor, inputs: TopkInputs, formula: TopkFormula, slope: Tensor | None, results: TopkResults) -> None:
    k, shared, target = inputs.ids.shape[1], formula.shared, inputs.target
    _cap(z, formula, slope)
    if results.argmax is not None:
        torch.argmax(z, -1, out=results.argmax)
    named = _Named.of(inputs, shared)
    z_target = None if target is None else z.gather(1, target[:, None]).squeeze(1)
    z_named = named.take_out(z[:, :shared])
    lse_rest, rest_sum = _exponentials(z[:, :shared])
    lse_outside = outside_sum = None
    if shared < z.shape[1]:
        if target is not None:
            z[:, shared:].scatter_(1, *_target_outside(z, target, shared, torch.finfo(z.dtype).min))
        lse_outside, outside_sum = _exponentials(z[:, shared:])

    in_teacher = named.valid[:, :k]
    u_tail = lse_rest
    if target is not None:
        u_tail = torch.logaddexp(lse_rest, torch.where(named.valid[:, k], z_named[:, k], -torch.inf))
    u = torch.cat([z_named[:, :k], u_tail[:, None]], 1)
    kl, d_u = _divergence(u, in_teacher, inputs.logprobs, formula, gradient=inputs.upstream is not None)
    loss = formula.kl_weight * kl
    others = lse_rest if lse_outside is None else torch.logaddexp(lse_rest, lse_outside)
    other_named = named.valid if target is None else named.valid & (named.column != target[:, None])
    others = torch.logaddexp(others, torch.where(other_named, z_named, -torch.inf).logsumexp(-1))
    lse, margin = others, None
    if z_target is not None:
        # With the log-sum-exp of all other classes neither p_y - 1 nor -log p_y is a difference of rounded numbers.
        lse, margin = torch.logaddexp(others, z_target), z_target - others
        nll = torch.logaddexp(torch.zeros_like(margin), -margin)
        torch.neg(nll, out=results.logprob)
        if formula.cross_entropy_weight:
            loss = loss + formula.cross_entropy_weight * nll
    results.kl.copy_(kl)
    results.lse.copy_(lse)
    results.loss.copy_(loss if inputs.weight is None else inputs.weight * loss)
    if inputs.upstream is None or d_u is None:
        return

    scale = inputs.upstream * formula.logit_scale
    if inputs.weight is not None:
        scale = scale * inputs.weight
    d_u = d_u * (scale * formula.kl_weight)[:, None]
    d_lse = scale * formula.cross_entropy_weight
    d_named = torch.zeros_like(z_named)
    d_named[:, :k] = d_u[:, :k]
    d_rest = d_u[:, k] * (lse_rest - u_tail).exp()
    d_target = None
    if target is not None and margin is not None:
        d_named[:, k] = torch.where(u_tail == -torch.inf, 0, d_u[:, k] * (z_named[:, k] - u_tail).exp())
        d_target = -d_lse * torch.sigmoid(-margin)
        d_others = d_lse[:, None] * (z_named - lse[:, None]).exp()
        d_named += torch.where(other_named, d_others, d_target[:, None])
        d_rest = d_rest + d_lse * (lse_rest - lse).exp()
    z[:, :shared].mul_(torch.where(lse_rest == -torch.inf, 0, d_rest / rest_sum)[:, None])
    named.put_back(z[:, :shared], d_named)
    if lse_outside is not None and outside_sum is not None:
        d_outside = d_lse * (lse_outside - lse).exp() / outside_sum
        z[:, shared:].mul_(torch.where(lse_outside == -torch.inf, 0, d_outside)[:, None])
        if target is not None and d_target is not None:
            z[:, shared:].scatter_(1, *_target_outside(z, target, shared, d_target[:, None]))
    if slope is not None:
        z.mul_(slope)


def _cap(z: Tensor, formula: TopkFormula, slope: Tensor | None) -> None:
    """z = softcap * tanh(logit_scale * z / softcap) in place; the derivative by logit_scale * z goes to `slope`."""
    if formula.logit_scale != 1.0:
        z.mul_(formula.logit_scale)
    if formula.softcap is not None and slope is not None:
        z.div_(formula.softcap).tanh_()
        torch.mul(z, z, out=slope).neg_().add_(1.0)
        z.mul_(formula.softcap)


def _exponentials(z: Tensor) -> tuple[Tensor, Tensor]:
    """Turns rows into a multiple of their softmax in place; returns their log-sum-exp and that multiple.

    Places that hold the lowest finite number, as those taken out do, count as nothing.
    """
    lowest = torch.finfo(z.dtype).min
    top = z.amax(-1).clamp_(min=lowest)
    total = z.sub_(top[:, None]).exp_().sum(-1)
    return torch.where(top == lowest, -torch.inf, top + total.log()), total


@dataclass(frozen=True)
class _Named:
    """The named classes of each row by place: k of the teacher, and one of the target where it is not among them.

    A place without a class (padding, or a class outside the shared vocabulary) doubles another place of its row, so
    that each scatter writes one value to each column; in a row without any class it stands for column 0, left alone.
    """

    column: Tensor  # (c, e)
    valid: Tensor  # (c, e) bool
    twin: Tensor  # (c, e) place whose class this place stands for
    any: Tensor  # (c, 1) bool

    @staticmethod
    def of(inputs: TopkInputs, shared: int) -> _Named:
        column, valid = inputs.ids, (inputs.ids >= 0) & (inputs.ids < shared)
        if inputs.target is not None:
            y = inputs.target[:, None]
            alone = (y < shared) & ~((column == y) & valid).any(-1, keepdim=True)
            column, valid = torch.cat([column, y], 1), torch.cat([valid, alone], 1)
        some = valid.any(-1, keepdim=True)
        first = valid.to(torch.int8).argmax(-1, keepdim=True)
        twin = torch.where(valid, torch.arange(valid.shape[1], device=valid.device), first)
        return _Named(torch.where(some, column.gather(1, twin), 0), valid, twin, some)

    def take_out(self, z: Tensor) -> Tensor:
        """The logits of the named classes (c, e), which are replaced by the lowest finite number."""
        values = z.gather(1, self.column)
        z.scatter_(1, self.column, torch.where(self.any, torch.finfo(z.dtype).min, values))
        return values

    def put_back(self, z: Tensor, values: Tensor) -> None:
        z.scatter_(1, self.column, torch.where(self.any, values.gather(1, self.twin), z.gather(1, self.column)))


def _target_outside(z: Tensor, target: Tensor, shared: int, value: Tensor | float) -> tuple[Tensor, Tensor]:
    """Columns and values that put `value` where the target lies outside the shared vocabulary and change no other."""
    column = (target[:, None] - shared).clamp(min=0)
    return column, torch.where(target[:, None] >= shared, value, z[:, shared:].gather(1, column))


def _divergence(
    u: Tensor, valid: Tensor, logprobs: Tensor, formula: TopkFormula, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """(c,) divergence of the teacher and softmax(u), both tempered, and its gradient by u (c, k + 1)."""
    lowest = torch.finfo(u.dtype).min
    u_tail = u[:, -1:]
    no_tail = u_tail == -torch.inf if formula.tail != "renormalize" else torch.ones_like(u_tail, dtype=torch.bool)
    member = torch.cat([valid, ~no_tail], 1)
    teacher = torch.where(valid, logprobs, -torch.inf)
    teacher = torch.cat([teacher, _log_tail(teacher, formula.tail_floor)[:, None]], 1)
    log_p = torch.where(member, u / formula.temperature, lowest).log_softmax(-1)
    log_q = torch.where(member, teacher / formula.temperature, lowest).log_softmax(-1)
    counted = member
    if formula.tail == "ignore":
        counted = torch.cat([valid, torch.zeros_like(no_tail)], 1)
    p, q = torch.where(member, log_p.exp(), 0), torch.where(counted, log_q.exp(), 0)
    by_p = None  # d kl / d p, where it is not the forward divergence's -q / p
    if formula.kind == "forward":
        kl = _times(q, log_q - log_p).sum(-1)
    elif formula.kind == "reverse":
        difference = log_p - log_q
        kl = _times(torch.where(counted, p, 0), difference).sum(-1)
        by_p = torch.where(counted, difference + 1, 0)
    else:
        log_m = torch.logaddexp(log_q + math.log(formula.beta), log_p + math.log1p(-formula.beta))
        student = (1 - formula.beta) * (log_p - log_m)
        kl = (_times(formula.beta * q, log_q - log_m) + _times(torch.where(counted, p, 0), student)).sum(-1)
        by_p = torch.where(counted, student, 0)
    if not gradient:
        return kl, None
    if by_p is None:
        d_u = p * q.sum(-1, keepdim=True) - q
    else:
        weighted = _times(p, by_p)
        d_u = weighted - p * weighted.sum(-1, keepdim=True)
    # A row of d_u sums to 0. Where p is about 1 the entry is a difference of nearly equal numbers, the others are not.
    best = p.argmax(-1, keepdim=True)
    d_u.scatter_(1, best, 0)
    d_u.scatter_(1, best, -d_u.sum(-1, keepdim=True))
    return kl, d_u.div_(formula.temperature)


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """weight * value, and 0 where the weight is 0 whatever the value."""
    return torch.where(weight == 0, 0, weight * value)


def _log_tail(teacher: Tensor, floor: float) -> Tensor:
    """(c,) log of the mass that a teacher's classes leave, at least log(floor). -inf = no class.

    1 - e^(largest) is formed by expm1, so that a sure teacher's tail is as exact as its stored log-probabilities are.
    """
    largest, at = teacher.max(-1, keepdim=True)
    smaller = teacher.exp().scatter_(1, at, 0).sum(-1)
    return (-torch.expm1(largest.squeeze(1)) - smaller).clamp(min=floor).log()
