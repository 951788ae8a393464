"""Two runs on the same problems: is the difference more than the choice of problems would give?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import RESAMPLES, check_confidence, check_values, resampled_means


@dataclass(frozen=True)
class PairedDifference:
    """Mean of b - a over problems, its interval [low, high], and the p-value of "there is no difference"."""

    value: float
    low: float
    high: float
    p: float
    num_problems: int


@dataclass(frozen=True)
class McNemar:
    """Problems that only a, and only b, solves, and the p-value of "both kinds are equally likely"."""

    only_a: int
    only_b: int
    p: float


def paired_bootstrap(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> PairedDifference:
    """The mean of `b - a` over problems with a percentile bootstrap interval and a two-sided p-value.

        d_i = b_i - a_i,   D = mean(d),   D* = mean of a resample of d
        p = (1 + #{|D* - D| >= |D|}) / (1 + resamples)

    a, b: one value a problem (its pass@k, its syntax match), the same problems in the same order. Problems are
    drawn together with both of their values, so what makes a problem hard for both runs cancels. 10,000
    resamples from `seed`: p is never below 1/10,001.

    Raises ValueError for no problem, different lengths, values that are not finite, a confidence outside (0, 1).

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 16 (the test); Koehn 2004,
    "Statistical significance tests for machine translation evaluation" (the pairing).

    >>> paired_bootstrap([0.0, 0.5, 1.0], [0.5, 1.0, 1.0]).value
    0.3333333333333333
    """
    first, second = check_values("a", a), check_values("b", b)
    if first.shape != second.shape:
        raise ValueError(f"b: got {len(second)} problems, but a has {len(first)}")
    check_confidence(confidence)
    differences = second - first
    value = float(differences.mean())
    means = np.concatenate(list(resampled_means(differences, seed)))
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    # Equal up to rounding counts as "as far": sums of a resample come in another order.
    as_far = int((np.abs(means - value) >= abs(value) - 1e-12).sum())
    return PairedDifference(value, float(low), float(high), (1 + as_far) / (1 + RESAMPLES), len(differences))


def mcnemar_exact(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> McNemar:
    """McNemar's exact test on two runs with one verdict a problem.

        p = min(1, 2 P(X <= min(only_a, only_b))),   X ~ Binomial(only_a + only_b, 1/2)

    Problems that both solve, or neither, say nothing. Without any other p is 1. Raises ValueError for no problem,
    different lengths, values other than 0 and 1.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions".

    >>> mcnemar_exact([0, 0, 0, 1], [1, 1, 1, 1]).p
    0.25
    """
    first, second = _verdicts("a", a), _verdicts("b", b)
    if first.shape != second.shape:
        raise ValueError(f"b: got {len(second)} problems, but a has {len(first)}")
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    trials = only_a + only_b
    # Whole numbers: exact for any number of problems.
    ways = total = 1
    for successes in range(min(only_a, only_b)):
        ways = ways * (trials - successes) // (successes + 1)
        total += ways
    return McNemar(only_a, only_b, min(1.0, 2 * total / 2**trials))


def _verdicts(argument: str, values: Sequence[bool] | np.ndarray) -> np.ndarray:
    array = check_values(argument, values)
    if wrong := np.flatnonzero((array != 0) & (array != 1)).tolist():
        raise ValueError(f"{argument}: got {array[wrong[0]]} for problem {wrong[0]}, wants 0 or 1")
    return array.astype(bool)
