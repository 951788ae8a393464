"""Largest errors of tree alignment, measured: `python -m benchmarks.tree_alignment_accuracy [--out FILE]`.

Small trees against enumeration of all mappings, gradients against central differences, and identities that hold for
trees of any size. Costs are float64. The oracle is that of the tests.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
from pathlib import Path

import torch

from structloss.tree_alignment import align_trees, soft_tree_edit_distance, tree_edit_distance
from structloss.trees import TreeBatch
from tests.structloss.test_tree_alignment_oracle import (
    Parents,
    enumerate_alignment,
    random_costs,
    random_parents,
)

TEMPERATURES = (2.0, 1.0, 0.25, 0.05, 0.01)


def _batch(trees: list[Parents]) -> TreeBatch:
    return TreeBatch.from_parents([[0] * len(tree) for tree in trees], trees)


def enumeration_errors(pairs: int, largest: int, temperature: float, backend: str, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    trees_a = [random_parents(rng.randint(1, largest), rng) for _ in range(pairs)]
    trees_b = [random_parents(rng.randint(1, largest), rng) for _ in range(pairs)]
    a, b = _batch(trees_a), _batch(trees_b)
    relabel, delete, insert = random_costs(pairs, a.label.shape[1], b.label.shape[1], seed)
    costs = {"relabel": relabel, "delete": delete, "insert": insert}
    value, posterior = soft_tree_edit_distance(
        a, b, **costs, temperature=temperature, return_posterior=True, backend=backend
    )
    hard = align_trees(a, b, **costs, backend=backend).distance
    errors = {"value": 0.0, "posterior": 0.0, "hard": 0.0}
    for p, (tree_a, tree_b) in enumerate(zip(trees_a, trees_b, strict=True)):
        n, m = len(tree_a), len(tree_b)
        expected, matched, best = enumerate_alignment(
            tree_a,
            tree_b,
            relabel[p, :n, :m].numpy(),
            delete[p, :n].numpy(),
            insert[p, :m].numpy(),
            temperature,
        )
        errors["value"] = max(errors["value"], abs(value[p].item() - expected))
        difference = posterior[p, :n, :m] - torch.from_numpy(matched)
        errors["posterior"] = max(errors["posterior"], difference.abs().max().item())
        errors["hard"] = max(errors["hard"], abs(hard[p].item() - best))
    return errors


def identity_errors(pairs: int, size: int, temperature: float, backend: str, seed: int) -> dict[str, float]:
    """Central differences along random directions, swap symmetry, row sums and the order of soft, flat and hard."""
    rng = random.Random(seed)
    a = _batch([random_parents(size, rng) for _ in range(pairs)])
    b = _batch([random_parents(size, rng) for _ in range(pairs)])
    relabel, delete, insert = random_costs(pairs, size, size, seed, forbidden=0.0)
    relabel, delete, insert = relabel + 0.01, delete + 0.01, insert + 0.01
    how = {"temperature": temperature, "backend": backend}

    def value(*costs: torch.Tensor) -> torch.Tensor:
        result = soft_tree_edit_distance(a, b, relabel=costs[0], delete=costs[1], insert=costs[2], **how)
        assert isinstance(result, torch.Tensor)
        return result

    costs = [cost.requires_grad_() for cost in (relabel, delete, insert)]
    gradients = torch.autograd.grad(value(*costs).sum(), costs)
    finite = 0.0
    generator = torch.Generator().manual_seed(seed)
    step = 1e-5 * temperature
    for k, cost in enumerate(costs):
        direction = torch.randn(cost.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [c.detach() for c in costs]
            moved[k] = moved[k] + sign * step * direction
            ends.append(value(*moved))
        slope = (ends[0] - ends[1]) / (2 * step)
        exact = (gradients[k] * direction).flatten(1).sum(1)
        finite = max(finite, ((slope - exact).abs() / exact.abs().clamp_min(1.0)).max().item())

    plain = [cost.detach() for cost in costs]
    soft, posterior = soft_tree_edit_distance(
        a, b, relabel=plain[0], delete=plain[1], insert=plain[2], return_posterior=True, **how
    )
    swapped_soft, swapped = soft_tree_edit_distance(
        b, a, relabel=plain[0].transpose(1, 2), delete=plain[2], insert=plain[1], return_posterior=True, **how
    )
    costs_by_name = {"relabel": plain[0], "delete": plain[1], "insert": plain[2], "backend": backend}
    hard = tree_edit_distance(a, b, **costs_by_name)
    flat = tree_edit_distance(a, b, **costs_by_name, method="flattened")
    return {
        "finite_differences_relative": finite,
        "swap_value": (swapped_soft - soft).abs().max().item(),
        "swap_posterior": (swapped.transpose(1, 2) - posterior).abs().max().item(),
        "row_sum_over_one": max((posterior.sum(d) - 1).max().item() for d in (1, 2)),
        "soft_over_hard": (soft - hard).max().item(),
        "flattened_over_hard": (flat - hard).max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=300, help="random pairs for each temperature")
    parser.add_argument("--size", type=int, default=60, help="nodes a tree for the identities")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()

    rows = []
    for k, temperature in enumerate(TEMPERATURES):
        enumerated = enumeration_errors(options.pairs, 6, temperature, options.backend, seed=k)
        identities = identity_errors(10, options.size, temperature, options.backend, seed=100 + k)
        rows.append({"temperature": temperature, **enumerated, **identities})
    names = list(rows[0])
    width = max(map(len, names))
    for name in names:
        cells = [f"{row[name]:12g}" if name == "temperature" else f"{row[name]:12.1e}" for row in rows]
        print(f"{name:{width}}", *cells)
    if options.out:
        report = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "pairs": options.pairs,
            "largest_tree_enumerated": 6,
            "identity_tree_size": options.size,
            "backend": options.backend,
            "rows": rows,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
