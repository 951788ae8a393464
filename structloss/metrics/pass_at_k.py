"""pass@k with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import bootstrap_interval, check_confidence, wilson_interval


@dataclass(frozen=True)
class PassAtK:
    """Mean pass@k over problems and its interval [low, high]."""

    value: float
    low: float
    high: float
    num_problems: int
    k: int


def pass_at_k(
    num_samples: int | Sequence[int] | np.ndarray,
    num_correct: int | Sequence[int] | np.ndarray,
    k: int,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> PassAtK:
    """Unbiased pass@k, averaged over problems.

        1 - C(n - c, k) / C(n, k)  =  1 - prod_{i = n-c+1 .. n} (1 - k / i)

    num_samples: n, samples drawn for each problem, an int for all or one for each. num_correct: c, how many
    of them passed. k: at most the smallest n.

    The interval is Wilson's score interval where every problem has one sample (then k = 1 and the value is a
    proportion), else the percentile bootstrap over problems (10,000 resamples from `seed`). The bootstrap
    sees only how the problems differ: where all problems have the same pass@k (or there is one problem) its width is 0,
    which is no proof of certainty.

    Raises ValueError for no problem, n < 1, c outside [0, n], k outside [1, n], a confidence outside (0, 1).

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374); Wilson
    1927.

    >>> pass_at_k([2, 2], [1, 0], 1).value
    0.25
    """
    samples, correct = _counts("num_samples", num_samples), _counts("num_correct", num_correct)
    if samples.ndim == 0 and correct.ndim == 1:
        samples = np.full(correct.shape, samples)
    samples, correct = np.atleast_1d(samples), np.atleast_1d(correct)
    if samples.shape != correct.shape:
        raise ValueError(f"num_correct: got {len(correct)} problems, but num_samples has {len(samples)}")
    if not len(samples):
        raise ValueError("num_correct: got no problem, wants at least one")
    _refuse(samples < 1, "num_samples", samples, "at least 1 sample")
    _refuse((correct < 0) | (correct > samples), "num_correct", correct, "between 0 and num_samples")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k: got {k!r}, wants an integer >= 1")
    _refuse(samples < k, "k", np.full(samples.shape, k), "at most num_samples")
    check_confidence(confidence)

    values = estimates(samples, correct, int(k))
    value = float(values.mean())
    if samples.max() == 1:
        low, high = wilson_interval(int(correct.sum()), len(samples), confidence=confidence)
    else:
        low, high = bootstrap_interval(values, confidence=confidence, seed=seed)
    return PassAtK(value=value, low=low, high=high, num_problems=len(values), k=int(k))


def estimates(samples: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """pass@k of each problem, from its number of samples and of correct ones."""
    pairs, which = np.unique(np.stack([samples, correct]), axis=1, return_inverse=True)
    # The factor is 0 at i = k: fewer than k wrong samples leave no way to draw only wrong ones.
    fail = [math.prod(max(0.0, 1.0 - k / i) for i in range(n - c + 1, n + 1)) for n, c in pairs.T.tolist()]
    return 1.0 - np.array(fail)[which.reshape(-1)]


def _counts(argument: str, values: int | Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim > 1:
        raise ValueError(f"{argument}: got shape {array.shape}, wants an integer or one for each problem")
    if array.size and array.dtype.kind not in "iub":
        raise ValueError(f"{argument}: got dtype {array.dtype}, wants integers")
    return array.astype(np.int64)


def _refuse(wrong: np.ndarray, argument: str, values: np.ndarray, wants: str) -> None:
    found = np.flatnonzero(wrong)
    if len(found):
        i = int(found[0])
        raise ValueError(f"{argument}: got {values[i]} for problem {i}, wants {wants}")
