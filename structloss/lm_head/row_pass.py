"""The row pass: logits in, per-token loss and statistics out, logits overwritten with their gradient.

Here are its inputs and results, which every backend shares, and the pass in torch operations. All of it is written
with the target class taken out of the softmax. With `o` the log-sum-exp over the *other* classes and `r` their softmax,

    nll             = -log p_y        = log(1 + exp(o - z_y))         d nll / dz = (1 - p_y) * (r - onehot_y)
    unlikelihood    = -log(1 - p_y)   = log(1 + exp(z_y - o))         d unl / dz =     -p_y  * (r - onehot_y)

so neither `p_y - 1` nor `1 - p_y` is ever the difference of two rounded numbers, and a token that the model
is sure about (p_y rounds to 1) still has a finite loss and a right gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Rows are processed in blocks of about this many bytes (in the row dtype), so that the five sweeps over a
# block hit the cache and the small per-row operations are still shared by enough rows. Off the CPU launches
# are what costs.
_BLOCK_BYTES = {"cpu": 4 << 20}
_BLOCK_BYTES_ELSEWHERE = 32 << 20


def row_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the row math and of every per-token result: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class RowFormula:
    """What one token's loss is made of, the same for every row.

    Per token, with logits z, weight w >= 0 and class weights c (1 where absent):

        w * ((1 - eps) * c_y * nll + eps / V * sum_v c_v * (lse - z_v) + z_loss * c_y * lse^2)
        w * (c_y * unlikelihood + z_loss * c_y * lse^2)                      in rows marked as unlikelihood

    where z = softcap * tanh(logit_scale * a / softcap) of the head's output a.
    """

    class_weight: Tensor | None = None  # (V,) in the row dtype
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0


@dataclass(frozen=True)
class RowInputs:
    """Per-row vectors, all (n,). `upstream` is None where no gradient is wanted; it includes 1 /
    denominator.
    """

    target: Tensor
    weight: Tensor | None
    unlikely: Tensor | None  # bool: rows whose loss is -log(1 - p_y)
    upstream: Tensor | None

    def __getitem__(self, rows: slice) -> RowInputs:
        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[rows]

        return RowInputs(self.target[rows], cut(self.weight), cut(self.unlikely), cut(self.upstream))


@dataclass(frozen=True)
class RowResults:
    """Per-row results, all (n,): loss with its weight but without 1 / denominator, and what `outputs` asks
    for.
    """

    loss: Tensor
    logprob: Tensor
    lse: Tensor
    entropy: Tensor | None
    argmax: Tensor | None

    def __getitem__(self, rows: slice) -> RowResults:
        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return RowResults(self.loss[rows], self.logprob[rows], self.lse[rows], cut(self.entropy), cut(self.argmax))

    @staticmethod
    def empty(rows: int, like: Tensor, *, entropy: bool, argmax: bool) -> RowResults:
        def vector() -> Tensor:
            return torch.empty(rows, dtype=row_dtype(like.dtype), device=like.device)

        return RowResults(
            loss=vector(),
            logprob=vector(),
            lse=vector(),
            entropy=vector() if entropy else None,
            argmax=torch.empty(rows, dtype=torch.int64, device=like.device) if argmax else None,
        )


class RowPass(Protocol):
    """A backend's row pass, made once a call of the operator with the scratch that it needs."""

    def __init__(self, like: Tensor, vocab: int, formula: RowFormula, *, max_rows: int, entropy: bool) -> None:
        """`like` has the dtype and device of the logits; a chunk has at most `max_rows` rows."""

    def __call__(self, logits: Tensor, inputs: RowInputs, results: RowResults) -> None:
        """Fills `results` and, where `inputs.upstream` is given, overwrites `logits` (C, V) with their gradient.

        Without `upstream` the contents of `logits` are undefined afterwards.
        """


