"""A head whose vocabulary is divided over the ranks of a process group, in rank order.

Every rank holds all tokens and its own rows of the head. A rank's row pass reduces its logits to a few numbers a token;
one all-gather a chunk shares them, and from there each rank knows the loss of every token and the gradient of its own
logits. The input's gradient is a sum over ranks: one all-reduce a chunk of the kept rows, in float32 for bfloat16.

Everything that the ranks share is combined in rank order from the same numbers, so that their losses are equal bit by
bit. Before any of it the ranks compare what they were called with (one small all-gather and one host synchronisation a
call): ranks that disagree would wait for each other forever, or add up gradients of different losses.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from structloss.lm_head.row_pass import (
    RowFormula,
    RowInputs,
    RowPass,
    RowResults,
    RowSums,
    best_class,
    block_rows,
    cap_logits,
    class_sums,
    row_dtype,
    row_losses,
)

_SAME_ON_EVERY_RANK = (
    "the number of tokens",
    "the width of input",
    "the options of the call (the dtype, which tensors require a gradient, and every argument that is no tensor)",
    "target, and the same tokens with a weight of 0",
)


@dataclass(frozen=True)
class VocabShard:
    """This rank's rows [start, stop) of a vocabulary that the ranks of `group` share."""

    group: dist.ProcessGroup
    start: int
    stop: int
    vocab: int  # of all ranks
    largest: int  # rows of the largest shard: every rank cuts the tokens into the same chunks

    @staticmethod
    def join(name: Any, weight: Tensor, target: Tensor, keep: Tensor, options: tuple[object, ...]) -> VocabShard:
        """Learns the other ranks' sizes and checks that they were called alike.

        Raises ValueError, on every rank, where they were not.
        """
        group = dist.distributed_c10d._resolve_process_group(name)
        own = torch.tensor([*weight.shape, target.shape[0], zlib.crc32(repr(options).encode())], dtype=torch.int64)
        position = torch.arange(1, target.shape[0] + 1, device=target.device)
        checksum = (torch.where(keep, target.to(torch.int64) + 1, 0) * (position * 0x9E3779B1)).sum()
        own = torch.cat([own.to(target.device), checksum.view(1)])
        sizes, widths, tokens, settings, targets = zip(*_gather(own, group).tolist(), strict=True)
        for what, values in zip(_SAME_ON_EVERY_RANK, (tokens, widths, settings, targets), strict=True):
            if len(set(values)) > 1:
                detail = f", got {list(values)}" if values is tokens or values is widths else ""
                raise ValueError(
                    f"process_group: every rank must be given the same {what.removeprefix('the ')}{detail}"
                )
        if min(sizes) < 1:
            raise ValueError(
                "linear_weight: every rank of process_group must hold at least one row of the head, "
                f"got {list(sizes)} rows by rank"
            )
        start = sum(sizes[: dist.get_rank(group)])
        return VocabShard(group, start, start + weight.shape[0], sum(sizes), max(sizes))

    def whole(self, values: Tensor) -> Tensor:
        """(V,) on every rank from this rank's (stop - start,)."""
        every = values.new_zeros(self.vocab)
        every[self.start : self.stop] = values
        dist.all_reduce(every, group=self.group)
        return every

    def sum_(self, values: Tensor) -> None:
        """Adds up the ranks' values in place, in the row dtype."""
        wide = values.to(row_dtype(values.dtype))
        dist.all_reduce(wide, group=self.group)
        if wide is not values:
            values.copy_(wide)

    def row_pass(self) -> Callable[..., RowPass]:
        return partial(VocabParallelRowPass, self)


