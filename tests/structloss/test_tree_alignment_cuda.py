"""The CUDA kernels of tree alignment.

Where there is no GPU, the same sources run on the host with every thread as a fiber (tests/structloss/cuda_on_host)
and are compared with enumeration and with the reference. The order of threads is drawn from a seed and must not matter:
a missing barrier fails here. Tests marked `gpu` compare the device with the CPU backend.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from structloss.tree_alignment import cpu, cuda, reference
from structloss.trees import TreeBatch
from tests.structloss import cuda_on_host
from tests.structloss.test_tree_alignment_oracle import (
    Parents,
    chain,
    enumerate_alignment,
    mirrored,
    random_costs,
    random_parents,
    star,
)

UNLIMITED = 1 << 60
ONE_NODE: Parents = [-1]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> cuda_on_host.HostKernels:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ to build the CUDA sources for the host")
    return cuda_on_host.build(compiler, Path(tmp_path_factory.mktemp("cuda_on_host")))


@pytest.fixture
def host(built: cuda_on_host.HostKernels, monkeypatch: pytest.MonkeyPatch) -> Iterator[cuda_on_host.HostKernels]:
    monkeypatch.setattr(cuda, "_C", built, raising=False)
    monkeypatch.setattr(cuda, "_Device", cuda_on_host.HostDevice)
    cuda._float64_is_slow.cache_clear()
    built.reset()
    yield built
    cuda._float64_is_slow.cache_clear()


def trees(parents: list[Parents]) -> TreeBatch:
    return TreeBatch.from_parents([[0] * len(tree) for tree in parents], parents)


def inputs(
    first: list[Parents], second: list[Parents], seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Arguments of the backends. Padding holds what must not be read."""
    a, b = trees(first), trees(second)
    costs = random_costs(len(first), a.leftmost.shape[1], b.leftmost.shape[1], seed)
    relabel, delete, insert = (x.to(dtype) for x in costs)
    for p, (n, m) in enumerate(zip(a.sizes.tolist(), b.sizes.tolist(), strict=True)):
        relabel[p, n:], relabel[p, :, m:], delete[p, n:], insert[p, m:] = (float("nan"),) * 4
    return [relabel, delete, insert, a.leftmost, b.leftmost, a.sizes, b.sizes]


def temperatures(count: int, *values: float) -> Tensor:
    return torch.tensor([values[k % len(values)] for k in range(count)], dtype=torch.float64)


