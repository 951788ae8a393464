"""`linear_topk_kl`: the divergence from a stored top-k teacher, with the LM head, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from structloss.lm_head.arguments import (
    BACKENDS,
    MODES,
    REDUCTIONS,
    check_choice,
    check_constants,
    check_numbers,
    check_outputs,
    check_tensors,
    split_denominator,
)
from structloss.lm_head.dtensor import is_dtensor
from structloss.lm_head.functional import _autocast, _gradients_in_forward
from structloss.lm_head.kept_rows import keep_mask
from structloss.lm_head.reference import reference_logits
from structloss.lm_head.topk_formula import KINDS, MAX_K, TAILS, TopkFormula, check_teacher
from structloss.lm_head.topk_op import choose_topk_backend, linear_topk_kl_op
from structloss.lm_head.topk_reference import reference_topk_loss

_OUTPUTS = ("kl", "logprob", "lse", "argmax")


class LinearTopkKLOutput(NamedTuple):
    """The loss and the per-token results that were asked for; the others are None. Only `loss` carries a gradient."""

    loss: Tensor
    kl: Tensor | None = None
    logprob: Tensor | None = None
    lse: Tensor | None = None
    argmax: Tensor | None = None


@overload
def linear_topk_kl(
    input: Tensor,
    linear_weight: Tensor,
    topk_ids: Tensor,
    topk_logprobs: Tensor,
    *,
    outputs: tuple[()] = ...,
    **options: Any,
) -> Tensor: ...
@overload
def linear_topk_kl(
    input: Tensor,
    linear_weight: Tensor,
    topk_ids: Tensor,
    topk_logprobs: Tensor,
    *,
    outputs: Sequence[str],
    **options: Any,
) -> LinearTopkKLOutput: ...
def linear_topk_kl(  # type: ignore[misc]  # the overloads say only what `outputs` decides
    input: Tensor,
    linear_weight: Tensor,
    topk_ids: Tensor,
    topk_logprobs: Tensor,
    *,
    tail: str = "bucket",
    kind: str = "forward",
    temperature: float = 1.0,
    scale_by_temperature_squared: bool = False,
    beta: float | None = None,
    tail_floor: float = 1e-6,
    teacher_vocab: int | None = None,
    target: Tensor | None = None,
    cross_entropy_weight: float = 0.0,
    linear_bias: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    token_weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
    num_valid: int | None = None,
    check_targets: bool = False,
    outputs: Sequence[str] = (),
    mode: str = "auto",
    chunk_bytes: int | None = None,
    backend: str = "auto",
) -> Tensor | LinearTopkKLOutput:
    r"""Divergence of a linear head's distribution from stored top-k teacher log-probabilities, without (N, V) logits.

    Logits z are those of `linear_cross_entropy`, always in float32 (float64 for float64 input). Student and teacher are
    coarsened at temperature 1 to the teacher's k classes K and a tail, then both are tempered:

        P_j = softmax(z[:S])_j for j in K,  P_tail = the sum over the other classes below S
        Q_j = exp(logprob_j)   for j in K,  Q_tail = max(1 - sum_K Q_j, tail_floor)
        p = softmax(log P / temperature),   q = softmax(log Q / temperature)

    S is the shared vocabulary: V, or `teacher_vocab` where that is smaller. The loss of a token is
    w * (divergence [* temperature^2] + cross_entropy_weight * -log softmax(z)[target]), where with
    m = beta * q + (1 - beta) * p the divergence is

        "forward"   KL(q || p)          "reverse"   KL(p || q)
        "jsd"       beta * KL(q || m) + (1 - beta) * KL(p || m)

    Gradients are made as in `linear_cross_entropy`: two GEMMs with a frozen head, three with a trained one.

    Args:
        input: (..., D) hidden states; float32, bfloat16 or float64.
        linear_weight: (V, D), same dtype and device.
        topk_ids: (..., k) integer class ids of the teacher, k <= 256, a class at most once for a token.
            Negative = padding. Ids of S or more are classes that the student does not share: their mass is in the tail.
        topk_logprobs: (..., k) the teacher's log-probabilities at temperature 1. Read only where the id is not padding.
        tail: "bucket" (above); "renormalize": no tail, p and q over K alone; "ignore": as "bucket" but the tail's term
            is left out of the sum. Where the student has no class left for the tail there is none.
        temperature: of p and q. Of a tempered teacher only "renormalize" is exact: a stored tail cannot be tempered.
        scale_by_temperature_squared: multiply the divergence (not the cross-entropy) by temperature^2.
        beta: for "jsd" only, in (0, 1), default 0.5: the teacher's share of m. The limits are 0, not KL: use the kinds.
        tail_floor: least mass of the teacher's tail; a smaller one is rounding in the stored numbers.
        teacher_vocab: number of classes that the teacher knows, where fewer than V: softmax is over these alone.
        target: (...) integer class ids; a token whose target is `ignore_index` is ignored. Without `target` a token is
            ignored that has only padding.
        cross_entropy_weight: of the cross-entropy with `target`, at temperature 1 over all V classes; 0 = none.
        token_weight: (...) not negative. No gradient.
        num_valid, check_targets: as in `linear_cross_entropy`. On an accelerator a token that the CPU would refuse has
            a loss of NaN; with `check_targets` it is refused there too.
        outputs: any of "kl" (without weights and temperature^2), "logprob" (of target), "lse", "argmax".
        linear_bias, reduction, ignore_index, denominator, softcap, logit_scale, lora_a, lora_b, lora_scale, mode,
            chunk_bytes, backend: as in `linear_cross_entropy`; chunk_bytes counts float32 logits.

    Returns:
        float32 (float64 for float64 input): a 0-dim tensor or, for "none", one of the tokens' shape; a
        `LinearTopkKLOutput` when `outputs` names anything.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what it wants.

    >>> x, w = torch.zeros(1, 2), torch.ones(4, 2)
    >>> loss = linear_topk_kl(x, w, torch.tensor([[2]]), torch.tensor([[0.25]]).log())
    >>> round(float(loss), 6)
    0.0
    """
    for name, value, choices in (
        ("tail", tail, TAILS),
        ("kind", kind, KINDS),
        ("reduction", reduction, REDUCTIONS),
        ("mode", mode, MODES),
        ("backend", backend, BACKENDS),
    ):
        check_choice(name, value, choices)
    check_outputs(outputs, _OUTPUTS)
    if backend != "reference":
        choose_topk_backend(backend)
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("topk_ids", topk_ids)):
        if is_dtensor(tensor):
            raise ValueError(
                f"{name} must be a plain tensor, got a DTensor: linear_topk_kl knows no shards; "
                f"pass {name}.full_tensor(), or {name}.to_local() where every rank holds all of it"
            )
    device = input.device.type
    input, linear_weight = _autocast(input, device), _autocast(linear_weight, device)
    linear_bias, lora_a, lora_b = (None if t is None else _autocast(t, device) for t in (linear_bias, lora_a, lora_b))
    _check_topk(input, topk_ids, topk_logprobs)
    if target is None:
        if cross_entropy_weight or "logprob" in outputs:
            raise ValueError(
                "target must be given for a cross_entropy_weight that is not 0 and for the output 'logprob'"
            )
        ignore_index = -100
        target = torch.where((topk_ids >= 0).any(-1), 0, ignore_index)
    check_tensors(input, linear_weight, target, linear_bias, lora_a, lora_b, shared=False)
    check_constants(input, linear_weight, target, None, token_weight)
    check_numbers(0.0, 0.0, softcap, logit_scale, lora_scale, chunk_bytes)
    beta = _check_options(kind, temperature, beta, tail_floor, teacher_vocab, cross_entropy_weight)
    tensor_denominator, divisor = split_denominator(denominator, reduction)
    tokens = target.numel()
    if num_valid is not None and not 0 <= num_valid <= tokens:
        raise ValueError(f"num_valid must be between 0 and the number of tokens ({tokens}), got {num_valid}")

    flat_input, k = input.reshape(-1, input.shape[-1]), topk_ids.shape[-1]
    flat_ids, flat_logprobs, flat_target = topk_ids.reshape(-1, k), topk_logprobs.reshape(-1, k), target.reshape(-1)
    flat_weight = None if token_weight is None else token_weight.reshape(-1)
    kl_weight = float(temperature) ** 2 if scale_by_temperature_squared else 1.0
    if backend == "reference":
        vocab = linear_weight.shape[0]
        shared = vocab if teacher_vocab is None else min(vocab, teacher_vocab)
        formula = TopkFormula(
            kind, tail, temperature, beta, tail_floor, shared, kl_weight, cross_entropy_weight, softcap, logit_scale
        )
        kept = keep_mask(flat_target, flat_weight, ignore_index).nonzero().squeeze(1)
        check_teacher(flat_ids[kept], flat_logprobs[kept], teacher_vocab, kept)
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
        loss, *per_token = reference_topk_loss(
            logits,
            flat_ids,
            flat_logprobs,
            flat_target,
            formula,
            token_weight=flat_weight,
            reduction=reduction,
            ignore_index=ignore_index,
            denominator=denominator,
        )
    else:
        made = linear_topk_kl_op(
            None,
            flat_input,
            linear_weight,
            flat_ids,
            flat_logprobs,
            flat_target,
            linear_bias,
            flat_weight,
            tensor_denominator,
            lora_a,
            lora_b,
            float(lora_scale),
            kind,
            tail,
            float(temperature),
            beta,
            float(tail_floor),
            teacher_vocab,
            kl_weight,
            float(cross_entropy_weight),
            None if softcap is None else float(softcap),
            float(logit_scale),
            reduction,
            ignore_index,
            divisor,
            num_valid,
            check_targets,
            chunk_bytes,
            _gradients_in_forward((flat_input, linear_weight, linear_bias, lora_a, lora_b), reduction, mode),
            [name in outputs for name in _OUTPUTS],
        )
        loss, per_token = made[0], [value.detach() for value in made[6:]]
    if reduction == "none":
        loss = loss.reshape(target.shape)
    if not outputs:
        return loss
    asked = [
        value.reshape(target.shape) if name in outputs else None
        for name, value in zip(_OUTPUTS, per_token, strict=True)
    ]
    return LinearTopkKLOutput(loss, *asked)


def _check_topk(input: Tensor, ids: Tensor, logprobs: Tensor) -> None:
    if input.dim() < 1 or ids.dim() != input.dim() or ids.shape[:-1] != input.shape[:-1]:
        wanted = ", ".join(map(str, (*input.shape[:-1], "k")))
        raise ValueError(f"topk_ids must be ({wanted}) like input's tokens, got {tuple(ids.shape)}")
    if not 1 <= ids.shape[-1] <= MAX_K:
        raise ValueError(f"topk_ids must have between 1 and {MAX_K} classes a token, got {ids.shape[-1]}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"topk_ids must hold integer class ids, got {ids.dtype}")
    if logprobs.shape != ids.shape:
        raise ValueError(f"topk_logprobs must be {tuple(ids.shape)} like topk_ids, got {tuple(logprobs.shape)}")
    if not logprobs.is_floating_point():
        raise TypeError(f"topk_logprobs must be floating point, got {logprobs.dtype}")
    if logprobs.requires_grad:
        raise ValueError("topk_logprobs must not require a gradient: the teacher is a constant of the loss; detach it")
    for name, tensor in (("topk_ids", ids), ("topk_logprobs", logprobs)):
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device} like input, got {tensor.device}")


def _check_options(
    kind: str,
    temperature: float,
    beta: float | None,
    tail_floor: float,
    teacher_vocab: int | None,
    cross_entropy_weight: float,
) -> float:
    """Returns beta as the formula takes it."""
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")
    if beta is not None and kind != "jsd":
        raise ValueError(f"beta belongs to kind='jsd', got {beta} with kind={kind!r}")
    if beta is not None and not 0.0 < beta < 1.0:
        raise ValueError(
            f"beta must be between 0 and 1, both excluded, got {beta}: "
            "for the Kullback-Leibler divergences use kind='forward' or kind='reverse'"
        )
    if not 0.0 < tail_floor < 1.0:
        raise ValueError(f"tail_floor must be between 0 and 1, both excluded, got {tail_floor}")
    if teacher_vocab is not None and teacher_vocab < 1:
        raise ValueError(f"teacher_vocab must be None or >= 1, got {teacher_vocab}")
    if not 0.0 <= cross_entropy_weight < float("inf"):
        raise ValueError(f"cross_entropy_weight must be finite and >= 0, got {cross_entropy_weight}")
    return 0.5 if beta is None else float(beta)
