"""The torch.library operators behind `linear_topk_kl`: registration, shapes, autograd.

`structloss::linear_topk_kl` gives loss, gradients and per-token outputs in one pass. For an upstream vector that is
known only in the backward, `structloss::linear_topk_kl_backward` runs the same pass again with that vector. As in op.py
the caller says in `needs` what needs a gradient, and no output's shape depends on data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from structloss.lm_head.chunks import Head, Needs, chunked_pass
from structloss.lm_head.kept_rows import KeptRows, effective_weight, keep_mask, keep_rows, spread_rows
from structloss.lm_head.row_pass import row_dtype
from structloss.lm_head.stored_gradients import refuse_second_order, scaled
from structloss.lm_head.topk_formula import TopkFormula, check_teacher, teacher_faults
from structloss.lm_head.topk_rows import TopkInputs, TopkResults, TopkRowPass

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def choose_topk_backend(backend: str) -> str:
    """The row pass that serves a call. Raises instead of taking another one."""
    if backend in ("auto", "torch"):
        return "torch"
    raise ValueError(
        f"backend={backend!r}: linear_topk_kl has no row pass of that kind; use 'torch', 'auto' or 'reference'"
    )


def topk_pass(
    upstream: Tensor | None,
    input: Tensor,
    weight: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    target: Tensor,
    bias: Tensor | None,
    token_weight: Tensor | None,
    denominator: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
    kind: str,
    tail: str,
    temperature: float,
    beta: float,
    tail_floor: float,
    teacher_vocab: int | None,
    kl_weight: float,
    cross_entropy_weight: float,
    softcap: float | None,
    logit_scale: float,
    reduction: str,
    ignore_index: int,
    divisor: float | None,
    num_valid: int | None,
    check_targets: bool,
    chunk_bytes: int | None,
    needs: Sequence[bool],
    wants: Sequence[bool],
) -> Outputs:
    """loss () or (N,), gradients of input, weight, bias, lora_a, lora_b (empty where `needs` is False; those of the
    head in the row dtype), then kl, logprob, lse, argmax (N,) (empty where `wants` is False).

    The gradients are those of sum(upstream * loss); upstream is () or (N,), None stands for 1. `target` says which
    tokens are ignored; its classes matter only for the cross-entropy and the logprob.
    """
    dtype, vocab, total = row_dtype(input.dtype), weight.shape[0], input.shape[0]
    formula = TopkFormula(
        kind=kind,
        tail=tail,
        temperature=temperature,
        beta=beta,
        tail_floor=tail_floor,
        shared=vocab if teacher_vocab is None else min(vocab, teacher_vocab),
        kl_weight=kl_weight,
        cross_entropy_weight=cross_entropy_weight,
        softcap=softcap,
        logit_scale=logit_scale,
    )
    with torch.autocast(input.device.type, enabled=False):
        if upstream is not None:
            upstream = upstream.to(dtype)
        checks = upstream is None and (check_targets or input.device.type == "cpu")
        negative = None if token_weight is None else token_weight < 0
        if checks and negative is not None and bool(negative.any()):
            raise ValueError(
                "token_weight must not be negative: a divergence that is pushed up has no bound; "
                f"got {float(token_weight[negative][0])}"  # type: ignore[index]
            )
        rows = keep_rows(
            target,
            token_weight,
            None,
            vocab=vocab,
            dtype=dtype,
            reduction=reduction,
            ignore_index=ignore_index,
            negative="raw",
            denominator=divisor if denominator is None else denominator,
            num_valid=num_valid,
            check_targets=checks,
            upstream=upstream,
        )
        if rows.index is not None:
            ids, logprobs = ids.index_select(0, rows.index), logprobs.index_select(0, rows.index)
        faulty = None
        if checks:
            check_teacher(ids, logprobs, teacher_vocab, rows.index)
        elif input.device.type != "cpu":
            faulty = _faulty(ids, logprobs, rows, teacher_vocab)
        if upstream is not None and upstream.dim() == 1 and rows.index is not None:
            upstream = upstream.index_select(0, rows.index)
        asked = Needs(*needs)
        scale = rows.scale if upstream is None else rows.scale * upstream
        row_weight = rows.weight
        if faulty is not None:
            row_weight = torch.where(faulty, torch.nan, 1.0 if row_weight is None else row_weight).to(dtype)
        inputs = TopkInputs(
            ids.to(torch.int64),
            logprobs.to(dtype),
            rows.target if cross_entropy_weight or wants[1] else None,
            row_weight,
            scale.expand(rows.count) if asked else None,
        )
        results = TopkResults.empty(rows.count, input, argmax=wants[3])
        gradients = chunked_pass(
            input,
            Head(weight, bias, lora_a, lora_b, lora_scale),
            rows,
            inputs,
            results,
            asked,
            accumulate=dtype,
            chunk_bytes=chunk_bytes,
            row_pass=lambda max_rows: TopkRowPass(input, vocab, formula, max_rows=max_rows),
            logits_dtype=dtype,
        )
        if faulty is not None:
            results.kl.masked_fill_(faulty, torch.nan)
        if reduction == "none":
            loss = spread_rows(results.loss * rows.scale, rows.index, total, 0)
        else:
            loss = results.loss.sum() * rows.scale
    made = (gradients.input, gradients.weight, gradients.bias, gradients.lora_a, gradients.lora_b)
    types = _output_types(input.dtype)
    by_input = [input.new_empty(0, dtype=t) if g is None else g for g, t in zip(made, types, strict=False)]
    statistics = zip((results.kl, results.logprob, results.lse, results.argmax), wants, types[5:], strict=True)
    per_token = [
        spread_rows(value, rows.index, total, -1 if t == torch.int64 else 0)
        if wanted and value is not None
        else input.new_empty(0, dtype=t)
        for value, wanted, t in statistics
    ]
    return (loss, by_input[0], by_input[1], by_input[2], by_input[3], by_input[4], *per_token)  # type: ignore[return-value]


def _faulty(ids: Tensor, logprobs: Tensor, rows: KeptRows, teacher_vocab: int | None) -> Tensor:
    """(n,) kept rows that would be refused if that did not mean to wait for the device: their loss becomes NaN."""
    faulty = torch.zeros(rows.count, dtype=torch.bool, device=ids.device) if rows.weight is None else rows.weight < 0
    for _, wrong in teacher_faults(ids, logprobs, teacher_vocab):
        faulty = faulty | wrong
    return faulty


linear_topk_kl_op = torch.library.custom_op("structloss::linear_topk_kl", topk_pass, mutates_args=())
linear_topk_kl_backward_op = torch.library.custom_op("structloss::linear_topk_kl_backward", topk_pass, mutates_args=())


def _output_types(narrow: torch.dtype) -> tuple[torch.dtype, ...]:
    """Of the gradients, and of kl, logprob, lse, argmax."""
    wide = row_dtype(narrow)
    return (narrow, wide, wide, wide, wide, wide, wide, wide, torch.int64)


@linear_topk_kl_op.register_fake
@linear_topk_kl_backward_op.register_fake
def _(upstream: Tensor | None, input: Tensor, weight: Tensor, *args: Any) -> Outputs:
    bias, lora_a, lora_b, reduction, needs, wants = args[3], args[6], args[7], args[19], args[-2], args[-1]
    total, types = input.shape[0], _output_types(input.dtype)
    loss = input.new_empty((total,) if reduction == "none" else (), dtype=row_dtype(input.dtype))
    sources = (input, weight, bias, lora_a, lora_b)
    shapes = [
        source.shape if needed and source is not None else (0,) for source, needed in zip(sources, needs, strict=True)
    ]
    shapes += [(total if wanted else 0,) for wanted in wants]
    made = [input.new_empty(shape, dtype=t) for shape, t in zip(shapes, types, strict=True)]
    return (loss, *made)  # type: ignore[return-value]


# Positions of the differentiable arguments among the operator's inputs, and of those that say which tokens are kept.
_INPUT, _WEIGHT, _TARGET, _BIAS, _TOKEN_WEIGHT, _LORA_A, _LORA_B = 1, 2, 5, 6, 7, 9, 10
_DIFFERENTIABLE = (_INPUT, _WEIGHT, _BIAS, _LORA_A, _LORA_B)
_TENSORS = 11  # arguments that are tensors stand before the others
_IGNORE_INDEX = 23


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.settings = inputs[_TENSORS:]
    ctx.dtypes = [None if inputs[i] is None else inputs[i].dtype for i in _DIFFERENTIABLE]
    ctx.made = list(inputs[-2])
    if not any(ctx.made):
        ctx.save_for_backward(*inputs[1:_TENSORS])
    elif output[0].dim() == 0:
        ctx.save_for_backward(*output[1:6])
    else:
        ctx.save_for_backward(output[1], inputs[_TARGET], inputs[_TOKEN_WEIGHT])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    result: list[Tensor | None] = [None] * (_TENSORS + len(ctx.settings))
    if grad_loss is None:
        return tuple(result)
    needed = [ctx.needs_input_grad[i] for i in _DIFFERENTIABLE]
    if not any(ctx.made):
        made = linear_topk_kl_backward_op(grad_loss, *ctx.saved_tensors, *ctx.settings[:-2], needed, [False] * 4)[1:6]
        gradients = [g.to(dtype) if n else None for g, dtype, n in zip(made, ctx.dtypes, needed, strict=True)]
    elif grad_loss.dim() == 0:
        stored = zip(ctx.saved_tensors, ctx.dtypes, ctx.made, strict=True)
        gradients = [scaled(g, grad_loss, dtype) if made else None for g, dtype, made in stored]
    else:
        grad_input, target, token_weight = ctx.saved_tensors
        kept = keep_mask(
            target, effective_weight(token_weight, "raw", grad_loss.dtype), ctx.settings[_IGNORE_INDEX - _TENSORS]
        )
        # A dropped token's gradient is zero whatever comes from above, infinities included.
        upstream = grad_loss.masked_fill(~kept, 0.0)
        gradients = [scaled(grad_input, upstream, ctx.dtypes[0]), None, None, None, None]
    for position, gradient, wanted in zip(_DIFFERENTIABLE, gradients, needed, strict=True):
        result[position] = gradient if wanted else None
    return tuple(result)


linear_topk_kl_op.register_autograd(_backward, setup_context=_save_for_backward)
linear_topk_kl_backward_op.register_autograd(refuse_second_order)