def check_soft(
    arguments: list[Tensor], temperature: Tensor, method: str = "exact", tolerance: float = 1e-10, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    value, posterior, entropy, used = cuda.soft_tree_alignment(
        *arguments, temperature, method, UNLIMITED, True, **options
    )
    expected, twin, spread, chosen = reference.soft_tree_alignment(*arguments, temperature, method, UNLIMITED, True)
    assert posterior is not None
    assert twin is not None
    # The reference works with logarithms, whose error grows with them.
    scale = max(1.0, (1 / temperature).max().item())
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(posterior, twin, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(entropy, spread, rtol=0, atol=100 * tolerance * scale)
    assert used.tolist() == chosen.tolist()
    alone, nothing, zero, _ = cuda.soft_tree_alignment(*arguments, temperature, method, UNLIMITED, False, **options)
    assert nothing is None
    assert (zero == 0).all()
    torch.testing.assert_close(alone, expected, rtol=tolerance, atol=tolerance)
    return value, posterior, entropy


def check_mapping(arguments: list[Tensor], method: str = "exact", tolerance: float = 1e-12) -> Tensor:
    """The distance is the reference's, the mapping is one (order and, unless flattened, ancestry) and costs as much."""
    distance, match_a, match_b, _ = cuda.hard_tree_alignment(*arguments, method, UNLIMITED, True)
    expected = reference.hard_tree_alignment(*arguments, method, UNLIMITED, False)[0]
    torch.testing.assert_close(distance, expected, rtol=tolerance, atol=tolerance)
    assert match_a is not None
    assert match_b is not None
    relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b = arguments
    for p, (n, m) in enumerate(zip(sizes_a.tolist(), sizes_b.tolist(), strict=True)):
        first = (match_a[p, :n] >= 0).nonzero()[:, 0]
        second = match_a[p, first]
        assert torch.equal(match_b[p, second], first)
        assert (match_b[p] >= 0).sum() == len(first)
        if method == "exact":
            inside = [
                (left[p, x][None, :] <= x[:, None]) & (x[:, None] < x[None, :])
                for left, x in ((leftmost_a, first), (leftmost_b, second))
            ]
            assert torch.equal(*inside)
            assert (second.diff() > 0).all()
        cost = relabel[p, first, second].double().sum()
        cost += delete[p, :n][match_a[p, :n] < 0].double().sum() + insert[p, :m][match_b[p, :m] < 0].double().sum()
        assert cost.item() == pytest.approx(expected[p].item(), rel=tolerance, abs=tolerance)
    alone = cuda.hard_tree_alignment(*arguments, method, UNLIMITED, False)
    torch.testing.assert_close(alone[0], distance, rtol=0, atol=0)
    assert alone[1] is None
    return distance


def small_pairs(count: int, largest: int, seed: int) -> tuple[list[Parents], list[Parents]]:
    rng = random.Random(seed)
    return tuple([random_parents(rng.randint(1, largest), rng) for _ in range(count)] for _ in range(2))  # type: ignore


@pytest.mark.parametrize("threads", [32, 96])
@pytest.mark.parametrize("temperature", [2.0, 0.5, 0.05])
def test_enumeration(host: cuda_on_host.HostKernels, temperature: float, threads: int) -> None:
    first, second = small_pairs(12, 6, seed=threads)
    arguments = inputs(first, second, seed=1)
    host.reset(threads=threads)
    value, posterior, _, _ = cuda.soft_tree_alignment(
        *arguments, temperatures(12, temperature), "exact", UNLIMITED, True
    )
    distance = check_mapping(arguments)
    assert posterior is not None
    for p, (a, b) in enumerate(zip(first, second, strict=True)):
        n, m = len(a), len(b)
        costs = [x.numpy() for x in (arguments[0][p, :n, :m], arguments[1][p, :n], arguments[2][p, :m])]
        expected, matched, best = enumerate_alignment(a, b, *costs, temperature)
        assert value[p].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        torch.testing.assert_close(posterior[p, :n, :m], torch.from_numpy(matched), rtol=0, atol=1e-12)
        assert posterior[p].sum().item() == pytest.approx(matched.sum(), abs=1e-11)
        assert distance[p].item() == pytest.approx(best, rel=1e-12, abs=1e-12)


def caterpillar(size: int) -> Parents:
    """A spine with one leaf a joint on its left: the right-path decomposition is dear, the left-path one cheap."""
    tree: Parents = [1]
    for node in range(1, size - 1):
        tree.append(node + 1 if node % 2 == 0 else node + 2)
    tree[-1] = size - 1
    return [*tree, -1]


# Depths, nestings and sizes on both sides of a warp; rows and columns change places where the first is larger.
SHAPES: dict[str, tuple[list[Parents], list[Parents]]] = {
    "random": (
        [random_parents(n, random.Random(n)) for n in (119, 31, 64)],
        [random_parents(n, random.Random(n)) for n in (97, 118, 33)],
    ),
    "extreme": (
        [chain(90), star(70), caterpillar(61), mirrored(caterpillar(61))[0], ONE_NODE, star(2)],
        [star(60), chain(80), mirrored(caterpillar(81))[0], mirrored(caterpillar(41))[0], chain(65), ONE_NODE],
    ),
    "empty": ([[], ONE_NODE, [], chain(3)], [chain(4), [], [], ONE_NODE]),
}


@pytest.mark.parametrize("method", ["exact", "flattened"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_shapes(host: cuda_on_host.HostKernels, shape: str, method: str) -> None:
    first, second = SHAPES[shape]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        arguments = inputs(first, second, seed=2, dtype=dtype)
        check_soft(arguments, temperatures(len(first), 1.0, 0.3), method, tolerance)
        check_mapping(arguments, method, 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("shape", ["random", "extreme"])
def test_float32_with_exponents(host: cuda_on_host.HostKernels, shape: str, temperature: float) -> None:
    arguments = inputs(*SHAPES[shape], seed=4, dtype=torch.float32)
    count = len(SHAPES[shape][0])
    check_soft(arguments, temperatures(count, temperature), tolerance=1e-5, arithmetic="float32")


@pytest.mark.parametrize("shared_bytes", [2100, 9000, 64 << 10])
@pytest.mark.parametrize("threads", [32, 64, 256])
def test_order_of_threads_does_not_matter(host: cuda_on_host.HostKernels, threads: int, shared_bytes: int) -> None:
    """Also with few rows in shared memory, and with other blocks. Nothing changes by a bit."""
    rng = random.Random(5)
    first = [random_parents(40, rng), caterpillar(21), mirrored(caterpillar(23))[0]]
    second = [random_parents(50, rng), mirrored(caterpillar(31))[0], random_parents(12, rng)]
    arguments = inputs(first, second, seed=5)
    runs = []
    for seed in range(3):
        host.reset(seed, threads, shared_bytes, processors=seed + 1)
        soft = [
            cuda.soft_tree_alignment(*arguments, temperatures(3, t), "exact", UNLIMITED, True)[:3] for t in (0.5, 0.01)
        ]
        runs.append([*soft[0], *soft[1], *cuda.hard_tree_alignment(*arguments, "exact", UNLIMITED, True)[:3]])
    for other in runs[1:]:
        for x, y in zip(runs[0], other, strict=True):
            assert x is not None
            assert y is not None
            assert torch.equal(x, y)
    check_soft(arguments, temperatures(3, 0.5))
    check_mapping(arguments)


def unit_costs(first: Parents, second: Parents, kinds: int, seed: int = 0) -> list[Tensor]:
    rng = random.Random(seed)
    labels = [[rng.randrange(kinds) for _ in tree] for tree in (first, second)]
    if first is second:
        labels[1] = labels[0]
    arguments = inputs([first], [second])
    x, y = (torch.tensor(label) for label in labels)
    arguments[0] = (x[:, None] != y[None, :]).double()[None]
    arguments[1], arguments[2] = torch.ones_like(arguments[1]), torch.ones_like(arguments[2])
    return arguments


TREE = random_parents(150, random.Random(8))


@pytest.mark.parametrize("temperature", [2.0, 0.25, 0.1, 0.02, 1e-3])
def test_identical_trees(host: cuda_on_host.HostKernels, temperature: float) -> None:
    """The largest log Z that there is: 15 000 at a temperature of 0.02. A fitted tilt serves nearly all the way."""
    arguments = unit_costs(TREE, TREE, kinds=30)
    check_soft(arguments, temperatures(1, temperature))
    cuda.soft_tree_alignment(*arguments, temperatures(1, temperature), "exact", UNLIMITED, True)
    assert host.pairs_again() == (temperature < 0.02)
    assert check_mapping(arguments).item() == 0.0


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_small_against_large(host: cuda_on_host.HostKernels, temperature: float, swap: bool) -> None:
    """Damping the rows of the small tree alone suffices: no pair needs exponents."""
    rng = random.Random(9)
    first, second = random_parents(20, rng), random_parents(200, rng)
    arguments = unit_costs(second, first, 10) if swap else unit_costs(first, second, 10)
    check_soft(arguments, temperatures(1, temperature))
    assert host.pairs_again() == 0


@pytest.mark.parametrize("free", [30, 45, 50, 55, 70])
def test_mass_far_from_the_diagonal(host: cuda_on_host.HostKernels, free: int) -> None:
    """Nothing is gained over the first nodes and much over the rest: early forests shrink to denormals, and without a
    certificate the result looks sound and is not."""
    size = free + 60
    arguments = unit_costs(chain(size), chain(size), kinds=1)
    arguments[0] = torch.full((1, size, size), 2.0, dtype=torch.float64)
    index = torch.arange(free, size)
    arguments[0][0, index, index] = 0.0
    check_soft(arguments, temperatures(1, 0.05), tolerance=1e-9)


@pytest.mark.parametrize("temperature", [0.033, 0.02])
@pytest.mark.parametrize("tree", [chain, star])
@pytest.mark.parametrize(("rows", "before"), [(20, 5), (30, 30), (50, 14)])
def test_mass_in_a_corner(
    host: cuda_on_host.HostKernels, tree: Callable[[int], Parents], rows: int, before: int, temperature: float
) -> None:
    """No tilt fits, or the first one overflows."""
    arguments = unit_costs(tree(50), tree(53), kinds=1)
    arguments[0] = torch.full((1, 50, 53), 2.0, dtype=torch.float64)
    corner = torch.rand(rows, 53 - before, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arguments[0][0, :rows, before:] = 0.5 * corner
    check_soft(arguments, temperatures(1, temperature), tolerance=1e-9)


@pytest.mark.parametrize(("seed", "free"), [(1, 10), (47, 10), (87, 6), (87, 8)])
def test_empty_forests_that_shrink_to_nothing(host: cuda_on_host.HostKernels, seed: int, free: int) -> None:
    """The forest left of the first match is empty, and its damped weight underflows: the posterior is off by up to 1
    unless the certificate counts what hangs on it."""
    tree = random_parents(28, random.Random(seed))
    arguments = unit_costs(tree, chain(45), kinds=1)
    arguments[0] = torch.full((1, 28, 45), 2.0, dtype=torch.float64)
    index = torch.arange(free, 28)
    arguments[0][0, index, index] = 0.0
    check_soft(arguments, temperatures(1, 2 / 140), tolerance=1e-9)
    assert host.pairs_again() == 1


def test_auto_flattens_what_is_too_large(host: cuda_on_host.HostKernels) -> None:
    rng = random.Random(6)
    first, second = ([random_parents(size, rng) for size in (5, 60, 8)] for _ in range(2))
    arguments = inputs(first, second, seed=6)
    temperature = temperatures(3, 0.7)
    value, _, _, used = cuda.soft_tree_alignment(*arguments, temperature, "auto", 2000, True)
    expected = reference.soft_tree_alignment(*arguments, temperature, "auto", 2000, False)
    assert used.tolist() == expected[3].tolist() == [0, 1, 0]
    torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"needs \d+ cells for pair 1 \(60 and 60 nodes\), more than max_cells = 2000"):
        cuda.soft_tree_alignment(*arguments, temperature, "exact", 2000, True)


def test_columns_given_by_the_caller(host: cuda_on_host.HostKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound nothing is read back. With one that is too small, the pairs beyond it are NaN, the others right."""
    first, second = small_pairs(6, 30, seed=3)
    first[0] = second[0] = star(25)  # 26 columns; as many trees below have more
    arguments = inputs(first, second, seed=3)
    temperature = temperatures(6, 1.0)
    expected = reference.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, False)[0]
    monkeypatch.setattr(host, "plan_tree_alignment", None)
    monkeypatch.setattr(cuda_on_host.HostDevice, "is_capturing", True)
    value = cuda.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True, table_columns=200)[0]
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    for options in ({}, {"table_columns": 200}):
        with pytest.raises(RuntimeError, match="CUDA graph cannot capture"):
            cuda.soft_tree_alignment(*arguments, temperature, "exact", 200**2, True, **options)
    few = cuda.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True, table_columns=26)[0]
    short = few.isnan()
    assert short.any()
    assert not short[0]
    torch.testing.assert_close(few[~short], expected[~short], rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="more columns than table_columns"):
        cuda.hard_tree_alignment(*arguments, "exact", UNLIMITED, True, table_columns=26, check=True)


BAD_COSTS = {
    "delete": (1, (1, 2), float("nan"), r"delete\[1, 2\] = nan; costs must be >= 0 and not NaN and finite"),
    "insert": (2, (1, 0), float("inf"), r"insert\[1, 0\] = inf"),
    "relabel": (0, (1, 2, 3), -1.0, r"relabel\[1, 2, 3\] = -1.0; costs must be >= 0 and not NaN \(infinity"),
    "leftmost_a": (3, (1, 4), 99, "leftmost_a of pair 1"),
    "leftmost_b": (4, (1, 2), -1, "leftmost_b of pair 1"),
    "crossing": (3, (1, 6), 5, "leftmost_a of pair 1"),
    "sizes": (5, (1,), 1000, "sizes of pair 1 are 1000 and 9, outside the padded widths 12 and 14"),
    "huge": (1, (1, 0), 1e300, "costs of pair 1 are too large"),
}


@pytest.mark.parametrize("what", list(BAD_COSTS))
def test_wrong_inputs(host: cuda_on_host.HostKernels, what: str) -> None:
    """The pair is NaN, the others are right, and `check` says why."""
    position, index, bad, message = BAD_COSTS[what]
    sizes = ((12, 8, 3), (14, 9, 5))
    first, second = ([random_parents(n, random.Random(n)) for n in group] for group in sizes)
    if what == "crossing":
        first[1] = [2, 2, 7, 5, 5, 7, 7, -1]  # node 6 is a leaf; made to begin inside the subtree 3 .. 5
    arguments = inputs(first, second, seed=7)
    temperature = temperatures(3, 0.5)
    soft = reference.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True)
    hard = reference.hard_tree_alignment(*arguments, "exact", UNLIMITED, False)[0]
    arguments = [x.clone() for x in arguments]
    arguments[position][index] = bad
    options = {"table_columns": 100}
    value, posterior, entropy, _ = cuda.soft_tree_alignment(
        *arguments, temperature, "exact", UNLIMITED, True, **options
    )
    distance, match_a, _, _ = cuda.hard_tree_alignment(*arguments, "exact", UNLIMITED, True, **options)
    assert posterior is not None
    assert match_a is not None
    good = torch.tensor([0, 2])
    for got, expected in ((value, soft[0]), (entropy, soft[2]), (distance, hard)):
        assert got[1].isnan()
        torch.testing.assert_close(got[good], expected[good], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(posterior[good], soft[1][good], rtol=0, atol=1e-12)
    assert (posterior[1] == 0).all()
    assert (match_a[1] == -1).all()
    for call in (
        lambda: cuda.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, False, check=True, **options),
        lambda: cuda.hard_tree_alignment(*arguments, "exact", UNLIMITED, False, check=True, **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    if position in (3, 4, 5):  # read back anyway, so said at once
        with pytest.raises(ValueError, match=message):
            cuda.hard_tree_alignment(*arguments, "exact", UNLIMITED, False)


def test_wrong_temperature(host: cuda_on_host.HostKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs([chain(3)] * 3, [chain(2)] * 3)
    temperature = temperatures(3, 1.0, -1.0, float("inf"))
    assert cuda.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True)[0].isnan().tolist() == [
        False,
        True,
        True,
    ]
    monkeypatch.setenv("STRUCTLOSS_CUDA_CHECK", "1")
    with pytest.raises(ValueError, match=r"temperature\[1\] = -1.0"):
        cuda.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True)


def test_wrong_tensors(host: cuda_on_host.HostKernels) -> None:
    arguments = inputs([chain(3)], [chain(2)])
    with pytest.raises(TypeError, match="relabel must be float32 or float64"):
        cuda.hard_tree_alignment(arguments[0].half(), *arguments[1:], "exact", UNLIMITED, True)
    with pytest.raises(ValueError, match="insert must be a CUDA tensor"):
        cuda.hard_tree_alignment(*arguments[:2], arguments[2].float(), *arguments[3:], "exact", UNLIMITED, True)
    with pytest.raises(ValueError, match="temperature must be a CUDA tensor"):
        cuda.soft_tree_alignment(*arguments, temperatures(2, 1.0), "exact", UNLIMITED, True)
    with pytest.raises(ValueError, match="arithmetic must be"):
        cuda.soft_tree_alignment(*arguments, temperatures(1, 1.0), "exact", UNLIMITED, True, arithmetic="half")
    nothing = [x[:0] for x in arguments]
    assert cuda.soft_tree_alignment(*nothing, temperatures(0, 1.0), "exact", UNLIMITED, True)[0].shape == (0,)
    assert cuda.hard_tree_alignment(*nothing, "exact", UNLIMITED, True)[0].shape == (0,)


def test_strided_costs_and_a_small_workspace(host: cuda_on_host.HostKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block works the whole batch off where the memory is not enough for two."""
    first, second = small_pairs(5, 20, seed=11)
    arguments = inputs(first, second, seed=11)
    temperature = temperatures(5, 1.0, 0.01)
    expected = cuda.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True)
    monkeypatch.setattr(cuda, "_WORKSPACE_BYTES", 1)
    arguments[0] = arguments[0].transpose(1, 2).contiguous().transpose(1, 2)
    again = cuda.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True)
    for x, y in zip(expected, again, strict=True):
        assert torch.equal(x, y)  # type: ignore[arg-type]


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda.import_error is not None or cpu.import_error is not None,
    reason="needs a CUDA device and both compiled extensions",
)


def on_device(arguments: list[Tensor]) -> list[Tensor]:
    return [x.cuda() for x in arguments]


def check_device(arguments: list[Tensor], temperature: Tensor, tolerance: float = 1e-10, **options: object) -> None:
    """Soft and hard results of the device against those of the CPU kernels."""
    expected = cpu.soft_tree_alignment(*arguments, temperature, "exact", UNLIMITED, True)
    moved = on_device(arguments)
    got = cuda.soft_tree_alignment(*moved, temperature.cuda(), "exact", UNLIMITED, True, **options)
    alone = cuda.soft_tree_alignment(*moved, temperature.cuda(), "exact", UNLIMITED, False, **options)[0]
    scale = max(1.0, (1 / temperature).max().item())
    for x, y, factor in zip(got, expected, (1, scale, 100 * scale), strict=False):
        torch.testing.assert_close(x.cpu(), y, rtol=tolerance, atol=factor * tolerance)
    torch.testing.assert_close(alone.cpu(), expected[0], rtol=tolerance, atol=tolerance)
    distance, match_a, match_b, _ = cuda.hard_tree_alignment(*moved, "exact", UNLIMITED, True)
    hard = cpu.hard_tree_alignment(*arguments, "exact", UNLIMITED, False)[0]
    rough = 1e-12 if arguments[0].dtype == torch.float64 else 2e-6
    torch.testing.assert_close(distance.cpu(), hard, rtol=rough, atol=rough)
    for p in range(len(hard)):
        n, m = (int(size[p]) for size in arguments[5:])
        partner, other = match_a[p, :n].cpu(), match_b[p, :m].cpu()
        first = (partner >= 0).nonzero()[:, 0]
        assert torch.equal(other[partner[first]], first)
        cost = arguments[0][p, first, partner[first]].double().sum()
        cost += arguments[1][p, :n][partner < 0].double().sum() + arguments[2][p, :m][other < 0].double().sum()
        assert cost.item() == pytest.approx(hard[p].item(), rel=rough, abs=rough)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [2.0, 0.5, 0.25, 0.05])
def test_device_batch_of_500(temperature: float, dtype: torch.dtype) -> None:
    """Variable lengths, empty trees among them."""
    rng = random.Random(1)
    first, second = ([random_parents(rng.randint(1, 120), rng) for _ in range(500)] for _ in range(2))
    first[3], second[3], second[4], first[5] = [], [], [], ONE_NODE
    arguments = inputs(first, second, seed=1, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    check_device(arguments, temperatures(500, temperature, 2 * temperature), tolerance)
    check_device(arguments, temperatures(500, temperature), max(tolerance, 2e-5), arithmetic="float32")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("shape", ["random", "extreme", "empty"])
def test_device_shapes(shape: str) -> None:
    first, second = SHAPES[shape]
    check_device(inputs(first, second, seed=2), temperatures(len(first), 1.0, 0.05))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("first", "second"), [(chain(5000), chain(700)), (star(600), star(5000))])
def test_device_5000_nodes(first: Parents, second: Parents) -> None:
    arguments = inputs([first], [second], seed=3)
    check_device(arguments, temperatures(1, 1.0), 1e-9)
    check_device(arguments, temperatures(1, 0.05), 1e-9)


@pytest.mark.gpu
@needs_gpu
def test_device_streams_and_repetition() -> None:
    """The same bits from every stream and every run."""
    first, second = small_pairs(60, 80, seed=4)
    moved = on_device(inputs(first, second, seed=4))
    temperature = temperatures(60, 0.5, 0.02).cuda()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for stream in streams * 5:
        with torch.cuda.stream(stream):
            soft = cuda.soft_tree_alignment(*moved, temperature, "exact", UNLIMITED, True, table_columns=1000)
            hard = cuda.hard_tree_alignment(*moved, "exact", UNLIMITED, True, table_columns=1000)
            results.append([*soft, *hard])
    torch.cuda.synchronize()
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)  # type: ignore[arg-type]


@pytest.mark.gpu
@needs_gpu
def test_device_graph() -> None:
    """Captured once, replayed on other costs."""
    first, second = small_pairs(20, 60, seed=5)
    arguments = inputs(first, second, seed=5)
    moved = on_device(arguments)
    temperature = temperatures(20, 0.5, 0.02)
    fixed = temperature.cuda()

    def run() -> tuple[Tensor, ...]:
        return cuda.soft_tree_alignment(*moved, fixed, "exact", UNLIMITED, True, table_columns=1000)  # type: ignore

    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for seed in (6, 7):
        fresh = inputs(first, second, seed=seed)
        for target, source in zip(moved, fresh, strict=True):
            target.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        expected = cpu.soft_tree_alignment(*fresh, temperature, "exact", UNLIMITED, True)
        torch.testing.assert_close(captured[0].cpu(), expected[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(captured[1].cpu(), expected[1], rtol=0, atol=1e-9)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="CUDA graph cannot capture"), torch.cuda.graph(graph):
        cuda.hard_tree_alignment(*moved, "exact", UNLIMITED, True)
