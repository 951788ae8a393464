"""The Triton backend of tree alignment: under the interpreter on the CPU, compiled ahead of time, and on a GPU.

Triton reads TRITON_INTERPRET when a kernel is defined, so the comparisons run in a process of their own: the test
`test_under_the_interpreter` starts pytest on this file with the variable set, and everything marked `interpreter` runs
there (and only there).
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

import triton
from triton.runtime import interpreter as interpreter_runtime

from structloss.tree_alignment import cpu, reference, triton_kernels
from structloss.tree_alignment import triton as backend
from structloss.tree_alignment.table_program import TableProgram
from structloss.tree_alignment.triton_rows import LINEAR, LOG, MAX
from structloss.trees import TreeBatch
from tests.structloss.test_tree_alignment_oracle import Parents, chain, mirrored, padded_labels, random_parents, star
from tests.structloss.triton_tools import mend_indices, resources, run_under_the_interpreter

INTERPRETED = triton_kernels.interpreted()
interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_under_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set")
BUDGET = 1 << 40


def test_under_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("this is the process that the test starts")
    run_under_the_interpreter(__file__)


def _scan_in_steps(self, values):
    """The interpreter's associative scan, which combines element by element in Python, in log2(n) steps of arrays."""
    arrays = [value.handle.data for value in values]
    step = 1
    while step < arrays[0].shape[0]:
        left = [self.to_tensor(np.roll(x, step), v.dtype) for x, v in zip(arrays, values, strict=True)]
        right = [self.to_tensor(x, v.dtype) for x, v in zip(arrays, values, strict=True)]
        combined = self.combine_fn.fn(*left, *right)
        arrays = [np.concatenate([x[:step], y.handle.data[step:]]) for x, y in zip(arrays, combined, strict=True)]
        step *= 2
    return [self.to_tensor(x, v.dtype) for x, v in zip(arrays, values, strict=True)]


@pytest.fixture
def sequential_scan(monkeypatch):
    mend_indices(monkeypatch)


@pytest.fixture
def fast_scan(sequential_scan, monkeypatch):
    monkeypatch.setattr(interpreter_runtime.ScanOps, "generic_scan", _scan_in_steps)


