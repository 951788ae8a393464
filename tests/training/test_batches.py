"""The plan of batches: the budget, the units, the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.batches import plan_batches


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    batch_size=st.integers(1, 9),
    tokens=st.integers(1, 3000),
    seed=st.integers(0, 5),
)
def test_plan_reaches_the_budget_with_its_last_batch(
    lengths: list[int], batch_size: int, tokens: int, seed: int
) -> None:
    units = [[i] for i in range(len(lengths))]
    plan = plan_batches(units, lengths, batch_size=batch_size, tokens=tokens, seed=seed)
    counts = [sum(lengths[i] for i in batch) for batch in plan]
    assert sum(counts) >= tokens > sum(counts[:-1])
    assert all(len(batch) <= batch_size for batch in plan)
    per_epoch = -(-len(lengths) // batch_size)
    if len(plan) >= per_epoch:
        assert sorted(i for batch in plan[:per_epoch] for i in batch) == list(range(len(lengths)))


def test_the_plan_follows_from_the_seed() -> None:
    lengths = list(range(1, 200))
    units = [[i] for i in range(len(lengths))]
    plans = [plan_batches(units, lengths, batch_size=4, tokens=20_000, seed=seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    first = plan_batches(units, lengths, batch_size=4, tokens=5_000, seed=1)
    assert plans[0][: len(first)] == first, "a larger budget only goes on"


def test_units_stay_together_and_lengths_are_alike() -> None:
    units = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(20)]
    lengths = [10 + i // 3 for i in range(60)]
    plan = plan_batches(units, lengths, batch_size=6, tokens=sum(lengths), seed=0)
    for batch in plan:
        assert all({3 * (i // 3), 3 * (i // 3) + 1, 3 * (i // 3) + 2} <= set(batch) for i in batch)
        assert max(lengths[i] for i in batch) - min(lengths[i] for i in batch) <= 1


def test_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="^units:"):
        plan_batches([], [], batch_size=1, tokens=1, seed=0)
