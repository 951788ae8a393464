"""The chunked pass over the head: logits of a few hundred tokens at a time, and the gradients of that chunk.

A chunk's logits live in one workspace that every chunk reuses. The row pass turns them into their gradient in
place, so the head costs one GEMM for the loss and one more for each of input and weight that needs a
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from structloss.lm_head.kept_rows import KeptRows
from structloss.lm_head.row_pass import (
    RowFormula,
    RowInputs,
    RowPass,
    RowResults,
    row_dtype,
)
from structloss.lm_head.vocab_parallel import VocabShard

# Bytes of logits in a chunk. Off the CPU a frozen head needs only enough rows to be bound by arithmetic; a
# trainable one streams its accumulator once a chunk and wants more. On a CPU larger chunks gain nothing.
_CPU_CHUNK_BYTES = 64 << 20
_FROZEN_CHUNK_BYTES = 192 << 20
_TRAINABLE_CHUNK_BYTES = 512 << 20
# A row of logits begins at a multiple of this on a device: wide accesses for products and row pass, whatever V is.
_ROW_ALIGNMENT = 128
# A chunk's contribution to a float32 accumulator is made in vocabulary blocks of about this size.
_PARTIAL_BYTES = 32 << 20


@dataclass(frozen=True)
class Head:
    """logits = x weight^T + bias + lora_scale * (x lora_a^T) lora_b^T.   weight (V, D), lora_a (r, D), lora_b
    (V, r).
    """

    weight: Tensor
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    lora_scale: float = 1.0

    @property
    def vocab(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class Needs:
    """Which inputs need a gradient, each asked by itself."""

    input: bool = False
    weight: bool = False
    bias: bool = False
    lora_a: bool = False
    lora_b: bool = False

    def __bool__(self) -> bool:
        return self.input or self.trainable

    @property
    def trainable(self) -> bool:
        return self.weight or self.bias or self.lora_a or self.lora_b


@dataclass
class Gradients:
    """Gradients by input; None where none is needed. Those of the head are in `accumulator_dtype`."""

    input: Tensor | None = None  # (N, D): zero in the rows that are not kept
    weight: Tensor | None = None
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None


def rows_that_fill(width: int, multiprocessors: int) -> int:
    """Most rows whose 128 x 256 tiles of the input's gradient, of all outputs the one with the fewest, are one wave.

    A frozen head gains nothing from more: its GEMMs stream the weight 2 rows flops a byte, far beyond the balance of
    flops and bandwidth from 512 rows on. One row of tiles more would be a second wave that is nearly empty.
    """
    return max(512, multiprocessors // -(-width // 256) * 128)


def rows_per_chunk(
    rows: int,
    vocab: int,
    dtype: torch.dtype,
    device_type: str,
    *,
    trainable: bool,
    chunk_bytes: int | None,
    fill: int | None = None,
) -> int:
    """Rows that the byte budget allows, without a budget at most `fill`, balanced so that the last chunk is not a
    sliver.
    """
    most = fill if chunk_bytes is None and fill is not None else rows
    if chunk_bytes is None:
        if device_type == "cpu":
            chunk_bytes = _CPU_CHUNK_BYTES
        else:
            chunk_bytes = _TRAINABLE_CHUNK_BYTES if trainable else _FROZEN_CHUNK_BYTES
    allowed = max(1, min(most, chunk_bytes // (vocab * dtype.itemsize)))
    if rows <= allowed:
        return max(1, rows)
    grain = next((g for g in (128, 32, 8) if allowed >= 4 * g), 1)
    allowed -= allowed % grain
    chunks = -(-rows // allowed)
    balanced = -(-rows // chunks)
    return min(allowed, -(-balanced // grain) * grain)


def accumulator_dtype(
    rows: int, vocab: int, dtype: torch.dtype, device_type: str, *, chunk_bytes: int | None
) -> torch.dtype:
    """float32 where a narrower type would be added to more than once, else the type itself."""
    if dtype == row_dtype(dtype):
        return dtype
    chunk = rows_per_chunk(rows, vocab, dtype, device_type, trainable=True, chunk_bytes=chunk_bytes)
    return dtype if rows <= chunk else torch.float32


def head_pass(
    x: Tensor,
    head: Head,
    rows: KeptRows,
    formula: RowFormula,
    needs: Needs,
    upstream: Tensor | None,
    *,
    entropy: bool,
    argmax: bool,
    accumulate: torch.dtype,
    chunk_bytes: int | None,
    row_pass: Callable[..., RowPass],
    shard: VocabShard | None = None,
) -> tuple[RowResults, Gradients]:
    """Loss and statistics of the kept rows (n,), and the gradients of `sum(upstream * scale * loss)`.

    x is (N, D); upstream is () or (n,) in the row dtype, None stands for 1. With `shard` the head is this rank's
    part of the vocabulary; the input's and lora_a's gradients are sums over the ranks.
    """
    results = RowResults.empty(rows.count, x, entropy=entropy, argmax=argmax)
    scale = rows.scale if upstream is None else rows.scale * upstream
    inputs = RowInputs(rows.target, rows.weight, rows.unlikely, scale.expand(rows.count) if needs else None)
    gradients = chunked_pass(
        x,
        head,
        rows,
        inputs,
        results,
        needs,
        accumulate=accumulate,
        chunk_bytes=chunk_bytes,
        row_pass=lambda chunk: row_pass(x, head.vocab, formula, max_rows=chunk, entropy=entropy),
        shard=shard,
    )
    return results, gradients


def chunked_pass(
    x: Tensor,
    head: Head,
    rows: KeptRows,
    inputs: Any,
    results: Any,
    needs: Needs,
    *,
    accumulate: torch.dtype,
    chunk_bytes: int | None,
    row_pass: Callable[[int], Callable[[Tensor, Any, Any], None]],
    logits_dtype: torch.dtype | None = None,
    shard: VocabShard | None = None,
) -> Gradients:
    """Fills `results` chunk by chunk and returns the gradients.

    inputs and results are what the row pass takes and fills, one row each kept row; both are cut by a slice. row_pass
    makes the row pass of chunks of at most so many rows. Logits are of `logits_dtype`, x's where it is None; wider
    ones are narrowed to x's type, as gradients, before they meet the GEMMs.
    """
    count, width = rows.count, x.shape[1]
    logits_dtype = logits_dtype or x.dtype
    # The gradients of kept rows lie together until the workspace is free to make room for the dropped rows.
    compact = rows.index is not None and needs.input and count > 0
    gradients = zero_gradients(x, head, rows, replace(needs, input=False) if compact else needs, accumulate)
    if count == 0:
        return gradients
    if compact:
        gradients.input = x.new_empty(count, width)
    vocab = head.vocab if shard is None else shard.largest
    fill = None
    if x.device.type == "cuda" and not needs.trainable:
        fill = rows_that_fill(width, torch.cuda.get_device_properties(x.device).multi_processor_count)
    chunk = rows_per_chunk(
        count, vocab, logits_dtype, x.device.type, trainable=needs.trainable, chunk_bytes=chunk_bytes, fill=fill
    )
    stride = row_stride(head.vocab, logits_dtype, x.device.type) if logits_dtype == x.dtype else head.vocab
    logits_space = x.new_empty(chunk, stride, dtype=logits_dtype)[:, : head.vocab]
    x_space = None if rows.index is None else x.new_empty(chunk, width)
    finish_rows = row_pass(chunk)

    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        size = part.stop - part.start
        index = None if rows.index is None else rows.index[part]
        if index is None or x_space is None:
            x_chunk = x[part]
        else:
            x_chunk = torch.index_select(x, 0, index, out=x_space[:size])
        logits = logits_space[:size]
        low_rank = _logits(x_chunk, head, out=logits)
        finish_rows(logits, inputs[part], results[part])
        if not needs:
            continue
        if logits_dtype != x.dtype:
            logits = _narrow_in_place(logits, x.dtype)
        back = None
        if head.lora_a is not None and head.lora_b is not None and (needs.input or needs.lora_a):
            back = logits @ head.lora_b
        if gradients.input is not None:
            target = gradients.input[part]
            torch.mm(logits, head.weight, out=target)
            if back is not None and head.lora_a is not None:
                target.addmm_(back, head.lora_a, alpha=head.lora_scale)
            if shard is not None:
                shard.sum_(target)
        if gradients.weight is not None:
            _add_weight_gradient(gradients.weight, logits, x_chunk, first=start == 0)
        if gradients.bias is not None:
            gradients.bias += logits.sum(0, dtype=gradients.bias.dtype)
        if gradients.lora_a is not None and back is not None:
            gradients.lora_a += (back.t() @ x_chunk).mul_(head.lora_scale)
        if gradients.lora_b is not None and low_rank is not None:
            gradients.lora_b += (logits.t() @ low_rank).mul_(head.lora_scale)
    if shard is not None and gradients.lora_a is not None:
        shard.sum_(gradients.lora_a)
    if compact and gradients.input is not None and rows.index is not None:
        del logits_space, logits, finish_rows
        spread = torch.zeros_like(x, memory_format=torch.contiguous_format)
        gradients.input = spread.index_copy_(0, rows.index, gradients.input)
    return gradients


def row_stride(vocab: int, dtype: torch.dtype, device_type: str) -> int:
    """Elements from one row of logits to the next."""
    grain = 1 if device_type == "cpu" else _ROW_ALIGNMENT // dtype.itemsize
    return -(-vocab // grain) * grain


def zero_gradients(x: Tensor, head: Head, rows: KeptRows, needs: Needs, accumulate: torch.dtype) -> Gradients:
    # The first chunk overwrites the weight's gradient, so it is cleared only where there is no chunk at all.
    fresh = torch.zeros if rows.count == 0 else torch.empty
    device = x.device
    gradients = Gradients()
    if needs.input:
        every = rows.index is None and rows.count > 0
        gradients.input = (torch.empty if every else torch.zeros)(x.shape, dtype=x.dtype, device=device)
    if needs.weight:
        gradients.weight = fresh(head.weight.shape, dtype=accumulate, device=device)
    if needs.bias and head.bias is not None:
        gradients.bias = torch.zeros(head.bias.shape, dtype=row_dtype(x.dtype), device=device)
    if needs.lora_a and head.lora_a is not None:
        gradients.lora_a = torch.zeros(head.lora_a.shape, dtype=row_dtype(x.dtype), device=device)
    if needs.lora_b and head.lora_b is not None:
        gradients.lora_b = torch.zeros(head.lora_b.shape, dtype=row_dtype(x.dtype), device=device)
    return gradients


def _logits(x: Tensor, head: Head, *, out: Tensor) -> Tensor | None:
    """Writes the head's output into `out`; returns x lora_a^T, which the gradients need again."""
    if out.dtype != x.dtype:
        return _wide_logits(x, head, out=out)
    if head.bias is None:
        torch.mm(x, head.weight.t(), out=out)
    else:
        torch.addmm(head.bias, x, head.weight.t(), out=out)
    if head.lora_a is None or head.lora_b is None:
        return None
    low_rank = x @ head.lora_a.t()
    out.addmm_(low_rank, head.lora_b.t(), alpha=head.lora_scale)
    return low_rank


