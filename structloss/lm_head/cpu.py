"""The row pass of the LM head by the compiled CPU kernels (csrc/cpu/row_pass.hpp): hands over addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from structloss.lm_head.row_pass import RowFormula, RowInputs, RowResults

try:
    import structloss._C as _C
except ImportError as error:  # the extension is optional at run time
    import_error: ImportError | None = error
else:
    import_error = None

_SMALLEST = torch.finfo(torch.float32).tiny


class RowPass:
    """`structloss.lm_head.row_pass.RowPass` for float32 and bfloat16 logits."""

    def __init__(self, like: Tensor, vocab: int, formula: RowFormula, *, max_rows: int, entropy: bool) -> None:
        self.formula = _Formula(formula, vocab)

    def __call__(self, logits: Tensor, inputs: RowInputs, results: RowResults) -> None:
        vectors = _Vectors(inputs)
        _C.row_pass(
            self.formula.block,
            vectors.block,
            _results(results),
            bfloat16=logits.dtype == torch.bfloat16,
            logits=logits.data_ptr(),
            stride=logits.stride(0),
            threads=torch.get_num_threads(),
        )


class RowStream:
    """`structloss.lm_head.stream.RowStream` for float32 and bfloat16 logits."""

    def __init__(self, target: Tensor, vocab: int, formula: RowFormula, *, entropy: bool, argmax: bool) -> None:
        self.formula = _Formula(formula, vocab)
        self.target = target.contiguous()
        self.stream = _C.RowStream(self.formula.block, rows=target.shape[0], entropy=entropy, argmax=argmax)

    def absorb(self, logits: Tensor, first: int, total: Tensor | None, *, weigh: bool) -> None:
        self.stream.absorb(
            bfloat16=logits.dtype == torch.bfloat16,
            target=self.target.data_ptr(),
            first=first,
            columns=logits.shape[1],
            logits=logits.data_ptr(),
            weigh=weigh,
            total=_address(total),
            width=0 if total is None else total.shape[1],
            threads=torch.get_num_threads(),
        )

    def finish(
        self, inputs: RowInputs, results: RowResults, total: Tensor | None, weight: Tensor, index: Tensor | None,
        out: Tensor | None,
    ) -> None:  # fmt: skip
        vectors = _Vectors(inputs)
        self.stream.finish(
            vectors.block,
            _results(results),
            bfloat16=weight.dtype == torch.bfloat16,
            width=weight.shape[1],
            total=_address(total),
            weight=weight.data_ptr(),
            weight_row_stride=weight.stride(0),
            weight_column_stride=weight.stride(1),
            index=_address(index),
            out=_address(out),
            threads=torch.get_num_threads(),
        )


class _Formula:
    """The formula as the kernels take it, and the class weights, which have to outlive it."""

    def __init__(self, formula: RowFormula, vocab: int) -> None:
        weight = None if formula.class_weight is None else formula.class_weight.contiguous()
        self.class_weight = weight
        smooth = formula.label_smoothing != 0  # nothing else asks for the sum of the class weights
        self.block = _C.RowFormula(
            vocab=vocab,
            class_weight=_address(weight),
            class_sum=float(weight.double().sum()) if smooth and weight is not None else float(vocab),
            label_smoothing=formula.label_smoothing,
            z_loss=formula.z_loss,
            # 0 stands for no cap.
            softcap=0.0 if formula.softcap is None else max(formula.softcap, _SMALLEST),
            logit_scale=formula.logit_scale,
        )


class _Vectors:
    """The per-row inputs as the kernels take them, and the copies that have to outlive the call."""

    def __init__(self, inputs: RowInputs) -> None:
        given = (inputs.target, inputs.weight, inputs.unlikely, inputs.upstream)
        self.tensors = [None if vector is None else vector.contiguous() for vector in given]
        target, weight, unlikely, upstream = map(_address, self.tensors)
        self.block = _C.RowInputs(
            rows=inputs.target.shape[0], target=target, weight=weight, unlikely=unlikely, upstream=upstream
        )


def _results(results: RowResults) -> object:
    """Slices of vectors that were made for this call, so contiguous."""
    return _C.RowResults(
        loss=_address(results.loss),
        logprob=_address(results.logprob),
        lse=_address(results.lse),
        entropy=_address(results.entropy),
        argmax=_address(results.argmax),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
