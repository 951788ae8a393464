"""The Triton row pass of the LM head: under the interpreter on the CPU, and compiled ahead of time.

Triton reads TRITON_INTERPRET when a kernel is defined, so the comparisons run in a process of their own: the test
`test_under_the_interpreter` starts pytest on this file with the variable set, and everything marked `interpreter` runs
there (and only there). Results on a GPU: tests/structloss/test_lm_head_cuda.py.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from structloss.lm_head import chunks, linear_cross_entropy, linear_logprob, triton_rows
from structloss.lm_head import triton as backend
from structloss.lm_head.row_pass import RowFormula, RowInputs, RowResults, TorchRowPass
from structloss.lm_head.triton_rows import interpreted
from tests.structloss.test_lm_head import OPTIONS, fill_in, leaves, problem, upstream_like
from tests.structloss.triton_tools import resources, run_under_the_interpreter

INTERPRETED = interpreted()
interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_under_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set")
# float32 against float64, relative to the largest entry. Measured: 8e-7 for gradients, 3e-7 for losses and outputs.
LIMIT = 3e-6


def test_under_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("this is the process that the test starts")
    run_under_the_interpreter(__file__)


@pytest.fixture(autouse=INTERPRETED)
def to_nearest_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's float32 to bfloat16 truncates, or loses a carry: devices round to nearest, ties to even."""
    from triton.runtime import interpreter as runtime

    convert = runtime._convert_float

    def converted(values: Any, source: Any, wanted: Any, mode: Any) -> Any:
        if str(source) != "fp32" or str(wanted) != "bf16":
            return convert(values, source, wanted, mode)
        return torch.from_numpy(values.astype("float32")).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(runtime, "_convert_float", converted)


def assert_close(got: Tensor, wanted: Tensor, limit: float = LIMIT) -> None:
    """The difference relative to the largest entry; NaN and infinities are to stand in the same places."""
    wanted = wanted.double()
    largest = wanted.nan_to_num(0, 0, 0).abs().amax().item() if wanted.numel() else 0.0
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=limit * largest, equal_nan=True)


def compare(
    case: dict[str, Any], vocab: int, reduction: str, limit: float = LIMIT, tokens: int = 9, device: str = "cpu"
) -> None:
    """Loss, outputs and gradients against the float64 reference: all logits, softmax and autograd."""
    *head, target = (t.to(device) for t in problem(tokens, 5, vocab, seed=vocab))
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in fill_in(case, tokens, vocab).items()}
    results = []
    for dtype, name in ((torch.float32, "triton"), (torch.float64, "reference")):
        x, weight, bias = leaves(*(t.float().to(dtype) for t in head))
        out = linear_cross_entropy(
            x, weight, target, linear_bias=bias, reduction=reduction, outputs=("logprob", "lse", "entropy", "argmax"),
            chunk_bytes=4 * vocab * 4, backend=name, **options,
        )  # fmt: skip
        out.loss.backward(upstream_like(out.loss.detach().cpu().double()).to(out.loss))
        results.append([*out, x.grad, weight.grad, bias.grad])
    for got, wanted in zip(*results, strict=True):
        assert_close(got, wanted, limit)


@interpreter
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_agrees_with_the_reference(name: str) -> None:
    compare(OPTIONS[name], 101, "sum")
    if name in ("plain", "all"):
        compare(OPTIONS[name], 101, "none")


@interpreter
@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("vocab", [2, 31, 33, 1000])
def test_any_vocabulary(vocab: int, name: str) -> None:
    """Three of them are no multiple of an access of 16 bytes."""
    compare(OPTIONS[name], vocab, "sum")


@interpreter
@pytest.mark.parametrize("name", ["plain", "all"])
def test_more_classes_than_the_largest_block(name: str) -> None:
    vocab = 40003
    largest = backend.Shape.of(1 << 20, 2, plain=True)
    assert vocab > largest.lanes * largest.width
    # The product with the head, over 40003 classes in float32, is off by 2e-5 itself; so the rows are compared as well.
    compare(OPTIONS[name], vocab, "sum", limit=6e-5)
    a = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0))
    made = []
    for kernel, dtype in ((backend.RowPass, torch.float32), (TorchRowPass, torch.float64)):
        inputs = RowInputs(torch.tensor([0, 35000, vocab - 1]), None, None, torch.tensor(0.3, dtype=dtype).expand(3))
        made.append(row_results(kernel, a.to(dtype), inputs, formula_of(OPTIONS[name], vocab, dtype)))
    for got, wanted in zip(*made, strict=True):
        assert_close(got, wanted)


