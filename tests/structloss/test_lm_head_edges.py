"""Sizes, layouts, rows that must not matter, extreme logits, precision, and what is refused."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from structloss.lm_head import linear_cross_entropy, linear_logprob
from structloss.lm_head.chunks import rows_per_chunk, rows_that_fill


def problem(n: int, d: int, v: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype)
    target = torch.randint(0, v, (n,), generator=g)
    return x, weight, target


def loss_and_gradients(x: Tensor, weight: Tensor, target: Tensor, **options: Any) -> list[Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = linear_cross_entropy(x, weight, target, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, [x, weight])]


def torch_loss_and_gradients(
    x: Tensor, weight: Tensor, target: Tensor, *, logits_dtype: torch.dtype | None = None, **options: Any
) -> list[Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    logits = F.linear(x, weight)
    loss = F.cross_entropy(logits.to(logits_dtype or logits.dtype), target, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, [x, weight])]


@pytest.mark.parametrize("v", [2, 31, 257])
@pytest.mark.parametrize("n", [1, 31, 33])
@pytest.mark.parametrize("chunk_rows", [1, 7, 32, 1000])
def test_odd_sizes_and_last_partial_chunk(n: int, v: int, chunk_rows: int) -> None:
    x, weight, target = problem(n, 9, v)
    got = loss_and_gradients(x, weight, target, chunk_bytes=chunk_rows * v * 8)
    for g, e in zip(got, torch_loss_and_gradients(x, weight, target), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-12)


def test_chunks_are_balanced_and_within_the_budget() -> None:
    for rows in (1, 5, 127, 128, 129, 1000, 1100, 5000):
        for budget_rows in (1, 3, 40, 600, 1024):
            chunk = rows_per_chunk(rows, 1000, torch.float32, "cpu", trainable=False, chunk_bytes=budget_rows * 4000)
            assert 1 <= chunk <= min(rows, budget_rows)
            chunks = -(-rows // chunk)
            last = rows - (chunks - 1) * chunk
            # The grain of 128 rows (32, 8) costs at most one grain a chunk.
            assert last > chunk - 128 * chunks
    assert rows_per_chunk(1100, 1000, torch.float32, "cpu", trainable=False, chunk_bytes=4_096_000) == 640


def test_chunks_fill_a_gpu_and_stay_small() -> None:
    """132 multiprocessors, as an H100 or H200 has."""

    def chunk(rows: int, vocab: int, width: int, *, trainable: bool = False) -> int:
        fill = None if trainable else rows_that_fill(width, 132)
        return rows_per_chunk(rows, vocab, torch.bfloat16, "cuda", trainable=trainable, chunk_bytes=None, fill=fill)

    # Tiles of 128 x 256: 8 rows of 16 are 128 of 132; a ninth row would be a second wave of 12.
    assert rows_that_fill(4096, 132) == 1024
    for width in (896, 2048, 3584, 5120, 8192):
        across = -(-width // 256)
        assert 132 - across < rows_that_fill(width, 132) // 128 * across <= 132
    assert chunk(4096, 128256, 4096) == 768  # 188 MiB of logits
    assert chunk(8192, 32000, 4096) == 1024  # one wave, not the 3072 rows of the byte budget
    assert chunk(8192, 128256, 4096, trainable=True) == 2048
    assert chunk(8192, 32000, 16384) == 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunk_size_does_not_matter(dtype: torch.dtype) -> None:
    x, weight, target = problem(61, 16, 127, dtype=dtype)
    # Head gradients are summed chunk by chunk; a bfloat16 partial is rounded before it is added in float32.
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1.6e-2, "atol": 4e-4}
    whole = loss_and_gradients(x, weight, target)
    for rows in (1, 4, 13, 60):
        part = loss_and_gradients(x, weight, target, chunk_bytes=rows * 127 * dtype.itemsize)
        for a, b in zip(whole, part, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_runs_are_equal_bit_by_bit(reduction: str) -> None:
    x, weight, target = problem(50, 24, 211, dtype=torch.float32)
    target[::3] = -100
    first = loss_and_gradients(x, weight, target, reduction=reduction, chunk_bytes=9 * 211 * 4)
    for _ in range(3):
        again = loss_and_gradients(x, weight, target, reduction=reduction, chunk_bytes=9 * 211 * 4)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_strided_and_transposed_operands(masked: bool) -> None:
    x, weight, target = problem(30, 12, 41)
    if masked:
        target[::4] = -100
    want = loss_and_gradients(x, weight, target)
    wide_x = torch.zeros(60, 24, dtype=torch.float64)
    wide_x[::2, ::2] = x
    layouts = [(wide_x[::2, ::2], weight), (x.T.contiguous().T, weight.T.contiguous().T)]
    tall = torch.zeros(82, 12, dtype=torch.float64)
    tall[1::2] = weight
    layouts.append((x, tall[1::2]))
    strided_target = torch.stack([target, target + 1], 1)[:, 0]
    for x_view, weight_view in layouts:
        assert not (x_view.is_contiguous() and weight_view.is_contiguous())
        for g, e in zip(
            loss_and_gradients(x_view, weight_view, strided_target, chunk_bytes=7 * 41 * 8), want, strict=True
        ):
            torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-13)


def test_leading_dimensions() -> None:
    x, weight, target = problem(24, 6, 19)
    flat = loss_and_gradients(x, weight, target, reduction="none")
    shaped = loss_and_gradients(x.view(2, 3, 4, 6), weight, target.view(2, 3, 4), reduction="none")
    assert shaped[0].shape == (2, 3, 4)
    for a, b in zip(flat, shaped, strict=True):
        assert torch.equal(a.flatten(), b.flatten())
    one = linear_cross_entropy(x[0], weight, target[0], reduction="none", outputs=("argmax",))
    assert one.loss.shape == ()
    torch.testing.assert_close(one.loss, flat[0][0])


@pytest.mark.parametrize("integer", [torch.int32, torch.int16, torch.uint8])
def test_integer_targets(integer: torch.dtype) -> None:
    x, weight, target = problem(21, 6, 19)
    for a, b in zip(
        loss_and_gradients(x, weight, target), loss_and_gradients(x, weight, target.to(integer)), strict=True
    ):
        assert torch.equal(a, b)


def test_ignore_index_may_be_a_class() -> None:
    x, weight, target = problem(40, 6, 5)
    assert (target == 3).any()
    got = loss_and_gradients(x, weight, target, ignore_index=3)
    for g, e in zip(got, torch_loss_and_gradients(x, weight, target, ignore_index=3), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-13)
    assert (got[1][target == 3] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
@pytest.mark.parametrize("how", ["ignored", "weightless", "empty", "clamped"])
def test_nothing_kept_is_zero_not_nan(reduction: str, mode: str, how: str) -> None:
    x, weight, target = problem(0 if how == "empty" else 9, 6, 19)
    bias = torch.zeros(19, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"reduction": reduction, "mode": mode, "linear_bias": bias}
    if how == "ignored":
        target = torch.full_like(target, -100)
        options["num_valid"] = 0
    if how == "weightless":
        options["token_weight"] = torch.zeros(9)
    if how == "clamped":
        options.update(token_weight=-torch.ones(9), negative="clamp")
    x.requires_grad_()
    weight.requires_grad_()
    out = linear_cross_entropy(x, weight, target, outputs=("lse", "argmax"), **options)
    assert torch.equal(out.loss, torch.zeros_like(out.loss))
    assert out.lse is not None
    assert out.argmax is not None
    assert (out.lse == 0).all()
    assert (out.argmax == -1).all()
    out.loss.sum().backward()
    for leaf in (x, weight, bias):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("mode", ["auto", "min_memory"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("dropped", [1, 40])
def test_dropped_rows_cannot_leak(mode: str, reduction: str, train_head: bool, dropped: int) -> None:
    """Padding may hold anything, NaN included: it reaches neither the loss nor any gradient."""
    x, weight, target = problem(64, 6, 19)
    target[:dropped:2] = -100
    token_weight = torch.ones(64)
    token_weight[1:dropped:2] = 0
    kept = (target != -100) & (token_weight != 0)
    poisoned = torch.where(kept[:, None], x, torch.nan).requires_grad_()
    clean = x[kept].clone().requires_grad_()
    heads = [weight.clone().requires_grad_(train_head) for _ in range(2)]
    up = torch.linspace(-1, 2, 64, dtype=torch.float64).masked_fill(~kept, torch.inf)
    loss = linear_cross_entropy(poisoned, heads[0], target, token_weight=token_weight, mode=mode, reduction=reduction)
    expected = linear_cross_entropy(clean, heads[1], target[kept], mode=mode, reduction=reduction)
    torch.testing.assert_close(loss[kept] if reduction == "none" else loss, expected, rtol=1e-12, atol=0)
    loss.backward(up if reduction == "none" else None)
    expected.backward(up[kept] if reduction == "none" else None)
    assert poisoned.grad is not None
    torch.testing.assert_close(poisoned.grad[kept], clean.grad, rtol=1e-12, atol=1e-14)
    assert (poisoned.grad[~kept] == 0).all()
    if train_head:
        torch.testing.assert_close(heads[0].grad, heads[1].grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gap", [30.0, 120.0, 4e4])
def test_sure_tokens_keep_a_finite_and_right_loss(dtype: torch.dtype, gap: float) -> None:
    """p_y rounds to 1 (or to 0): -log(1 - p_y) is `gap` up to log V, and the gradients are not lost
    either.
    """
    x = torch.tensor([[gap], [gap]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [0.0], [-1.0]], dtype=dtype)
    target = torch.tensor([0, 3])
    loss = linear_cross_entropy(
        x, weight, target, token_weight=torch.tensor([-1.0, 1.0]), reduction="none", outputs=("entropy",)
    )
    gap = float(x.detach()[0, 0])
    others = torch.tensor([0.0, 0.0, -gap], dtype=torch.float64).logsumexp(0)
    expected = torch.tensor([gap - float(others), 2 * gap], dtype=torch.float64)
    torch.testing.assert_close(loss.loss.double(), expected, rtol=1e-5, atol=0)
    assert loss.entropy is not None
    assert torch.isfinite(loss.entropy).all()
    loss.loss.sum().backward()
    assert x.grad is not None
    # Row 0 pushes the sure class down: d/dx = z_y's slope 1 minus the others' mean slope; row 1 pulls 3 up.
    assert abs(float(x.grad[0, 0]) - 1.0) < 0.02
    assert abs(float(x.grad[1, 0]) - 2.0) < 0.02


def test_confident_right_token_keeps_its_gradient() -> None:
    """nll = exp(-20) in float32: 1 - p_y by subtraction would be 0 and so would the gradient."""
    x = torch.tensor([[20.0]], requires_grad=True)
    loss = linear_cross_entropy(x, torch.tensor([[1.0], [0.0]]), torch.tensor([0]))
    loss.backward()
    expected = torch.tensor(-20.0, dtype=torch.float64).exp()
    torch.testing.assert_close(loss.double(), torch.log1p(expected), rtol=1e-6, atol=0)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double()[0, 0], -expected, rtol=1e-6, atol=0)


def test_masked_vocabulary_and_single_class() -> None:
    """A bias of -inf removes classes; with one class left, or V = 1, the loss is 0 and no NaN appears."""
    x, weight, target = problem(12, 5, 9)
    bias = torch.zeros(9, dtype=torch.float64)
    bias[6:] = -torch.inf
    target = target % 6
    short = loss_and_gradients(x, weight[:6], target)
    masked = loss_and_gradients(x, weight, target, linear_bias=bias)
    torch.testing.assert_close(masked[0], short[0])
    torch.testing.assert_close(masked[1], short[1])
    bias[1:] = -torch.inf
    for w, b in ((weight, bias), (weight[:1], None)):
        out = loss_and_gradients(x, w, torch.zeros(12, dtype=torch.int64), linear_bias=b)
        assert all(torch.equal(t, torch.zeros_like(t)) for t in out)
        outputs = linear_cross_entropy(
            x, w, torch.zeros(12, dtype=torch.int64), linear_bias=b, outputs=("entropy", "argmax")
        )
        assert outputs.entropy is not None
        assert outputs.argmax is not None
        assert (outputs.entropy == 0).all()
        assert (outputs.argmax == 0).all()


def test_nan_logits_are_not_hidden() -> None:
    x, weight, target = problem(6, 5, 9)
    x[2] = torch.nan
    loss = linear_cross_entropy(x, weight, target, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("v", [97, 1024])
@pytest.mark.parametrize("chunk_rows", [None, 32])
def test_bfloat16_error_is_torch_s_own(v: int, chunk_rows: int | None) -> None:
    """Against float64 on the same bfloat16 numbers: at most 1.5x eager torch's error, also of the eager code that
    takes its logits to float32 before the loss. Measured over seeds: 0.61-0.72x and 0.87-1.20x (the upstream
    scale rounds a second time).
    """
    x, weight, target = problem(128, 64, v, dtype=torch.bfloat16)
    weight = weight * 0.125
    target[::3] = -100
    truth = torch_loss_and_gradients(x.double(), weight.double(), target)
    chunk_bytes = None if chunk_rows is None else chunk_rows * v * 2
    mine = loss_and_gradients(x, weight, target, chunk_bytes=chunk_bytes)
    assert mine[0].dtype == torch.float32
    assert abs(float(mine[0]) - float(truth[0])) < 2e-3
    for logits_dtype in (torch.bfloat16, torch.float32):
        eager = torch_loss_and_gradients(x, weight, target, logits_dtype=logits_dtype)
        for m, e, t in zip(mine[1:], eager[1:], truth[1:], strict=True):
            assert m.dtype == torch.bfloat16
            error, own = (m.double() - t).norm() / t.norm(), (e.double() - t).norm() / t.norm()
            assert 0 < own < 0.02
            assert error <= 1.5 * own


def test_many_bfloat16_chunks_do_not_lose_the_weight_gradient() -> None:
    """256 chunks summed in bfloat16 would be off by several per cent; the accumulator is float32."""
    x, weight, target = problem(256, 8, 33, dtype=torch.bfloat16)
    x, weight = x.abs(), weight * 0
    target = target * 0
    truth = torch_loss_and_gradients(x.double(), weight.double(), target)[2]
    mine = loss_and_gradients(x, weight, target, chunk_bytes=33 * 2)[2]
    assert (mine.double() - truth).norm() / truth.norm() < 4e-3


@pytest.mark.skipif(not os.environ.get("STRUCTLOSS_BIG_TESTS"), reason="needs about 9 GB: STRUCTLOSS_BIG_TESTS=1")
def test_more_than_two_to_the_31_logits() -> None:
    n, v = 2**16 + 1, 2**15
    x = torch.zeros(n, 1, requires_grad=True)
    loss = linear_cross_entropy(x, torch.ones(v, 1), torch.full((n,), v - 1), chunk_bytes=2**33 + 2**18)
    torch.testing.assert_close(loss, torch.tensor(float(v)).log())


X, W, Y = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64)
CONSTANT = r" must not require a gradient: it is a constant of the loss"
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"reduction": "avg"}, ValueError, r"reduction must be one of 'mean', 'sum', 'none'; got 'avg'"),
    ({"negative": "flip"}, ValueError, r"negative must be one of .* got 'flip'"),
    ({"mode": "fast"}, ValueError, r"mode must be one of"),
    ({"backend": "cuda"}, ValueError, r"backend='cuda': the LM head has no CUDA C\+\+ kernel"),
    ({"backend": "tpu"}, ValueError, r"backend must be one of .* got 'tpu'"),
    ({"outputs": ("logits",)}, ValueError, r"outputs must be one of .* got 'logits'"),
    ({"outputs": "lse"}, TypeError, r"outputs must be a sequence of names, got the string 'lse'"),
    ({"input": X.half()}, TypeError, r"input must be float32, bfloat16 or float64, got torch.float16"),
    ({"linear_weight": W.double()}, TypeError, r"linear_weight must be torch.float32 .* got torch.float64"),
    ({"linear_weight": W[:, :2]}, ValueError, r"linear_weight must be \(V, D\).*\(5, 2\)"),
    ({"linear_weight": W[:0]}, ValueError, r"at least one row"),
    ({"target": Y[:3]}, ValueError, r"target must be \(4,\) like input, got \(3,\)"),
    ({"target": Y.float()}, TypeError, r"target must hold integer class ids, got torch.float32"),
    ({"target": Y + 5}, ValueError, r"target must be in \[0, 5\) or ignore_index \(-100\); got 5 at token 0"),
    ({"target": Y - 1}, ValueError, r"got -1 at token 0 \(4 such tokens\)"),
    ({"linear_bias": torch.zeros(4)}, ValueError, r"linear_bias must be \(5,\), got \(4,\)"),
    ({"weight": torch.zeros(4)}, ValueError, r"weight must be \(5,\), got \(4,\)"),
    ({"weight": torch.ones(5, requires_grad=True)}, ValueError, "^weight" + CONSTANT),
    ({"token_weight": torch.ones(5)}, ValueError, r"token_weight must be \(4,\), got \(5,\)"),
    ({"token_weight": torch.ones(4, requires_grad=True)}, ValueError, "^token_weight" + CONSTANT),
    ({"token_weight": torch.tensor([1.0, -2, 0, 0])}, ValueError, r"must be > 0; got -1.0: give a positive"),
    ({"denominator": 0.0}, ValueError, r"denominator, which must be > 0; got 0.0"),
    ({"denominator": torch.tensor(-1.0)}, ValueError, r"must be > 0; got -1.0"),
    ({"denominator": float("nan")}, ValueError, r"must be > 0; got nan"),
    ({"denominator": torch.ones(2)}, ValueError, r"must be a number or a 0-dim tensor, got \(2,\)"),
    ({"denominator": torch.tensor(1.0, requires_grad=True)}, ValueError, "^denominator" + CONSTANT),
    ({"denominator": 2.0, "reduction": "sum"}, ValueError, r"denominator is what .*'mean' divides by"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
    ({"z_loss": -1.0}, ValueError, r"z_loss must be finite and >= 0, got -1.0"),
    ({"softcap": 0.0}, ValueError, r"softcap must be None or finite and > 0, got 0.0"),
    ({"logit_scale": float("inf")}, ValueError, r"logit_scale must be finite"),
    ({"chunk_bytes": 0}, ValueError, r"chunk_bytes must be None or >= 1, got 0"),
    ({"num_valid": 3}, ValueError, r"num_valid must be the number of tokens .* got 3, counted 4"),
    ({"num_valid": 5}, ValueError, r"num_valid must be between 0 and the number of tokens \(4\), got 5"),
    ({"lora_a": torch.zeros(2, 3)}, ValueError, r"lora_a and lora_b must be given together"),
    ({"lora_a": X[:2], "lora_b": torch.zeros(5, 1)}, ValueError, r"lora_b must be \(5, 2\), got \(5, 1\)"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_refusals_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{"input": X, "linear_weight": W, "target": Y, **change})


def test_logprob_refuses_itself_as_output() -> None:
    with pytest.raises(ValueError, match="outputs must be one of 'lse', 'entropy', 'argmax'; got 'logprob'"):
        linear_logprob(X, W, Y, outputs=("logprob",))


def test_num_valid_gives_the_same_result() -> None:
    x, weight, target = problem(40, 6, 19)
    target[::3] = -100
    token_weight = torch.ones(40)
    token_weight[1::3] = 0
    kept = int(((target != -100) & (token_weight != 0)).sum())
    for reduction in ("mean", "none"):
        a = loss_and_gradients(x, weight, target, token_weight=token_weight, reduction=reduction)
        b = loss_and_gradients(x, weight, target, token_weight=token_weight, reduction=reduction, num_valid=kept)
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
