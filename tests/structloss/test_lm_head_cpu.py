"""The C++ row pass of the LM head: whole rows (trained heads, smoothing) and class by class (frozen heads)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from structloss.lm_head import linear_cross_entropy, op
from structloss.lm_head.stream import stream_blocks

cpu = pytest.importorskip("structloss.lm_head.cpu")
pytestmark = pytest.mark.skipif(cpu.import_error is not None, reason="the compiled extension is not there")

N, D = 13, 6
# One class, less than a vector, around one, more than a block of a row (4096) and not a multiple of anything.
VOCABULARIES = (1, 2, 15, 16, 17, 1000, 9001)
OUTPUTS = ("logprob", "lse", "entropy", "argmax")
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


def problem(vocab: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    draw = torch.Generator().manual_seed(vocab)
    x, weight, bias = (torch.randn(shape, generator=draw) for shape in ((N, D), (vocab, D), (vocab,)))
    target = torch.randint(0, vocab, (N,), generator=draw)
    target[::4] = -100
    return [t.to(dtype).requires_grad_() for t in (x, weight * 2, bias)], target


def options(vocab: int) -> dict[str, dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    classes = torch.rand(vocab, generator=draw) + 0.1
    signed = torch.linspace(-0.4, 1, N)
    return {
        "plain": {},
        "classes": {"weight": classes},
        "z-loss and scale": {"z_loss": 0.02, "logit_scale": 0.7},
        "softcap": {"softcap": 3.0},
        "smoothing": {"label_smoothing": 0.1},
        "smoothing and classes": {"weight": classes, "label_smoothing": 0.3, "softcap": 4.0},
        "unlikelihood": {"token_weight": signed, "reduction": "sum", "weight": classes, "z_loss": 0.01},
        "raw": {"token_weight": signed, "reduction": "sum", "negative": "raw", "label_smoothing": 0.2},
        "none": {"reduction": "none", "token_weight": signed.abs()},
        "min_memory": {"mode": "min_memory"},
    }


def results(leaves: list[Tensor], target: Tensor, **change: Any) -> list[Tensor]:
    """Loss, per-token results, and gradients of what needs one under an upstream gradient that is not 1."""
    made = linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2], outputs=OUTPUTS, **change)
    upstream = torch.linspace(-1, 2, N).to(made.loss) if made.loss.dim() else torch.tensor(0.7).to(made.loss)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [*(x.detach() for x in made), *torch.autograd.grad(made.loss, wanted, upstream)]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", list(options(1)))
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_agrees_with_the_reference(name: str, vocab: int, frozen: bool) -> None:
    leaves, target = problem(vocab)
    change = options(vocab)[name]
    if vocab == 1 and "token_weight" in change and change.get("negative") != "raw":
        change["token_weight"] = change["token_weight"].abs()  # -log(1 - p) of the only class is infinite
    for leaf in leaves[1:]:
        leaf.requires_grad_(not frozen)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in leaves]
    expected = results(wide, target, backend="reference", **change)
    # Blocks of a few rows and a few hundred classes at most.
    got = results(leaves, target, backend="cpu", chunk_bytes=4 * 700, **change)
    for value, truth in zip(got, expected, strict=True):
        # float32 logits of size 20 are rounded by 1e-6; the largest error seen is 3e-6
        torch.testing.assert_close(value.double(), truth.double(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_exact_than_torch(dtype: torch.dtype, frozen: bool) -> None:
    leaves, target = problem(5000, dtype)
    for leaf in leaves[1:]:
        leaf.requires_grad_(not frozen)

    def step(leaves: list[Tensor], **ours: Any) -> list[Tensor]:
        if ours:
            loss = linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2], **ours)
        else:
            loss = F.cross_entropy(F.linear(*leaves).to(torch.promote_types(leaves[0].dtype, torch.float32)), target)
        return [loss.detach(), *torch.autograd.grad(loss, [t for t in leaves if t.requires_grad])]

    truth = step([t.detach().double().requires_grad_(t.requires_grad) for t in leaves])
    theirs, ours = step(leaves), step(leaves, backend="cpu")
    for value, peer, exact in zip(ours, theirs, truth, strict=True):
        error, allowed = (float((t.double() - exact).norm() / exact.norm()) for t in (value, peer))
        assert error <= 1.5 * allowed + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_instruction_sets_and_threads_change_no_bit(
    dtype: torch.dtype, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, target = problem(5003, dtype)
    for leaf in leaves[1:]:
        leaf.requires_grad_(not frozen)
    made = {}
    threads = torch.get_num_threads()
    try:
        for name in INSTRUCTION_SETS:
            monkeypatch.setenv("STRUCTLOSS_CPU", name)
            try:
                made[name] = results(leaves, target, backend="cpu", softcap=9.0, z_loss=0.01)
            except ValueError as error:
                assert "cannot run here" in str(error)  # noqa: PT017  # an older processor has fewer sets
        monkeypatch.delenv("STRUCTLOSS_CPU")
        for count in (1, 3):
            torch.set_num_threads(count)
            logits = F.linear(leaves[0].detach(), leaves[1].detach(), leaves[2].detach())
            rows = cpu_row_pass(logits, target.clamp(min=0))
            made[count] = rows
    finally:
        torch.set_num_threads(threads)
    assert "baseline" in made
    for name in INSTRUCTION_SETS[1:]:
        if name in made:
            assert all(torch.equal(x, y) for x, y in zip(made[name], made["baseline"], strict=True))
    assert all(torch.equal(x, y) for x, y in zip(made[1], made[3], strict=True))


def cpu_row_pass(logits: Tensor, target: Tensor) -> list[Tensor]:
    """The row pass alone: torch's own GEMMs may differ by the number of threads."""
    from structloss.lm_head.row_pass import RowFormula, RowInputs, RowResults

    logits = logits.clone()
    found = RowResults.empty(N, logits, entropy=True, argmax=True)
    row_pass = cpu.RowPass(logits, logits.shape[1], RowFormula(z_loss=0.1), max_rows=N, entropy=True)
    row_pass(logits, RowInputs(target, None, None, torch.linspace(-1, 1, N)), found)
    assert found.entropy is not None
    assert found.argmax is not None
    return [logits, found.loss, found.logprob, found.lse, found.entropy, found.argmax]


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, target = problem(17)
    monkeypatch.setenv("STRUCTLOSS_CPU", "sse9")
    with pytest.raises(ValueError, match=r"STRUCTLOSS_CPU=sse9.*baseline"):
        linear_cross_entropy(leaves[0], leaves[1], target, backend="cpu")


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_huge_and_tiny_logits(size: float, frozen: bool) -> None:
    leaves, target = problem(900)
    scaled = [leaves[0], leaves[1].detach(), leaves[2].detach() * size]
    scaled = [scaled[0], *(t.requires_grad_(not frozen) for t in scaled[1:])]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in scaled]
    for change in ({}, {"softcap": 30.0}, {"token_weight": -torch.ones(N), "reduction": "sum"}):
        expected = results(wide, target, backend="reference", **change)
        got = results(scaled, target, backend="cpu", chunk_bytes=3000, **change)
        for value, truth in zip(got, expected, strict=True):
            torch.testing.assert_close(value.double(), truth.double(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_masked_classes_ties_and_nan_behave_as_in_torch_operations(frozen: bool) -> None:
    leaves, target = problem(100)
    target[target >= 0] = 70
    cases = {"masked": torch.zeros(100), "ties": torch.zeros(100), "nan": torch.zeros(100)}
    cases["masked"][80:] = -torch.inf
    cases["nan"][33] = torch.nan
    for name, bias in cases.items():
        made = []
        for backend in ("torch", "cpu"):
            x = torch.zeros_like(leaves[0]).requires_grad_()
            weight = leaves[1].detach().requires_grad_(not frozen)
            loss = linear_cross_entropy(
                x, weight, target, linear_bias=bias, outputs=("logprob", "lse", "argmax"), backend=backend,
                chunk_bytes=4 * 13 * 30,
            )  # fmt: skip
            made.append([*loss[:3], loss.argmax, torch.autograd.grad(loss.loss, x)[0]])
        for value, expected in zip(*made, strict=True):
            torch.testing.assert_close(value, expected, equal_nan=True)
        if name == "ties":
            assert (made[1][3][target >= 0] == 0).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_strided_weight_and_gathered_rows(frozen: bool) -> None:
    """A head that is a transposed view, and hidden states that are a slice."""
    leaves, target = problem(300)
    plain = [leaves[0].detach(), leaves[1].detach()]
    head = plain[1].t().contiguous().t()
    states = torch.stack([plain[0], plain[0] + 1], -1)[..., 0]
    made = []
    for x, weight in ((plain[0], plain[1]), (states, head)):
        x, weight = x.requires_grad_(), weight.requires_grad_(not frozen)
        loss = linear_cross_entropy(x, weight, target, backend="cpu", chunk_bytes=4 * 13 * 64)
        made.append([loss.detach(), *torch.autograd.grad(loss, [x] if frozen else [x, weight])])
    for value, expected in zip(*made, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_blocks_of_the_stream() -> None:
    rows, columns = stream_blocks(1024, 32000, 4, None)
    assert rows == 1024
    assert rows * columns * 4 <= 8 << 20
    assert stream_blocks(5, 100, 4, None) == (5, 100)
    assert stream_blocks(3000, 128000, 4, None)[0] == 1000  # three equal parts
    for n, vocab, budget in ((7, 50, 1), (1, 1, 8), (1000, 151936, 1 << 20)):
        rows, columns = stream_blocks(n, vocab, 4, budget)
        assert 1 <= rows <= n
        assert 1 <= columns <= vocab


def test_without_the_extension_auto_takes_torch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, target = problem(17)
    monkeypatch.setattr(cpu, "import_error", ImportError("not built"))
    monkeypatch.setattr(op, "_warned", False)
    with pytest.warns(RuntimeWarning, match=r"LM head runs in torch operations.*not built"):
        loss = linear_cross_entropy(leaves[0], leaves[1], target)
    torch.testing.assert_close(loss, linear_cross_entropy(leaves[0], leaves[1], target, backend="torch"))
    with pytest.raises(ValueError, match=r"backend='cpu' needs the compiled extension structloss._C \(not built\)"):
        linear_cross_entropy(leaves[0], leaves[1], target, backend="cpu")
