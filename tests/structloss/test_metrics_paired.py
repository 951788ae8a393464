"""Intervals and paired tests against scipy, against enumeration of all resamples, and against counts by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from structloss.metrics import McNemar, bootstrap_interval, mcnemar_exact, paired_bootstrap, wilson_interval


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 10), (0, 378), (378, 378), (250, 500)])
def test_wilson_is_scipys(successes: int, trials: int, confidence: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_by_hand() -> None:
    """z = 1.96, 8 of 10: (0.8 + 0.192 -+ 1.96 * sqrt(0.016 + 0.0096)) / 1.384."""
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_bootstrap_is_the_quantile_of_all_resamples() -> None:
    values = [0.0, 0.1, 0.5, 0.7, 1.0]
    means = [np.mean(draw) for draw in product(values, repeat=5)]
    for confidence in (0.5, 0.9):
        low, high = bootstrap_interval(values, confidence=confidence)
        expected = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
        # One step between neighbouring means of five such values is 0.02.
        assert (low, high) == pytest.approx(tuple(expected), abs=0.021)


@pytest.mark.parametrize(
    "differences",
    [[1, 1, 1, 0], [1, 0, 0, 0, 0], [0.5, -0.25, 0.5, 0.25, 0.0], [1, 1, 1, 1, -1], [1, -1, 0, 0]],
)
def test_paired_bootstrap_is_the_share_of_all_resamples(differences: list[float]) -> None:
    d = np.array(differences, dtype=float)
    means = np.array([d[list(draw)].mean() for draw in product(range(len(d)), repeat=len(d))])
    expected = (np.abs(means - d.mean()) >= abs(d.mean()) - 1e-9).mean()
    result = paired_bootstrap(np.zeros(len(d)), d)
    assert result.value == pytest.approx(d.mean())
    # Three standard errors of a share of 10,000 draws.
    assert result.p == pytest.approx(expected, abs=0.015)
    assert paired_bootstrap(d, np.zeros(len(d))).p == pytest.approx(result.p, abs=0.015)


def test_paired_interval_is_scipys() -> None:
    generator = np.random.default_rng(0)
    a = generator.beta(2, 2, 80)
    b = np.clip(a + generator.normal(0.05, 0.1, 80), 0, 1)
    result = paired_bootstrap(a, b)
    expected = stats.bootstrap(
        (a, b), lambda x, y, axis: (y - x).mean(axis), paired=True, method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    # Two bootstraps of a mean with standard error 0.01 differ by less than a tenth of it.
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.001)
    # Large samples: the p-value comes close to that of the paired t-test.
    assert result.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.005)


def test_pairing_sees_what_two_intervals_hide() -> None:
    """Problems differ far more than runs do: apart the intervals overlap, paired the difference is certain."""
    difficulty = np.linspace(0, 0.9, 50)
    better = difficulty + 0.05 + 0.01 * np.tile([1, -1], 25)
    assert bootstrap_interval(difficulty)[1] > bootstrap_interval(better)[0]
    result = paired_bootstrap(difficulty, better)
    assert 0.04 < result.low < result.value < result.high < 0.06
    assert result.p == pytest.approx(1 / 10_001)
    assert result == paired_bootstrap(difficulty, better)


def test_equal_runs_show_no_difference() -> None:
    result = paired_bootstrap([0.2, 0.8], [0.2, 0.8])
    assert (result.value, result.low, result.high, result.p, result.num_problems) == (0.0, 0.0, 0.0, 1.0, 2)
    assert mcnemar_exact([1, 0, 1], [1, 0, 1]) == McNemar(0, 0, 1.0)


def test_false_alarms_are_as_rare_as_they_say() -> None:
    generator = np.random.default_rng(2)
    alarms = 0
    for seed in range(150):
        rates = generator.beta(1, 1, 60)
        a, b = (generator.binomial(5, rates) / 5 for _ in range(2))
        alarms += paired_bootstrap(a, b, seed=seed).p < 0.1
    # Expected 15, standard deviation 3.7.
    assert 4 <= alarms <= 27


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (1, 0), (0, 6), (3, 9), (5, 5), (40, 61), (300, 400)])
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    a = [1] * only_a + [0] * only_b + [1] * 7 + [0] * 4
    b = [0] * only_a + [1] * only_b + [1] * 7 + [0] * 4
    result = mcnemar_exact(a, b)
    assert (result.only_a, result.only_b) == (only_a, only_b)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue
    assert result.p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    """Two against eight of ten: 2 * (1 + 10 + 45) / 1024."""
    assert mcnemar_exact([1] * 2 + [0] * 8, [0] * 2 + [1] * 8).p == 112 / 1024
    assert mcnemar_exact(np.array([True, False]), np.array([False, True])).p == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(1, 0), "trials: got 0"),
        (lambda: wilson_interval(3, 2), "successes: got 3, wants between 0 and trials"),
        (lambda: wilson_interval(1, 2, confidence=1.0), "confidence: got 1.0"),
        (lambda: bootstrap_interval([]), "values: got shape"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "values: got nan for problem 1"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "b: got 2 problems, but a has 1"),
        (lambda: paired_bootstrap([1.0], [1.0], confidence=0), "confidence: got 0"),
        (lambda: mcnemar_exact([0.5], [1]), "a: got 0.5 for problem 0, wants 0 or 1"),
        (lambda: mcnemar_exact([1], [1, 1]), "b: got 2 problems, but a has 1"),
        (lambda: mcnemar_exact([], []), "a: got shape"),
    ],
)
def test_wrong_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
