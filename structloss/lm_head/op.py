"""The torch.library operators behind the LM-head loss: registration, shapes, autograd.

Two operators of the namespace `structloss`:

    linear_cross_entropy           loss, per-token outputs and, as asked, the gradients of the loss in the same pass
    linear_cross_entropy_backward  the gradients for an upstream vector known only in the backward: recomputes logits

Autograd runs above the operators, so they cannot see what needs a gradient: the caller says it in `needs`.
No output shape depends on data: per-token outputs are (N,), the input's gradient is (N, D). `process_group` is the name
of a group whose ranks share the vocabulary (then every rank must make the call); the class weights are a shard too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from structloss.lm_head.chunks import Gradients, Head, Needs, accumulator_dtype, head_pass
from structloss.lm_head.kept_rows import KeptRows, effective_weight, keep_mask, keep_rows, spread_rows
from structloss.lm_head.row_pass import RowFormula, RowPass, RowResults, TorchRowPass, row_dtype
from structloss.lm_head.stored_gradients import refuse_second_order, scaled
from structloss.lm_head.stream import can_stream, stream_pass
from structloss.lm_head.vocab_parallel import VocabShard

# What "auto" takes for float32 and bfloat16 where it can be imported, before torch operations. The Triton kernel joins
# the list for CUDA tensors when it has been measured on a GPU; until then it is served on request only.
_AUTO = {"cpu": "cpu"}
_warned = False
_MODULES = {"cpu": "the compiled extension structloss._C", "triton": "the package triton"}

Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The row pass that serves a call: "torch", "cpu" or "triton". Raises instead of taking another one."""
    global _warned
    if backend == "auto":
        best = _AUTO.get(device.type)
        if best is None or dtype == torch.float64:
            return "torch"
        missing = _kernels(best).import_error
        if missing is not None and not _warned:
            _warned = True
            warnings.warn(
                f"the LM head runs in torch operations, somewhat slower, because {_MODULES[best]} is missing "
                f"({missing}); build it with `pip install .` in a checkout",
                RuntimeWarning,
                stacklevel=3,
            )
        return best if missing is None else "torch"
    if backend == "torch":
        return backend
    if backend == "cuda":
        raise ValueError("backend='cuda': the LM head has no CUDA C++ kernel; use 'triton', 'torch' or 'auto'")
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f"backend='cpu' needs CPU tensors, got {device}; use backend='auto' or move them")
    if dtype == torch.float64:
        raise ValueError(
            f"backend={backend!r} takes float32 and bfloat16, got float64; use 'torch', 'auto' or 'reference'"
        )
    error = _kernels(backend).import_error
    if error is not None:
        raise ValueError(f"backend={backend!r} needs {_MODULES[backend]} ({error}); install it, or use backend='auto'")
    return backend


def _kernels(backend: str) -> ModuleType:
    """The module of a backend. Imported late: Triton has to stay out of `import structloss`."""
    return import_module(f"structloss.lm_head.{backend}")


def _row_pass(backend: str) -> type[RowPass]:
    return TorchRowPass if backend == "torch" else _kernels(backend).RowPass


def _pass_over_the_head(
    x: Tensor,
    head: Head,
    rows: KeptRows,
    formula: RowFormula,
    needs: Needs,
    upstream: Tensor | None,
    *,
    backend: str,
    chunk_bytes: int | None,
    shard: VocabShard | None,
    process_group: str | None,
    entropy: bool = False,
    argmax: bool = False,
) -> tuple[RowResults, Gradients]:
    """`stream_pass` where the backend and the call allow it, else `head_pass`."""
    if backend == "cpu" and shard is None and can_stream(head, formula, needs):
        return stream_pass(
            x, head, rows, formula, needs, upstream, entropy=entropy, argmax=argmax, chunk_bytes=chunk_bytes,
            row_stream=_kernels(backend).RowStream,
        )  # fmt: skip
    return head_pass(
        x, head, rows, formula, needs, upstream, entropy=entropy, argmax=argmax, chunk_bytes=chunk_bytes,
        accumulate=_accumulator(x, head.weight, chunk_bytes, process_group),
        row_pass=_row_pass(backend) if shard is None else shard.row_pass(), shard=shard,
    )  # fmt: skip


