"""What tree alignment costs on real functions, beside other packages and beside floors.

    python -m benchmarks.tree_alignment --quick                        a look, in about two minutes
    python -m benchmarks.tree_alignment --out FILE.json                everything, in about fifteen minutes
    python -m benchmarks.tree_alignment --device cuda --out FILE.json  the GPU backends, forward and backward
    python -m benchmarks.tree_alignment --plot docs/images --write-docs docs/tree_alignment.md
                                                                       no measurement: figures from the results folder

Two kinds of pairs (benchmarks/tree_pairs.py): unrelated functions of the standard library, and a function with itself
after small edits. Two studies:

hard   tree_edit_distance and align_trees against x-ted, apted and zss. All get the same labelled trees and unit costs;
       the conversion into what a package takes is not timed.
soft   soft_tree_edit_distance by temperature, with and without the posterior. Floors: the cells of the dynamic program,
       and a copy of the relabel costs into the posterior. Memory: peak of resident memory in a process of its own.

Before anything is timed, every distance is compared with that of every package, every mapping is checked to be one and
to cost its distance, and posteriors are compared with the log-domain reference in float64. One that is wrong ends the
run: no number is printed or written. Times are milliseconds a pair, the variants interleaved in rotating order.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import tree_device, tree_peers, tree_report
from benchmarks.timing import Variant, WrongResult, environment, interleave, spread, worst
from benchmarks.tree_pairs import SETS, PairSet, pair_sets
from structloss.tree_alignment import TreeAlignment, align_trees, reference, soft_tree_edit_distance, tree_edit_distance
from structloss.trees import TreeBatch

# Packages in Python get as many pairs as make about this number of cells, and are timed once or twice.
SLOW_CELLS = {"apted": 8_000_000, "zss": 1_500_000}
SLOW_ROUNDS = {"apted": 2, "zss": 1}
POSTERIOR_LIMIT = 1e-10  # against the float64 reference, float64 costs
ROUNDED_LIMIT = 1e-6  # float32 costs against float64 costs: a result in single precision


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.plot or options.write_docs:
        tree_report.publish(options.results, options.plot, options.write_docs)
        return 0
    report: dict[str, Any] = {"environment": environment(list(tree_peers.PACKAGES))}
    report["arguments"] = {key: value for key, value in vars(options).items() if not isinstance(value, Path | None)}
    try:
        if options.device != "cpu":
            report["device"] = tree_device.study(options)
        else:
            measure(options, report)
    except WrongResult as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    for table in tree_report.tables(report).values():
        print(f"\n{table}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(any("refused" in row for row in report.get("device", ())))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tree_alignment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", nargs="+", choices=("hard", "soft"), default=["hard", "soft"])
    parser.add_argument("--quick", action="store_true", help="sizes 50 and 100, 8 pairs, 3 rounds")
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 100, 200, 400], help="nodes a tree, within 10 %%")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of a size; Python packages get fewer")
    parser.add_argument("--rounds", type=int, default=9, help="times that everything is timed")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--checked", type=int, default=2, help="pairs of each set compared with the slow reference")
    parser.add_argument("--peers", nargs="*", choices=tree_peers.PACKAGES, default=list(tree_peers.PACKAGES))
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    device = parser.add_argument_group("GPU backends (--device cuda)")
    device.add_argument("--device", default="cpu")
    device.add_argument("--backends", nargs="+", default=["cuda", "triton"])
    device.add_argument("--batches", nargs="+", type=int, default=[64, 500])
    device.add_argument("--size", type=int, default=200, help="nodes a tree")
    figures = parser.add_argument_group("figures from files, without a measurement")
    figures.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the JSON files")
    figures.add_argument("--plot", type=Path, metavar="FOLDER", help="write the SVG files there")
    figures.add_argument("--write-docs", type=Path, metavar="PAGE", help="renew the tables between the page's markers")
    options = parser.parse_args(arguments)
    for name in ("pairs", "rounds", "checked"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} wants a number >= 1, got {getattr(options, name)}")
    if options.quick:
        options.sizes, options.pairs, options.rounds = [50, 100], 8, 3
    return options


def measure(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """The studies asked for, over all sets of pairs."""
    absent = [name for name in tree_peers.missing_packages() if name in options.peers]
    if absent and "hard" in options.study:
        print(f'not installed, left out: {", ".join(absent)}; pip install ".[bench]" has them', file=sys.stderr)
    peers = [name for name in options.peers if name not in absent]
    sets = pair_sets(options.sizes, options.pairs, options.sets)
    for study in options.study:
        report[study] = []
    with tqdm(total=len(sets) * len(options.study) * (options.rounds + 1), unit="round", disable=None) as bar:
        for pairs in sets:
            for study in options.study:
                bar.set_description(f"{study}, {pairs.size} nodes, {pairs.name}")
                rows = hard(pairs, options, peers, bar) if study == "hard" else soft(pairs, options, bar)
                report[study] += [{"set": pairs.name, "size": pairs.size, **row} for row in rows]
    if "soft" in options.study:
        report["memory"] = [memory(pairs, min(options.temperatures)) for pairs in sets]


# --- hard ---------------------------------------------------------------------------------------------------------


def hard(pairs: PairSet, options: argparse.Namespace, peers: Sequence[str], bar: tqdm) -> list[dict[str, Any]]:
    a, b = pairs.batches()
    expected = tree_edit_distance(a, b).tolist()
    check_mappings(a, b, align_trees(a, b))
    if "x-ted" in peers:
        check_rename_costs(pairs)
    variants = hard_variants(pairs, options.threads, peers)
    for variant in variants:
        torch.set_num_threads(variant.threads)
        check_distances(f"{variant.name}, {pairs.name}, {pairs.size} nodes", variant.call(), expected[: variant.pairs])
    bar.update()
    return [
        {"variant": v.name, "threads": v.threads, "pairs": v.pairs, "mean_cells": sum(pairs.cells) / len(pairs)}
        | spread(seconds, v.pairs)
        for v, seconds in zip(variants, interleave(variants, options.rounds, bar.update), strict=True)
    ]


def hard_variants(pairs: PairSet, threads: Sequence[int], peers: Sequence[str]) -> list[Variant]:
    trees, count = pairs.trees, len(pairs)
    a, b = pairs.batches()
    singles = [(TreeBatch.from_trees([x]), TreeBatch.from_trees([y])) for x, y in trees]
    variants = [Variant("tree_edit_distance, a pair a call", lambda: [tree_edit_distance(*s) for s in singles], count)]
    for t in threads:
        variants.append(Variant("tree_edit_distance", lambda: tree_edit_distance(a, b), count, t))
        variants.append(Variant("align_trees", lambda: align_trees(a, b).distance, count, t))
    if "x-ted" in peers:
        variants.append(Variant("x-ted", tree_peers.x_ted(trees), count))
        variants += [Variant("x-ted, batch", tree_peers.x_ted_batch(trees, t), count, t) for t in threads]
    for name, prepare in (("apted", tree_peers.apted), ("zss", tree_peers.zss)):
        if name in peers:
            few = max(1, min(count, SLOW_CELLS[name] * count // sum(pairs.cells)))
            variants.append(Variant(name, prepare(trees[:few]), few, rounds=SLOW_ROUNDS[name]))
    return variants


def check_distances(what: str, got: Any, expected: Sequence[float]) -> None:
    """Unit costs: the distances are whole numbers, so they agree exactly or not at all."""
    values = [float(x) for x in got]
    if values != list(expected):
        raise WrongResult(f"{what}: distances {values}, but tree_edit_distance has {list(expected)}")


def check_rename_costs(pairs: PairSet) -> None:
    """A rename matrix that is not symmetric means the same to x-ted as `relabel` does here."""

    def rename(x: int, y: int) -> int:
        return 0 if x == y else 1 + (x < y)

    few = PairSet(pairs.name, pairs.size, pairs.trees[:2], pairs.cells[:2])
    a, b = few.batches()
    x, y = a.label[:, :, None], b.label[:, None, :]
    relabel = torch.where(x == y, 0.0, torch.where(x < y, 2.0, 1.0))
    expected = tree_edit_distance(a, b, relabel=relabel).tolist()
    check_distances("x-ted with a rename matrix", tree_peers.x_ted_renamed(few.trees, rename)(), expected)


def check_mappings(a: TreeBatch, b: TreeBatch, found: TreeAlignment) -> None:
    """Every mapping keeps order and ancestry, and its cost is the distance."""
    for p in range(len(a)):
        n, m = int(a.sizes[p]), int(b.sizes[p])
        i = (found.match_a[p] >= 0).nonzero().squeeze(1)
        j = found.match_a[p][i]
        inside_a = a.leftmost[p][i][:, None] <= i[None, :]
        inside_b = b.leftmost[p][j][:, None] <= j[None, :]
        later = torch.ones(len(i), len(i)).tril(-1).bool()  # the first index of a pair is later in post-order
        renamed = (a.label[p][i] != b.label[p][j]).sum()
        cost = n + m - 2 * len(i) + int(renamed)
        kept = (j.diff() > 0).all() and torch.equal(inside_a[later], inside_b[later])
        if not (kept and torch.equal(found.match_b[p][j], i) and cost == found.distance[p]):
            raise WrongResult(f"align_trees, pair {p} of {n} and {m} nodes: no mapping of that distance")


# --- soft ---------------------------------------------------------------------------------------------------------


def soft(pairs: PairSet, options: argparse.Namespace, bar: tqdm) -> list[dict[str, Any]]:
    a, b = pairs.batches()
    errors = {t: check_soft(pairs, a, b, t, options.checked, options.threads) for t in options.temperatures}
    bar.update()
    costs = (a.label[:, :, None] != b.label[:, None, :]).float()
    out = torch.empty_like(costs)
    variants = [Variant("floor: copy", lambda: out.copy_(costs), len(pairs))]
    keys: list[dict[str, Any]] = [{"posterior": True, "temperature": None}]
    for temperature in options.temperatures:
        for posterior in (False, True):

            def call(temperature: float = temperature, posterior: bool = posterior) -> object:
                return soft_tree_edit_distance(a, b, temperature=temperature, return_posterior=posterior)

            name = "value and posterior" if posterior else "value"
            variants += [Variant(name, call, len(pairs), threads) for threads in options.threads]
            keys += [{"posterior": posterior, "temperature": temperature} for _ in options.threads]
    mean_cells = sum(pairs.cells) / len(pairs)
    variants[0].call()
    rows = []
    for variant, key, seconds in zip(variants, keys, interleave(variants, options.rounds, bar.update), strict=True):
        row = {"variant": variant.name, "threads": variant.threads, "pairs": variant.pairs, **key}
        row |= {"mean_cells": mean_cells} | spread(seconds, variant.pairs)
        if key["temperature"] is not None:
            row["ns_per_cell"] = 1e6 * row["median_ms"] / mean_cells
            row |= errors[key["temperature"]]
        rows.append(row)
    return rows


def check_soft(
    pairs: PairSet, a: TreeBatch, b: TreeBatch, temperature: float, checked: int, threads: Sequence[int]
) -> dict[str, float]:
    """Largest errors of value (relative to n + m) and posterior; raises where one is too large."""
    where = f"soft_tree_edit_distance, {pairs.name}, {pairs.size} nodes, temperature {temperature}"
    double = torch.ones(a.label.shape, dtype=torch.float64)
    value, posterior = soft_tree_edit_distance(a, b, delete=double, temperature=temperature, return_posterior=True)
    nodes = a.sizes + b.sizes
    for count in threads:
        torch.set_num_threads(count)
        timed = soft_tree_edit_distance(a, b, temperature=temperature, return_posterior=True)
        alone = soft_tree_edit_distance(a, b, temperature=temperature)
        differences = ((timed[0] - value) / nodes, (alone - value) / nodes, timed[1] - posterior)
        rounding = worst(map(largest, differences))
        if not rounding <= ROUNDED_LIMIT:
            raise WrongResult(f"{where}, {count} threads: single precision is off by {rounding:.1e}")
    value_errors, posterior_errors = [], []
    for p, (x, y) in enumerate(pairs.trees[:checked]):
        n, m = x.size, y.size
        unequal = (a.label[p, :n, None] != b.label[p, None, :m]).double()
        log_z, truth = reference.log_partition_and_posterior(
            x.leftmost.tolist(), y.leftmost.tolist(), (2.0 - unequal) / temperature
        )
        exact = n + m - temperature * log_z
        value_errors.append(largest((value[p] - exact) / (n + m)))
        posterior_errors.append(largest(posterior[p, :n, :m] - truth))
    errors = {"value_error": worst(value_errors), "posterior_error": worst(posterior_errors)}
    if not worst(errors.values()) <= POSTERIOR_LIMIT:
        raise WrongResult(f"{where}: errors against the reference {errors}, at most {POSTERIOR_LIMIT} is right")
    return errors


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


# --- memory -------------------------------------------------------------------------------------------------------


def memory(pairs: PairSet, temperature: float) -> dict[str, Any]:
    """Bytes of one typical pair: cells, what is returned, and the rise of the peak of resident memory."""
    trees = [(tree.label.tolist(), tree.parent.tolist()) for tree in pairs.trees[0]]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        rise = pool.submit(peak_of_one_pair, *trees, temperature).result()
    n, m = (tree.size for tree in pairs.trees[0])
    return {
        "set": pairs.name,
        "size": pairs.size,
        "nodes": [n, m],
        "cells": pairs.cells[0],
        "temperature": temperature,
        "posterior_bytes": 4 * n * m,
        "peak_bytes": rise,
    }


def peak_of_one_pair(
    first: tuple[list[int], list[int]], second: tuple[list[int], list[int]], temperature: float
) -> int | None:
    """Rise of this process's peak in one call on one thread, default costs and posterior included; None off Linux."""
    torch.set_num_threads(1)
    one = TreeBatch.from_parents([[0]], [[-1]])
    soft_tree_edit_distance(one, one, return_posterior=True)  # the first call loads code
    a, b = (TreeBatch.from_parents([labels], [parents]) for labels, parents in (first, second))
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")  # the peak begins anew at what is resident now
    before = _kibibytes(status, "VmHWM")
    soft_tree_edit_distance(a, b, temperature=temperature, return_posterior=True)
    return 1024 * (_kibibytes(status, "VmHWM") - before)


def _kibibytes(status: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


if __name__ == "__main__":
    sys.exit(main())
