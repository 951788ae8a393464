"""What one token's divergence from a stored top-k teacher is made of, and which stored rows are refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("forward", "reverse", "jsd")
TAILS = ("bucket", "renormalize", "ignore")
MAX_K = 256
# What rounding does to true log-probabilities: those stored in bfloat16 are off by 2^-9 of themselves, so that the mass
# of a row may pass 1 by 2^-9 of its entropy; one computed as logit - lse may pass 0 by an ulp of the logit.
_POSITIVE = 1e-3
_OVER_ONE = 2e-2


@dataclass(frozen=True)
class TopkFormula:
    """The options of `linear_topk_kl` that shape one token's loss, the same for every row."""

    kind: str
    tail: str
    temperature: float
    beta: float
    tail_floor: float
    shared: int  # classes that student and teacher share: ids below it
    kl_weight: float  # temperature^2 or 1
    cross_entropy_weight: float
    softcap: float | None
    logit_scale: float


def teacher_faults(ids: Tensor, logprobs: Tensor, teacher_vocab: int | None) -> list[tuple[str, Tensor]]:
    """What can be wrong with the rows of a teacher (n, k): a sentence and the rows (n,) that it holds for."""
    used = ids >= 0
    logprobs = torch.where(used, logprobs.to(torch.promote_types(logprobs.dtype, torch.float32)), -torch.inf)
    ordered = torch.where(used, ids, torch.arange(-ids.shape[1], 0, device=ids.device)).sort(-1).values
    faults = [
        ("topk_logprobs must be finite where topk_ids >= 0", (used & ~logprobs.isfinite()).any(-1)),
        ("topk_logprobs must be log-probabilities, at most 0", (logprobs > _POSITIVE).any(-1)),
        ("topk_logprobs must sum to a probability of at most 1 over a token", logprobs.exp().sum(-1) > 1 + _OVER_ONE),
        ("topk_ids must not name a class twice for one token", (ordered[:, 1:] == ordered[:, :-1]).any(-1)),
    ]
    if teacher_vocab is not None:
        faults.append((f"topk_ids must be below teacher_vocab ({teacher_vocab})", (ids >= teacher_vocab).any(-1)))
    return faults


def check_teacher(ids: Tensor, logprobs: Tensor, teacher_vocab: int | None, index: Tensor | None) -> None:
    """Raises ValueError for a row that cannot be a teacher's; `index` says which token a row is."""
    for sentence, wrong in teacher_faults(ids, logprobs, teacher_vocab):
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            got = ids if sentence.startswith("topk_ids") else logprobs
            raise ValueError(
                f"{sentence}; got {_brief(got[row])} at token {row if index is None else int(index[row])} "
                f"({int(wrong.sum())} such tokens)"
            )


def _brief(values: Tensor) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8].tolist())
    return f"[{shown}{', ...' if values.shape[0] > 8 else ''}]"