def block_rows(like: Tensor, vocab: int, max_rows: int) -> int:
    """Rows that torch operations take at a time."""
    budget = _BLOCK_BYTES.get(like.device.type, _BLOCK_BYTES_ELSEWHERE)
    if like.device.type == "cpu":
        budget *= torch.get_num_threads()
    return min(max_rows, max(1, budget // (vocab * row_dtype(like.dtype).itemsize)))


class TorchRowPass:
    """The row pass in torch operations, for every device and dtype."""

    def __init__(self, like: Tensor, vocab: int, formula: RowFormula, *, max_rows: int, entropy: bool) -> None:
        self.formula = formula
        dtype = row_dtype(like.dtype)
        self.rows = block_rows(like, vocab, max_rows)

        def buffer(wanted: bool) -> Tensor | None:
            return torch.empty(self.rows, vocab, dtype=dtype, device=like.device) if wanted else None

        self.wide = buffer(like.dtype != dtype)
        self.slope = buffer(formula.softcap is not None)
        self.softmax = buffer(entropy)

    def __call__(self, logits: Tensor, inputs: RowInputs, results: RowResults) -> None:
        for start in range(0, logits.shape[0], self.rows):
            rows = slice(start, min(start + self.rows, logits.shape[0]))
            _row_block(logits[rows], inputs[rows], self.formula, self, results, rows)


def _row_block(
    block: Tensor,
    inputs: RowInputs,
    formula: RowFormula,
    workspace: TorchRowPass,
    results: RowResults,
    rows: slice,
) -> None:
    count, vocab = block.shape
    z = block if workspace.wide is None else workspace.wide[:count].copy_(block)
    slope = None if workspace.slope is None or inputs.upstream is None else workspace.slope[:count]
    cap_logits(z, formula, slope)
    smooth, classes = class_sums(z, formula, formula.class_weight)

    column = inputs.target[:, None]
    z_target = z.gather(1, column).squeeze(1)
    # The lowest finite number and not -inf: a row without any other class (V = 1, or all others masked) stays
    # free of NaN, and beside any real logit it adds exactly 0.
    z.scatter_(1, column, torch.finfo(z.dtype).min)
    if results.argmax is not None:
        top, top_class = z.max(-1)
        results.argmax[rows] = best_class(z_target, inputs.target, top, top_class)
    else:
        top = z.amax(-1)
    mean_other = None
    if workspace.softmax is not None:
        r = torch.softmax(z, -1, out=workspace.softmax[:count])
        mean_other = z.clamp_(min=torch.finfo(z.dtype).min).mul_(r).sum(-1)
    elif z.device.type == "cpu":
        r = torch.softmax(z, -1, out=z)
    else:
        r = torch.softmax(z, -1)
    lse_other = top - r.amax(-1).log()  # the largest softmax is 1 / sum exp(z - top)

    sums = RowSums(z_target, lse_other, mean_other, smooth, classes, vocab)
    gradient = row_losses(sums, inputs, formula, results, rows)
    if gradient is None:
        return
    gradient.away_from_target(r, formula.class_weight)
    r.scatter_(1, column, gradient.target[:, None])
    if slope is not None:
        r.mul_(slope)
    if r is not block:
        block.copy_(r)


def cap_logits(z: Tensor, formula: RowFormula, slope: Tensor | None) -> None:
    """z = softcap * tanh(logit_scale * z / softcap) in place; d z / d (logit_scale * z before) goes to `slope`."""
    if formula.logit_scale != 1.0:
        z.mul_(formula.logit_scale)
    if formula.softcap is None:
        return
    z.div_(formula.softcap).tanh_()
    if slope is not None:
        torch.mul(z, z, out=slope).neg_().add_(1.0)
    z.mul_(formula.softcap)


def best_class(z_target: Tensor, target: Tensor, top: Tensor, top_class: Tensor) -> Tensor:
    """The class of the largest logit, the lowest of a tie, given the best of the classes that are not the target."""
    tie = torch.minimum(top_class, target)
    return torch.where(z_target > top, target, torch.where(z_target == top, tie, top_class))


def class_sums(z: Tensor, formula: RowFormula, class_weight: Tensor | None) -> tuple[Tensor | None, float | Tensor]:
    """sum_v c_v z_v of each row and sum_v c_v, which only label smoothing needs."""
    if not formula.label_smoothing:
        return None, 0.0
    if class_weight is None:
        return z.sum(-1), float(z.shape[1])
    return z.mv(class_weight), class_weight.sum()


@dataclass(frozen=True)
class RowSums:
    """All that a row's loss needs of its logits, (n,) each. `other` means every class but the target."""

    target: Tensor  # the target's logit
    lse_other: Tensor
    mean_other: Tensor | None  # sum_v r_v z_v over the others, where the entropy is asked for
    smooth: Tensor | None
    classes: float | Tensor
    vocab: int


@dataclass(frozen=True)
class RowGradient:
    """d loss / d z: `others * r - flat * c` away from the target and `target` at it. (n,) each."""

    others: Tensor
    target: Tensor
    flat: Tensor | None

    def __getitem__(self, rows: slice) -> RowGradient:
        return RowGradient(self.others[rows], self.target[rows], None if self.flat is None else self.flat[rows])

    def away_from_target(self, r: Tensor, class_weight: Tensor | None) -> None:
        """Turns the softmax of the other classes into their gradient, in place."""
        r.mul_(self.others[:, None])
        if self.flat is None:
            return
        if class_weight is None:
            r.sub_(self.flat[:, None])
        else:
            r.addr_(self.flat, class_weight, alpha=-1.0)


def row_losses(
    sums: RowSums, inputs: RowInputs, formula: RowFormula, results: RowResults, rows: slice
) -> RowGradient | None:
    """Fills `results[rows]` and says what the gradient of the logits is, None where none is wanted."""
    z_target, lse_other, eps = sums.target, sums.lse_other, formula.label_smoothing
    zero = torch.zeros_like(z_target)
    margin = z_target - lse_other
    nll = torch.logaddexp(zero, -margin)
    p_target, p_other = torch.sigmoid(margin), torch.sigmoid(-margin)
    lse = torch.logaddexp(z_target, lse_other)
    results.logprob[rows] = -nll
    results.lse[rows] = lse
    if results.entropy is not None and sums.mean_other is not None:
        # H(p) = H(p_y, 1 - p_y) + (1 - p_y) H(r); the binary part is p_y nll + (1 - p_y) unlikelihood.
        log_p_other = torch.logaddexp(zero, margin)
        binary = torch.where(p_target > 0, p_target * nll, zero) + p_other * log_p_other
        results.entropy[rows] = binary + p_other * (lse_other - sums.mean_other)

    hard = (1.0 - eps) * nll
    soft = zero if sums.smooth is None else (eps / sums.vocab) * (sums.classes * lse - sums.smooth)
    class_target = None if formula.class_weight is None else formula.class_weight[inputs.target]
    if inputs.unlikely is not None:
        hard = torch.where(inputs.unlikely, torch.logaddexp(zero, margin), hard)
        soft = torch.where(inputs.unlikely, zero, soft)
    loss = hard + formula.z_loss * lse.square() if formula.z_loss else hard
    loss = (loss if class_target is None else class_target * loss) + soft
    results.loss[rows] = loss if inputs.weight is None else inputs.weight * loss

    if inputs.upstream is None:
        return None
    scale = inputs.upstream * formula.logit_scale
    if inputs.weight is not None:
        scale = scale * inputs.weight
    scale_target = scale if class_target is None else scale * class_target
    minus_push = -(1.0 - eps) * scale_target * p_other
    if inputs.unlikely is not None:
        minus_push = torch.where(inputs.unlikely, scale_target * p_target, minus_push)
    # `spread` multiplies the whole softmax (z-loss and smoothing move the lse), `flat` is smoothing's -c_v.
    spread = zero
    if formula.z_loss:
        spread = 2.0 * formula.z_loss * scale_target * lse
    flat = None
    if eps:
        flat = scale * (eps / sums.vocab)
        if inputs.unlikely is not None:
            flat = flat.masked_fill(inputs.unlikely, 0.0)
        spread = spread + flat * sums.classes
    at_target = minus_push + spread * p_target
    if flat is not None:
        at_target = at_target - (flat if class_target is None else flat * class_target)
    return RowGradient(spread * p_other - minus_push, at_target, flat)
