"""Losses that are one pass over the LM head: cross-entropy, log-probabilities and top-k divergence without logits."""

from structloss.lm_head.functional import (
    LinearCrossEntropyOutput,
    LinearLogprobOutput,
    linear_cross_entropy,
    linear_logprob,
)
from structloss.lm_head.topk_kl import LinearTopkKLOutput, linear_topk_kl

__all__ = [
    "LinearCrossEntropyOutput",
    "LinearLogprobOutput",
    "LinearTopkKLOutput",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_topk_kl",
]
