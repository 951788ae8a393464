"""The LM-head loss against formulas written down independently, in float64, and against its reference
backend.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from structloss.lm_head import LinearCrossEntropyOutput, linear_cross_entropy, linear_logprob

# Chunked and full-logit results differ in float64 only by summation order: measured 1.3e-15 of the largest entry.
EXACT = {"rtol": 1e-10, "atol": 1e-11}


def problem(
    n: int = 37, d: int = 19, v: int = 101, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, target with about a third of the tokens ignored."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype)
    bias = torch.randn(v, generator=g, dtype=torch.float64).to(dtype)
    target = torch.randint(0, v, (n,), generator=g)
    target[torch.rand(n, generator=g) < 0.35] = -100
    return x, weight, bias, target


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def upstream_like(loss: Tensor, seed: int = 3) -> Tensor:
    """Neither 1 nor uniform, with a zero and negative entries."""
    g = torch.randn(loss.shape, generator=torch.Generator().manual_seed(seed), dtype=loss.dtype)
    if g.dim():
        g.view(-1)[:1] = 0
    return g


def written_down(x: Tensor, head: Tensor, bias: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The docstring's formula by probabilities, one loss a token (float64), without any log-sum-exp trick."""
    cap, scale, eps = (
        options.get("softcap"),
        options.get("logit_scale", 1.0),
        options.get("label_smoothing", 0.0),
    )
    a = scale * (x @ head.T + bias)
    z = a if cap is None else cap * torch.tanh(a / cap)
    p = z.exp() / z.exp().sum(-1, keepdim=True)
    c = options.get("weight", torch.ones(head.shape[0], dtype=x.dtype))
    w = options.get("token_weight", torch.ones(x.shape[0], dtype=x.dtype)).to(x.dtype)
    y = target.clamp(min=0)
    rows = torch.arange(x.shape[0])
    square = options.get("z_loss", 0.0) * c[y] * z.exp().sum(-1).log().square()
    smooth = eps / head.shape[0] * -(c * p.log()).sum(-1)
    usual = (1 - eps) * c[y] * -p[rows, y].log() + smooth + square
    negative = options.get("negative", "unlikelihood")
    if negative == "clamp":
        token = w.clamp(min=0) * usual
    elif negative == "raw":
        token = w * usual
    else:
        unlikely = c[y] * -torch.log1p(-p[rows, y]) + square
        token = torch.where(w < 0, w.abs() * unlikely, w * usual)
    return torch.where((target == -100) | (w == 0), 0.0, token)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "class weights": {"weight": "classes"},
    "class weights and smoothing": {"weight": "classes", "label_smoothing": 0.3},
    "z-loss": {"z_loss": 0.02},
    "softcap and scale": {"softcap": 7.0, "logit_scale": 0.6},
    "unlikelihood": {"token_weight": "signed"},
    "clamp": {"token_weight": "signed", "negative": "clamp"},
    "raw": {"token_weight": "signed", "negative": "raw"},
    "all": {
        "weight": "classes",
        "label_smoothing": 0.1,
        "z_loss": 0.02,
        "softcap": 7.0,
        "logit_scale": 0.6,
        "token_weight": "signed",
    },
}


