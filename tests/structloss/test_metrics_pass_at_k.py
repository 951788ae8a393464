"""pass@k against counting all draws, its interval against scipy and against its own coverage."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from structloss.metrics import PassAtK, pass_at_k


def test_against_all_draws() -> None:
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations(range(n), k))
                expected = sum(min(draw) < c for draw in draws) / len(draws)
                assert pass_at_k(n, c, k).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(200, 3, 100), (1000, 1, 10), (2000, 700, 500), (5000, 2, 4999)])
def test_against_exact_binomials_where_they_overflow_floats(n: int, c: int, k: int) -> None:
    failing, total = comb(n - c, k), comb(n, k)
    assert pass_at_k(n, c, k).value == pytest.approx(1 - float(failing * 10**30 // total) / 1e30, abs=1e-12)


def test_identities() -> None:
    assert pass_at_k(10, 10, 3).value == 1.0
    assert pass_at_k(10, 0, 3).value == 0.0
    assert pass_at_k(10, 4, 1).value == pytest.approx(0.4)
    assert pass_at_k(10, 1, 10).value == 1.0
    mixed = pass_at_k([10, 20], [5, 5], 1)
    assert mixed.value == pytest.approx((0.5 + 0.25) / 2)
    assert (mixed.num_problems, mixed.k) == (2, 1)
    assert pass_at_k(10, [1, 2, 3], 2) == pass_at_k([10, 10, 10], np.array([1, 2, 3]), 2)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("correct", "problems"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (137, 164), (1, 974)])
def test_interval_of_one_sample_is_wilsons(correct: int, problems: int, confidence: float) -> None:
    outcomes = [1] * correct + [0] * (problems - correct)
    result = pass_at_k(1, outcomes, 1, confidence=confidence)
    expected = binomtest(correct, problems).proportion_ci(confidence, method="wilson")
    assert result.value == pytest.approx(correct / problems)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_interval_is_deterministic_and_covers() -> None:
    correct = np.random.default_rng(0).integers(0, 11, 60)
    result = pass_at_k(10, correct, 1)
    assert result == pass_at_k(10, correct, 1)
    assert result != pass_at_k(10, correct, 1, seed=1)
    assert result.low < result.value < result.high
    # The normal approximation of the mean's interval; the bootstrap comes close for 60 problems.
    half = 1.96 * (correct / 10).std() / np.sqrt(60)
    assert result.low == pytest.approx(result.value - half, abs=0.01)
    assert result.high == pytest.approx(result.value + half, abs=0.01)
    narrow = pass_at_k(10, correct, 1, confidence=0.5)
    assert result.low < narrow.low < narrow.high < result.high
    quartile = 0.6745 * (correct / 10).std() / np.sqrt(60)
    assert (narrow.low, narrow.high) == pytest.approx((result.value - quartile, result.value + quartile), abs=0.003)

    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        drawn = generator.binomial(5, generator.beta(1, 1, 40))
        interval = pass_at_k(5, drawn, 1, confidence=0.9, seed=seed)
        hits += interval.low <= 0.5 <= interval.high
    assert 80 <= hits <= 98


def test_bootstrap_of_equal_problems_has_no_width() -> None:
    assert pass_at_k(4, [2, 2, 2], 1) == PassAtK(0.5, 0.5, 0.5, 3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 6, 1), "num_correct: got 6 for problem 0, wants between 0 and num_samples"),
        (([5, 5], [1, -1], 1), "num_correct: got -1 for problem 1"),
        (([5, 3], [1, 1], 4), "k: got 4 for problem 1, wants at most num_samples"),
        ((5, 1, 0), "k: got 0, wants an integer >= 1"),
        ((5, 1, 1.5), "k: got 1.5"),
        ((5, [], 1), "got no problem"),
        (([], [], 1), "got no problem"),
        ((0, 0, 1), "num_samples: got 0 for problem 0"),
        (([5, 5], [1], 1), "num_correct: got 1 problems, but num_samples has 2"),
        ((5, [0.5], 1), "num_correct: got dtype float64"),
        ((5, [[1]], 1), "num_correct: got shape"),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1, float("nan")])
def test_wrong_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        pass_at_k(1, [1, 0], 1, confidence=confidence)
