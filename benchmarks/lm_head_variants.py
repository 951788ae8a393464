"""What the studies of the LM head compare: one problem, the calls that a user can make for it, floors, and errors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler reports every start on stderr

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from structloss.lm_head import linear_cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# Relative norm error against float64 that is taken for right: one rounding of a bfloat16 number is up to 4e-3, and
# torch's fused loss is one. A bfloat16 variant may also be as far off as 1.5x the eager computation of the same
# run, which is what a user has today.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-3}
# Rows of torch's own chunked cross-entropy. Its own choice is a few rows at these shapes and many times slower.
_TORCH_ROWS = 256
_TRUTH_ROWS = 256


@dataclass(frozen=True)
class Problem:
    """Hidden states (N, D), a head (V, D) and targets (N,) whose first tokens are ignored, as a prompt's are."""

    x: Tensor
    weight: Tensor
    target: Tensor
    keep: Tensor  # (n,) the kept rows

    @staticmethod
    def make(
        tokens: int, width: int, vocab: int, masked: float, dtype: torch.dtype, device: str, *, frozen: bool
    ) -> Problem:
        draw = torch.Generator(device=device).manual_seed(0)
        x = torch.randn(tokens, width, generator=draw, device=device).to(dtype)
        weight = (torch.randn(vocab, width, generator=draw, device=device) / width**0.5).to(dtype)
        target = torch.randint(0, vocab, (tokens,), generator=draw, device=device)
        target[: round(masked * tokens)] = -100
        keep = (target != -100).nonzero().squeeze(1)
        return Problem(x.requires_grad_(), weight.requires_grad_(not frozen), target, keep)

    @property
    def frozen(self) -> bool:
        return not self.weight.requires_grad

    def step(self, loss: Loss) -> list[Tensor]:
        """Loss and the gradients that are needed."""
        value = loss(self.x, self.weight, self.target)
        return [value.detach(), *torch.autograd.grad(value, [self.x] if self.frozen else [self.x, self.weight])]

    def truth(self) -> list[Tensor]:
        """`step` in float64, a few rows at a time."""
        rows, head = self.x.detach()[self.keep].double(), self.weight.detach().double()
        loss = torch.zeros((), dtype=torch.float64, device=rows.device)
        d_x = torch.zeros_like(self.x, dtype=torch.float64)
        d_weight = torch.zeros_like(head) if not self.frozen else None
        for start in range(0, len(rows), _TRUTH_ROWS):
            part = slice(start, start + _TRUTH_ROWS)
            logits = (rows[part] @ head.t()).requires_grad_()
            value = F.cross_entropy(logits, self.target[self.keep[part]], reduction="sum") / len(rows)
            (d_logits,) = torch.autograd.grad(value, logits)
            loss += value.detach()
            d_x[self.keep[part]] = d_logits @ head
            if d_weight is not None:
                d_weight += d_logits.t() @ rows[part]
        return [loss, d_x] if d_weight is None else [loss, d_x, d_weight]


def variants(problem: Problem, backends: tuple[str, ...], **options: Any) -> dict[str, Loss]:
    """structloss by backend ("" is what a user gets), then what torch offers; each as called, and on `x[keep]`."""
    keep = problem.keep

    def ours(backend: str) -> Loss:
        return lambda x, weight, target: linear_cross_entropy(x, weight, target, backend=backend, **options)

    def eager(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), target)

    found: dict[str, Loss] = {
        f"structloss, {name}" if name else "structloss": ours(name or "auto") for name in backends
    }
    found |= with_compaction("eager", eager, keep)
    fused, plans = getattr(F, "linear_cross_entropy", None), getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if fused is not None:
        plain = functools.partial(fused, ignore_index=-100)
        found |= with_compaction("F.linear_cross_entropy", plain, keep)
        if plans is not None:
            chunked = functools.partial(plain, options=plans(batch_chunk_size=_TORCH_ROWS))
            found |= with_compaction(f"F.linear_cross_entropy, {_TORCH_ROWS}-row chunks", chunked, keep)
    return found


def with_compaction(name: str, loss: Loss, keep: Tensor) -> dict[str, Loss]:
    """The loss as it is called, and on rows that the user gathered by hand."""
    return {name: loss, f"{name}, x[keep]": lambda x, weight, target: loss(x[keep], weight, target[keep])}


def floor(problem: Problem) -> Callable[[], object]:
    """Only the GEMMs, on the kept rows, into buffers that exist already: two for a frozen head, else three."""
    rows, head = problem.x.detach()[problem.keep], problem.weight.detach()
    logits = rows @ head.t()
    back, total = torch.empty_like(rows), None if problem.frozen else torch.empty_like(head)

    def run() -> None:
        torch.mm(rows, head.t(), out=logits)
        torch.mm(logits, head, out=back)
        if total is not None:
            torch.mm(logits.t(), rows, out=total)

    return run


def relative_errors(made: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(made, truth, strict=True)]


def limits(dtype: torch.dtype, eager_errors: list[float]) -> list[float]:
    """The largest errors that are taken for right."""
    return [max(_TOLERANCE[dtype], 1.5 * e if dtype != torch.float32 else 0.0) for e in eager_errors]


def is_wrong(errors: list[float], allowed: list[float]) -> bool:
    return any(not error <= limit for error, limit in zip(errors, allowed, strict=True))


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most bytes held during the call above what was held before it: results and workspace."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    held = peak = 0
    events = (e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
