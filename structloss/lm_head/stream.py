"""The pass over a frozen head, a block of classes after the other: no token's logits are ever there as a whole.

With r the softmax of a token over the classes other than its target y, the gradient of its hidden state is

    dx  =  others * sum_v exp(z_v - top) W_v  +  at_target * W_y

and only the two factors depend on the whole row. So the sum is built up block by block, rescaled where a row gets a
new maximum (the online softmax of Milakov and Gimelshein 2018, arXiv 1805.02867; with keys and values W it is the
forward pass of attention without its matrix, Rabe and Staats 2021, arXiv 2112.05682). Two GEMMs as with whole rows,
but a block of logits of many tokens still fits into the cache, and each block of W serves both products while it is
there. A trained head needs the finished logits' gradient (its sum runs over tokens, each with a factor of its own), so
it takes whole rows: chunks.py.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from structloss.lm_head.chunks import Gradients, Head, Needs, zero_gradients
from structloss.lm_head.kept_rows import KeptRows
from structloss.lm_head.row_pass import RowFormula, RowInputs, RowResults

# A block of logits, and beside it a block of W, should stay in the last-level cache between the two products; the
# products want hundreds of rows. Measured in docs/lm_head.md.
_BLOCK_BYTES = 8 << 20
_ROWS = 1024
_FEWEST_COLUMNS = 2048
_GRAIN = 64


class RowStream(Protocol):
    """A backend's step over a block of classes, with what it knows of every row so far."""

    def __init__(self, target: Tensor, vocab: int, formula: RowFormula, *, entropy: bool, argmax: bool) -> None:
        """`target` (n,) is that of the rows of one stream."""

    def absorb(self, logits: Tensor, first: int, total: Tensor | None, *, weigh: bool) -> None:
        """Takes contiguous logits (n, columns) of the classes from `first` on.

        With `weigh` it leaves exp(z - top) * dz/da in them, 0 at the target, and rescales the rows of `total` (n, D;
        None at the first block) whose top has changed.
        """

    def finish(
        self, inputs: RowInputs, results: RowResults, total: Tensor | None, weight: Tensor, index: Tensor | None,
        out: Tensor | None,
    ) -> None:  # fmt: skip
        """Fills `results` and, with `inputs.upstream`, the rows `index` (all where None) of the gradient `out`."""


def can_stream(head: Head, formula: RowFormula, needs: Needs) -> bool:
    """Nothing of the head is trained, no low-rank update, and no smoothing: that term has a sum over W of its own."""
    return not needs.trainable and head.lora_a is None and formula.label_smoothing == 0


def stream_blocks(rows: int, vocab: int, itemsize: int, chunk_bytes: int | None) -> tuple[int, int]:
    """Rows and classes of a block, both balanced so that the last one is not a sliver."""
    logits = max(1, (_BLOCK_BYTES if chunk_bytes is None else chunk_bytes) // itemsize)
    allowed = min(max(_ROWS, logits // vocab), max(1, logits // min(vocab, _FEWEST_COLUMNS)))
    block_rows = _balanced(rows, allowed)
    columns = max(1, logits // block_rows)
    if columns >= vocab:
        return block_rows, vocab
    grain = _GRAIN if columns >= _GRAIN else 1
    columns -= columns % grain
    return block_rows, min(columns, -(-_balanced(vocab, columns) // grain) * grain)


def _balanced(total: int, most: int) -> int:
    parts = -(-total // most)
    return -(-total // parts)


def stream_pass(
    x: Tensor,
    head: Head,
    rows: KeptRows,
    formula: RowFormula,
    needs: Needs,
    upstream: Tensor | None,
    *,
    entropy: bool,
    argmax: bool,
    chunk_bytes: int | None,
    row_stream: type[RowStream],
) -> tuple[RowResults, Gradients]:
    """As `chunks.head_pass`, for a head and formula that `can_stream`."""
    count, width = rows.count, x.shape[1]
    gradients = zero_gradients(x, head, rows, needs, x.dtype)
    results = RowResults.empty(count, x, entropy=entropy, argmax=argmax)
    if count == 0:
        return results, gradients
    scale = rows.scale if upstream is None else rows.scale * upstream
    inputs = RowInputs(rows.target, rows.weight, rows.unlikely, scale.expand(count) if needs else None)

    most_rows, columns = stream_blocks(count, head.vocab, x.dtype.itemsize, chunk_bytes)
    logits_space = x.new_empty(most_rows * columns)
    x_space = None if rows.index is None else x.new_empty(most_rows, width)
    total_space = x.new_empty(most_rows, width, dtype=torch.float32) if needs else None
    for start in range(0, count, most_rows):
        part = slice(start, min(start + most_rows, count))
        size = part.stop - part.start
        index = None if rows.index is None else rows.index[part]
        if index is None or x_space is None:
            x_part = x[part]
        else:
            x_part = torch.index_select(x, 0, index, out=x_space[:size])
        total = None if total_space is None else total_space[:size]
        stream = row_stream(rows.target[part], head.vocab, formula, entropy=entropy, argmax=argmax)
        for first in range(0, head.vocab, columns):
            weight = head.weight[first : first + columns]
            logits = logits_space[: size * weight.shape[0]].view(size, -1)
            if head.bias is None:
                torch.mm(x_part, weight.t(), out=logits)
            else:
                torch.addmm(head.bias[first : first + columns], x_part, weight.t(), out=logits)
            stream.absorb(logits, first, total if first else None, weigh=total is not None)
            if total is not None:
                _add_product(total, logits, weight, first=first == 0)
        out = gradients.input if gradients.input is None or index is not None else gradients.input[part]
        stream.finish(inputs[part], results[part], total, head.weight, index, out)
    return results, gradients


def _add_product(total: Tensor, weighted: Tensor, weight: Tensor, *, first: bool) -> None:
    """total += weighted @ weight, in float32; a bfloat16 product is rounded once a block."""
    if weighted.dtype == total.dtype:
        if first:
            torch.mm(weighted, weight, out=total)
        else:
            torch.addmm(total, weighted, weight, out=total)
    elif first:
        total.copy_(weighted @ weight)
    else:
        total += weighted @ weight
