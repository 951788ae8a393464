"""Operators: gradients, compilation, dtypes, threads, backends and refusals."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from structloss.tree_alignment import align_trees, cpu, op, soft_tree_edit_distance, tree_edit_distance
from structloss.trees import TreeBatch
from tests.structloss.test_tree_alignment_oracle import padded_labels, random_costs, random_parents

SIZES = [(5, 7), (1, 1), (0, 4), (7, 3)]


def pairs(seed: int = 0, sizes: list[tuple[int, int]] = SIZES) -> tuple[TreeBatch, TreeBatch]:
    rng = random.Random(seed)
    a, b = ([random_parents(pair[k], rng) for pair in sizes] for k in (0, 1))
    return TreeBatch.from_parents(padded_labels(a, 0), a), TreeBatch.from_parents(padded_labels(b, 1), b)


def costs_of(a: TreeBatch, b: TreeBatch, seed: int = 0, forbidden: float = 0.1, lowest: float = 0.0) -> list[Tensor]:
    costs = random_costs(len(a), a.label.shape[1], b.label.shape[1], seed, forbidden)
    return [(cost + lowest).requires_grad_() for cost in costs]


def soft(a: TreeBatch, b: TreeBatch, costs: list[Tensor], **options: object) -> Tensor:
    relabel, delete, insert = costs
    value = soft_tree_edit_distance(a, b, relabel=relabel, delete=delete, insert=insert, **options)  # type: ignore[arg-type]
    assert isinstance(value, Tensor)
    return value


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_gradcheck(backend: str, temperature: float) -> None:
    a, b = pairs()
    # Finite differences step below the lowest cost, and a negative cost is refused.
    costs = costs_of(a, b, forbidden=0.0, lowest=0.05)

    def value(*costs: Tensor) -> Tensor:
        return soft(a, b, list(costs), temperature=temperature, backend=backend)

    assert torch.autograd.gradcheck(value, costs)


def test_upstream_gradient_forbidden_matches_and_padding() -> None:
    """NaN at padding and infinity at forbidden matches reach neither value nor gradient."""
    a, b = pairs()
    costs = costs_of(a, b)
    upstream = torch.tensor([0.3, -2.0, 5.0, 0.0], dtype=torch.float64)
    value = soft(a, b, costs, temperature=0.5)
    gradients = torch.autograd.grad(value, costs, upstream)
    _, posterior = soft_tree_edit_distance(
        a, b, relabel=costs[0], delete=costs[1], insert=costs[2], temperature=0.5, return_posterior=True
    )
    inside_a = torch.arange(a.label.shape[1]) < a.sizes[:, None]
    inside_b = torch.arange(b.label.shape[1]) < b.sizes[:, None]
    torch.testing.assert_close(gradients[0], posterior * upstream[:, None, None])
    torch.testing.assert_close(gradients[1], (1 - posterior.sum(2)) * inside_a * upstream[:, None])
    torch.testing.assert_close(gradients[2], (1 - posterior.sum(1)) * inside_b * upstream[:, None])
    assert gradients[0][torch.isinf(costs[0])].eq(0).all()

    poisoned = [cost.detach().clone() for cost in costs]
    poisoned[0][~(inside_a[:, :, None] & inside_b[:, None, :])] = math.nan
    poisoned[1][~inside_a] = math.nan
    poisoned[2][~inside_b] = math.nan
    poisoned = [cost.requires_grad_() for cost in poisoned]
    for backend in ("cpu", "reference"):
        again = soft(a, b, poisoned, temperature=0.5, backend=backend)
        torch.testing.assert_close(again, value, rtol=0, atol=1e-13)
        for x, y in zip(torch.autograd.grad(again, poisoned, upstream), gradients, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-13)


def test_strided_and_expanded_costs() -> None:
    a, b = pairs()
    relabel, delete, insert = (cost.detach() for cost in costs_of(a, b))
    plain = soft(a, b, [relabel, delete, insert])
    strided = relabel.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.stack([delete, delete + 1], dim=-1)[..., 0]
    assert torch.equal(soft(a, b, [strided, wide, insert]), plain)
    constant = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = soft(a, b, [relabel, constant.expand(delete.shape), insert])
    slope = torch.autograd.grad(value.sum(), constant)[0]
    step = 1e-6
    ends = [soft(a, b, [relabel, torch.full_like(delete, 0.5 + h), insert]).sum() for h in (step, -step)]
    assert slope.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), abs=1e-7)


def test_entropy_is_minus_the_derivative_to_temperature() -> None:
    a, b = pairs()
    costs = [cost.detach() for cost in costs_of(a, b)]
    trees = (a.leftmost, b.leftmost, a.sizes, b.sizes)
    for backend in ("cpu", "reference"):
        rest = ("exact", 1 << 20, backend, True)
        step = 1e-5
        _, _, entropy, _ = op.soft_tree_alignment(*costs, *trees, 0.4, *rest)
        up, down = (op.soft_tree_alignment(*costs, *trees, 0.4 + h, *rest)[0] for h in (step, -step))
        torch.testing.assert_close(-entropy, (up - down) / (2 * step), rtol=0, atol=1e-7)


def test_hard_distance_has_the_subgradient_of_its_mapping() -> None:
    a, b = pairs()
    relabel, delete, insert = costs_of(a, b, forbidden=0.0, lowest=0.05)

    def value(relabel: Tensor, delete: Tensor, insert: Tensor) -> Tensor:
        return tree_edit_distance(a, b, relabel=relabel, delete=delete, insert=insert)

    # Random costs have no ties, so the distance is smooth around them.
    assert torch.autograd.gradcheck(value, (relabel, delete, insert))


def test_second_derivative_is_refused() -> None:
    a, b = pairs()
    costs = costs_of(a, b)
    (gradient,) = torch.autograd.grad(soft(a, b, costs).sum(), costs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gradient.square().sum(), costs[0])
    _, posterior = soft_tree_edit_distance(a, b, relabel=costs[0], return_posterior=True)
    assert not posterior.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_computed_in_double(dtype: torch.dtype) -> None:
    a, b = pairs()
    narrow = [cost.detach().to(dtype).requires_grad_() for cost in costs_of(a, b)]
    value = soft(a, b, narrow, temperature=0.3)
    exact = soft(a, b, [cost.detach().double() for cost in narrow], temperature=0.3)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-7, atol=1e-7)
    gradient = torch.autograd.grad(value.sum(), narrow[0])[0]
    assert gradient.dtype == dtype
    assert gradient.sum() > 0


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads() -> None:
    rng = random.Random(3)
    a, b = pairs(1, [(rng.randint(0, 60), rng.randint(0, 60)) for _ in range(33)])
    costs = [cost.detach() for cost in costs_of(a, b)]
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        value, posterior = soft_tree_edit_distance(
            a, b, relabel=costs[0], delete=costs[1], insert=costs[2], temperature=0.1, return_posterior=True
        )
        results.append((value, posterior, align_trees(a, b, relabel=costs[0]).match_a))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    a, b = pairs()
    costs = costs_of(a, b, forbidden=0.0)
    trees = (a.leftmost, b.leftmost, a.sizes, b.sizes)
    for backend in ("cpu", "reference"):
        torch.library.opcheck(op.soft_tree_alignment, (*costs, *trees, 0.7, "exact", 1 << 20, backend, True))
        torch.library.opcheck(op.hard_tree_alignment, (*costs, *trees, "auto", 9, backend, True))
    plain = [cost.detach() for cost in costs]
    torch.library.opcheck(op.soft_tree_alignment, (*plain, *trees, 0.7, "auto", 1, "auto", False))
    torch.library.opcheck(op.hard_tree_alignment, (*plain, *trees, "exact", 1 << 20, "auto", False))
    posterior = torch.rand_like(plain[0])
    grad = torch.rand(len(a), dtype=torch.float64)
    for needs in ((True, False, True), (False, True, False)):
        torch.library.opcheck(op.soft_tree_alignment_backward, (grad, posterior, a.sizes, b.sizes, *plain, *needs))


def test_compiles_without_a_graph_break() -> None:
    a, b = pairs()
    relabel, delete, insert = costs_of(a, b, forbidden=0.0)

    def loss(relabel: Tensor, delete: Tensor, insert: Tensor) -> Tensor:
        value, posterior = soft_tree_edit_distance(
            a, b, relabel=relabel, delete=delete, insert=insert, temperature=0.5, return_posterior=True
        )
        hard = tree_edit_distance(a, b, relabel=relabel)
        return value.square().sum() + (posterior * relabel).sum() + hard.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    plain = loss(relabel, delete, insert)
    traced = compiled(relabel, delete, insert)
    torch.testing.assert_close(traced, plain)
    inputs = (relabel, delete, insert)
    for x, y in zip(torch.autograd.grad(traced, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(x, y)


def test_backends_that_cannot_serve_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pairs()
    for backend in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match="not built"):
            tree_edit_distance(a, b, backend=backend)
    with pytest.raises(ValueError, match="backend"):
        tree_edit_distance(a, b, backend="gpu")
    with pytest.raises(RuntimeError, match="needs CPU tensors"):
        op.choose_backend("cpu", torch.device("cuda"))
    assert op.choose_backend("auto", torch.device("cuda")) == "cpu"
    expected = tree_edit_distance(a, b)
    monkeypatch.setattr(cpu, "import_error", ImportError("not built"))
    monkeypatch.setattr(op, "_warned", False)
    with pytest.raises(RuntimeError, match="_C"):
        tree_edit_distance(a, b, backend="cpu")
    with pytest.warns(RuntimeWarning, match="plain torch"):
        assert torch.equal(tree_edit_distance(a, b), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree_edit_distance(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_are_served() -> None:
    a, b = pairs()
    costs = costs_of(a, b)
    moved = [cost.detach().cuda().requires_grad_() for cost in costs]
    value = soft(a.to("cuda"), b.to("cuda"), moved)
    expected = soft(a, b, costs)
    assert value.is_cuda
    torch.testing.assert_close(value.cpu(), expected)
    for x, y in zip(torch.autograd.grad(value.sum(), moved), torch.autograd.grad(expected.sum(), costs), strict=True):
        torch.testing.assert_close(x.cpu(), y)
    with pytest.raises(RuntimeError, match="needs CPU tensors"):
        soft(a.to("cuda"), b.to("cuda"), moved, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_wrong_values_are_refused_by_name(backend: str) -> None:
    a, b = pairs()
    names = ("relabel", "delete", "insert")
    good = dict(zip(names, (cost.detach() for cost in costs_of(a, b)), strict=True))
    for name, index in (("relabel", (3, 1, 2)), ("delete", (0, 4)), ("insert", (2, 3))):
        for wrong in (-1e-9, math.nan, -math.inf, *(() if name == "relabel" else (math.inf,))):
            bad = {**good, name: good[name].clone()}
            bad[name][index] = wrong
            where = ", ".join(map(str, index))
            with pytest.raises(ValueError, match=rf"{name}\[{where}\]"):
                soft_tree_edit_distance(a, b, **bad, backend=backend)
            with pytest.raises(ValueError, match=rf"{name}\[{where}\]"):
                tree_edit_distance(a, b, **bad, backend=backend)
    with pytest.raises(ValueError, match="padded widths"):
        tree_edit_distance(replace(a, sizes=a.sizes + 3), b, backend=backend)
    with pytest.raises(ValueError, match="padded widths"):
        tree_edit_distance(replace(a, sizes=a.sizes - 2), b, backend=backend)
    for entry in (-1, 4, 99, -(2**40)):
        broken = a.leftmost.clone()
        broken[0, 3] = entry
        with pytest.raises(ValueError, match="leftmost"):
            tree_edit_distance(replace(a, leftmost=broken), b, backend=backend)
    with pytest.raises(ValueError, match="too large"):
        soft_tree_edit_distance(a, b, temperature=1e-300, backend=backend)


def test_wrong_arguments_are_refused_by_name() -> None:
    a, b = pairs()
    relabel, delete, insert = (cost.detach() for cost in costs_of(a, b))
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            soft_tree_edit_distance(a, b, temperature=temperature)
    with pytest.raises(ValueError, match="same number of trees, got 4 and 3"):
        tree_edit_distance(a, b.select(torch.arange(3)))
    with pytest.raises(ValueError, match="relabel must have shape"):
        tree_edit_distance(a, b, relabel=relabel[:, :, 1:])
    with pytest.raises(ValueError, match="delete must have shape"):
        tree_edit_distance(a, b, delete=delete[0])
    with pytest.raises(ValueError, match="insert must have shape"):
        tree_edit_distance(a, b, insert=insert[:2])
    with pytest.raises(TypeError, match="relabel must be a floating point"):
        tree_edit_distance(a, b, relabel=torch.ones(relabel.shape, dtype=torch.int64))
    with pytest.raises(TypeError, match="delete must be a tensor"):
        tree_edit_distance(a, b, delete=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method"):
        tree_edit_distance(a, b, method="fast")
    with pytest.raises(ValueError, match="max_cells"):
        tree_edit_distance(a, b, max_cells=0)
    with pytest.raises(ValueError, match="relabel is on meta"):
        tree_edit_distance(a, b, relabel=relabel.to("meta"))
    with pytest.raises(ValueError, match=r"b\.leftmost is on meta"):
        tree_edit_distance(a, replace(b, leftmost=b.leftmost.to("meta")))
