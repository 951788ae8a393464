"""The row pass as one Triton kernel, and the upstream scalar of a stored gradient.

**Bytes.** A row is read, its loss and statistics are made, and it is read again and overwritten with its gradient. One
read and one write of memory are the least; the second read is meant to come from the L2 cache. It cannot come from the
multiprocessor: a row of 128256 bfloat16 logits is 256 KB, its shared memory 227 KB, and Triton has no clusters. So one
program takes one row, with a warp for every 8 KB of it (32 warps at most). At 64 registers a thread a multiprocessor
holds 32 warps, thus 256 KB of rows, and 132 of them hold 34 MB: less than the 50 MB of an H100's L2. The second sweep
goes backwards, from what was read last to what was read first, so that rows that outgrow the cache lose their head and
not all of it: float32 rows of that vocabulary (512 KB, 68 MB in flight) are read between one and two times. First reads
are marked to stay in the cache, last reads and writes to leave it. Splitting a row over several programs would take two
launches and two reads of memory, or launches so small that they do not fill the device.

A chunk of C rows moves 2 C V itemsize bytes of memory with a gradient and C V itemsize without; 3 C V itemsize and
C V itemsize between L2 and the multiprocessors.

**Instructions.** About 8 for a logit and sweep (plain formula, sm_90), one of them an exponential. At 16 exponentials a
clock and multiprocessor those of both sweeps take 0.6 of the time of the memory traffic on an H200, 0.4 on an H100.

**Resources** for sm_90, Triton 3.6, bfloat16, V = 128256: 32 warps, at most 64 registers, 128 bytes of shared memory,
nothing spilled (tests/structloss/test_lm_head_triton.py compiles and asserts it). Four loads of 16 bytes a thread are
in flight, 64 KB a multiprocessor; two where a softcap, smoothing or the argmax need the registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from structloss.lm_head import triton_rows
from structloss.lm_head.row_pass import RowFormula, RowInputs, RowResults
from structloss.lm_head.triton_rows import import_error, interpreted

__all__ = ["RowPass", "import_error", "scale_in_place"]

_ROW_BYTES_A_WARP = 8 << 10
_MOST_WARPS = 32
_REGISTERS = 64
_SCALE_BLOCK = 4096
# Enough to fill any device several times; each takes its share of the blocks, so that a scale of 1 costs one small
# launch and not one program a block.
_SCALE_PROGRAMS = 2048


@dataclass(frozen=True)
class Shape:
    """How a row is cut: blocks of `lanes` times `width` logits, taken by `warps` warps."""

    warps: int
    lanes: int
    width: int

    @staticmethod
    def of(vocab: int, itemsize: int, *, plain: bool) -> Shape:
        warps = 1 << (-(-vocab * itemsize // _ROW_BYTES_A_WARP) - 1).bit_length()
        warps = min(warps, _MOST_WARPS)
        loads = 4 if plain else 2
        return Shape(warps, 32 * warps * loads, 16 // itemsize)


class RowPass:
    """One launch a chunk. Columns between the vocabulary and the row stride, if any, are taken as scratch."""

    def __init__(self, like: Tensor, vocab: int, formula: RowFormula, *, max_rows: int, entropy: bool) -> None:
        if like.device.type != "cuda" and not interpreted():
            raise ValueError(
                f"backend='triton' needs CUDA tensors, got {like.device}; use backend='auto' there "
                "(TRITON_INTERPRET=1, set before the first import, runs the kernel slowly on CPU tensors, for tests)"
            )
        self.vocab = vocab
        self.formula = formula
        self.class_weight = None if formula.class_weight is None else formula.class_weight.contiguous()
        smooth = formula.label_smoothing > 0 and self.class_weight is not None
        self.class_sum = self.class_weight.sum() if smooth and self.class_weight is not None else None

    def __call__(self, logits: Tensor, inputs: RowInputs, results: RowResults) -> None:
        rows, stride = logits.shape[0], logits.stride(0)
        formula = self.formula
        plain = not formula.label_smoothing and formula.softcap is None and results.argmax is None
        shape = Shape.of(self.vocab, logits.element_size(), plain=plain)
        with torch.cuda.device_of(logits):
            triton_rows.finish_rows[(rows,)](
                logits,
                inputs.target.contiguous(),
                None if inputs.weight is None else inputs.weight.contiguous(),
                None if inputs.unlikely is None else inputs.unlikely.view(torch.uint8),
                inputs.upstream,
                self.class_weight,
                self.class_sum,
                results.loss,
                results.logprob,
                results.lse,
                results.entropy,
                results.argmax,
                stride,
                0 if inputs.upstream is None else inputs.upstream.stride(0),
                formula.label_smoothing or None,
                formula.z_loss or None,
                None if formula.logit_scale == 1.0 else formula.logit_scale,
                formula.softcap,
                VOCAB=self.vocab,
                EDGE=min(stride, -(-self.vocab // 16) * 16),  # so that every access is 16 bytes where the rows allow it
                LANES=shape.lanes,
                WIDTH=shape.width,
                num_warps=shape.warps,
                **_limits(),
            )


def _limits() -> dict[str, Any]:
    """What keeps 32 warps on a multiprocessor; AMD's compiler has no such option."""
    return {} if torch.version.hip else {"maxnreg": _REGISTERS}


def scale_in_place(gradient: Tensor, scale: Tensor) -> Tensor:
    """gradient *= scale () for a contiguous gradient. A scale of 1 is seen on the device and costs no pass."""
    programs = min(_SCALE_PROGRAMS, -(-gradient.numel() // _SCALE_BLOCK))
    if programs:
        with torch.cuda.device_of(gradient):
            triton_rows.scale_unless_one[(programs,)](
                gradient, scale, gradient.numel(), BLOCK=_SCALE_BLOCK, num_warps=8
            )
    return gradient
