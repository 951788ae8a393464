"""The row pass by a Triton kernel: the memory that it gets and the grid that it runs on."""

from __future__ import annotations

import torch
from torch import Tensor

from structloss.lm_head.row_pass import RowFormula, RowInputs, RowResults
from structloss.lm_head.triton_rows import finish_rows, import_error, interpreted, scale_unless_one

__all__ = ["RowPass", "import_error", "scale_in_place"]

_WARPS = 32
_LANE_ELEMENTS = 4  # consecutive logits of a thread
# Share of the second-level cache that the rows in hand may fill, so that their second read finds them there.
_CACHE_SHARE = 0.7
_PROGRAMS_INTERPRETED = 3


def tile(*, extras: bool) -> int:
    """Groups of logits of a thread that are in flight: as many as 64 registers hold beside what else it keeps."""
    return 2 if extras else 4


def _check_device(device: torch.device) -> None:
    """Raises ValueError where the kernel cannot take tensors of `device`."""
    if device.type != "cuda" and not interpreted():
        raise ValueError(
            f"backend='triton' needs CUDA tensors, got {device}; use backend='auto' there (TRITON_INTERPRET=1, set "
            "before the first import, runs the kernel slowly on CPU tensors, for tests)"
        )


def grid_size(rows: int, row_bytes: int, multiprocessors: int, cache_bytes: int) -> int:
    """Programs to launch: one a multiprocessor, fewer where their rows would not fit the cache together.

    A program has 1024 threads; two of them fit a multiprocessor and are taken where the cache holds their rows too.
    """
    in_cache = max(1, int(_CACHE_SHARE * cache_bytes) // row_bytes)
    resident = 2 * multiprocessors
    if in_cache < resident:
        # A fraction of a wave leaves multiprocessors idle but half the cache misses of a wave that does not fit.
        resident = max(min(in_cache, multiprocessors), multiprocessors // 2)
    return max(1, min(rows, resident))


def scale_in_place(values: Tensor, scale: Tensor) -> Tensor:
    """values *= scale, a tensor of one element on the device, which nobody waits for; free where it is 1."""
    block = 4096
    scale_unless_one[(-(-values.numel() // block),)](values, scale, values.numel(), BLOCK=block)
    return values


class RowPass:
    """The row pass of :class:`structloss.lm_head.row_pass.RowPass` for float32 and bfloat16 logits on a GPU."""

    def __init__(self, like: Tensor, vocab: int, formula: RowFormula, *, max_rows: int, entropy: bool) -> None:
        _check_device(like.device)
        self.formula = formula
        self.block = _WARPS * 32 * _LANE_ELEMENTS if not interpreted() else 64
        self.extras = formula.label_smoothing > 0 or formula.softcap is not None
        # The kernel reads vectors without strides.
        self.class_weight = None if formula.class_weight is None else formula.class_weight.contiguous()
        self.class_sum = None if self.class_weight is None else self.class_weight.sum()
        if interpreted():
            self.programs = _PROGRAMS_INTERPRETED
        else:
            card = torch.cuda.get_device_properties(like.device)
            row_bytes = vocab * like.element_size()
            self.programs = grid_size(max_rows, row_bytes, card.multi_processor_count, card.L2_cache_size)

    def __call__(self, logits: Tensor, inputs: RowInputs, results: RowResults) -> None:
        rows, vocab = logits.shape
        formula, upstream = self.formula, inputs.upstream
        unused = results.loss  # stands where the kernel reads and writes nothing
        finish_rows[(min(rows, self.programs),)](
            logits,
            inputs.target.contiguous(),
            unused if inputs.weight is None else inputs.weight.contiguous(),
            unused if inputs.unlikely is None else inputs.unlikely.contiguous().view(torch.uint8),
            unused if upstream is None else upstream,
            unused if self.class_weight is None else self.class_weight,
            unused if self.class_sum is None else self.class_sum,
            results.loss,
            results.logprob,
            results.lse,
            unused if results.entropy is None else results.entropy,
            unused if results.argmax is None else results.argmax,
            logits.stride(0),
            rows,
            vocab,
            0 if upstream is None else upstream.stride(0),
            formula.label_smoothing,
            formula.z_loss,
            1.0 if formula.softcap is None else formula.softcap,
            formula.logit_scale,
            GRADIENT=upstream is not None,
            WEIGHT=inputs.weight is not None,
            UNLIKELY=inputs.unlikely is not None,
            CLASSES=formula.class_weight is not None,
            SMOOTH=formula.label_smoothing > 0,
            Z_LOSS=formula.z_loss > 0,
            CAP=formula.softcap is not None,
            SCALE=formula.logit_scale != 1.0,
            ENTROPY=results.entropy is not None,
            ARGMAX=results.argmax is not None,
            TILE=tile(extras=self.extras or results.entropy is not None or results.argmax is not None),
            BLOCK=self.block,
            num_warps=_WARPS,
        )