def forward_pass(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    denominator: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    negative: str,
    divisor: float | None,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    num_valid: int | None,
    check_targets: bool,
    chunk_bytes: int | None,
    backend: str,
    process_group: str | None,
    needs: Sequence[bool],
    wants: Sequence[bool],
) -> Forward:
    """loss () or (N,), gradients of input, weight, bias, lora_a, lora_b (empty where `needs` is False; those
    of the head in their accumulator type), then logprob, lse, entropy, argmax (N,) (empty where `wants` is
    False).
    """
    asked = Needs(*needs)
    backend = choose_backend(backend, input.device, input.dtype)
    dtype = row_dtype(input.dtype)
    with torch.autocast(input.device.type, enabled=False):
        classes = None if class_weight is None else class_weight.to(dtype)
        shard = None
        if process_group is not None:
            keep = keep_mask(target, effective_weight(token_weight, negative, dtype), ignore_index)
            numbers = (lora_scale, label_smoothing, divisor, z_loss, softcap, logit_scale)
            flags = (reduction, ignore_index, negative, num_valid, check_targets, chunk_bytes, needs, wants)
            shard, classes = _join(process_group, input, weight, target, keep, classes, lora_a, (numbers, flags))
        rows = keep_rows(
            target,
            token_weight,
            classes,
            vocab=weight.shape[0] if shard is None else shard.vocab,
            dtype=dtype,
            reduction=reduction,
            ignore_index=ignore_index,
            negative=negative,
            denominator=divisor if denominator is None else denominator,
            num_valid=num_valid,
            check_targets=check_targets,
        )
        results, gradients = _pass_over_the_head(
            input,
            Head(weight, bias, lora_a, lora_b, lora_scale),
            rows,
            RowFormula(classes, label_smoothing, z_loss, softcap, logit_scale),
            asked,
            None,
            entropy=wants[2],
            argmax=wants[3],
            chunk_bytes=chunk_bytes,
            backend=backend,
            shard=shard,
            process_group=process_group,
        )
        total = input.shape[0]
        if reduction == "none":
            loss = spread_rows(results.loss * rows.scale, rows.index, total, 0)
        else:
            loss = results.loss.sum() * rows.scale
        statistics = (results.logprob, results.lse, results.entropy, results.argmax)
        fills = (0, 0, 0, -1)
        per_token = [
            spread_rows(value, rows.index, total, fill) if wanted and value is not None else _empty(input, dtype)
            for value, wanted, fill in zip(statistics, wants, fills, strict=True)
        ]
        if not wants[3]:
            per_token[3] = _empty(input, torch.int64)
    loss_and_gradients = (loss, *_gradient_outputs(gradients, input, weight, chunk_bytes, process_group))
    return (*loss_and_gradients, per_token[0], per_token[1], per_token[2], per_token[3])


