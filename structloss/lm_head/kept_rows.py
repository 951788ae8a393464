"""Which tokens take part in the loss, with which weight, and what a mean divides by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptRows:
    """The n tokens of N that enter the head.

    index is None where every token is kept. `scale` is 1 / denominator (a 0-dim tensor, 1 for "sum" and
    "none"); it is NaN where a wrong count or denominator could not be refused without waiting for the device.
    """

    index: Tensor | None  # (n,) int64, ascending
    target: Tensor  # (n,) int64
    weight: Tensor | None  # (n,) >= 0 in rows marked unlikely, else as given
    unlikely: Tensor | None  # (n,) bool
    scale: Tensor  # ()

    @property
    def count(self) -> int:
        return self.target.shape[0]


def effective_weight(token_weight: Tensor | None, negative: str, dtype: torch.dtype) -> Tensor | None:
    """Token weights in the row dtype; `negative="clamp"` turns negative ones into 0."""
    if token_weight is None:
        return None
    weight = token_weight.to(dtype)
    return weight.clamp(min=0) if negative == "clamp" else weight


def keep_mask(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Kept = not ignored and weight not zero. (N,) bool."""
    keep = target != ignore_index
    return keep if weight is None else keep & (weight != 0)


def keep_rows(
    target: Tensor,
    token_weight: Tensor | None,
    class_weight: Tensor | None,
    *,
    vocab: int,
    dtype: torch.dtype,
    reduction: str,
    ignore_index: int,
    negative: str,
    denominator: Tensor | float | None,
    num_valid: int | None,
    check_targets: bool,
    upstream: Tensor | None = None,
) -> KeptRows:
    """Selects the rows and checks what can be checked without a device synchronisation.

    An `upstream` gradient (N,) drops the rows where it is zero as well, unless the count of rows was given.
    Raises ValueError for a target outside [0, vocab), a wrong `num_valid`, a denominator <= 0.
    """
    checks = check_targets or target.device.type == "cpu"
    total = target.shape[0]
    target = target.to(torch.int64)
    weight = effective_weight(token_weight, negative, dtype)
    keep = keep_mask(target, weight, ignore_index)
    if checks:
        _check_targets(target, vocab, ignore_index)
    poison = None
    index: Tensor | None
    if num_valid is None:
        if upstream is not None and upstream.dim() == 1:
            keep = keep & (upstream != 0)
        index = keep.nonzero().squeeze(1)
        if index.shape[0] == total:
            index = None
    else:
        kept_count = keep.sum()
        if checks and int(kept_count) != num_valid:
            raise ValueError(
                "num_valid must be the number of tokens with target != ignore_index and a non-zero "
                f"token_weight; got {num_valid}, counted {int(kept_count)}"
            )
        if not checks:
            poison = kept_count != num_valid
        index = None
        if num_valid != total:
            index = torch.nonzero_static(keep, size=num_valid, fill_value=0).squeeze(1)
        # A wrong count may select a row that is not kept; its target must not index outside the vocabulary.
        target = target.masked_fill(~keep, 0)
    if index is not None:
        target = target.index_select(0, index)
        weight = None if weight is None else weight.index_select(0, index)

    scale = _scale(target, weight, class_weight, dtype, reduction, denominator, raise_errors=checks)
    if poison is not None:
        scale = torch.where(poison, torch.full_like(scale, torch.nan), scale)
    unlikely = None
    if weight is not None and negative == "unlikelihood":
        unlikely, weight = weight < 0, weight.abs()
    return KeptRows(index, target, weight, unlikely, scale)


def spread_rows(values: Tensor, index: Tensor | None, total: int, fill: int) -> Tensor:
    """Puts the kept rows back among all `total` rows."""
    if index is None:
        return values
    return values.new_full((total,), fill).index_copy_(0, index, values)


def _check_targets(target: Tensor, vocab: int, ignore_index: int) -> None:
    wrong = ((target < 0) | (target >= vocab)) & (target != ignore_index)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"target must be in [0, {vocab}) or ignore_index ({ignore_index}); "
            f"got {int(target[first])} at token {first} ({int(wrong.sum())} such tokens)"
        )


def _scale(
    target: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    dtype: torch.dtype,
    reduction: str,
    denominator: Tensor | float | None,
    *,
    raise_errors: bool,
) -> Tensor:
    one = torch.ones((), dtype=dtype, device=target.device)
    if reduction != "mean" or target.shape[0] == 0:
        return one
    if denominator is not None:
        value = one * denominator
    elif weight is None and class_weight is None:
        value = one * target.shape[0]
    else:
        per_token = one.expand_as(target) if weight is None else weight
        value = (per_token if class_weight is None else per_token * class_weight[target]).sum()
    if raise_errors:
        if not bool(value > 0):
            what = "the sum of token weights (times class weights)" if denominator is None else "denominator"
            raise ValueError(
                f"reduction='mean' divides by {what}, which must be > 0; got {float(value)}: "
                "give a positive denominator or use reduction='sum'"
            )
        return value.reciprocal()
    return torch.where(value > 0, value.reciprocal(), torch.full_like(value, torch.nan))
