"""The Triton row pass of the LM head: under the interpreter on the CPU, compiled ahead of time, and on a GPU.

The interpreter has to be asked for before the kernel is defined, so `test_under_the_interpreter` starts pytest on this
file with the variable set, and everything marked `interpreter` runs there (and only there).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from structloss.lm_head import linear_cross_entropy, linear_logprob, triton_rows
from structloss.lm_head import triton as backend
from tests.structloss.triton_tools import mend_indices, resources, run_under_the_interpreter

INTERPRETED = triton_rows.interpreted()
interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_under_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set")
N, D = 9, 8
# The interpreter's block holds 64 columns and a tile 256: one column, less than a tile, exactly one, more than one.
VOCABULARIES = (1, 2, 31, 33, 256, 600)
OUTPUTS = ("logprob", "lse", "entropy", "argmax")


def test_under_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("this is the process that the test starts")
    run_under_the_interpreter(__file__)


@pytest.fixture(autouse=True)
def _mended(monkeypatch: pytest.MonkeyPatch) -> None:
    mend_indices(monkeypatch)


def problem(vocab: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[list[Tensor], Tensor]:
    """Input, weight and bias, and targets of which a third are ignored."""
    draw = torch.Generator().manual_seed(vocab)
    x = torch.randn(N, D, generator=draw)
    weight = torch.randn(vocab, D, generator=draw) * 2
    bias = torch.randn(vocab, generator=draw)
    target = torch.randint(0, vocab, (N,), generator=draw)
    target[::3] = -100
    return [t.to(device, dtype).requires_grad_() for t in (x, weight, bias)], target.to(device)


def options(vocab: int) -> dict[str, dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    classes = torch.rand(vocab, generator=draw) + 0.1
    signed = torch.linspace(-0.4, 1, N)
    return {
        "plain": {},
        "smoothing": {"label_smoothing": 0.1},
        "classes": {"weight": classes},
        "classes, smoothing, z-loss": {"weight": classes, "label_smoothing": 0.3, "z_loss": 0.01},
        "softcap": {"softcap": 3.0},
        "all of it": {
            "weight": classes, "label_smoothing": 0.2, "z_loss": 0.01, "softcap": 5.0, "logit_scale": 0.6,
            "token_weight": signed, "reduction": "sum",
        },
        "unlikelihood": {"token_weight": signed, "reduction": "sum", "z_loss": 0.02},
        "raw": {"token_weight": signed, "reduction": "sum", "negative": "raw"},
        "none": {"reduction": "none", "token_weight": signed.abs()},
    }  # fmt: skip


def results(leaves: list[Tensor], target: Tensor, **change: Any) -> list[Tensor]:
    """Loss, per-token results, gradients of the leaves under an upstream gradient that is neither 1 nor uniform."""
    made = linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2], outputs=OUTPUTS, **change)
    upstream = torch.linspace(-1, 2, N).to(made.loss) if made.loss.dim() else torch.tensor(0.7).to(made.loss)
    return [*(x.detach() for x in made), *torch.autograd.grad(made.loss, leaves, upstream)]


@interpreter
@pytest.mark.parametrize("name", list(options(1)))
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_agrees_with_the_reference(name: str, vocab: int) -> None:
    leaves, target = problem(vocab)
    change = options(vocab)[name]
    if vocab == 1 and "token_weight" in change and change.get("negative") != "raw":
        change["token_weight"] = change["token_weight"].abs()  # -log(1 - p) of the only class is infinite
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = results(wide, target, backend="reference", **change)
    got = results(leaves, target, backend="triton", chunk_bytes=4 * vocab * 4, **change)
    for value, truth in zip(got, expected, strict=True):
        # float32 rounding of sums over up to 600 classes; the largest error seen is 2e-6
        torch.testing.assert_close(value.double(), truth.double(), rtol=1e-5, atol=5e-6)


@interpreter
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_alone(needs: tuple[bool, bool, bool]) -> None:
    leaves, target = problem(33)
    every = results(leaves, target, backend="triton")[5:]
    alone = [leaf.detach().requires_grad_(need) for leaf, need in zip(leaves, needs, strict=True)]
    loss = linear_cross_entropy(alone[0], alone[1], target, linear_bias=alone[2], backend="triton") * 0.7
    loss.backward()
    for leaf, gradient in zip(alone, every, strict=True):
        assert (leaf.grad is None) == (not leaf.requires_grad)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-6, atol=1e-7)


@interpreter
def test_bfloat16_is_as_exact_as_torch_operations() -> None:
    """The interpreter cuts a bfloat16 off instead of rounding it, so up to twice the error of a rounded gradient."""
    leaves, target = problem(600, torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    truth = results(wide, target, backend="reference")
    error = {}
    for name in ("torch", "triton"):
        got = results(leaves, target, backend=name)
        error[name] = [
            float((x.double() - y.double()).norm() / y.double().norm()) for x, y in zip(got, truth, strict=True)
        ]
    for ours, theirs in zip(error["triton"], error["torch"], strict=True):
        assert ours <= 2 * theirs + 1e-6
    assert max(error["triton"]) < 0.02


@interpreter
@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_huge_and_tiny_logits(size: float) -> None:
    leaves, target = problem(300)
    scaled = [leaves[0], leaves[1], (leaves[2].detach() * size).requires_grad_()]
    wide = [t.detach().double().requires_grad_() for t in scaled]
    for change in ({}, {"softcap": 30.0}, {"token_weight": -torch.ones(N), "reduction": "sum"}):
        expected = results(wide, target, backend="reference", **change)
        got = results(scaled, target, backend="triton", **change)
        for value, truth in zip(got, expected, strict=True):
            torch.testing.assert_close(value.double(), truth.double(), rtol=1e-4, atol=1e-5)


@interpreter
def test_masked_classes_and_ties() -> None:
    leaves, target = problem(100)
    target[target >= 0] = 70
    bias = torch.zeros(100)
    bias[80:] = -torch.inf
    made = {}
    for name in ("torch", "triton"):
        x = torch.zeros_like(leaves[0]).requires_grad_()
        made[name] = linear_cross_entropy(x, leaves[1], target, linear_bias=bias, outputs=OUTPUTS, backend=name)
    kept = target >= 0
    argmax = made["triton"].argmax
    assert argmax is not None
    assert (argmax[kept] == 0).all()  # the lowest of 80 equal classes
    for value, expected in zip(made["triton"], made["torch"], strict=True):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(made["triton"].logprob[kept], torch.full((6,), 80.0).log().neg())


@interpreter
def test_unlikelihood_of_the_only_class_is_huge_and_finite() -> None:
    leaves, _ = problem(1)
    only, push_down = torch.zeros(N, dtype=torch.int64), -torch.ones(N)
    made = []
    for name in ("torch", "triton"):
        loss = linear_cross_entropy(*leaves[:2], only, token_weight=push_down, reduction="none", backend=name)
        made.append((loss, *torch.autograd.grad(loss.sum(), leaves[:2])))
    assert (made[1][0] > 1e38).all()
    assert made[1][0].isfinite().all()
    for value, expected in zip(made[1], made[0], strict=True):
        torch.testing.assert_close(value, expected)


@interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_in_place(dtype: torch.dtype) -> None:
    values = torch.randn(3, 5000).to(dtype)
    expected = values * 0.5
    assert torch.equal(backend.scale_in_place(values.clone(), torch.tensor(1.0)), values)
    assert torch.equal(backend.scale_in_place(values, torch.tensor(0.5)), expected)


@interpreter
@pytest.mark.parametrize("name", ["target", "weight", "token_weight"])
def test_strided_vectors_are_read_by_their_strides(name: str) -> None:
    """No token is ignored: compaction would make contiguous copies and hide the strides."""
    leaves, target = problem(50)
    draw = torch.Generator().manual_seed(3)
    vectors = {
        "target": torch.randint(0, 50, (N, 2), generator=draw),
        "weight": torch.rand(50, 2, generator=draw) + 0.1,
        "token_weight": torch.rand(N, 2, generator=draw) + 0.1,
    }
    vector = vectors[name][:, 0]
    assert not vector.is_contiguous()
    target = vector if name == "target" else target.clamp(min=0)
    change = {} if name == "target" else {name: vector}
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = results(wide, target, backend="reference", **change)
    for value, truth in zip(results(leaves, target, backend="triton", **change), expected, strict=True):
        torch.testing.assert_close(value.double(), truth.double(), rtol=1e-5, atol=5e-6)


@interpreter
def test_runs_are_equal_and_chunks_do_not_matter() -> None:
    leaves, target = problem(200)
    first = results(leaves, target, backend="triton")
    again = results(leaves, target, backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    cut = results(leaves, target, backend="triton", chunk_bytes=200 * 4)
    for x, y in zip(first, cut, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@interpreter
def test_logprob_and_everything_ignored() -> None:
    leaves, target = problem(64)
    logprob = linear_logprob(leaves[0], leaves[1], target, backend="triton")
    expected = linear_logprob(leaves[0].double(), leaves[1].double(), target, backend="reference")
    torch.testing.assert_close(logprob.double(), expected, rtol=1e-5, atol=1e-5)
    nothing = linear_cross_entropy(leaves[0], leaves[1], torch.full_like(target, -100), backend="triton")
    nothing.backward()
    assert nothing == 0
    assert leaves[0].grad is not None
    assert not leaves[0].grad.any()


@compiled
def test_refuses_cpu_tensors_and_float64() -> None:
    leaves, target = problem(5)
    with pytest.raises(ValueError, match=r"backend='triton' needs CUDA tensors, got cpu"):
        linear_cross_entropy(leaves[0], leaves[1], target, backend="triton")
    with pytest.raises(ValueError, match=r"backend='triton' takes float32 and bfloat16, got float64"):
        linear_cross_entropy(leaves[0].double(), leaves[1].double(), target, backend="triton")


@compiled
@pytest.mark.parametrize("flags", ["plain", "loss alone", "every flag"])
@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_without_spills(flags: str, arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel = triton_rows.finish_rows
    switches = ("WEIGHT", "UNLIKELY", "CLASSES", "SMOOTH", "Z_LOSS", "CAP", "SCALE", "ENTROPY", "ARGMAX")
    constants: dict[str, object] = dict.fromkeys(switches, flags == "every flag")
    constants |= {
        "GRADIENT": flags != "loss alone",
        "TILE": backend.tile(extras=flags == "every flag"),
        "BLOCK": backend._WARPS * 32 * backend._LANE_ELEMENTS,
    }
    types = {"logits_ptr": "*bf16", "target_ptr": "*i64", "argmax_ptr": "*i64", "unlikely_ptr": "*u8"}
    numbers = dict.fromkeys(("eps", "z_loss", "softcap", "logit_scale"), "fp32")
    signature = {}
    for name in kernel.arg_names:
        other = "*fp32" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else {**types, **numbers}.get(name, other)
    used = resources(kernel, signature, constants, {"num_warps": backend._WARPS}, arch, tmp_path)
    print(f"finish_rows, {flags}, sm_{arch}: {used}")
    assert used["REG"] <= 64
    assert used["LOCAL"] == 0
    assert used["STACK"] <= (8 if flags == "every flag" else 0)  # one value that all flags at once leave no room for


def test_rows_in_hand_fit_the_cache() -> None:
    h200 = {"multiprocessors": 132, "cache_bytes": 50 << 20}
    assert backend.grid_size(768, 128256 * 2, **h200) == 132  # 33 MiB in hand
    assert backend.grid_size(768, 32000 * 2, **h200) == 264  # two a multiprocessor, 16 MiB
    assert backend.grid_size(100, 32000 * 2, **h200) == 100
    assert backend.grid_size(768, 256000 * 4, **h200) == 66  # too large for one a multiprocessor
    assert backend.grid_size(1, 1 << 40, **h200) == 1


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def device_problem(rows: int, vocab: int, width: int) -> tuple[list[Tensor], Tensor]:
    draw = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(rows, width, generator=draw, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(vocab, width, generator=draw, device="cuda") / width**0.5).bfloat16().requires_grad_()
    target = torch.randint(0, vocab, (rows,), generator=draw, device="cuda")
    target[: rows // 2] = -100
    return [x, weight], target


def relative(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.gpu
@gpu
@compiled
@pytest.mark.parametrize("vocab", [1000, 32003, 128256])
@pytest.mark.parametrize("change", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 30.0}])
def test_on_a_gpu_no_worse_than_torch(vocab: int, change: dict[str, Any]) -> None:
    """bfloat16 with a third of the rows kept, against float64, beside what torch's own bfloat16 operations get."""
    leaves, target = device_problem(300, vocab, 256)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = linear_cross_entropy(wide[0], wide[1], target, backend="reference", **change)
    truth = [exact.detach(), *torch.autograd.grad(exact, wide)]
    error = {}
    for name in ("torch", "triton"):
        loss = linear_cross_entropy(leaves[0], leaves[1], target, backend=name, **change)
        got = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        error[name] = [relative(x, y) for x, y in zip(got, truth, strict=True)]
    for ours, theirs in zip(error["triton"], error["torch"], strict=True):
        assert ours <= 1.5 * theirs + 1e-6


