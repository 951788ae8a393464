"""Which examples make up which step: planned before training, to the token budget, from the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def plan_batches(
    units: Sequence[Sequence[int]], lengths: Sequence[int], *, batch_size: int, tokens: int, seed: int
) -> list[list[int]]:
    """Batches of example indices until `tokens` tokens are seen, epoch after epoch.

    Units (one example, or the candidates of one problem) stay together; examples of similar length share a batch,
    so little is padded. The same arguments give the same plan, which is what makes a resumed run continue exactly.

    Args:
        units: example indices that belong into one batch.
        lengths: tokens of each example.
        batch_size: examples a batch, at least (a unit is never split).
        tokens: budget; the last batch may exceed it.
    """
    if not units:
        raise ValueError("units: wants at least one example to train on")
    rng = np.random.default_rng(seed)
    longest = np.array([max(lengths[i] for i in unit) for unit in units])
    plan: list[list[int]] = []
    seen = 0
    while True:
        for batch in _one_epoch(units, longest, batch_size, rng):
            plan.append(batch)
            seen += sum(lengths[i] for i in batch)
            if seen >= tokens:
                return plan


def _one_epoch(
    units: Sequence[Sequence[int]], longest: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    order = rng.permutation(len(units))
    window = 32 * batch_size
    for start in range(0, len(order), window):
        chunk = order[start : start + window]
        chunk = chunk[np.argsort(longest[chunk], kind="stable")]
        batches: list[list[int]] = [[]]
        for unit in chunk:
            if len(batches[-1]) >= batch_size:
                batches.append([])
            batches[-1].extend(units[unit])
        for position in rng.permutation(len(batches)):
            yield batches[position]