def _wide_logits(x: Tensor, head: Head, *, out: Tensor) -> Tensor | None:
    """`_logits` of narrow operands into a wider `out`, never rounded to the operands' type on the way."""
    wide_x = x.to(out.dtype)
    if x.device.type == "cuda" and torch.version.hip is None:
        torch.mm(x, head.weight.t(), out_dtype=out.dtype, out=out)
    else:  # no GEMM with a wider result here: the head is widened block by block
        block = max(1, _PARTIAL_BYTES // (x.shape[1] * out.dtype.itemsize))
        for start in range(0, head.vocab, block):
            part = slice(start, start + block)
            torch.mm(wide_x, head.weight[part].to(out.dtype).t(), out=out[:, part])
    if head.bias is not None:
        out += head.bias
    if head.lora_a is None or head.lora_b is None:
        return None
    low_rank = wide_x @ head.lora_a.to(out.dtype).t()
    out.addmm_(low_rank, head.lora_b.to(out.dtype).t(), alpha=head.lora_scale)
    return low_rank.to(x.dtype)


def _narrow_in_place(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of `wide` in a narrower type, packed into the front of its own memory; `wide` is lost.

    Row r moves to half its place or before, so doubling ranges of rows never overlap their source.
    """
    rows, width = wide.shape
    packed = wide.view(-1).view(dtype)[: rows * width].view(rows, width)
    packed[0] = wide[0].to(dtype)
    start = 1
    while start < rows:
        part = slice(start, 2 * start)
        packed[part].copy_(wide[part])
        start *= 2
    return packed


def _add_weight_gradient(total: Tensor, dlogits: Tensor, x: Tensor, *, first: bool) -> None:
    if total.dtype == dlogits.dtype:
        if first:
            torch.mm(dlogits.t(), x, out=total)
        else:
            torch.addmm(total, dlogits.t(), x, out=total)
        return
    block = max(1, _PARTIAL_BYTES // (x.shape[1] * dlogits.dtype.itemsize))
    for start in range(0, total.shape[0], block):
        part = slice(start, start + block)
        partial = dlogits[:, part].t() @ x
        if first:
            total[part].copy_(partial)
        else:
            total[part].add_(partial)