def formula_of(case: dict[str, Any], vocab: int, dtype: torch.dtype = torch.float32) -> RowFormula:
    options = fill_in(case, 1, vocab)
    classes = options.get("weight")
    return RowFormula(
        None if classes is None else classes.to(dtype),
        options.get("label_smoothing", 0.0),
        options.get("z_loss", 0.0),
        options.get("softcap"),
        options.get("logit_scale", 1.0),
    )


@interpreter
def test_a_single_class_and_no_kept_token() -> None:
    x, weight, _, target = problem(6, 4, 1, dtype=torch.float32)
    for labels, seen in ((target, 1), (torch.full_like(target, -100), 0)):
        head = leaves(x, weight)
        out = linear_cross_entropy(*head, labels, outputs=("entropy", "argmax"), z_loss=0.0, backend="triton")
        out.loss.backward()
        assert out.loss == 0
        assert out.entropy is not None
        assert out.argmax is not None
        assert (out.entropy == 0).all()
        assert out.argmax.equal(torch.where(labels == 0, 0, -1))
        assert (out.argmax == 0).sum() == (seen and (target == 0).sum())
        assert all((leaf.grad == 0).all() for leaf in head if leaf.grad is not None)


@interpreter
def test_without_gradients() -> None:
    x, weight, bias, target = problem(9, 5, 101, dtype=torch.float32)
    with torch.no_grad():
        got = linear_cross_entropy(x, weight, target, linear_bias=bias, backend="triton", reduction="none")
    wanted = linear_cross_entropy(*(t.double() for t in (x, weight)), target, linear_bias=bias.double(),
                                  backend="reference", reduction="none")  # fmt: skip
    assert_close(got, wanted)


@interpreter
@pytest.mark.parametrize("trained", [False, True])
def test_logprob(trained: bool) -> None:
    """A frozen head scales rows of dX; a trained one computes its logits again, with the upstream vector folded in."""
    x, weight, bias, target = problem(9, 5, 101, dtype=torch.float32)
    results = []
    for dtype, name in ((torch.float32, "triton"), (torch.float64, "reference")):
        head = leaves(*(t.to(dtype) for t in (x, weight, bias)))
        for leaf in head[1:]:
            leaf.requires_grad_(trained)
        # Every second token: labels and upstream vectors with a stride.
        value = linear_logprob(head[0][::2], head[1], target[::2], linear_bias=head[2], backend=name, softcap=9.0)
        upstream = upstream_like(torch.empty(10, dtype=torch.float64))[::2].to(dtype)
        value.backward(upstream)
        results.append([value, *(leaf.grad for leaf in head if leaf.requires_grad)])
    for got, wanted in zip(*results, strict=True):
        assert_close(got, wanted)


@interpreter
def test_strided_vectors() -> None:
    """Labels, token weights and class weights that are every second entry of something else; no token is ignored."""
    x, weight, _, target = problem(9, 5, 31, dtype=torch.float32)
    labels = torch.stack([target.clamp(min=0), torch.full_like(target, 30)], 1)[:, 0]
    token_weight, classes = torch.rand(18)[::2], torch.rand(62)[::2]
    assert not any(vector.is_contiguous() for vector in (labels, token_weight, classes))
    options: dict[str, Any] = {"token_weight": token_weight, "weight": classes, "negative": "raw"}
    made = [linear_cross_entropy(x, weight, labels, backend=name, **options) for name in ("triton", "torch")]
    assert_close(*made)


@interpreter
def test_ties_go_to_the_lowest_class() -> None:
    x, weight = torch.ones(4, 1), torch.zeros(2000, 1)
    weight[[7, 900, 1999]] = 2.0
    for target in ([7, 900, 1999, 0], [1999, 1999, 7, 3]):
        out = linear_cross_entropy(x, weight, torch.tensor(target), outputs=("argmax",), backend="triton")
        assert out.argmax is not None
        assert out.argmax.tolist() == [7, 7, 7, 7]