def backward_pass(
    upstream: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    denominator: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    negative: str,
    divisor: float | None,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    num_valid: int | None,
    chunk_bytes: int | None,
    backend: str,
    process_group: str | None,
    needs: Sequence[bool],
) -> Backward:
    """Gradients for an upstream gradient () or (N,), which is folded into the logits' gradient before the
    GEMMs.
    """
    backend = choose_backend(backend, input.device, input.dtype)
    dtype = row_dtype(input.dtype)
    with torch.autocast(input.device.type, enabled=False):
        upstream = upstream.to(dtype)
        classes = None if class_weight is None else class_weight.to(dtype)
        shard = None
        if process_group is not None:
            # Every option was compared in the forward; the upstream gradient is new.
            keep = keep_mask(target, effective_weight(token_weight, negative, dtype), ignore_index) & (upstream != 0)
            shard, classes = _join(process_group, input, weight, target, keep, classes, lora_a, needs)
        rows = keep_rows(
            target,
            token_weight,
            classes,
            vocab=weight.shape[0] if shard is None else shard.vocab,
            dtype=dtype,
            reduction=reduction,
            ignore_index=ignore_index,
            negative=negative,
            denominator=divisor if denominator is None else denominator,
            num_valid=num_valid,
            check_targets=False,
            upstream=upstream,
        )
        if upstream.dim() == 1 and rows.index is not None:
            upstream = upstream.index_select(0, rows.index)
        _, gradients = _pass_over_the_head(
            input,
            Head(weight, bias, lora_a, lora_b, lora_scale),
            rows,
            RowFormula(classes, label_smoothing, z_loss, softcap, logit_scale),
            Needs(*needs),
            upstream,
            chunk_bytes=chunk_bytes,
            backend=backend,
            shard=shard,
            process_group=process_group,
        )
    return _gradient_outputs(gradients, input, weight, chunk_bytes, process_group)


linear_cross_entropy_op = torch.library.custom_op("structloss::linear_cross_entropy", forward_pass, mutates_args=())
linear_cross_entropy_backward_op = torch.library.custom_op(
    "structloss::linear_cross_entropy_backward", backward_pass, mutates_args=()
)


def _join(
    process_group: str,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    keep: Tensor,
    classes: Tensor | None,
    lora_a: Tensor | None,
    options: object,
) -> tuple[VocabShard, Tensor | None]:
    """This rank's shard, and the class weights of all ranks."""
    rank = None if lora_a is None else lora_a.shape[0]
    shard = VocabShard.join(process_group, weight, target, keep, (input.dtype, rank, classes is not None, options))
    return shard, None if classes is None else shard.whole(classes)


def _accumulator(input: Tensor, weight: Tensor, chunk_bytes: int | None, process_group: str | None) -> torch.dtype:
    if process_group is not None:  # the number of chunks depends on the largest shard, which this rank may not hold
        return row_dtype(input.dtype)
    return accumulator_dtype(input.shape[0], weight.shape[0], input.dtype, input.device.type, chunk_bytes=chunk_bytes)


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return like.new_empty(0, dtype=dtype)


def _gradient_outputs(
    gradients: Gradients, input: Tensor, weight: Tensor, chunk_bytes: int | None, process_group: str | None
) -> Backward:
    narrow, dtype = input.dtype, row_dtype(input.dtype)
    types = (narrow, _accumulator(input, weight, chunk_bytes, process_group), dtype, dtype, dtype)
    values = (gradients.input, gradients.weight, gradients.bias, gradients.lora_a, gradients.lora_b)
    made = [_empty(input, t) if value is None else value for value, t in zip(values, types, strict=True)]
    return (made[0], made[1], made[2], made[3], made[4])


def _fake_gradients(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    chunk_bytes: int | None,
    process_group: str | None,
    needs: Sequence[bool],
) -> Backward:
    dtype = row_dtype(input.dtype)
    # The accumulator type compares row counts, which a symbolic size answers with a guard: asked only where
    # needed.
    wide = _accumulator(input, weight, chunk_bytes, process_group)
    sources = (input, weight, bias, lora_a, lora_b)
    types = (input.dtype, wide, dtype, dtype, dtype)
    made = [
        input.new_empty(source.shape if needed and source is not None else (0,), dtype=t)
        for source, needed, t in zip(sources, needs, types, strict=True)
    ]
    return (made[0], made[1], made[2], made[3], made[4])


