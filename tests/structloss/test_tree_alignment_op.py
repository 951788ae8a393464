"""Operators: gradients, compilation, dtypes, threads, backends and refusals."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from structloss.tree_alignment import align_trees, cpu, op, reference, soft_tree_edit_distance, tree_edit_distance
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


def temperatures_of(a: TreeBatch, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.2 + torch.rand(len(a), generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("per_pair", [True, False])
def test_gradcheck(backend: str, per_pair: bool) -> None:
    a, b = pairs()
    # Finite differences step below the lowest cost, and a negative cost is refused.
    costs = costs_of(a, b, forbidden=0.0, lowest=0.05)
    temperature = temperatures_of(a) if per_pair else torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def value(*inputs: Tensor) -> Tensor:
        return soft(a, b, list(inputs[:3]), temperature=inputs[3], backend=backend)

    assert torch.autograd.gradcheck(value, (*costs, temperature), check_batched_grad=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_each_pair_has_its_temperature(backend: str) -> None:
    """Also where only the temperature is differentiated, in half precision, and beside costs of another dtype."""
    a, b = pairs()
    costs = [cost.detach() for cost in costs_of(a, b)]
    temperature = temperatures_of(a)
    together = soft(a, b, costs, temperature=temperature, backend=backend)
    upstream = torch.tensor([0.3, -2.0, 5.0, 1.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(together, temperature, upstream)
    for p, own in enumerate(temperature.tolist()):
        alone, entropy = entropy_of(a, b, costs, own, backend)
        assert together[p] == alone[p]
        torch.testing.assert_close(slope[p], -entropy[p] * upstream[p], rtol=1e-14, atol=0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        narrow = temperature.detach().to(dtype).requires_grad_()
        value = soft(a, b, costs, temperature=narrow, backend=backend)
        assert value.dtype == torch.float64
        assert torch.equal(value, soft(a, b, costs, temperature=narrow.double(), backend=backend))
        assert torch.autograd.grad(value.sum(), narrow)[0].dtype == dtype
    single = [cost.float() for cost in costs]
    assert soft(a, b, single, temperature=temperature, backend=backend).dtype == torch.float32


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


def entropy_of(
    a: TreeBatch, b: TreeBatch, costs: list[Tensor], temperature: float, backend: str
) -> tuple[Tensor, Tensor]:
    trees = (a.leftmost, b.leftmost, a.sizes, b.sizes, a.label, b.label)
    warm = torch.full((len(a),), temperature, dtype=torch.float64)
    value, _, entropy, _ = op.soft_tree_alignment(*costs, *trees, warm, "exact", 1 << 20, 0, backend, True)
    return value, entropy


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_value_is_expected_cost_minus_temperature_times_entropy(backend: str) -> None:
    """The identity of the docstring, by autograd alone, and the slope in the temperature by finite differences."""
    a, b = pairs()
    inputs = [*costs_of(a, b, forbidden=0.0), temperatures_of(a)]
    value = soft(a, b, inputs[:3], temperature=inputs[3], backend=backend)
    slopes = torch.autograd.grad(value.sum(), inputs)
    assert (inputs[3] * slopes[3]).abs().sum() > 1
    summed = [(x * slope).reshape(len(a), -1).sum(1) for x, slope in zip(inputs, slopes, strict=True)]
    torch.testing.assert_close(sum(summed), value.detach(), rtol=0, atol=1e-13)
    step = 1e-5
    up, down = (entropy_of(a, b, inputs[:3], 0.4 + h, backend)[0] for h in (step, -step))
    _, entropy = entropy_of(a, b, inputs[:3], 0.4, backend)
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
    costs, temperature = costs_of(a, b), temperatures_of(a)
    for x in (*costs, temperature):
        value = soft(a, b, costs, temperature=temperature)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        for y in (*costs, temperature):
            with pytest.raises(RuntimeError, match="no second derivative"):
                torch.autograd.grad(gradient.square().sum(), y, retain_graph=True)
    _, posterior = soft_tree_edit_distance(a, b, relabel=costs[0], temperature=temperature, return_posterior=True)
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
    costs, warm = costs_of(a, b, forbidden=0.0), temperatures_of(a)
    trees = (a.leftmost, b.leftmost, a.sizes, b.sizes, a.label, b.label)
    for backend in ("cpu", "reference"):
        torch.library.opcheck(op.soft_tree_alignment, (*costs, *trees, warm, "exact", 1 << 20, 40, backend, True))
        torch.library.opcheck(op.hard_tree_alignment, (*costs, *trees, "auto", 9, 0, backend, True))
        for by_label in (None, costs[0].detach()):
            inputs = (by_label, *costs[1:], *trees)
            torch.library.opcheck(op.soft_tree_alignment, (*inputs, warm, "exact", 1 << 20, 40, backend, True))
    plain, cold = [cost.detach() for cost in costs], warm.detach()
    torch.library.opcheck(op.soft_tree_alignment, (*plain, *trees, cold, "auto", 1, 0, "auto", False))
    torch.library.opcheck(op.hard_tree_alignment, (*plain, *trees, "exact", 1 << 20, 0, "auto", False))
    posterior = torch.rand_like(plain[0])
    grad, entropy, value = torch.rand(3, len(a), dtype=torch.float64)
    for needs in ((True, False, True, False), (False, True, False, True)):
        inputs = (grad, posterior, entropy, a.sizes, b.sizes, value)
        torch.library.opcheck(op.soft_tree_alignment_backward, (*inputs, *needs))


def every_function(a: TreeBatch, b: TreeBatch, relabel: Tensor, delete: Tensor, temperature: Tensor) -> Tensor:
    value, posterior = soft_tree_edit_distance(
        a, b, relabel=relabel, delete=delete, temperature=temperature, return_posterior=True
    )
    hard = tree_edit_distance(a, b, relabel=relabel)
    cold = soft_tree_edit_distance(a, b, delete=delete, temperature=0.25)
    return value.square().sum() + (posterior * relabel).sum() + hard.sum() + cold.sum()


def test_compiles_without_a_graph_break() -> None:
    """One graph for every batch size and both widths, forward and backward; a second one makes `table_columns`, a
    number that torch.compile knows only by its changing, dynamic."""
    compiled = torch.compile(every_function, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    shapes = ([(5, 7), (0, 4), (7, 3)], [(9, 2), (3, 3)], [(4, 11), (8, 8), (1, 1), (6, 5)], [(12, 12)] * 5)
    for seed, sizes in enumerate(shapes):
        a, b = pairs(seed, sizes)
        relabel, delete, _ = costs_of(a, b, seed, forbidden=0.0)
        inputs = (relabel, delete, temperatures_of(a))
        for tree in (a, b):
            for field in (tree.label, tree.leftmost):
                torch._dynamo.mark_dynamic(field, (0, 1))
            torch._dynamo.mark_dynamic(tree.sizes, 0)
        for x in inputs:
            torch._dynamo.mark_dynamic(x, tuple(range(x.dim())))
        with torch._dynamo.config.patch(error_on_recompile=seed > 1):
            traced = compiled(a, b, *inputs)
        plain = every_function(a, b, *inputs)
        torch.testing.assert_close(traced, plain)
        for x, y in zip(torch.autograd.grad(traced, inputs), torch.autograd.grad(plain, inputs), strict=True):
            torch.testing.assert_close(x, y)


def test_changing_numbers_do_not_compile_again_and_again() -> None:
    """A temperature that cools down, as a number, becomes a dynamic float at its second value."""
    a, b = pairs()
    (relabel, *_) = costs_of(a, b)
    compiled = torch.compile(
        lambda temperature: soft_tree_edit_distance(a, b, relabel=relabel, temperature=temperature),
        fullgraph=True,
        backend="aot_eager",
    )
    torch._dynamo.reset()
    for step, temperature in enumerate((1.0, 0.9, 0.8, 0.7)):
        with torch._dynamo.config.patch(error_on_recompile=step > 1):
            value = compiled(temperature)
        torch.testing.assert_close(value, soft_tree_edit_distance(a, b, relabel=relabel, temperature=temperature))


def test_vmap_folds_into_the_batch() -> None:
    a, b = pairs()
    relabel, delete, insert = (cost.detach() for cost in costs_of(a, b, forbidden=0.0))
    stacked = torch.stack([relabel, relabel * 0.5, relabel * 2.0], dim=2).requires_grad_()
    warm = torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64, requires_grad=True)

    def both(relabel: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        value = soft(a, b, [relabel, delete, insert], temperature=temperature)
        return value, tree_edit_distance(a, b, relabel=relabel, delete=delete)

    folded = torch.vmap(both, in_dims=(2, 0))(stacked, warm)
    looped = [torch.stack(x) for x in zip(*map(both, stacked.unbind(2), warm), strict=True)]
    upstream = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one, other in zip(folded, looped, strict=True):
        assert torch.equal(one, other)
    inputs = (stacked, warm)
    for one, other in zip(
        torch.autograd.grad(((folded[0] + folded[1]) * upstream).sum(), inputs),
        torch.autograd.grad(((looped[0] + looped[1]) * upstream).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    posterior = torch.vmap(
        lambda x: soft_tree_edit_distance(a, b, relabel=x, return_posterior=True)[1], in_dims=2, out_dims=1
    )(stacked)
    assert posterior.shape == (4, 3, *relabel.shape[1:])


def test_checkpoint_and_autocast() -> None:
    """Recomputation gives the same bits; autocast narrows what makes the costs, never the alignment."""
    a, b = pairs()
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(4, a.label.shape[1], 6, generator=generator, requires_grad=True)
    right = torch.rand(4, b.label.shape[1], 6, generator=generator, requires_grad=True)

    def value(relabel: Tensor) -> Tensor:
        return soft_tree_edit_distance(a, b, relabel=relabel, temperature=0.3)

    def loss(left: Tensor, right: Tensor) -> Tensor:
        return value(left @ right.transpose(1, 2)).square().sum()

    plain = loss(left, right)
    again = checkpoint(loss, left, right, use_reentrant=False)
    assert torch.equal(plain, again)
    for x, y in zip(torch.autograd.grad(plain, (left, right)), torch.autograd.grad(again, (left, right)), strict=True):
        assert torch.equal(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = left @ right.transpose(1, 2)
        assert narrow.dtype == torch.bfloat16
        inside = value(narrow)
        assert torch.equal(value(narrow.float()), value(narrow.detach().double()).float())
        assert torch.equal(inside, value(narrow.detach().double()).float())
        narrow_gradient = torch.autograd.grad(inside.sum(), narrow)[0]
    outside = narrow.detach().float().requires_grad_()
    assert torch.equal(inside, value(outside))
    assert torch.equal(narrow_gradient, torch.autograd.grad(value(outside).sum(), outside)[0].bfloat16())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_pairs_and_no_nodes(backend: str) -> None:
    nothing, none = TreeBatch.from_parents([], []), TreeBatch.from_parents([[], []], [[], []])
    for a, b in ((nothing, nothing), (none, none), (none, pairs()[1].select(torch.tensor([2, 0])))):
        inputs = [*(cost.detach().requires_grad_() for cost in costs_of(a, b)), temperatures_of(a)]
        value = soft(a, b, inputs[:3], temperature=inputs[3], backend=backend)
        slopes = torch.autograd.grad(value.sum(), inputs)
        inside = torch.arange(b.label.shape[1]) < b.sizes[:, None]
        torch.testing.assert_close(value, (inputs[2] * inside).sum(1))
        assert torch.equal(slopes[2], inside.double())
        assert slopes[3].eq(0).all()
        assert torch.equal(tree_edit_distance(a, b, insert=inputs[2], backend=backend), value)


def test_backends_that_cannot_serve_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pairs()
    with pytest.raises(RuntimeError, match='"cuda" needs CUDA tensors, got cpu'):
        tree_edit_distance(a, b, backend="cuda")
    with pytest.raises(ValueError, match="backend"):
        tree_edit_distance(a, b, backend="gpu")
    with pytest.raises(RuntimeError, match='"cpu" needs CPU tensors, got cuda'):
        op.choose_backend("cpu", torch.device("cuda"))
    assert op.choose_backend("auto", torch.device("cuda")) == "cpu"
    expected = tree_edit_distance(a, b)
    monkeypatch.setattr(cpu, "import_error", ImportError("not built"))
    monkeypatch.setattr(op, "_warned", False)
    with pytest.raises(RuntimeError, match=r"_C \(not built\)"):
        tree_edit_distance(a, b, backend="cpu")
    with pytest.warns(RuntimeWarning, match="plain torch"):
        assert torch.equal(tree_edit_distance(a, b), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree_edit_distance(a, b)


def device_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for cuda.py or triton.py: records what it is handed, computes by the reference."""
    module = ModuleType(f"structloss.tree_alignment.{name}")
    module.import_error, module.calls = None, []  # type: ignore[attr-defined]
    for function in (reference.soft_tree_alignment, reference.hard_tree_alignment):

        def serve(*inputs: object, function: Callable = function, **extra: int) -> object:
            module.calls.append(extra)
            return function(*inputs)

        setattr(module, function.__name__, serve)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_device_backends_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pairs()
    cuda, triton = device_backend("cuda", monkeypatch), device_backend("triton", monkeypatch)
    for name in ("cuda", "triton"):
        assert op.choose_backend(name, torch.device("cuda")) == name
    # Triton serves CPU tensors under its interpreter and refuses them itself elsewhere.
    for temperature in (0.5, temperatures_of(a)):
        value = soft_tree_edit_distance(a, b, temperature=temperature, backend="triton")
        assert torch.equal(value, soft_tree_edit_distance(a, b, temperature=temperature, backend="reference"))
    assert triton.calls == [{}, {}]
    monkeypatch.setattr(op, "choose_backend", lambda backend, device: backend)
    assert torch.equal(tree_edit_distance(a, b, backend="cuda"), tree_edit_distance(a, b, backend="reference"))
    for tree in (replace(a, table_columns=70), replace(a, table_columns=None)):
        soft_tree_edit_distance(tree, b, backend="cuda")
    widest = max(a.table_columns or 0, b.table_columns or 0)
    assert cuda.calls == [{"table_columns": known} for known in (widest, 70, 0)]
    assert 0 < widest < 70
    monkeypatch.undo()

    cuda, triton = device_backend("cuda", monkeypatch), device_backend("triton", monkeypatch)
    cuda.import_error = triton.import_error = ImportError("missing")  # type: ignore[attr-defined]
    for name, needed in (("cuda", "_C_cuda"), ("triton", "package triton")):
        with pytest.raises(RuntimeError, match=rf'"{name}" needs .*{needed} \(missing\)'):
            op.choose_backend(name, torch.device("cuda"))