@pytest.mark.gpu
@gpu
@compiled
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_graph_can_be_captured_and_nothing_waits(name: str) -> None:
    leaves, target = device_problem(256, 5003, 128)
    frozen = leaves[1].detach()

    def step() -> tuple[Tensor, Tensor]:
        loss = linear_cross_entropy(leaves[0], frozen, target, num_valid=128, backend=name)
        return loss.detach(), torch.autograd.grad(loss, leaves[0])[0]

    expected = step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.gpu
@gpu
@compiled
def test_offsets_beyond_two_to_the_31_and_memory() -> None:
    """24,000 rows of 100,003 logits in one chunk have 2.4e9 elements; by default a chunk takes 192 MiB."""
    leaves, target = device_problem(24000, 100003, 64)
    target[0] = 17
    frozen = leaves[1].detach()
    rows = torch.cat([torch.arange(3), torch.arange(23990, 24000)]).cuda()
    few = linear_cross_entropy(leaves[0][rows], frozen, target[rows], reduction="none", backend="triton")
    target[1:12000] = 5  # every row kept
    every = linear_cross_entropy(leaves[0], frozen, target, reduction="none", backend="triton", chunk_bytes=1 << 40)
    torch.testing.assert_close(every[-10:], few[-10:], rtol=1e-3, atol=1e-3)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(leaves[0], frozen, target, backend="triton").backward()
    assert torch.cuda.max_memory_allocated() - before < 320 << 20
