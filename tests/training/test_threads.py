"""Threads leave cores to others that need them."""

from __future__ import annotations

import pytest

from training import threads


@pytest.mark.parametrize(
    ("most", "others", "expected"), [(8, 0.0, 4), (2, 0.0, 2), (8, 1.6, 2), (8, 9.0, 1), (1, 0.0, 1)]
)
def test_choose_threads(monkeypatch: pytest.MonkeyPatch, most: int, others: float, expected: int) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    assert threads.choose_threads(most, others) == expected


def test_own_work_is_not_the_work_of_others() -> None:
    load = threads.OtherLoad()
    before = load.cores()
    assert before >= 0.0
    total = sum(i * i for i in range(3_000_000))
    assert total > 0
    now = load._read()
    assert now[2] > 0.0, "own core-seconds are counted"
    assert load.cores() >= 0.0


def test_usable_cores_is_at_least_one() -> None:
    assert threads.usable_cores() >= 1