@interpreter
def test_bfloat16_rounds_where_the_torch_pass_rounds() -> None:
    """Against float64 on the same numbers: the error of the torch pass, which is that of bfloat16 logits, and no more.

    Measured: 0.98 to 1.01 of it.
    """
    x, weight, _, target = problem(30, 32, 1000, dtype=torch.bfloat16)
    weight *= 0.2
    truth: list[Tensor] = []
    errors: dict[str, list[float]] = {}
    for name in ("reference", "torch", "triton"):
        head = leaves(*(t.double() if name == "reference" else t for t in (x, weight)))
        loss = linear_cross_entropy(*head, target, backend=name, label_smoothing=0.1)
        loss.backward()
        made = [loss, *(leaf.grad for leaf in head if leaf.grad is not None)]
        truth = truth or made
        errors[name] = [((m.double() - t).norm() / t.norm()).item() for m, t in zip(made, truth, strict=True)]
    for own, error in zip(errors["torch"], errors["triton"], strict=True):
        assert error <= 1.05 * own


def row_results(kernel: Any, a: Tensor, inputs: RowInputs, formula: RowFormula) -> list[Tensor]:
    """Gradient, then all results, of a row pass on a copy of `a`."""
    logits = a.clone()
    results = RowResults.empty(a.shape[0], a, entropy=True, argmax=True)
    kernel(logits, a.shape[1], formula, max_rows=a.shape[0], entropy=True)(logits, inputs, results)
    return [logits, *(getattr(results, field.name) for field in dataclasses.fields(results))]


def special_rows() -> tuple[Tensor, Tensor]:
    """Rows with NaN, infinities and the largest numbers, and targets on and beside them."""
    inf, nan, most = torch.inf, torch.nan, torch.finfo(torch.float32).max
    base = torch.linspace(-2, 3, 50)
    changes: list[dict[int, float]] = [
        {7: nan}, {3: nan, 8: nan}, {7: inf}, {8: inf}, {8: -inf}, {7: -inf}, {3: -inf, 4: -inf, 49: -inf},
        {7: most}, {8: most}, {8: -most}, {7: 3e38, 8: -3e38}, {7: 500.0, 8: 400.0}, {7: 300.0, 8: 290.0},
        dict.fromkeys(range(50), -inf), {i: -inf for i in range(50) if i != 7}, {i: -inf for i in range(50) if i != 8},
        dict.fromkeys(range(50), 0.0), {i: -most for i in range(50) if i != 7},
    ]  # fmt: skip
    rows = base.repeat(len(changes), 1)
    for row, change in zip(rows, changes, strict=True):
        for place, value in change.items():
            row[place] = value
    return rows, torch.full((len(changes),), 7)


@interpreter
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ("plain", "z-loss", "smoothing", "softcap and scale", "all")),
        *((name, torch.bfloat16) for name in ("plain", "all")),
    ],
)
def test_special_numbers_mean_what_they_mean_to_the_torch_pass(name: str, dtype: torch.dtype) -> None:
    a, target = special_rows()
    formula = formula_of(OPTIONS[name], 50)
    weight = torch.linspace(0.1, 2, len(target)) if name == "all" else None
    unlikely = torch.arange(len(target)) % 3 == 1 if name == "all" else None
    inputs = RowInputs(target, weight, unlikely, torch.tensor(-0.7).expand(len(target)))
    names = ["gradient", "loss", "logprob", "lse", "entropy", "argmax"]
    made = [row_results(kernel, a.to(dtype), inputs, formula) for kernel in (backend.RowPass, TorchRowPass)]
    for what, got, wanted in zip(names, *made, strict=True):
        for row, (g, w) in enumerate(zip(got.float(), wanted.float(), strict=True)):
            assert g.isnan().equal(w.isnan()), (what, row)
            # A bfloat16 gradient may round the other way.
            torch.testing.assert_close(
                g, w, equal_nan=True, rtol=1e-2 if what == "gradient" and dtype == torch.bfloat16 else 2e-5, atol=1e-6,
                msg=lambda text, what=what, row=row: f"{what} of row {row}: {text}",
            )  # fmt: skip


