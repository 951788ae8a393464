"""The LM-head loss written down: all logits at once, differentiated by autograd. The truth for every other
backend.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_logits(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    softcap: float | None,
    logit_scale: float,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
) -> Tensor:
    """(N, V) logits in float32, or float64 where the input is float64: bfloat16 operands are widened
    first.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)
    x = input.to(dtype)
    logits = x @ weight.to(dtype).t()
    if lora_a is not None and lora_b is not None:
        logits = logits + lora_scale * (x @ lora_a.to(dtype).t()) @ lora_b.to(dtype).t()
    if bias is not None:
        logits = logits + bias.to(dtype)
    logits = logits * logit_scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def reference_loss(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    negative: str,
    denominator: Tensor | float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, logprob, lse, entropy, argmax) from logits (N, V) and target (N,).

    Loss of a kept token: |w| * -log(1 - p_y) where w < 0 and negative is "unlikelihood", else

        w * (c_y * (1 - eps) * -log p_y + eps / V * sum_v c_v * -log p_v + c_y * z_loss * lse^2)

    (the unlikelihood term has its c_y and its z-loss too, but no smoothing).
    """
    vocab = logits.shape[1]
    target = target.to(torch.int64)
    weight = torch.ones_like(logits[:, 0]) if token_weight is None else token_weight.to(logits.dtype)
    if negative == "clamp":
        weight = weight.clamp(min=0)
    keep = (target != ignore_index) & (weight != 0)
    safe = torch.where(keep, target, 0)[:, None]
    classes = torch.ones(vocab, dtype=logits.dtype, device=logits.device)
    if class_weight is not None:
        classes = class_weight.to(logits.dtype)

    lse = logits.logsumexp(-1)
    logp = logits - lse[:, None]
    logp_target = logp.gather(1, safe).squeeze(1)
    class_target = classes[safe.squeeze(1)]
    smooth = -(logp * classes).sum(-1) / vocab if label_smoothing else torch.zeros_like(lse)
    per_token = -(1 - label_smoothing) * class_target * logp_target + label_smoothing * smooth
    if negative == "unlikelihood" and token_weight is not None:
        others = torch.ones_like(logits, dtype=torch.bool).scatter(1, safe, False)
        log_other = logits.masked_fill(~others, -torch.inf).logsumexp(-1) - lse
        per_token = torch.where(weight < 0, -class_target * log_other, per_token)
        weight = torch.where(keep, weight, 0)
        factor = weight.abs()
    else:
        factor = weight
    per_token = per_token + class_target * z_loss * lse.square()
    per_token = torch.where(keep, factor * per_token, 0)

    probabilities = logp.exp()
    entropy = -torch.where(probabilities > 0, probabilities * logp, 0).sum(-1)
    outputs = (
        torch.where(keep, logp_target, 0).detach(),
        torch.where(keep, lse, 0).detach(),
        torch.where(keep, entropy, 0).detach(),
        torch.where(keep, logits.argmax(-1), -1),
    )
    if reduction == "none":
        return (per_token, *outputs)
    total = per_token.sum()
    if reduction == "mean":
        if denominator is None:
            denominator = torch.where(keep, weight * class_target, 0).sum()
        total = torch.where(keep.any(), total / denominator, total)
    return (total, *outputs)