class VocabParallelRowPass:
    """The row pass in torch operations over one rank's columns: two sweeps with an all-gather between them.

    The logits are read twice and written once: the first sweep leaves them as they are, so that bfloat16 logits are
    rounded no more often than without a process group.
    """

    def __init__(
        self, shard: VocabShard, like: Tensor, vocab: int, formula: RowFormula, *, max_rows: int, entropy: bool
    ) -> None:
        self.shard, self.formula, self.entropy = shard, formula, entropy
        dtype = row_dtype(like.dtype)
        self.rows = block_rows(like, vocab, max_rows)
        self.z = torch.empty(self.rows, vocab, dtype=dtype, device=like.device)
        self.slope = None if formula.softcap is None else torch.empty_like(self.z)
        weight = formula.class_weight
        self.class_weight = None if weight is None else weight[shard.start : shard.stop]
        self.classes = float(shard.vocab) if weight is None else weight.sum()

    def __call__(self, logits: Tensor, inputs: RowInputs, results: RowResults) -> None:
        column = inputs.target - self.shard.start
        mine = (column >= 0) & (column < logits.shape[1])
        column = torch.where(mine, column, 0)[:, None]
        blocks = [slice(i, min(i + self.rows, logits.shape[0])) for i in range(0, logits.shape[0], self.rows)]
        argmax = results.argmax is not None
        local = torch.cat([self._local_sums(logits[b], column[b], mine[b], argmax=argmax) for b in blocks], dim=1)
        sums = self._global_sums(_gather(local, self.shard.group), inputs.target, results)
        gradient = row_losses(sums, inputs, self.formula, results, slice(None))
        if gradient is None:
            return
        for b in blocks:
            slope = None if self.slope is None else self.slope[: b.stop - b.start]
            z = self._logits(logits[b], slope)
            r = z.sub_(sums.lse_other[b, None]).exp_()
            gradient[b].away_from_target(r, self.class_weight)
            _put(r, column[b], mine[b], gradient.target[b, None])
            if slope is not None:
                r.mul_(slope)
            logits[b].copy_(r)

    def _logits(self, block: Tensor, slope: Tensor | None) -> Tensor:
        z = self.z[: block.shape[0]].copy_(block)
        cap_logits(z, self.formula, slope)
        return z

    def _local_sums(self, block: Tensor, column: Tensor, mine: Tensor, *, argmax: bool) -> Tensor:
        """(k, C): the target's logit (0 on the other ranks), log-sum-exp of the other classes and, as asked, their
        mean, sum_v c_v z_v, and the largest with its class.
        """
        z = self._logits(block, None)
        smooth, _ = class_sums(z, self.formula, self.class_weight)
        lowest = torch.finfo(z.dtype).min
        z_target = torch.where(mine, z.gather(1, column).squeeze(1), 0)
        _put(z, column, mine, torch.full_like(z[:, :1], lowest))
        # -inf means nothing here: a shard of nothing else must still have a mean.
        lse_other = z.clamp_(min=lowest).logsumexp(-1)
        sums = [z_target, lse_other]
        if self.entropy:
            sums.append((torch.softmax(z, -1) * z).sum(-1))
        if smooth is not None:
            sums.append(smooth)
        if argmax:
            top, top_class = z.max(-1)
            # Bits, not numbers: a class id above 2^24 is no float32.
            integer = torch.int64 if z.dtype == torch.float64 else torch.int32
            sums += [top, (top_class + self.shard.start).to(integer).view(z.dtype)]
        return torch.stack(sums)

    def _global_sums(self, every: Tensor, target: Tensor, results: RowResults) -> RowSums:
        """From (ranks, k, C). Sums of exponentials are shared out by softmax, which is right even where every rank
        has only classes of probability 0.
        """
        parts = list(every.unbind(1))
        z_target, lse_others = parts.pop(0).sum(0), parts.pop(0)
        mean_other = (parts.pop(0) * torch.softmax(lse_others, 0)).sum(0) if self.entropy else None
        smooth = parts.pop(0).sum(0) if self.formula.label_smoothing else None
        if results.argmax is not None:
            top, rank = parts[0].max(0)
            integer = torch.int64 if top.dtype == torch.float64 else torch.int32
            top_class = parts[1].view(integer).gather(0, rank[None]).squeeze(0).to(torch.int64)
            results.argmax.copy_(best_class(z_target, target, top, top_class))
        return RowSums(z_target, lse_others.logsumexp(0), mean_other, smooth, self.classes, self.shard.vocab)


def _gather(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(ranks, ...) of all ranks' values."""
    every = values.new_empty(dist.get_world_size(group), *values.shape)
    dist.all_gather(list(every.unbind()), values, group=group)
    return every


def _put(z: Tensor, column: Tensor, mine: Tensor, value: Tensor) -> None:
    """Writes `value` (C, 1) at the target's column in the rows whose target is `mine`."""
    z.scatter_(1, column, torch.where(mine[:, None], value, z.gather(1, column)))
