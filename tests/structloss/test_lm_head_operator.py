"""The operators: what they compute and allocate, torch.compile, opcheck, checkpointing, autocast, kept
graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from structloss.lm_head import linear_cross_entropy, linear_logprob
from structloss.lm_head.op import (
    linear_cross_entropy_backward_op,
    linear_cross_entropy_op,
)
from structloss.lm_head.stored_gradients import scale_gradient_op

N, D, V = 64, 16, 509


def problem(dtype: torch.dtype = torch.float32, vocab: int = V) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, target; exactly half of the tokens are ignored."""
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g).to(dtype) for s in ((N, D), (vocab, D), (vocab,)))
    target = torch.randint(0, vocab, (N,), generator=g)
    target[torch.randperm(N, generator=g)[: N // 2]] = -100
    return x, weight, bias, target


def head_gemms(call: Callable[[], object], rows: int) -> float:
    """Multiplications of all matrix products that `call` runs, in units of one head GEMM over `rows`
    tokens.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        call()
    total = 0
    for event in recorded.events():
        # mm(left, right), addmm(bias, left, right): out= adds a last shape
        first = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}.get(event.name)
        assert event.name not in ("aten::bmm", "aten::linear", "aten::einsum")
        if first is not None:
            left, right = event.input_shapes[first : first + 2]
            total += left[0] * left[1] * right[1]
    return total / (rows * D * V)


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that the allocator held during `call`, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    results = recorded.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("trainable", "auto", "min_memory"),
    [
        ((False, False, False), {"mean": 1, "none": 1}, {"mean": 1, "none": 1}),
        ((True, False, False), {"mean": 2, "none": 2}, {"mean": 3, "none": 3}),
        ((False, True, False), {"mean": 2, "none": 3}, {"mean": 3, "none": 3}),
        ((True, True, False), {"mean": 3, "none": 4}, {"mean": 4, "none": 4}),
        ((True, True, True), {"mean": 3, "none": 4}, {"mean": 4, "none": 4}),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
def test_gemms_on_kept_rows_only(
    trainable: tuple[bool, ...], auto: dict[str, int], min_memory: dict[str, int], reduction: str, mode: str
) -> None:
    x, weight, bias, target = problem()
    for tensor, on in zip((x, weight, bias), trainable, strict=True):
        tensor.requires_grad_(on)

    def step() -> None:
        loss = linear_cross_entropy(
            x, weight, target, linear_bias=bias, reduction=reduction, mode=mode, chunk_bytes=7 * V * 4
        )
        if loss.requires_grad:
            loss.backward(torch.full_like(loss, 0.5))

    expected = (auto if mode == "auto" else min_memory)[reduction]
    assert head_gemms(step, N // 2) == pytest.approx(expected, abs=1e-9)


def test_one_gemm_without_gradient_mode() -> None:
    x, weight, bias, target = problem()
    x.requires_grad_()
    weight.requires_grad_()

    def evaluate() -> None:
        with torch.no_grad():
            assert not linear_cross_entropy(x, weight, target, linear_bias=bias).requires_grad

    assert head_gemms(evaluate, N // 2) == pytest.approx(1, abs=1e-9)
    with torch.inference_mode():
        assert torch.isfinite(linear_cross_entropy(x, weight, target))


def test_lora_head_adds_only_thin_products() -> None:
    x, weight, _, target = problem()
    a, b = torch.randn(2, D, requires_grad=True), torch.randn(V, 2, requires_grad=True)
    x.requires_grad_()
    gemms = head_gemms(lambda: linear_cross_entropy(x, weight, target, lora_a=a, lora_b=b).backward(), N // 2)
    # Two head GEMMs and six rank-2 ones: (x a^T, . b^T) forward, (dz b, . a, (dz b)^T x, dz^T x a^T)
    # backward.
    thin = 2 * (3 * D + 3 * V) / (D * V)
    assert gemms == pytest.approx(2 + thin, abs=1e-9)


def test_upstream_zeros_are_dropped_from_the_recompute() -> None:
    x, weight, _, target = problem()
    weight.requires_grad_()
    logprob = linear_logprob(x, weight, target)
    kept = (target != -100).nonzero().squeeze(1)
    upstream = torch.zeros(N)
    upstream[kept[: N // 8]] = 1.0
    assert head_gemms(lambda: logprob.backward(upstream), N // 8) == pytest.approx(2, abs=1e-9)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_half_masked_call_stays_within_gradient_and_workspace(dtype: torch.dtype, backend: str) -> None:
    vocab = 8191
    x, weight, _, target = problem(dtype, vocab)
    x.requires_grad_()
    rows = 4
    size = dtype.itemsize
    gradient = N // 2 * D * size  # of the kept rows, until the workspace is gone
    workspace = rows * vocab * size + rows * D * size  # logits, gathered x
    if dtype == torch.bfloat16:
        workspace += rows * vocab * 4  # one block of rows in float32
    vectors = 64 * N * 8  # per-token vectors; a second (n, V) or (V, D) buffer would not fit in here
    assert vectors < min(N // 2 * vocab, vocab * D) * size / 4

    def forward() -> Tensor:
        return linear_cross_entropy(x, weight, target, chunk_bytes=rows * vocab * size, backend=backend)

    forward()
    # The bfloat16 GEMMs of a CPU take scratch of their own.
    out, back = torch.empty(rows, vocab, dtype=dtype), torch.empty(rows, D, dtype=dtype)
    scratch = max(
        peak_bytes(lambda: torch.mm(x.detach()[:rows], weight.t(), out=out)),
        peak_bytes(lambda: torch.mm(out, weight, out=back)),
    )
    vectors += scratch
    bare = gradient + workspace
    held = peak_bytes(forward)
    assert gradient < held <= bare + vectors
    if backend == "torch":  # the bound is tight
        assert held >= bare


def test_backward_of_a_mean_allocates_nothing_large() -> None:
    """The stored gradients are handed out, scaled in place: no second copy of (V, D)."""
    x, weight, _, target = problem()
    x.requires_grad_()
    weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, target) * 0.3
    assert peak_bytes(loss.backward) < 1024


@pytest.mark.parametrize("upstream", [1.0, -0.3])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
def test_kept_graph(upstream: float, reduction: str, train_head: bool, mode: str) -> None:
    """Backward three times over one graph: .grad is the sum, and no stored gradient was changed on the
    way.
    """
    x, weight, _, target = problem()
    x.requires_grad_()
    weight.requires_grad_(train_head)
    inputs = [x, weight] if train_head else [x]
    loss = linear_cross_entropy(x, weight, target, reduction=reduction, mode=mode)
    up = torch.full_like(loss, upstream)
    once = [g.clone() for g in torch.autograd.grad(loss, inputs, up, retain_graph=True)]
    for times in (1, 2, 3):
        loss.backward(up, retain_graph=times < 3)
        for leaf, gradient in zip(inputs, once, strict=True):
            torch.testing.assert_close(leaf.grad, times * gradient, rtol=1e-6, atol=1e-8)


def test_freed_graph_is_refused() -> None:
    x, weight, _, target = problem()
    loss = linear_cross_entropy(x.requires_grad_(), weight, target)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
def test_second_derivative_is_refused_not_zero(reduction: str, mode: str) -> None:
    x, weight, _, target = problem()
    x.requires_grad_()
    loss = linear_cross_entropy(x, weight, target, reduction=reduction, mode=mode).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative only"):
        gradient.square().sum().backward()


def step(x: Tensor, weight: Tensor, target: Tensor, token_weight: Tensor, reduction: str) -> tuple[Tensor, ...]:
    out = linear_cross_entropy(
        x * 1.5, weight, target, token_weight=token_weight, reduction=reduction, outputs=("logprob", "argmax")
    )
    return out.loss.sum() * 0.7, out.logprob, out.argmax  # type: ignore[return-value]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("train_head", [False, True])
def test_compile_fullgraph(reduction: str, train_head: bool) -> None:
    x, weight, _, target = problem()
    token_weight = torch.linspace(-0.5, 2, N)
    token_weight[::5] = 0
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf, head = x.clone().requires_grad_(), weight.clone().requires_grad_(train_head)
        made = function(leaf, head, target, token_weight, reduction)
        made[0].backward()
        results.append([*made, leaf.grad, *([head.grad] if train_head else [])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)


def test_compile_dynamic_shapes_without_recompiling() -> None:
    x, weight, _, target = problem(torch.bfloat16)
    token_weight = torch.ones(N)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    x.requires_grad_()
    weight.requires_grad_()
    for count in (N, 47, 31):
        if count == 31:
            torch.compiler.set_stance("fail_on_recompile")
        try:
            loss = compiled(x[:count], weight, target[:count], token_weight[:count], "mean")[0]
            loss.backward()
        finally:
            torch.compiler.set_stance("default")
        expected = step(x[:count], weight, target[:count], token_weight[:count], "mean")[0]
        torch.testing.assert_close(loss, expected)


def arguments(**change: Any) -> tuple[Any, ...]:
    x, weight, bias, target = problem(change.get("dtype", torch.float32))
    needs = change.get("needs", [True, True, True, False, False])
    leaves = [t[:9].requires_grad_(change.get("grad", True)) if t is x else t for t in (x, weight, bias)]
    for leaf in (weight, bias):
        leaf.requires_grad_(change.get("grad", True))
    reduction = change.get("reduction", "mean")
    return (
        leaves[0].detach().requires_grad_(change.get("grad", True)), weight, target[:9], bias, None,
        torch.linspace(-0.2, 1, 9), None, None, None, 1.0, reduction, -100, 0.1, "unlikelihood", 5.0, 0.01,
        9.0, 1.0, None, False, None, change.get("backend", "torch"), None, needs,
        change.get("wants", [True, False, True, True]),
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtype": torch.bfloat16},
        {"reduction": "none", "needs": [False] * 5},
        {"reduction": "sum", "needs": [False] * 5, "grad": False},
        {"wants": [False] * 4, "needs": [True, False, False, False, False], "grad": False},
        {"backend": "auto"},
        {"backend": "auto", "needs": [True, False, False, False, False], "grad": False},
    ],
    ids=["mean", "bfloat16", "recompute", "no gradient", "gradient without autograd", "auto", "auto, frozen"],
)
def test_opcheck_forward(change: dict[str, Any]) -> None:
    torch.library.opcheck(linear_cross_entropy_op, arguments(**change))


def test_opcheck_backward_and_scale() -> None:
    call = list(arguments(grad=False, reduction="none"))
    del call[-6], call[-1]  # check_targets, wants
    torch.library.opcheck(linear_cross_entropy_backward_op, (torch.linspace(-1, 1, 9), *call))
    gradient = torch.randn(9, D).bfloat16()
    for scale in (torch.tensor(0.3), torch.linspace(-1, 1, 9)):
        torch.library.opcheck(scale_gradient_op, (gradient, scale, torch.float32))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
def test_activation_checkpointing(reentrant: bool, mode: str) -> None:
    x, weight, _, target = problem()

    def trunk_and_loss(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x.tanh(), weight, target, mode=mode)

    plain, saved = (
        [x.clone().requires_grad_(), weight.clone().requires_grad_()],
        [x.clone().requires_grad_(), weight.clone().requires_grad_()],
    )
    trunk_and_loss(*plain).backward()
    checkpoint(trunk_and_loss, *saved, use_reentrant=reentrant).backward()
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_means_a_bfloat16_head(compiled: bool) -> None:
    """float32 leaves get float32 gradients of the bfloat16 computation; backward inside or outside alike."""
    x, weight, bias, target = problem()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(x, weight, target, linear_bias=bias)

    function = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run
    cast = [t.clone().requires_grad_() for t in (x, weight, bias)]
    loss = function(*cast)
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    narrow = [t.bfloat16().requires_grad_() for t in (x, weight, bias)]
    expected = linear_cross_entropy(narrow[0], narrow[1], target, linear_bias=narrow[2])
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(cast, narrow, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad.float())


def test_gradient_accumulation_by_denominator_is_one_large_batch() -> None:
    x, weight, _, target = problem()
    whole, parts = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    linear_cross_entropy(x, whole, target).backward()
    total = int((target != -100).sum())
    for piece in (slice(0, 10), slice(10, 41), slice(41, N)):
        linear_cross_entropy(x[piece], parts, target[piece], denominator=total).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_tied_embedding_gets_both_gradients() -> None:
    """One parameter as embedding and head: its two gradients add up, neither buffer is shared by mistake."""
    _, weight, _, target = problem()
    ids = torch.arange(N) % V
    tied, peer = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    for _ in range(2):
        linear_cross_entropy(F.embedding(ids, tied), tied, target).backward()
        F.cross_entropy(F.embedding(ids, peer) @ peer.T, target).backward()
    torch.testing.assert_close(tied.grad, peer.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_valid", [False, True])
def test_cuda_agrees_with_the_reference(dtype: torch.dtype, num_valid: bool) -> None:
    x, weight, bias, target = (t.cuda() for t in problem(dtype))
    kept = int((target != -100).sum()) if num_valid else None
    results = []
    for backend in ("auto", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        loss = linear_cross_entropy(
            leaves[0], leaves[1], target, linear_bias=leaves[2], num_valid=kept, chunk_bytes=9 * V * 4,
            backend=backend,
        )  # fmt: skip
        (loss * 0.3).backward()
        results.append([loss, *(leaf.grad for leaf in leaves)])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 2e-3}
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **tolerance)
    if num_valid:
        wrong = linear_cross_entropy(x, weight, target, num_valid=kept - 1)  # type: ignore[operator]
        assert wrong.isnan()