@interpreter
def test_columns_behind_the_vocabulary_are_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are longer than the vocabulary: up to a multiple of 16, what stands there does not matter."""
    vocab = 37
    a = torch.randn(9, vocab)
    formula = formula_of(OPTIONS["all"], vocab)
    inputs = RowInputs(torch.arange(9) * 4, None, None, torch.ones(9))
    wanted = row_results(backend.RowPass, a, inputs, formula)
    memory = torch.full((9, 80), torch.nan)
    memory[:, :vocab] = a
    memory[:, 48:] = 5.0
    logits = memory[:, :vocab]
    results = RowResults.empty(9, a, entropy=True, argmax=True)
    backend.RowPass(logits, vocab, formula, max_rows=9, entropy=True)(logits, inputs, results)
    for got, same in zip([logits, *vars(results).values()], wanted, strict=True):
        assert got.equal(same)
    assert (memory[:, 48:] == 5.0).all()
    plain = {name: gradients(vocab, name) for name in ("torch", "triton")}
    monkeypatch.setattr(chunks, "row_stride", lambda vocab, dtype, device: vocab + 11)
    for name in plain:
        assert all(a.equal(b) for a, b in zip(gradients(vocab, name), plain[name], strict=True))


def gradients(vocab: int, name: str, case: dict[str, Any] | None = None) -> list[Tensor]:
    x, weight, bias, target = problem(9, 5, vocab, dtype=torch.float32)
    head = leaves(x, weight, bias)
    loss = linear_cross_entropy(
        head[0], head[1], target, linear_bias=head[2], backend=name, chunk_bytes=4 * vocab * 4, reduction="sum",
        **fill_in(case or {}, 9, vocab),
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, head)]


@interpreter
def test_nothing_is_written_behind_the_last_row() -> None:
    memory = torch.full((5 * 37 + 40,), 5.0)
    logits = memory[: 5 * 37].view(5, 37)
    logits.copy_(torch.randn(5, 37))
    inputs = RowInputs(torch.tensor([0, 5, 36, 7, 8]), None, None, torch.ones(5))
    results = RowResults.empty(5, logits, entropy=False, argmax=False)
    backend.RowPass(logits, 37, RowFormula(), max_rows=5, entropy=False)(logits, inputs, results)
    assert (memory[5 * 37 :] == 5.0).all()
    assert logits.sum(1).abs().max() < 1e-6  # r - onehot sums to 0


@interpreter
@pytest.mark.parametrize("wrong", [37, -1, 1 << 40])
def test_a_target_outside_of_the_vocabulary_makes_its_row_nan(wrong: int) -> None:
    a = torch.randn(3, 37)
    inputs = RowInputs(torch.tensor([4, wrong, 5]), None, None, torch.ones(3))
    gradient, *results = row_results(backend.RowPass, a, inputs, RowFormula(torch.rand(37), 0.1))
    assert gradient.isnan().any(1).tolist() == [False, True, False]
    for value in results[:4]:
        assert value.isnan().tolist() == [False, True, False]


@interpreter
def test_runs_are_equal_bit_by_bit() -> None:
    first, second = (gradients(1000, "triton", OPTIONS["all"]) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 4096, 10007])
def test_scaling_a_gradient(count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_SCALE_PROGRAMS", 2)  # 10007 is three blocks
    gradient = torch.randn(count).to(dtype)
    for scale in (-0.3, 0.0, torch.inf):
        made = backend.scale_in_place(gradient.clone(), torch.tensor(scale))
        torch.testing.assert_close(made, (gradient.float() * scale).to(dtype), rtol=0, atol=0, equal_nan=True)
    assert backend.scale_in_place(gradient[:0], torch.tensor(2.0)).numel() == 0


@interpreter
def test_a_scale_of_one_touches_nothing() -> None:
    """A signalling NaN turns quiet in any product, also in that with 1."""
    words = torch.full((10007,), 0x7F800001, dtype=torch.int32)
    backend.scale_in_place(words.view(torch.float32), torch.tensor(1.0))
    assert (words == 0x7F800001).all()
    backend.scale_in_place(words.view(torch.float32), torch.tensor(1.0 + 2**-20))
    assert (words != 0x7F800001).all()


# What a call can ask for, by the arguments of the kernel that are not None then.
EVALUATION: set[str] = set()
PLAIN = {"upstream_ptr"}
WEIGHTED = PLAIN | {"weight_ptr", "unlikely_ptr"}
OUTPUTS = WEIGHTED | {"entropy_ptr", "argmax_ptr"}
CAPPED = WEIGHTED | {"softcap", "logit_scale"}
SMOOTH = WEIGHTED | {"smoothing", "class_weight_ptr", "class_sum_ptr"}
EVERYTHING = OUTPUTS | CAPPED | SMOOTH | {"z_loss"}


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@compiled
@pytest.mark.parametrize(
    ("asked", "target"),
    [
        *((asked, 90) for asked in (EVALUATION, PLAIN, WEIGHTED, OUTPUTS, CAPPED, SMOOTH, EVERYTHING)),
        *((asked, 80) for asked in (PLAIN, EVERYTHING)),
    ],
)
def test_compiles_without_spills(asked: set[str], target: int, empty_cache: Path) -> None:
    """Rows of any width are read 16 bytes at a time, and 32 warps fit a multiprocessor."""
    special = {
        "target_ptr": "*i64",
        "argmax_ptr": "*i64",
        "unlikely_ptr": "*u8",
        "stride": "i32",
        "upstream_stride": "i32",
    }
    always = {"logits_ptr", "target_ptr", "loss_ptr", "logprob_ptr", "lse_ptr", "stride", "upstream_stride"}
    plain = not asked & {"smoothing", "softcap", "argmax_ptr"}
    odd = [(50257, "bf16", 2)] if asked in (PLAIN, EVERYTHING) else []
    for vocab, type_name, size in ((128256, "bf16", 2), (128256, "fp32", 4), *odd):
        types = {name: special.get(name, "*fp32" if name.endswith("_ptr") else "fp32") for name in always | asked}
        types["logits_ptr"] = f"*{type_name}"
        shape = backend.Shape.of(vocab, size, plain=plain)
        constants = {"VOCAB": vocab, "EDGE": -(-vocab // 16) * 16, "LANES": shape.lanes, "WIDTH": shape.width}
        signature = {name: types.get(name, "constexpr") for name in triton_rows.finish_rows.arg_names}
        every = {name: constants.get(name) for name in signature if signature[name] == "constexpr"}
        options = {"num_warps": shape.warps, "maxnreg": backend._REGISTERS}
        wide = ("logits_ptr", "stride", *sorted(asked & {"class_weight_ptr"}))
        used = resources(triton_rows.finish_rows, signature, every, options, target, empty_cache, wide)
        print(f"sm_{target}, V = {vocab}, {type_name}, {shape.warps} warps, {sorted(asked)}: {used}")
        assert used["REG"] <= backend._REGISTERS
        assert used["LOCAL"] == 0
        # All options at once over a vocabulary that is no multiple of 16 lacks a few registers.
        assert used["STACK"] <= (48 if asked == EVERYTHING and vocab == 50257 else 0)
        assert used["shared"] <= 4 * shape.warps
        # Each sweep has its loads in one place of the program; float32 class weights take two for eight logits.
        sweeps = 1 + ("upstream_ptr" in asked)
        weights = 4 // size if "class_weight_ptr" in asked and vocab % 16 == 0 else 0
        assert used["wide"] == sweeps * (1 + weights) * shape.lanes // (32 * shape.warps)


@compiled
def test_the_scale_kernel_compiles(empty_cache: Path) -> None:
    signature = {"gradient_ptr": "*bf16", "scale_ptr": "*fp32", "count": "i64", "BLOCK": "constexpr"}
    constants = {"BLOCK": backend._SCALE_BLOCK}
    used = resources(
        triton_rows.scale_unless_one, signature, constants, {"num_warps": 8}, 90, empty_cache, ("gradient_ptr", "count")
    )
    print(f"scale: {used}")
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["wide"] == backend._SCALE_BLOCK // (8 * 32 * 8)


@compiled
def test_needs_cuda_tensors_and_a_supported_type() -> None:
    x, weight, _, target = problem(3, 4, 5, dtype=torch.float32)
    with pytest.raises(ValueError, match="backend='triton' needs CUDA tensors, got cpu; use backend='auto' there"):
        linear_cross_entropy(x, weight, target, backend="triton")
    with pytest.raises(ValueError, match="backend='triton' takes float32 and bfloat16, got float64"):
        linear_cross_entropy(x.double(), weight.double(), target, backend="triton")


@compiled
def test_importing_the_package_does_not_import_triton() -> None:
    code = (
        "import sys, structloss; assert not [m for m in sys.modules if m.startswith('structloss.') and 'triton' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