@linear_cross_entropy_op.register_fake
def _(input: Tensor, weight: Tensor, target: Tensor, *args: Any) -> Forward:
    bias, lora_a, lora_b, reduction = args[0], args[4], args[5], args[7]
    chunk_bytes, process_group, needs, wants = args[-5], *args[-3:]
    total, dtype = input.shape[0], row_dtype(input.dtype)
    loss = input.new_empty((total,) if reduction == "none" else (), dtype=dtype)
    types = (dtype, dtype, dtype, torch.int64)
    per_token = [input.new_empty((total if wanted else 0,), dtype=t) for wanted, t in zip(wants, types, strict=True)]
    gradients = _fake_gradients(input, weight, bias, lora_a, lora_b, chunk_bytes, process_group, needs)
    return (loss, *gradients, per_token[0], per_token[1], per_token[2], per_token[3])


@linear_cross_entropy_backward_op.register_fake
def _(upstream: Tensor, input: Tensor, weight: Tensor, target: Tensor, *args: Any) -> Backward:
    return _fake_gradients(input, weight, args[0], args[4], args[5], args[-4], *args[-2:])


# Positions of the differentiable arguments among the operator's inputs: input, weight, bias, lora_a, lora_b.
_DIFFERENTIABLE = (0, 1, 3, 7, 8)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Forward) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    (input, weight, target, bias, class_weight, token_weight, denominator, lora_a, lora_b) = inputs[:9]
    ctx.settings = inputs[9:]
    needs = inputs[-2]
    ctx.dtypes = [None if inputs[i] is None else inputs[i].dtype for i in _DIFFERENTIABLE]
    ctx.made_in_forward = any(needs)
    ctx.made = list(needs)
    if not ctx.made_in_forward:
        ctx.save_for_backward(input, weight, target, bias, class_weight, token_weight, denominator, lora_a, lora_b)
    elif output[0].dim() == 0:
        ctx.save_for_backward(*output[1:6])
    else:
        ctx.save_for_backward(output[1], target, token_weight)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    result: list[Tensor | None] = [None] * (9 + len(ctx.settings))
    if grad_loss is None:
        return tuple(result)
    if ctx.made_in_forward:
        gradients = _scale_stored(ctx, grad_loss)
    else:
        gradients = _recompute(ctx, grad_loss)
    for position, gradient, needed in zip(
        _DIFFERENTIABLE, gradients, [ctx.needs_input_grad[i] for i in _DIFFERENTIABLE], strict=True
    ):
        result[position] = gradient if needed else None
    return tuple(result)


def _scale_stored(ctx: Any, grad_loss: Tensor) -> list[Tensor | None]:
    if grad_loss.dim() == 1:
        grad_input, target, token_weight = ctx.saved_tensors
        settings = ctx.settings
        ignore_index, negative = settings[2], settings[4]
        weight = effective_weight(token_weight, negative, grad_loss.dtype)
        # A dropped token's gradient is zero whatever comes from above, infinities included.
        upstream = grad_loss.masked_fill(~keep_mask(target, weight, ignore_index), 0.0)
        return [scaled(grad_input, upstream, ctx.dtypes[0]), None, None, None, None]
    return [
        scaled(gradient, grad_loss, dtype) if made else None
        for gradient, dtype, made in zip(ctx.saved_tensors, ctx.dtypes, ctx.made, strict=True)
    ]


def _recompute(ctx: Any, grad_loss: Tensor) -> list[Tensor | None]:
    needs = [ctx.needs_input_grad[i] for i in _DIFFERENTIABLE]
    settings = ctx.settings
    made = linear_cross_entropy_backward_op(
        grad_loss,
        *ctx.saved_tensors,
        *settings[:10],  # lora_scale ... num_valid
        *settings[11:14],  # chunk_bytes, backend, process_group
        needs,
    )
    return [
        gradient.to(dtype) if needed else None for gradient, dtype, needed in zip(made, ctx.dtypes, needs, strict=True)
    ]


linear_cross_entropy_op.register_autograd(_backward, setup_context=_save_for_backward)
linear_cross_entropy_backward_op.register_autograd(refuse_second_order)
