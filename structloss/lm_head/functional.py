"""The public functions of the LM head: arguments checked, shapes flattened, work handed to a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor

from structloss.lm_head.arguments import (
    BACKENDS,
    MODES,
    NEGATIVE,
    OUTPUTS,
    REDUCTIONS,
    check_choice,
    check_constants,
    check_numbers,
    check_outputs,
    check_process_group,
    check_tensors,
    split_denominator,
)
from structloss.lm_head.dtensor import is_dtensor, local_tensors
from structloss.lm_head.op import linear_cross_entropy_op
from structloss.lm_head.reference import reference_logits, reference_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class LinearCrossEntropyOutput(NamedTuple):
    """The loss and the per-token results that were asked for; the others are None. Only `loss` carries a
    gradient.
    """

    loss: Tensor
    logprob: Tensor | None = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    argmax: Tensor | None = None


class LinearLogprobOutput(NamedTuple):
    """The log-probabilities, which carry a gradient, and the results that were asked for, which do not."""

    logprob: Tensor
    lse: Tensor | None = None
    entropy: Tensor | None = None
    argmax: Tensor | None = None


@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, outputs: tuple[()] = ..., **options: Any
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, outputs: Sequence[str], **options: Any
) -> LinearCrossEntropyOutput: ...
def linear_cross_entropy(  # type: ignore[misc]  # the overloads say only what `outputs` decides
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    token_weight: Tensor | None = None,
    negative: str = "unlikelihood",
    denominator: Tensor | float | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
    process_group: ProcessGroup | None = None,
    num_valid: int | None = None,
    check_targets: bool = False,
    outputs: Sequence[str] = (),
    mode: str = "auto",
    chunk_bytes: int | None = None,
    backend: str = "auto",
) -> Tensor | LinearCrossEntropyOutput:
    r"""Cross-entropy of a linear head without its (N, V) logits; masked and weighted tokens cost what they
    should.

    With a = x W^T + bias + lora_scale * (x A^T) B^T, logits z = softcap * tanh(logit_scale * a / softcap),
    p = softmax(z), class weights c, token weights w and eps = label_smoothing, the loss of one token is

        w * ((1 - eps) * c_y * -log p_y  +  eps / V * sum_v c_v * -log p_v  +  z_loss * c_y * lse(z)^2)

    and for a token of negative weight, with negative="unlikelihood",

        |w| * (c_y * -log(1 - p_y)  +  z_loss * c_y * lse(z)^2)

    "sum" adds the tokens, "mean" divides the sum by `denominator`, by default sum(w * c_y) over the kept
    tokens, "none" returns one loss a token. A token is kept when it is not ignored and its weight is not
    zero; the others enter no GEMM, and when no token is kept the loss and every gradient are 0. In a mean or
    sum the gradients are made in the forward: one GEMM for the logits and one more for each of input and
        weight that requires a gradient.

    Args:
        input: (..., D) hidden states; float32, bfloat16 or float64. Row math of bfloat16 is float32.
        linear_weight: (V, D), same dtype and device.
        target: (...) integer class ids.
        linear_bias: (V,).
        weight: (V,) class weights, as in `torch.nn.functional.cross_entropy`. No gradient.
        token_weight: (...) any sign. No gradient.
        negative: what a negative token weight means: "unlikelihood" (above), "clamp" (taken as 0: the token
            is dropped), "raw" (multiplies the loss: unbounded below, so use it only with a bound of your
            own).
        denominator: a number or a 0-dim tensor > 0, e.g. the tokens of all accumulation steps. Only for
            "mean".
        z_loss, softcap, logit_scale: as in the formula; softcap None is no cap.
        lora_a, lora_b: (r, D) and (V, r), a low-rank update of the head that is never merged into it.
        process_group: ranks that share the vocabulary in rank order. Every rank passes the same tokens and options
            and its own rows of linear_weight, linear_bias, weight and lora_b; shards may differ in size. Each gets
            the same loss, the whole gradient of input and lora_a, and its own rows of the others' gradients.
        num_valid: number of kept tokens. On an accelerator it saves the one host synchronisation of the call;
            a wrong number then makes the loss NaN (on the CPU it is an error).
        check_targets: refuse out-of-range targets on an accelerator too (one synchronisation).
        outputs: any of "logprob", "lse", "entropy", "argmax": per token, from the same pass, without
            gradient; 0 (argmax: -1) at tokens that are not kept.
        mode: "min_memory" stores no gradient and recomputes the logits in the backward.
        chunk_bytes: bytes of logits at a time; chosen by device when None.
        backend: "auto"; "torch" (chunked, torch operations), "cpu" (its row pass in C++) and "triton" (in Triton);
            "reference" (plain torch, all logits, any derivative). One that cannot serve the call raises.

    A DTensor head with a plain input (FSDP2) is gathered for the call and its gradient is the mean over the ranks, as
    `fully_shard` makes it; with a replicated DTensor input it shares the vocabulary as with `process_group`.

    Returns:
        float32 (float64 for float64 input): a 0-dim tensor or, for "none", one of target's shape;
        a `LinearCrossEntropyOutput` when `outputs` names anything.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what it wants.

    >>> x, w = torch.eye(3), torch.eye(3)
    >>> loss = linear_cross_entropy(x, w, torch.tensor([0, 1, -100]))
    >>> bool(torch.isclose(loss, torch.tensor(2.0).add(torch.tensor(1.0).exp()).log() - 1))
    True
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("negative", negative, NEGATIVE)
    check_choice("mode", mode, MODES)
    check_choice("backend", backend, BACKENDS)
    check_outputs(outputs, OUTPUTS)
    tensors: dict[str, Any] = {
        "input": input,
        "linear_weight": linear_weight,
        "target": target,
        "linear_bias": linear_bias,
        "weight": weight,
        "token_weight": token_weight,
        "denominator": denominator,
        "lora_a": lora_a,
        "lora_b": lora_b,
    }
    if any(is_dtensor(value) for value in tensors.values()):
        tensors, process_group = local_tensors(tensors, process_group)
        input, linear_weight, target, linear_bias, weight, token_weight, denominator, lora_a, lora_b = tensors.values()
    if process_group is not None:
        check_process_group(process_group, backend)
    device = input.device.type
    input, linear_weight = _autocast(input, device), _autocast(linear_weight, device)
    linear_bias = None if linear_bias is None else _autocast(linear_bias, device)
    lora_a = None if lora_a is None else _autocast(lora_a, device)
    lora_b = None if lora_b is None else _autocast(lora_b, device)
    check_tensors(input, linear_weight, target, linear_bias, lora_a, lora_b, shared=process_group is not None)
    check_constants(input, linear_weight, target, weight, token_weight)
    check_numbers(label_smoothing, z_loss, softcap, logit_scale, lora_scale, chunk_bytes)
    tensor_denominator, divisor = split_denominator(denominator, reduction)
    tokens = target.numel()
    if num_valid is not None and not 0 <= num_valid <= tokens:
        raise ValueError(f"num_valid must be between 0 and the number of tokens ({tokens}), got {num_valid}")

    flat_input = input.reshape(-1, input.shape[-1])
    flat_target = target.reshape(-1)
    flat_weight = None if token_weight is None else token_weight.reshape(-1)
    if backend == "reference":
        logits = reference_logits(
            flat_input,
            linear_weight,
            linear_bias,
            softcap=softcap,
            logit_scale=logit_scale,
            lora_a=lora_a,
            lora_b=lora_b,
            lora_scale=lora_scale,
        )
        loss, *per_token = reference_loss(
            logits,
            flat_target,
            class_weight=weight,
            token_weight=flat_weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            negative=negative,
            denominator=denominator,
            z_loss=z_loss,
        )
    else:
        made = linear_cross_entropy_op(
            flat_input,
            linear_weight,
            flat_target,
            linear_bias,
            weight,
            flat_weight,
            tensor_denominator,
            lora_a,
            lora_b,
            float(lora_scale),
            reduction,
            ignore_index,
            float(label_smoothing),
            negative,
            divisor,
            float(z_loss),
            None if softcap is None else float(softcap),
            float(logit_scale),
            num_valid,
            check_targets,
            chunk_bytes,
            "torch" if process_group is not None else backend,
            None if process_group is None else process_group.group_name,
            _gradients_in_forward((flat_input, linear_weight, linear_bias, lora_a, lora_b), reduction, mode),
            [name in outputs for name in OUTPUTS],
        )
        loss, per_token = made[0], [value.detach() for value in made[6:]]
    if reduction == "none":
        loss = loss.reshape(target.shape)
    if not outputs:
        return loss
    asked = [
        value.reshape(target.shape) if name in outputs else None for name, value in zip(OUTPUTS, per_token, strict=True)
    ]
    return LinearCrossEntropyOutput(loss, *asked)