def test_import_leaves_triton_alone() -> None:
    run = "import sys, structloss; sys.exit('structloss.tree_alignment.triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", run], check=False).returncode == 0


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
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be finite and > 0"):
            soft_tree_edit_distance(a, b, temperature=wrong)
        for backend in ("cpu", "reference"):
            with pytest.raises(ValueError, match=r"temperature\[2\] = .*finite and > 0"):
                soft_tree_edit_distance(a, b, temperature=relabel.new_tensor([1, 1, wrong, wrong]), backend=backend)
    with pytest.raises(ValueError, match=r"temperature must .*shape \(\) or \(4,\), got \(4, 1\)"):
        soft_tree_edit_distance(a, b, temperature=torch.ones(4, 1))
    with pytest.raises(ValueError, match="temperature is on meta"):
        soft_tree_edit_distance(a, b, temperature=torch.ones(4, device="meta"))
    with pytest.raises(TypeError, match="temperature must be .*int64"):
        soft_tree_edit_distance(a, b, temperature=torch.ones(4, dtype=torch.int64))
    with pytest.raises(TypeError, match="temperature must be a number or a tensor, got list"):
        soft_tree_edit_distance(a, b, temperature=[1.0] * 4)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="b must be a TreeBatch, got list"):
        tree_edit_distance(a, [b])  # type: ignore[arg-type]
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
    for cells in (0, 1e6):
        with pytest.raises(ValueError, match="max_cells must be an integer >= 1"):
            tree_edit_distance(a, b, max_cells=cells)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="relabel is on meta"):
        tree_edit_distance(a, b, relabel=relabel.to("meta"))
    with pytest.raises(ValueError, match=r"b\.leftmost is on meta"):
        tree_edit_distance(a, replace(b, leftmost=b.leftmost.to("meta")))
