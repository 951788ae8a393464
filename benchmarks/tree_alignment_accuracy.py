"""Largest errors of tree alignment, measured: `python -m benchmarks.tree_alignment_accuracy [--out FILE.json]`.

Prints Markdown tables. Small trees against enumeration of all mappings, gradients against central differences, and
identities that hold for trees of any size; real functions that are nearly the same or very unequal at a sharp
temperature against the log-domain reference; long chains and wide stars; and what the textbook recursion would count.
Costs are float64. The oracle is that of the tests. An error above its limit fails the study, and nothing is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import tree_report
from benchmarks.timing import WrongResult, environment, worst
from benchmarks.tree_pairs import pair_sets
from structloss.tree_alignment import align_trees, reference, soft_tree_edit_distance, tree_edit_distance
from structloss.trees import Tree, TreeBatch
from tests.structloss.test_tree_alignment_oracle import (
    Parents,
    all_mappings,
    chain,
    enumerate_alignment,
    random_costs,
    random_parents,
    star,
)

Row = dict[str, Any]
TEMPERATURES = (2.0, 1.0, 0.25, 0.05, 0.01)
SHARP = 0.1
COLD = 1e-4
# What is measured is ten to a thousand times smaller; a wrong recursion or gradient is many orders larger.
LIMITS = {
    "value": 1e-12,
    "posterior": 1e-11,
    "hard": 1e-12,
    "cost_gradient_relative": 1e-5,
    "temperature_gradient_relative": 1e-5,
    "free_energy_identity": 1e-9,
    "swap_value": 1e-10,
    "swap_posterior": 1e-10,
    "row_sum_over_one": 1e-11,
    "soft_over_hard": 1e-10,
    "flattened_over_hard": 1e-10,
}
LARGE_LIMIT = 1e-10
COLD_LIMIT = 1e-6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tree_alignment_accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, default=300, help="random pairs for each temperature")
    parser.add_argument("--size", type=int, default=60, help="nodes a tree for the identities")
    parser.add_argument("--real", nargs="+", type=int, default=[200, 400], help="nodes of near-identical functions")
    parser.add_argument("--unequal", nargs=2, type=int, default=[50, 400], help="nodes of two unrelated functions")
    parser.add_argument("--longest", type=int, default=5000, help="nodes of the chain and of the star")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args(arguments)

    report: Row = {"environment": environment([]), "arguments": vars(options) | {"out": None}, "accuracy": []}
    try:
        for k, temperature in enumerate(tqdm(TEMPERATURES, desc="temperatures", disable=None)):
            row = {"temperature": temperature}
            row |= enumeration_errors(options.pairs, 6, temperature, options.backend, seed=k)
            row |= identity_errors(10, options.size, temperature, options.backend, seed=100 + k)
            report["accuracy"].append(row)
            refuse([(f"{name} at temperature {temperature}", row[name], limit) for name, limit in LIMITS.items()])
        report["large"] = large_errors(options)
        refuse([(f"{row['case']}: {row['what']}", row["error"], row["limit"]) for row in report["large"]])
    except WrongResult as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    report["textbook"] = textbook_counts(options.backend)
    for table in tree_report.tables(report).values():
        print(f"\n{table}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def refuse(found: Sequence[tuple[str, float, float]]) -> None:
    """Raises WrongResult for the first error that is not below its limit (NaN is not)."""
    for what, error, limit in found:
        if not error <= limit:
            raise WrongResult(f"{what} is {error:.1e}, at most {limit:.0e} is right")


def _batch(trees: list[Parents]) -> TreeBatch:
    return TreeBatch.from_parents([[0] * len(tree) for tree in trees], trees)


# --- small trees --------------------------------------------------------------------------------------------------


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
    errors: dict[str, list[float]] = {"value": [], "posterior": [], "hard": []}
    for p, (tree_a, tree_b) in enumerate(zip(trees_a, trees_b, strict=True)):
        n, m = len(tree_a), len(tree_b)
        real = (relabel[p, :n, :m].numpy(), delete[p, :n].numpy(), insert[p, :m].numpy())
        expected, matched, best = enumerate_alignment(tree_a, tree_b, *real, temperature)
        errors["value"].append(abs(value[p].item() - expected))
        errors["posterior"].append((posterior[p, :n, :m] - torch.from_numpy(matched)).abs().max().item())
        errors["hard"].append(abs(hard[p].item() - best))
    return {name: worst(values) for name, values in errors.items()}


# --- identities ---------------------------------------------------------------------------------------------------


def identity_errors(pairs: int, size: int, temperature: float, backend: str, seed: int) -> dict[str, float]:
    """Central differences, free energy from the gradients, swap symmetry, row sums, order of soft, flat and hard."""
    a, b, costs = _random_problem(pairs, size, seed)
    inputs = [*costs, torch.full((pairs,), temperature, dtype=torch.float64)]
    errors = gradient_errors(a, b, inputs, backend, seed)
    relabel, delete, insert = costs
    how: Row = {"temperature": temperature, "backend": backend, "return_posterior": True}
    soft, posterior = soft_tree_edit_distance(a, b, relabel=relabel, delete=delete, insert=insert, **how)
    swapped_soft, swapped = soft_tree_edit_distance(
        b, a, relabel=relabel.transpose(1, 2), delete=insert, insert=delete, **how
    )
    named: Row = {"relabel": relabel, "delete": delete, "insert": insert, "backend": backend}
    hard = tree_edit_distance(a, b, **named)
    flat = tree_edit_distance(a, b, **named, method="flattened")
    return errors | {
        "swap_value": (swapped_soft - soft).abs().max().item(),
        "swap_posterior": (swapped.transpose(1, 2) - posterior).abs().max().item(),
        "row_sum_over_one": worst((posterior.sum(d) - 1).max().item() for d in (1, 2)),
        "soft_over_hard": (soft - hard).max().item(),
        "flattened_over_hard": (flat - hard).max().item(),
    }


def _random_problem(pairs: int, size: int, seed: int) -> tuple[TreeBatch, TreeBatch, list[Tensor]]:
    rng = random.Random(seed)
    a, b = (_batch([random_parents(size, rng) for _ in range(pairs)]) for _ in range(2))
    return a, b, [cost + 0.01 for cost in random_costs(pairs, size, size, seed, forbidden=0.0)]


def gradient_errors(a: TreeBatch, b: TreeBatch, inputs: list[Tensor], backend: str, seed: int) -> dict[str, float]:
    """Slopes along random directions of relabel, delete, insert and temperature, against the gradients."""

    def value(*given: Tensor) -> Tensor:
        relabel, delete, insert, temperature = given
        return soft_tree_edit_distance(
            a, b, relabel=relabel, delete=delete, insert=insert, temperature=temperature, backend=backend
        )

    leaves = [x.clone().requires_grad_() for x in inputs]
    result = value(*leaves)
    gradients = torch.autograd.grad(result.sum(), leaves)
    generator = torch.Generator().manual_seed(seed)
    relative = []
    for k, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        step = 1e-5 * inputs[-1].view(-1, *[1] * (gradient.dim() - 1))
        ends = [value(*inputs[:k], inputs[k] + sign * step * direction, *inputs[k + 1 :]) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2e-5 * inputs[-1])
        exact = (gradient * direction).flatten(1).sum(1) if gradient.dim() > 1 else gradient * direction
        relative.append(((slope - exact).abs() / exact.abs().clamp_min(1.0)).max().item())
    # sum of inputs times their gradients = expected cost - temperature * entropy = the value
    energy = sum((x * g).flatten(1).sum(1) if x.dim() > 1 else x * g for x, g in zip(inputs, gradients, strict=True))
    return {
        "cost_gradient_relative": worst(relative[:3]),
        "temperature_gradient_relative": relative[3],
        "free_energy_identity": (energy - result.detach()).abs().max().item(),
    }


# --- large trees --------------------------------------------------------------------------------------------------


def large_errors(options: argparse.Namespace) -> list[Row]:
    rows = cold_errors(options.size, options.backend)
    sets = pair_sets(sorted({*options.real, *options.unequal}), 1)
    found = {(pairs.name, pairs.size): pairs.trees[0] for pairs in sets}
    for size in options.real:
        rows += reference_errors("near-identical functions", *found["near-identical", size], options.backend)
    small, big = (found["unrelated", size][0] for size in options.unequal)
    rows += reference_errors("functions of unequal size", small, big, options.backend)
    rows += reference_errors("the same, swapped", big, small, options.backend)
    for case, tree in (("chain", chain(options.longest)), ("star", star(options.longest))):
        rows.append(extreme_error(case, tree, options.backend))
    return rows


def cold_errors(size: int, backend: str) -> list[Row]:
    """In the limit of temperature 0 the value is the distance and the posterior the (here unique) mapping."""
    a, b, costs = _random_problem(10, size, seed=7)
    named: Row = {"relabel": costs[0], "delete": costs[1], "insert": costs[2], "backend": backend}
    soft, posterior = soft_tree_edit_distance(a, b, **named, temperature=COLD, return_posterior=True)
    hard = align_trees(a, b, **named)
    matched = (hard.match_a[:, :, None] == torch.arange(size)).double()
    where = {"case": "random trees, hard limit", "nodes": f"{size}, {size}", "temperature": COLD, "limit": COLD_LIMIT}
    return [
        {**where, "what": "value - distance", "error": (soft - hard.distance).abs().max().item()},
        {**where, "what": "posterior - mapping", "error": (posterior - matched).abs().max().item()},
    ]


def reference_errors(case: str, first: Tree, second: Tree, backend: str) -> list[Row]:
    """Real functions at unit costs, against the reference in the log domain."""
    a, b = TreeBatch.from_trees([first]), TreeBatch.from_trees([second])
    relabel = (a.label[:, :, None] != b.label[:, None, :]).double()
    value, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel, temperature=SHARP, return_posterior=True, backend=backend
    )
    log_z, truth = reference.log_partition_and_posterior(
        first.leftmost.tolist(), second.leftmost.tolist(), (2.0 - relabel[0]) / SHARP
    )
    nodes = first.size + second.size
    where = {"case": case, "nodes": f"{first.size}, {second.size}", "temperature": SHARP, "limit": LARGE_LIMIT}
    return [
        {**where, "what": "value / nodes", "error": abs(value.item() - (nodes - SHARP * log_z.item())) / nodes},
        {**where, "what": "posterior", "error": (posterior[0] - truth).abs().max().item()},
    ]


def extreme_error(case: str, tree: Parents, backend: str) -> Row:
    """A tree against itself, no label different: finite, no probability outside [0, 1], no row sum over 1."""
    a = _batch([tree])
    value, posterior = soft_tree_edit_distance(
        a, a, temperature=SHARP, return_posterior=True, backend=backend, max_cells=2**40
    )
    finite = bool(torch.isfinite(value).all() and torch.isfinite(posterior).all())
    outside = max(posterior.max().item() - 1, -posterior.min().item())
    sums = max((posterior.sum(d, dtype=torch.float64) - 1).max().item() for d in (1, 2))
    return {
        "case": case,
        "nodes": f"{len(tree)}, {len(tree)}",
        "temperature": SHARP,
        "what": "excess of a probability or of a row sum; finite",
        "error": max(0.0, outside, sums) if finite else math.nan,
        "limit": 1e-5,  # the posterior of default costs is single precision
    }


# --- the textbook recursion ---------------------------------------------------------------------------------------


def textbook_softmin(
    a: Parents, b: Parents, relabel: Tensor, delete: float, insert: float, temperature: float
) -> float:
    """The recursion of Zhang and Shasha (1989) with a soft minimum in the place of min: not the soft distance.

    Two single nodes have two mappings. It counts three, as the deletion and the insertion come in either order:

    >>> textbook_softmin([-1], [-1], torch.zeros(1, 1), 0.0, 0.0, 1.0)  # -log 3
    -1.0986122886681098
    """

    def softmin(*costs: float) -> float:
        low = min(costs)
        return low - temperature * math.log(sum(math.exp((low - cost) / temperature) for cost in costs))

    (first_a, roots_a), (first_b, roots_b) = _keyroots(a), _keyroots(b)
    change = relabel.tolist()
    tree = [[0.0] * len(b) for _ in a]
    for k in roots_a:
        for l in roots_b:
            left, low = first_a[k], first_b[l]
            forest = [[insert * y for y in range(l - low + 2)]]
            for i in range(left, k + 1):
                row = [forest[-1][0] + delete]
                for j in range(low, l + 1):
                    if first_a[i] == left and first_b[j] == low:
                        matched = forest[-1][j - low] + change[i][j]
                    else:
                        matched = forest[first_a[i] - left][first_b[j] - low] + tree[i][j]
                    row.append(softmin(forest[-1][j - low + 1] + delete, row[-1] + insert, matched))
                    if first_a[i] == left and first_b[j] == low:
                        tree[i][j] = row[-1]
                forest.append(row)
    return tree[-1][-1]


def _keyroots(parents: Parents) -> tuple[list[int], list[int]]:
    """Leftmost leaf of every node, and the highest node above each leftmost leaf."""
    first = list(range(len(parents)))
    for node, parent in enumerate(parents):
        if parent >= 0:
            first[parent] = min(first[parent], first[node])
    return first, sorted({leaf: node for node, leaf in enumerate(first)}.values())


def textbook_counts(backend: str) -> list[Row]:
    """Mappings by enumeration, by this library and by the textbook recursion; soft distances at temperature 1."""
    cases = {"one node, one node": ([-1], [-1]), "two in a chain, each": (chain(2), chain(2))}
    cases |= {"root with two leaves, each": (star(3), star(3)), "root with four leaves, each": (star(5), star(5))}
    rows = []
    for case, (a, b) in cases.items():
        nothing, free = torch.zeros(len(a), len(b), dtype=torch.float64), torch.zeros(1, len(a), dtype=torch.float64)
        pair = (_batch([a]), _batch([b]))
        how: Row = {"relabel": nothing[None], "backend": backend}
        rows.append(
            {
                "case": case,
                "mappings": len(list(all_mappings(a, b))),
                "counted": math.exp(-soft_tree_edit_distance(*pair, delete=free, insert=free, **how).item()),
                "textbook_counted": math.exp(-textbook_softmin(a, b, nothing, 0.0, 0.0, 1.0)),
                "soft_distance": soft_tree_edit_distance(*pair, **how).item(),
                "textbook_soft_distance": textbook_softmin(a, b, nothing, 1.0, 1.0, 1.0),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