@overload
def linear_logprob(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, outputs: tuple[()] = ..., **options: Any
) -> Tensor: ...
@overload
def linear_logprob(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, outputs: Sequence[str], **options: Any
) -> LinearLogprobOutput: ...
def linear_logprob(  # type: ignore[misc]
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
    process_group: ProcessGroup | None = None,
    num_valid: int | None = None,
    check_targets: bool = False,
    outputs: Sequence[str] = (),
    mode: str = "auto",
    chunk_bytes: int | None = None,
    backend: str = "auto",
) -> Tensor | LinearLogprobOutput:
    """Log-probability of each target token, differentiable, without the (N, V) logits.

        log p_y = z_y - lse(z),   z = softcap * tanh(logit_scale * (x W^T + bias) / softcap)

    The tokens' own weights (advantages, preference signs, pathway scores) are applied by the caller and
    arrive as the upstream gradient. With a frozen head that costs two GEMMs in all; a head with any trainable
    part recomputes its logits once in the backward, where tokens with a zero upstream gradient are dropped.

    Args: as in `linear_cross_entropy`, `process_group` and DTensor heads included; `outputs` is any of "lse",
        "entropy", "argmax" (no gradient).

    Returns:
        float32 (float64 for float64 input) of target's shape, 0 at ignored tokens; a `LinearLogprobOutput`
        when `outputs` names anything.

    Raises:
        TypeError, ValueError: as `linear_cross_entropy`.
    """
    check_outputs(outputs, OUTPUTS[1:])
    result = linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        reduction="none",
        ignore_index=ignore_index,
        softcap=softcap,
        logit_scale=logit_scale,
        lora_a=lora_a,
        lora_b=lora_b,
        lora_scale=lora_scale,
        process_group=process_group,
        num_valid=num_valid,
        check_targets=check_targets,
        outputs=outputs,
        mode=mode,
        chunk_bytes=chunk_bytes,
        backend=backend,
    )
    # 0 - x and not -x: an ignored token reads 0, not -0.
    if isinstance(result, Tensor):
        return 0 - result
    return LinearLogprobOutput(0 - result.loss, result.lse, result.entropy, result.argmax)


def _gradients_in_forward(differentiable: tuple[Tensor | None, ...], reduction: str, mode: str) -> list[bool]:
    """Which gradients the forward makes. With one loss a token the upstream vector is unknown: the input's
    gradient can still be made and its rows scaled later, but sums over tokens (the head's gradients)
    cannot.
    """
    needs = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in differentiable]
    if mode == "min_memory" or (reduction == "none" and any(needs[1:])):
        return [False] * len(needs)
    return needs


def _autocast(tensor: Tensor, device: str) -> Tensor:
    """What autocast does to a matmul's operand: float32 and bfloat16 become the autocast type."""
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