def tree_tensors(trees: list[Parents], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batch = TreeBatch.from_parents(padded_labels(trees, seed), trees)
    return batch.leftmost, batch.sizes, batch.label


def caterpillar(size: int) -> Parents:
    """A spine of odd size whose nodes have one leaf each, right of the next spine node: cheap as given only."""
    return [2 * (node // 2) + 2 if node < size - 1 else -1 for node in range(size)]


class Case:
    """Pairs of trees and random costs, padding poisoned with NaN."""

    def __init__(self, pairs: list[tuple[Parents, Parents]], dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.leftmost_a, self.sizes_a, _ = tree_tensors([a for a, _ in pairs])
        self.leftmost_b, self.sizes_b, _ = tree_tensors([b for _, b in pairs])
        draw = torch.Generator().manual_seed(seed)
        batch, n, m = len(pairs), self.leftmost_a.shape[1], self.leftmost_b.shape[1]
        self.relabel = torch.rand(batch, n, m, generator=draw, dtype=torch.float64).mul(2)
        self.relabel[torch.rand(batch, n, m, generator=draw) < 0.1] = float("inf")
        self.delete = torch.rand(batch, n, generator=draw, dtype=torch.float64)
        self.insert = torch.rand(batch, m, generator=draw, dtype=torch.float64)
        out_a = torch.arange(n) >= self.sizes_a[:, None]
        out_b = torch.arange(m) >= self.sizes_b[:, None]
        self.delete[out_a], self.insert[out_b] = float("nan"), float("nan")
        self.relabel[out_a[:, :, None] | out_b[:, None, :]] = float("nan")
        self.relabel, self.delete, self.insert = (x.to(dtype) for x in (self.relabel, self.delete, self.insert))

    def tensors(self) -> list[Tensor]:
        costs = [self.relabel, self.delete, self.insert]
        return [*costs, self.leftmost_a, self.leftmost_b, self.sizes_a, self.sizes_b]

    def soft(self, module, temperature: float, method: str = "exact", need_posterior: bool = True):
        temperatures = torch.full((len(self.sizes_a),), temperature, dtype=torch.float64)
        return module.soft_tree_alignment(*self.tensors(), temperatures, method, BUDGET, need_posterior)

    def hard(self, module, method: str = "exact", need_mapping: bool = True):
        return module.hard_tree_alignment(*self.tensors(), method, BUDGET, need_mapping)


def random_case(sizes: list[tuple[int, int]], dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    rng = random.Random(seed)
    return Case([(random_parents(n, rng), random_parents(m, rng)) for n, m in sizes], dtype, seed)


SIZES = [(0, 0), (0, 3), (2, 0), (1, 1), (1, 7), (2, 1), (5, 5), (11, 13), (31, 7), (13, 33), (17, 16)]


def assert_agrees(got, wanted, temperature: float, tolerance: float) -> None:
    """The entropy is the difference of log Z and of a sum of P w, either of them up to (n + m) / temperature here."""
    logs = sum(wanted[1].shape[1:]) / temperature
    scales = {"value": logs * temperature, "posterior": 1.0, "entropy": logs}
    for (name, scale), x, y in zip(scales.items(), got, wanted, strict=False):
        assert x.dtype == y.dtype, name
        assert (x.double() - y.double()).abs().max().item() <= tolerance * scale, name
    assert got[3].equal(wanted[3])


# How the pairs are computed at these temperatures: all within the safe range; one in a certified trial and two in
# failed trials, then in the log domain; the largest in the log domain at once. Errors measured: 7e-16, 6e-14, 9e-13.
@interpreter
@pytest.mark.parametrize(
    ("temperature", "semirings", "logarithmic", "uncertain", "tolerance"),
    [(1.0, [LINEAR], 0, 0, 4e-15), (0.015, [LINEAR, LOG], 2, 3, 4e-13), (0.0005, [LINEAR, LOG], 6, 6, 1e-11)],
)
def test_soft_agrees_with_the_reference(
    fast_scan, monkeypatch, temperature: float, semirings: list[int], logarithmic: int, uncertain: int, tolerance: float
) -> None:
    case = random_case(SIZES)
    launched = []

    def launch(*args) -> None:
        run(*args)
        launched.append((args[6], int(args[4][1].sum())))

    run = backend._launch
    monkeypatch.setattr(backend, "_launch", launch)
    got = case.soft(backend, temperature)
    assert [semiring for semiring, _ in launched] == semirings
    assert launched[-1][1] == logarithmic
    assert_agrees(got, case.soft(reference, temperature), temperature, tolerance)
    launched.clear()
    value, posterior, _, _ = case.soft(backend, temperature, need_posterior=False)
    assert posterior is None
    assert [semiring for semiring, _ in launched] == semirings  # no trial without a posterior
    assert launched[-1][1] == uncertain
    assert (value - got[0]).abs().max() <= 1e-13


@interpreter
def test_blocks_hand_their_carry_on(fast_scan, monkeypatch) -> None:
    case = random_case([(13, 31), (37, 9)], seed=3)
    wanted = case.soft(backend, 0.3)
    assert TableProgram.of(*programs(case), "exact", BUDGET).columns.width.max() > 32
    monkeypatch.setattr(backend, "_LARGEST_BLOCK", 32)
    for temperature in (0.3, 0.0005):
        assert_agrees(case.soft(backend, temperature), case.soft(reference, temperature), temperature, 1e-11)
    assert_agrees(case.soft(backend, 0.3), wanted, 0.3, 1e-14)


@interpreter
def test_scratch_is_shared_by_several_launches(fast_scan, monkeypatch) -> None:
    case = random_case([(7, 5), (13, 9), (0, 2), (6, 6)], seed=4)
    wanted = case.soft(backend, 0.5)
    monkeypatch.setattr(backend, "_SCRATCH_BYTES", 1500)
    launched = []
    run = backend._launch

    def launch(launches, begin, end, numbers, state, scratch, *rest) -> None:
        launched.append(end - begin)
        ends = [*launches.header[begin + 1 : end, 17].tolist(), scratch.numel()]  # the interpreter shows no overlap
        assert launches.header[begin, 17] == 0
        assert (launches.header[begin:end, 17] + torch.from_numpy(launches.words[begin:end])).tolist() == ends
        run(launches, begin, end, numbers, state, scratch, *rest)

    monkeypatch.setattr(backend, "_launch", launch)
    for got, value in zip(case.soft(backend, 0.5), wanted, strict=True):
        assert got.equal(value)
    assert len(launched) > 1
    assert max(launched) > 1


@interpreter
@pytest.mark.parametrize("tilt", [0.0, 110.0])
def test_a_trial_is_right_or_leads_to_the_log_domain(fast_scan, monkeypatch, tilt: float) -> None:
    """Tilts that nobody would choose: sums that overflow, adjoints that overflow, nothing but zeros."""
    case = random_case([(11, 13), (7, 19)], seed=12)

    def ranges(batch, need_posterior):
        return np.full(2, tilt), np.zeros(2, dtype=np.int64), np.zeros(2, dtype=bool)

    monkeypatch.setattr(backend, "_ranges", ranges)
    assert_agrees(case.soft(backend, 0.01), case.soft(reference, 0.01), 0.01, 1e-11)


@interpreter
def test_underflow_on_the_way_is_seen_by_the_adjoints(fast_scan) -> None:
    """Eight forbidden rows take Z~ down to a denormal exp(-735), eight matches take it up to exp(-490) again."""
    case = Case([(chain(16), chain(16))])
    case.delete, case.insert = torch.ones_like(case.delete), torch.ones_like(case.insert)
    case.relabel = torch.full_like(case.relabel, float("inf"))
    case.relabel[0].diagonal()[:8] = 0.0  # pre-order is post-order backwards
    temperature = 2 / 122.5
    wanted = case.soft(reference, temperature, "flattened")
    assert_agrees(case.soft(backend, temperature, "flattened"), wanted, temperature, 1e-12)


@interpreter
def test_the_interpreters_own_scan(sequential_scan) -> None:
    """The other tests replace it by a faster one."""
    case = random_case([(4, 3)], seed=5)
    for temperature in (1.0, 0.0005):
        assert_agrees(case.soft(backend, temperature), case.soft(reference, temperature), temperature, 1e-12)
    assert case.hard(backend)[0].equal(case.hard(reference)[0])


@interpreter
def test_special_shapes_and_both_orientations(fast_scan) -> None:
    left, right = caterpillar(11), mirrored(caterpillar(11))[0]
    pairs = [(left, left), (right, right), (left, right), (chain(9), star(8)), (star(5), right), (chain(5), chain(9))]
    case = Case(pairs, torch.float32)
    for method, temperature in (("exact", 0.5), ("flattened", 0.5)):
        assert_agrees(
            case.soft(backend, temperature, method), case.soft(reference, temperature, method), temperature, 1e-7
        )


@interpreter
@pytest.mark.parametrize("temperature", [0.05, 0.25])
def test_identical_trees(fast_scan, temperature: float) -> None:
    trees = [random_parents(31, random.Random(6)), chain(8)]
    case = Case([(tree, tree) for tree in trees])
    labels = tree_tensors(trees)[2]
    case.relabel = (labels[:, :, None] != labels[:, None, :]).double()
    case.delete, case.insert = torch.ones_like(case.delete), torch.ones_like(case.insert)
    got = case.soft(backend, temperature)
    assert_agrees(got, case.soft(reference, temperature), temperature, 1e-12)
    assert got[0].abs().max() < 0.4
    torch.testing.assert_close(case.soft(backend, temperature, need_posterior=False)[0], got[0], rtol=0, atol=1e-12)


@interpreter
def test_hard_agrees_with_the_reference(fast_scan) -> None:
    case = random_case(SIZES, seed=7)
    for method in ("exact", "flattened"):
        got, wanted = case.hard(backend, method), case.hard(reference, method)
        torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=1e-13)
        for x, y in zip(got[1:], wanted[1:], strict=True):  # no ties, so there is one best mapping
            assert x.equal(y)
    assert case.hard(backend, need_mapping=False)[1:3] == (None, None)


@interpreter
def test_hard_mapping_with_ties_reaches_the_distance(fast_scan) -> None:
    case = random_case([(19, 13), (9, 21)], seed=8)
    case.relabel = torch.randint(0, 2, case.relabel.shape, generator=torch.Generator().manual_seed(8)).double()
    case.delete, case.insert = torch.ones_like(case.delete), torch.ones_like(case.insert)
    distance, match_a, match_b, _ = case.hard(backend)
    assert distance.equal(case.hard(reference)[0])
    for p in range(2):
        matched = [(i, j) for i, j in enumerate(match_a[p].tolist()) if j >= 0]
        assert [(i, j) for j, i in enumerate(match_b[p].tolist()) if i >= 0] == sorted(matched, key=lambda x: x[1])
        nodes = int(case.sizes_a[p] + case.sizes_b[p])
        assert distance[p] == nodes - 2 * len(matched) + sum(case.relabel[p, i, j].item() for i, j in matched)
        for (i, j), (k, l) in itertools.combinations(matched, 2):  # i < k: k is above or right of i
            assert j < l
            assert (case.leftmost_a[p, k] <= i) == (case.leftmost_b[p, l] <= j)


@interpreter
def test_refuses_what_the_other_backends_refuse(fast_scan) -> None:
    def refused(message: str, change, temperature: float = 1.0, budget: int = BUDGET) -> None:
        case = random_case([(2, 2), (3, 4)], seed=9)
        change(case)
        temperatures = torch.full((2,), temperature, dtype=torch.float64)
        with pytest.raises(ValueError, match=message):
            backend.soft_tree_alignment(*case.tensors(), temperatures, "exact", budget, True)

    def put(name: str, index: tuple[int, ...], value: float):
        return lambda case: getattr(case, name).__setitem__(index, value)

    refused(r"relabel\[1, 2, 3\] = nan", put("relabel", (1, 2, 3), float("nan")))
    refused(r"delete\[1, 2\] = -1", put("delete", (1, 2), -1.0))
    refused(r"insert\[0, 1\] = inf", put("insert", (0, 1), float("inf")))
    refused(r"too large", put("insert", (0, 1), 1e300))
    refused(r"temperature\[0\] = 0", lambda case: None, temperature=0.0)
    refused(r"sizes of pair 1 are 9 and 4", put("sizes_a", (1,), 9))
    refused(r"leftmost\[2\] = 3 is not", put("leftmost_a", (1, 2), 3))
    refused(r"more than max_cells = 5", lambda case: None, budget=5)


@interpreter
def test_auto_flattens_pairs_over_the_budget(fast_scan) -> None:
    case = random_case([(2, 2), (12, 12)], seed=10)
    temperatures = torch.full((2,), 0.7, dtype=torch.float64)
    results = [m.soft_tree_alignment(*case.tensors(), temperatures, "auto", 100, True) for m in (backend, reference)]
    assert results[0][3].tolist() == [0, 1]
    assert_agrees(*results, 0.7, 1e-14)


def programs(case: Case) -> list[np.ndarray]:
    return [x.numpy() for x in (case.leftmost_a, case.leftmost_b, case.sizes_a, case.sizes_b)]


def test_program_refuses_the_same_trees_as_the_reference() -> None:
    for size in range(1, 6):
        for leftmost in itertools.product(range(-1, size + 1), repeat=size):
            try:
                reference.parents_from_leftmost(leftmost)
            except ValueError:
                valid = False
            else:
                valid = True
            trees, sizes = np.array([leftmost]), np.array([size])
            if valid:
                TableProgram.of(trees, trees, sizes, sizes, "exact", BUDGET)
            else:
                with pytest.raises(ValueError, match="is not the leftmost leaf"):
                    TableProgram.of(trees, trees, sizes, sizes, "exact", BUDGET)


def test_program_takes_the_cheaper_side_and_the_smaller_tree() -> None:
    left, right = caterpillar(41), mirrored(caterpillar(41))[0]
    case = Case([(left, left), (right, right), (left, chain(3))])
    program = TableProgram.of(*programs(case), "exact", BUDGET)
    assert program.rows.count.tolist() == [41, 41, 3]
    assert program.swapped.tolist() == [False, False, True]
    for p in range(3):
        a, b = (x[p, :n].tolist() for x, n in zip(programs(case)[:2], (41, 41 if p < 2 else 3), strict=True))
        assert program.cells[p] == reference.exact_cells(a, b)


@compiled
def test_needs_cuda_tensors() -> None:
    with pytest.raises(RuntimeError, match="needs CUDA tensors, got cpu"):
        random_case([(2, 2)]).soft(backend, 1.0)


def tree_resources(kernel, constants: dict[str, object], warps: int, folder: Path) -> dict[str, int]:
    words = {"header_ptr", "undone_ptr", "match_row_ptr", "match_column_ptr"}
    numbers = {"log_weight_ptr", "subtree_ptr", "posterior_ptr", "tilt_ptr", "log_partition_ptr", "scratch_ptr"}
    signature = {}
    for name in kernel.arg_names:
        pointer = "*i64" if name in words else "*fp64" if name in numbers else "*i32"
        signature[name] = "constexpr" if name in constants else pointer if name.endswith("_ptr") else "i32"
    options = {"num_warps": warps, "num_stages": 1, "maxnreg": backend._REGISTERS}
    return resources(kernel, signature, constants, options, 90, folder)


@compiled
@pytest.mark.parametrize("semiring", [LINEAR, LOG, MAX])
def test_compiles_for_hopper_without_spills(semiring, tmp_path, monkeypatch) -> None:
    """Other versions of Triton were seen to spill 8 to 24 bytes here, which costs nothing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    for block in (32, 512):
        constants = {**backend._constants(semiring), "NEED_POSTERIOR": semiring != MAX, "BLOCK": block}
        used = tree_resources(triton_kernels.align, constants, block // 32, tmp_path)
        print(f"align, semiring {semiring}, block {block}: {used}")
        assert used["REG"] <= backend._REGISTERS
        assert used["LOCAL"] == 0
        assert used["STACK"] <= (0 if triton.__version__.startswith("3.6.") else 32)
    if semiring == MAX:
        used = tree_resources(triton_kernels.trace, {"HEADER": backend._HEADER}, 1, tmp_path)
        print(f"trace: {used}")
        assert used["STACK"] == used["LOCAL"] == 0


@compiled
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(cpu.import_error is not None, reason="no CPU extension to compare with")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 0.01])
def test_agrees_with_the_cpu_kernels(dtype: torch.dtype, temperature: float) -> None:
    rng = random.Random(11)
    sizes = [(200, 200)] * 60 + [(1, 200), (200, 37), (0, 5), (333, 90)]
    assert len(sizes) == 64
    case = random_case([(n, rng.randint(n // 2, n)) for n, _ in sizes], dtype)
    temperatures = torch.full((64,), temperature, dtype=torch.float64)
    wanted = cpu.soft_tree_alignment(*case.tensors(), temperatures, "exact", BUDGET, True)
    tensors = [x.cuda() for x in case.tensors()]
    runs = [backend.soft_tree_alignment(*tensors, temperatures.cuda(), "exact", BUDGET, True) for _ in range(2)]
    assert_agrees([x.cpu() for x in runs[0]], wanted, temperature, 1e-6 if dtype == torch.float32 else 1e-9)
    for x, y in zip(*runs, strict=True):
        assert x.equal(y)
    distance, match_a, match_b, _ = backend.hard_tree_alignment(*tensors, "exact", BUDGET, True)
    hard = cpu.hard_tree_alignment(*case.tensors(), "exact", BUDGET, True)
    torch.testing.assert_close(distance.cpu(), hard[0])
    for match, other in ((match_a, hard[1]), (match_b, hard[2])):  # random costs have no ties
        assert match.cpu().equal(other)