def fill_in(options: dict[str, Any], n: int, v: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(7)
    signed = torch.randn(n, generator=g, dtype=torch.float64)
    signed[::6] = 0
    named = {"classes": torch.rand(v, generator=g, dtype=torch.float64) + 0.1, "signed": signed}
    return {k: named.get(value, value) if isinstance(value, str) else value for k, value in options.items()}


@pytest.mark.parametrize("mode", ["auto", "min_memory"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("case", OPTIONS)
def test_formula(case: str, reduction: str, mode: str) -> None:
    """Values and all gradients of every option against the formula by probabilities."""
    x, weight, bias, target = problem()
    options = fill_in(OPTIONS[case], x.shape[0], weight.shape[0])
    mine, truth = leaves(x, weight, bias), leaves(x, weight, bias)
    loss = linear_cross_entropy(
        mine[0], mine[1], target, linear_bias=mine[2], reduction=reduction, mode=mode,
        chunk_bytes=5 * 101 * 8, **options,
    )  # fmt: skip
    expected = written_down(*truth, target, **options)
    expected = expected if reduction == "none" else expected.sum()
    torch.testing.assert_close(loss, expected, **EXACT)
    up = upstream_like(loss)
    got = torch.autograd.grad(loss, mine, up)
    want = torch.autograd.grad(expected, truth, up)
    for g, e in zip(got, want, strict=True):
        assert e.abs().max() > 1e-3
        torch.testing.assert_close(g, e, **EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("class_weighted", [False, True])
def test_torch_cross_entropy(reduction: str, eps: float, class_weighted: bool) -> None:
    """float64 `torch.nn.functional.cross_entropy` to 1e-10: mean, smoothing and class weights mean the
    same.
    """
    x, weight, bias, target = problem(seed=1)
    classes = torch.rand(101, dtype=torch.float64) if class_weighted else None
    mine, truth = leaves(x, weight, bias), leaves(x, weight, bias)
    loss = linear_cross_entropy(
        mine[0],
        mine[1],
        target,
        linear_bias=mine[2],
        weight=classes,
        reduction=reduction,
        label_smoothing=eps,
    )
    logits = F.linear(*truth[:2], truth[2])
    expected = F.cross_entropy(logits, target, weight=classes, reduction=reduction, label_smoothing=eps)
    torch.testing.assert_close(loss, expected, **EXACT)
    up = upstream_like(loss)
    for g, e in zip(torch.autograd.grad(loss, mine, up), torch.autograd.grad(expected, truth, up), strict=True):
        torch.testing.assert_close(g, e, **EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
@pytest.mark.parametrize("trainable", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_input_asks_for_its_own_gradient(
    reduction: str, mode: str, trainable: tuple[int, ...], weighted: bool
) -> None:
    x, weight, bias, target = problem(23, 11, 31)
    token_weight = torch.linspace(0, 2, 23, dtype=torch.float64) if weighted else None
    options: dict[str, Any] = {"token_weight": token_weight, "reduction": reduction}
    mine = [t.requires_grad_(bool(on)) for t, on in zip(leaves(x, weight, bias), trainable, strict=True)]
    truth = [t.requires_grad_(bool(on)) for t, on in zip(leaves(x, weight, bias), trainable, strict=True)]
    loss = linear_cross_entropy(
        mine[0], mine[1], target, linear_bias=mine[2], mode=mode, chunk_bytes=4 * 31 * 8, **options
    )
    expected = linear_cross_entropy(truth[0], truth[1], target, linear_bias=truth[2], backend="reference", **options)
    up = upstream_like(loss) * 2.5
    loss.backward(up)
    expected.backward(up)
    for a, b, on in zip(mine, truth, trainable, strict=True):
        if on:
            torch.testing.assert_close(a.grad, b.grad, **EXACT)
        else:
            assert a.grad is None


@pytest.mark.parametrize("upstream", [1.0, 0.0, -3.5, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scalar_upstream(upstream: float, dtype: torch.dtype) -> None:
    """`loss * scalar` scales both gradients, in float32 also where the gradient is bfloat16."""
    x, weight, _, target = problem(dtype=dtype)
    once, scaled = leaves(x, weight), leaves(x, weight)
    linear_cross_entropy(*once, target).backward()
    linear_cross_entropy(*scaled, target).mul(upstream).backward()
    for a, b in zip(once, scaled, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad, (a.grad.float() * upstream).to(dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kept_graph", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bfloat16_gradients_are_scaled_in_float32(reduction: str, kept_graph: bool) -> None:
    """A bfloat16 upstream factor would put a relative error of up to 2^-9 on the whole gradient (or a row)."""
    x, weight, _, target = problem(dtype=torch.bfloat16)
    once, scaled = leaves(x, x)
    loss = linear_cross_entropy(once, weight, target, reduction=reduction)
    loss.backward(torch.ones_like(loss))
    up = torch.linspace(0.1, 3, 37) if reduction == "none" else torch.tensor(0.3)
    linear_cross_entropy(scaled, weight, target, reduction=reduction).backward(up, retain_graph=kept_graph)
    assert once.grad is not None
    factor = up[:, None] if reduction == "none" else up.view(1, 1)
    assert torch.equal(scaled.grad, (once.grad.float() * factor).bfloat16())


@pytest.mark.parametrize("trainable", ["lora", "all"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_lora_head_equals_the_merged_head(trainable: str, reduction: str) -> None:
    x, weight, bias, target = problem(29, 13, 67)
    g = torch.Generator().manual_seed(5)
    a = torch.randn(3, 13, generator=g, dtype=torch.float64)
    b = torch.randn(67, 3, generator=g, dtype=torch.float64)
    mine, truth = leaves(x, weight, a, b), leaves(x, weight, a, b)
    if trainable == "lora":
        mine[1].requires_grad_(False)
        truth[1].requires_grad_(False)
    loss = linear_cross_entropy(
        mine[0], mine[1], target, linear_bias=bias, lora_a=mine[2], lora_b=mine[3], lora_scale=0.7,
        reduction=reduction, chunk_bytes=4 * 67 * 8,
    )  # fmt: skip
    merged = truth[1] + 0.7 * truth[3] @ truth[2]
    expected = F.cross_entropy(F.linear(truth[0], merged, bias), target, reduction=reduction)
    torch.testing.assert_close(loss, expected, **EXACT)
    up = upstream_like(loss)
    loss.backward(up)
    expected.backward(up)
    for m, t in zip(mine, truth, strict=True):
        if t.requires_grad:
            torch.testing.assert_close(m.grad, t.grad, **EXACT)
        else:
            assert m.grad is None


def test_mean_divides_by_the_weights_or_by_the_denominator() -> None:
    x, weight, _, target = problem()
    token_weight = torch.rand(37, dtype=torch.float64)
    classes = torch.rand(101, dtype=torch.float64)
    kept = target != -100
    options: dict[str, Any] = {"token_weight": token_weight, "weight": classes}
    total = linear_cross_entropy(x, weight, target, reduction="sum", **options)
    mass = (token_weight * classes[target.clamp(min=0)])[kept].sum()
    torch.testing.assert_close(linear_cross_entropy(x, weight, target, **options), total / mass, **EXACT)
    for denominator in (12.5, torch.tensor(12.5), torch.tensor(12.5, dtype=torch.float64)):
        mine = leaves(x)[0]
        loss = linear_cross_entropy(mine, weight, target, denominator=denominator, **options)
        torch.testing.assert_close(loss, total / 12.5, **EXACT)
        loss.backward()
        truth = leaves(x)[0]
        (linear_cross_entropy(truth, weight, target, reduction="sum", **options) / 12.5).backward()
        torch.testing.assert_close(mine.grad, truth.grad, **EXACT)


def test_mean_of_signed_weights_divides_by_their_sum() -> None:
    x, weight, bias, target = problem()
    signed = torch.full((37,), 1.0, dtype=torch.float64)
    signed[::4] = -0.5
    loss = linear_cross_entropy(x, weight, target, linear_bias=bias, token_weight=signed)
    kept = target != -100
    expected = written_down(x, weight, bias, target, token_weight=signed).sum() / signed[kept].sum()
    torch.testing.assert_close(loss, expected, **EXACT)
    with pytest.raises(ValueError, match=r"token weights .* must be > 0; got -"):
        linear_cross_entropy(x, weight, target, token_weight=-signed)


def test_torch_linear_cross_entropy_agrees() -> None:
    peer = getattr(F, "linear_cross_entropy", None)
    if peer is None:
        pytest.skip("this torch has no torch.nn.functional.linear_cross_entropy")
    x, weight, bias, target = problem()
    mine = linear_cross_entropy(x, weight, target, linear_bias=bias, label_smoothing=0.1)
    torch.testing.assert_close(
        mine, peer(x, weight, target, linear_bias=bias, label_smoothing=0.1, ignore_index=-100), **EXACT
    )


@pytest.mark.parametrize("mode", ["auto", "min_memory"])
@pytest.mark.parametrize("train_head", [False, True])
def test_linear_logprob(mode: str, train_head: bool) -> None:
    x, weight, bias, target = problem()
    mine, truth = leaves(x), leaves(x)
    heads = [leaves(weight, bias), leaves(weight, bias)] if train_head else [[weight, bias], [weight, bias]]
    logprob = linear_logprob(mine[0], heads[0][0], target, linear_bias=heads[0][1], softcap=9.0, mode=mode)
    z = 9.0 * torch.tanh(F.linear(truth[0], *heads[1]) / 9.0)
    kept = target != -100
    expected = z.log_softmax(-1).gather(1, target.clamp(min=0)[:, None])[:, 0] * kept
    torch.testing.assert_close(logprob, expected, **EXACT)
    assert not torch.signbit(logprob[~kept]).any()
    up = upstream_like(logprob)
    logprob.backward(up)
    expected.backward(up)
    torch.testing.assert_close(mine[0].grad, truth[0].grad, **EXACT)
    if train_head:
        for a, b in zip(*heads, strict=True):
            torch.testing.assert_close(a.grad, b.grad, **EXACT)


@pytest.mark.parametrize("chunk_bytes", [None, 6 * 101 * 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs(dtype: torch.dtype, chunk_bytes: int | None) -> None:
    x, weight, bias, target = problem(dtype=dtype)
    token_weight = torch.ones(37)
    token_weight[1::5] = 0
    token_weight[2::5] = -1
    names = ("logprob", "lse", "entropy", "argmax")
    out = linear_cross_entropy(
        x.requires_grad_(), weight, target, linear_bias=bias, token_weight=token_weight, logit_scale=0.5,
        outputs=names, reduction="sum", chunk_bytes=chunk_bytes,
    )  # fmt: skip
    assert isinstance(out, LinearCrossEntropyOutput)
    z = 0.5 * (x.detach().double() @ weight.double().T + bias.double())
    logp = z.log_softmax(-1)
    kept = (target != -100) & (token_weight != 0)
    tolerance = EXACT if dtype == torch.float64 else {"rtol": 2e-6, "atol": 2e-5}
    for name, value in (
        ("logprob", logp.gather(1, target.clamp(min=0)[:, None])[:, 0]),
        ("lse", z.logsumexp(-1)),
        ("entropy", -(logp.exp() * logp).sum(-1)),
    ):
        got = getattr(out, name)
        assert got.dtype == dtype
        assert not got.requires_grad
        torch.testing.assert_close(got.double(), torch.where(kept, value, 0.0), **tolerance)
    assert out.argmax is not None
    assert torch.equal(out.argmax, torch.where(kept, z.argmax(-1), -1))
    only = linear_cross_entropy(x, weight, target, linear_bias=bias, outputs=("argmax",))
    assert only.argmax is not None
    assert only.logprob is None
    assert only.lse is None
    assert only.entropy is None


def test_argmax_of_ties_is_the_first_class() -> None:
    x, weight = torch.ones(4, 1), torch.tensor([[0.0], [2.0], [2.0], [1.0], [2.0]])
    for target in ([1, 2, 4, 0], [4, 4, 1, 3]):
        out = linear_cross_entropy(x, weight, torch.tensor(target), outputs=("argmax",))
        assert out.argmax is not None
        assert out.argmax.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", ["plain", "all", "raw"])
def test_gradcheck(case: str, reduction: str) -> None:
    x, weight, bias, target = problem(7, 5, 11, seed=2)
    options = fill_in(OPTIONS[case], 7, 11)
    if reduction == "mean":
        options["denominator"] = 3.0
    a, b = torch.randn(2, 5, dtype=torch.float64), torch.randn(11, 2, dtype=torch.float64)

    def loss(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(
            x, weight, target, linear_bias=bias, lora_a=a, lora_b=b, reduction=reduction, chunk_bytes=3 * 11 *
            8, **options,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves(x, weight, bias, a, b))

    def frozen(x: Tensor) -> Tensor:
        return loss(x, weight, bias, a, b)

    assert torch.autograd.gradcheck(frozen, leaves(x))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 40),
    d=st.sampled_from([1, 2, 7, 16]),
    v=st.sampled_from([1, 2, 3, 31, 97]),
    chunk_rows=st.integers(1, 50),
    seed=st.integers(0, 1000),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    frozen=st.booleans(),
)
def test_any_shape(n: int, d: int, v: int, chunk_rows: int, seed: int, reduction: str, frozen: bool) -> None:
    x, weight, bias, target = problem(n, d, v, seed=seed)
    token_weight = torch.rand(n, dtype=torch.float64).round(decimals=1)
    results = []
    for backend in ("auto", "reference"):
        mine = leaves(x, weight, bias)
        if frozen:
            mine = [mine[0], weight, bias]
        loss = linear_cross_entropy(
            mine[0], mine[1], target, linear_bias=mine[2], token_weight=token_weight, reduction=reduction,
            chunk_bytes=chunk_rows * v * 8, backend=backend,
        )  # fmt: skip
        loss.backward(upstream_like(loss))
        results.append([loss, *(m.grad for m in mine if m.requires_grad)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **EXACT)
