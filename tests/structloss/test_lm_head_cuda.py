"""The LM-head loss on a CUDA device: agreement, memory, no waiting for the device, capture, 64-bit offsets."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from structloss.lm_head import linear_cross_entropy
from tests.structloss.test_lm_head import OPTIONS, leaves

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
BACKENDS = ["torch", pytest.param("triton", marks=needs_triton)]
DEVICE = "cuda"


def half_masked(tokens: int, width: int, vocab: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """x, weight and target on the device, every second token ignored; logits of variance 1."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(tokens, width, generator=draw, device=DEVICE).to(dtype)
    weight = (torch.randn(vocab, width, generator=draw, device=DEVICE) / width**0.5).to(dtype)
    target = torch.randint(0, vocab, (tokens,), generator=draw, device=DEVICE)
    target[::2] = -100
    return x, weight, target


@needs_triton
@pytest.mark.parametrize(
    ("name", "vocab"),
    [
        *((name, 1000) for name in OPTIONS),
        ("plain", 1),
        *((n, v) for n in ("plain", "all") for v in (31, 50257, 128256)),
    ],
)
def test_triton_agrees_with_the_reference(name: str, vocab: int) -> None:
    """As under the interpreter, and with what only a device has: its exponential, its reductions, its compiler."""
    from tests.structloss.test_lm_head_triton import compare

    # The products with the head are float32 sums over the vocabulary: 6e-5 covers them at any size.
    tokens = 33 if vocab < 50000 else 9
    compare(OPTIONS[name], vocab, "sum", limit=6e-5, tokens=tokens, device=DEVICE)
    if name in ("plain", "all") and vocab == 1000:
        compare(OPTIONS[name], vocab, "none", limit=6e-5, tokens=tokens, device=DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [32000, 50257])
@pytest.mark.parametrize("chunk_rows", [None, 128])
def test_bfloat16_error_is_torch_s_own(vocab: int, chunk_rows: int | None, backend: str) -> None:
    """At most 1.5x the error of eager torch on the same numbers, weights and a scaled loss included."""
    x, weight, target = half_masked(1000, 256, vocab)
    token_weight = torch.rand(1000, device=DEVICE)
    kept = (target != -100) * token_weight
    chunk_bytes = None if chunk_rows is None else chunk_rows * vocab * 2
    made = {}
    for name, dtype in (("truth", torch.float64), ("eager", torch.bfloat16), (backend, torch.bfloat16)):
        head = leaves(x.to(dtype), weight.to(dtype))
        if name == backend:
            loss = linear_cross_entropy(
                *head, target, token_weight=token_weight, backend=backend, chunk_bytes=chunk_bytes
            )
        else:
            logits = F.linear(*head)
            wide = logits.double() if dtype == torch.float64 else logits.float()
            loss = (F.cross_entropy(wide, target, reduction="none") * kept).sum() / kept.sum()
        (loss * 0.3).backward()
        made[name] = [loss.detach(), *(leaf.grad for leaf in head)]
    assert abs(made[backend][0] - made["truth"][0]) < 2e-3
    for mine, eager, truth in zip(*(made[name][1:] for name in (backend, "eager", "truth")), strict=True):
        error, own = ((t.double() - truth).norm() / truth.norm() for t in (mine, eager))
        assert 0 < own < 0.02
        assert error <= 1.5 * own


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_are_equal_bit_by_bit(backend: str) -> None:
    x, weight, target = half_masked(700, 128, 50257)
    runs = []
    for _ in range(2):
        head = leaves(x, weight)
        loss = linear_cross_entropy(*head, target, backend=backend, chunk_bytes=128 * 50257 * 2)
        runs.append([loss.detach(), *torch.autograd.grad(loss, head)])
    assert all(a.equal(b) for a, b in zip(*runs, strict=True))


Step = Callable[[], list[Tensor]]


def training_step(backend: str, reduction: str, trained: bool, **options: Any) -> tuple[list[Tensor], Step]:
    """Static inputs (x, weight, target, token weights, upstream factor), and a step over them: loss and gradients."""
    x, weight, target = half_masked(300, 64, 5003)
    inputs = [x, weight, target, torch.rand(300, device=DEVICE) + 0.1, torch.tensor(0.3, device=DEVICE)]
    x.requires_grad_()
    weight.requires_grad_(trained)
    wanted = [x, weight] if trained else [x]

    def step() -> list[Tensor]:
        loss = linear_cross_entropy(
            x, weight, target, token_weight=inputs[3], backend=backend, reduction=reduction,
            chunk_bytes=128 * 5003 * 2, **options,
        )  # fmt: skip
        return [loss.detach(), *torch.autograd.grad((loss * inputs[4]).sum(), wanted)]

    return inputs, step


