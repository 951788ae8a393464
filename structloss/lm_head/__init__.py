"""Losses that are one pass over the LM head: cross-entropy and log-probabilities without logits."""

from structloss.lm_head.functional import (
    LinearCrossEntropyOutput,
    LinearLogprobOutput,
    linear_cross_entropy,
    linear_logprob,
)

__all__ = [
    "LinearCrossEntropyOutput",
    "LinearLogprobOutput",
    "linear_cross_entropy",
    "linear_logprob",
]
