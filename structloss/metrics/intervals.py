"""Intervals of a share and of a mean over problems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share `successes / trials`.

        (s + z^2/2 -+ z sqrt(s (t - s) / t + z^2/4)) / (t + z^2),   z = the normal quantile of `confidence`

    It stays within [0, 1] and keeps a width where all or none succeeded. Raises ValueError for trials < 1,
    successes outside [0, trials], a confidence outside (0, 1).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if trials < 1:
        raise ValueError(f"trials: got {trials}, wants at least 1")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes: got {successes}, wants between 0 and trials ({trials})")
    check_confidence(confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, one value a problem: 10,000 resamples from `seed`.

    It sees only how the values differ: where all are equal its width is 0, which is no proof of certainty. Raises
    ValueError for no value, a value that is not finite, a confidence outside (0, 1).

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    array = check_values("values", values)
    check_confidence(confidence)
    means = np.concatenate(list(resampled_means(array, seed)))
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def resampled_means(values: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Means of `RESAMPLES` draws with replacement, in parts: thousands of problems must not become gigabytes."""
    generator = np.random.default_rng(seed)
    n = len(values)
    rows = max(1, min(RESAMPLES, 4_000_000 // n))
    for done in range(0, RESAMPLES, rows):
        yield values[generator.integers(0, n, size=(min(rows, RESAMPLES - done), n))].mean(axis=1)


def check_values(argument: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The values as a vector of floats; refuses what is no value for each problem."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{argument}: got shape {array.shape}, wants one value for each of at least one problem")
    if not np.isfinite(array).all():
        wrong = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{argument}: got {array[wrong]} for problem {wrong}, wants finite values")
    return array


def check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: got {confidence!r}, wants a number between 0 and 1")