@pytest.fixture
def sync_is_an_error() -> Iterator[Callable[[], None]]:
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("trained", [False, True])
def test_nothing_waits_for_the_device(
    backend: str, reduction: str, trained: bool, sync_is_an_error: Callable[[], None]
) -> None:
    _, step = training_step(backend, reduction, trained, num_valid=150)
    expected = step()  # compiles
    torch.cuda.synchronize()
    sync_is_an_error()
    found = step()
    torch.cuda.set_sync_debug_mode("default")
    assert all(a.equal(b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_count_the_call_waits(backend: str, sync_is_an_error: Callable[[], None]) -> None:
    """What the test above would report."""
    _, step = training_step(backend, "mean", False)
    step()
    sync_is_an_error()
    with pytest.raises(RuntimeError, match="synchroniz"):
        step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("trained", [False, True])
def test_cuda_graph(backend: str, reduction: str, trained: bool) -> None:
    """Captured once, replayed on other hidden states, labels, weights and upstream factors, 1 among them."""
    inputs, step = training_step(backend, reduction, trained, num_valid=150)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for turn, factor in enumerate((1.0, -2.5, 0.0)):
        draw = torch.Generator(DEVICE).manual_seed(turn + 1)
        with torch.no_grad():
            inputs[0].copy_(torch.randn(300, 64, generator=draw, device=DEVICE))
            labels = torch.randint(0, 5003, (300,), generator=draw, device=DEVICE)
            labels[torch.randperm(300, generator=draw, device=DEVICE)[:150]] = -100
            inputs[2].copy_(labels)
            inputs[3].uniform_(0.1, 2, generator=draw)
            inputs[4].fill_(factor)
        for tensor in captured:
            tensor.fill_(torch.nan)
        graph.replay()
        for got, wanted in zip(captured, step(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1.6e-2, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_count_or_label_makes_the_loss_nan(backend: str) -> None:
    x, weight, target = half_masked(300, 64, 5003)
    assert linear_cross_entropy(x, weight, target, num_valid=149, backend=backend).isnan()
    if backend == "triton":  # torch operations stop the device instead
        target[1] = 5003
        loss = linear_cross_entropy(x, weight, target, backend=backend, reduction="none")
        assert loss.isnan().nonzero().tolist() == [[1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_two_to_the_31_logits_in_a_chunk(backend: str) -> None:
    """The last rows stand behind 2^31 elements; they are what they are alone. Takes 4.5 GB."""
    vocab = 128256
    tokens = 2**31 // vocab + 40
    x, weight, _ = half_masked(tokens, 16, vocab)
    target = torch.arange(tokens, device=DEVICE) % vocab
    target[-3:] = vocab - 1
    made = []
    for rows in (slice(None), slice(tokens - 32, None)):
        (leaf,) = leaves(x[rows])
        loss = linear_cross_entropy(leaf, weight, target[rows], reduction="none", backend=backend, chunk_bytes=1 << 33)
        loss.sum().backward()
        made.append([loss[-32:].detach(), leaf.grad[-32:]])
    for far, near in zip(*made, strict=True):
        torch.testing.assert_close(far, near, rtol=2e-2, atol=1e-3)


def rise(call: Callable[[], object]) -> float:
    """MiB that the peak of allocated memory rises in a call."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_memory_of_a_frozen_head(backend: str, masked: bool) -> None:
    """N = 8192, D = 4096, V = 128256 in bfloat16: at most 320 MiB over the inputs, backward included."""
    x, weight, target = half_masked(8192, 4096, 128256)
    if not masked:
        target = target.clamp(min=0)
    x.requires_grad_()

    def step() -> None:
        torch.autograd.grad(linear_cross_entropy(x, weight, target, backend=backend) * 0.5, x)

    step()  # the workspace of the matrix library
    found = rise(step)
    print(f"{backend}, {'half masked' if masked else 'dense'}: {found:.0f} MiB")
    assert 64 < found <= 320


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_of_a_trained_head(backend: str) -> None:
    """The float32 sum of dW (2004 MiB) and, in the backward, dW itself (1002 MiB) and dX (64 MiB)."""
    x, weight, target = half_masked(8192, 4096, 128256)
    head = leaves(x, weight)
    target = target.clamp(min=0)

    def step() -> None:
        torch.autograd.grad(linear_cross_entropy(*head, target, backend=backend), head)

    step()
    found = rise(step)
    print(f"{backend}, trained: {found:.0f} MiB")
    assert 1066 < found <= 3100


@needs_triton
def test_a_stored_gradient_is_scaled_on_the_device() -> None:
    """In place, beyond 2^31 elements too; a scale of 1 leaves even a signalling NaN alone."""
    from structloss.lm_head.triton import scale_in_place

    words = torch.full((10007,), 0x7F800001, dtype=torch.int32, device=DEVICE)
    scale_in_place(words.view(torch.float32), torch.tensor(1.0, device=DEVICE))
    assert (words == 0x7F800001).all()
    gradient = torch.ones(2**31 + 4099, dtype=torch.bfloat16, device=DEVICE)
    assert scale_in_place(gradient, torch.tensor(-0.5, device=DEVICE)).data_ptr() == gradient.data_ptr()
    for part in (gradient[:5], gradient[2**31 - 3 : 2**31 + 3], gradient[-5:]):
        assert (part == -0.5).all()
    assert gradient.sum(dtype=torch.float64) == -0.5 * gradient.numel()


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_of_a_mean_takes_no_memory(backend: str) -> None:
    """The stored gradients are handed out, scaled in place: no second copy of (V, D)."""
    x, weight, target = half_masked(64, 128, 32000)
    head = leaves(x, weight)
    for factor in (1.0, 0.3):
        loss = linear_cross_entropy(*head, target, backend=backend) * factor
        assert rise(lambda loss=loss: loss.backward()) < 0.01
