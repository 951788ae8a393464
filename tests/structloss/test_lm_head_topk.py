"""The top-k divergence against distributions built one by one and torch.nn.functional.kl_div, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from structloss.lm_head import LinearTopkKLOutput, linear_cross_entropy, linear_topk_kl
from structloss.lm_head.topk_op import linear_topk_kl_op

# Chunked and full-logit results differ in float64 only by summation order: measured 4e-15 at most.
EXACT = {"rtol": 1e-10, "atol": 1e-11}
KINDS = ("forward", "reverse", "jsd")
TAILS = ("bucket", "renormalize", "ignore")


def problem(
    n: int = 17, d: int = 7, v: int = 29, k: int = 5, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, and the top k of a teacher; k may be all of v."""
    g = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((n, d), (v, d), (v,)))
    teacher = (2 * torch.randn(n, v, generator=g, dtype=torch.float64)).log_softmax(-1)
    logprobs, ids = teacher.topk(k, -1)
    return x, weight, bias, ids, logprobs


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def upstream_like(loss: Tensor) -> Tensor:
    """Neither 1 nor uniform, with a zero and negative entries."""
    up = torch.randn(loss.shape, generator=torch.Generator().manual_seed(3), dtype=loss.dtype)
    if up.dim() and up.numel():
        up.view(-1)[:1] = 0
    return up


def token_divergence(z: Tensor, ids: list[int], logprobs: list[float], **options: Any) -> Tensor:
    """One token: the two distributions as lists of probabilities, tempered by a power, and `kl_div` of them."""
    kind, tail, temperature = (
        options.get("kind", "forward"),
        options.get("tail", "bucket"),
        options.get("temperature", 1),
    )
    shared = min(z.shape[0], options.get("teacher_vocab") or z.shape[0])
    known = {i: lp for i, lp in zip(ids, logprobs, strict=True) if 0 <= i < shared}
    probability = z[:shared].exp() / z[:shared].exp().sum()
    p = [probability[i] for i in known]
    q = [torch.tensor(lp, dtype=z.dtype).exp() for lp in known.values()]
    rest = [probability[i] for i in range(shared) if i not in known]
    has_tail = bool(rest) and tail != "renormalize"
    if has_tail:
        p.append(torch.stack(rest).sum())
        q.append(torch.tensor(max(1 - float(sum(q)), options.get("tail_floor", 1e-6)), dtype=z.dtype))
    if not p:
        return 0 * z.sum()
    powers = [torch.stack(values) ** (1 / temperature) for values in (p, q)]
    student, teacher = (values / values.sum() for values in powers)
    if kind == "forward":
        terms = F.kl_div(student.log(), teacher, reduction="none")
    elif kind == "reverse":
        terms = F.kl_div(teacher.log(), student.log(), reduction="none", log_target=True)
    else:
        beta = options.get("beta", 0.5)
        log_m = (beta * teacher + (1 - beta) * student).log()
        terms = beta * F.kl_div(log_m, teacher, reduction="none")
        terms = terms + (1 - beta) * F.kl_div(log_m, student.log(), reduction="none", log_target=True)
    return terms[:-1].sum() if tail == "ignore" and has_tail else terms.sum()


def written_down(z: Tensor, ids: Tensor, logprobs: Tensor, **options: Any) -> Tensor:
    """(N,) losses of all tokens, none of them ignored."""
    kl = torch.stack(
        [token_divergence(*row, **options) for row in zip(z, ids.tolist(), logprobs.tolist(), strict=True)]
    )
    if options.get("scale_by_temperature_squared"):
        kl = kl * options["temperature"] ** 2
    if options.get("cross_entropy_weight"):
        kl = kl + options["cross_entropy_weight"] * F.cross_entropy(z, options["target"], reduction="none")
    return kl * options.get("token_weight", torch.ones(z.shape[0], dtype=z.dtype))


def check(x: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, logprobs: Tensor, **options: Any) -> Tensor:
    """Loss per token and the gradients of all inputs against `written_down`, by both backends and modes."""
    truth = leaves(x, weight, bias)
    z = F.linear(*truth)
    if options.get("logit_scale"):
        z = z * options["logit_scale"]
    if options.get("softcap"):
        z = options["softcap"] * torch.tanh(z / options["softcap"])
    expected = written_down(z, ids, logprobs, **options)
    up = upstream_like(expected)
    want = torch.autograd.grad(expected, truth, up)
    for how in ({"backend": "reference"}, {"mode": "auto"}, {"mode": "min_memory"}):
        mine = leaves(x, weight, bias)
        loss = linear_topk_kl(
            mine[0], mine[1], ids, logprobs, linear_bias=mine[2], reduction="none", chunk_bytes=5 * 29 * 8,
            **options, **how,
        )  # fmt: skip
        torch.testing.assert_close(loss, expected, **EXACT)
        for g, e in zip(torch.autograd.grad(loss, mine, up), want, strict=True):
            torch.testing.assert_close(g, e, **EXACT)
    return want[0]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", KINDS)
def test_formula(kind: str, tail: str, temperature: float) -> None:
    gradient = check(*problem(), kind=kind, tail=tail, temperature=temperature)
    assert gradient.abs().max() > 1e-2


OPTIONS: dict[str, dict[str, Any]] = {
    "squared temperature": {"temperature": 2.0, "scale_by_temperature_squared": True, "cross_entropy_weight": 0.3},
    "beta": {"kind": "jsd", "beta": 0.15},
    "cross-entropy": {"cross_entropy_weight": 0.7},
    "softcap and scale": {"softcap": 4.0, "logit_scale": 0.6, "cross_entropy_weight": 0.7, "kind": "reverse"},
    "weights": {"token_weight": torch.linspace(0.1, 2, 17, dtype=torch.float64), "cross_entropy_weight": 0.2},
    "floor": {"tail_floor": 0.4, "kind": "reverse"},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str) -> None:
    x, weight, bias, ids, logprobs = problem()
    options = dict(OPTIONS[case])
    if "cross_entropy_weight" in options:
        # Targets among the teacher's classes and elsewhere.
        options["target"] = torch.where(torch.arange(17) % 2 == 0, ids[:, 1], (ids[:, 0] + 1) % 29)
    check(x, weight, bias, ids, logprobs, **options)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", KINDS)
def test_k_is_one_and_k_is_all(kind: str, tail: str) -> None:
    """With all classes stored the tail is gone, and every tail means the divergence of the two full distributions."""
    check(*problem(k=1), kind=kind, tail=tail, temperature=2.0)
    x, weight, bias, ids, logprobs = problem(k=29)
    check(x, weight, bias, ids, logprobs, kind=kind, tail=tail, temperature=2.0)
    student = (F.linear(x, weight, bias) / 2).log_softmax(-1)
    teacher = (torch.empty_like(student).scatter(1, ids, logprobs) / 2).log_softmax(-1)
    if kind == "forward":
        full = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    elif kind == "reverse":
        full = F.kl_div(teacher, student, reduction="batchmean", log_target=True)
    else:
        mixture = (0.5 * student.exp() + 0.5 * teacher.exp()).log()
        both = [F.kl_div(mixture, t, reduction="batchmean", log_target=True) for t in (student, teacher)]
        full = 0.5 * sum(both)
    loss = linear_topk_kl(x, weight, ids, logprobs, linear_bias=bias, kind=kind, tail=tail, temperature=2.0)
    torch.testing.assert_close(loss, full, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_student_that_is_the_teacher_has_no_loss(kind: str, temperature: float) -> None:
    """At every temperature: the student is coarsened and tempered as its teacher is."""
    x, weight, bias, _, _ = problem()
    logprobs, ids = F.linear(x, weight, bias).log_softmax(-1).topk(4, -1)
    x.requires_grad_()
    for tail in ("bucket", "renormalize"):
        loss = linear_topk_kl(
            x, weight, ids, logprobs, linear_bias=bias, kind=kind, tail=tail, temperature=temperature, reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, x)
        assert abs(float(loss.detach())) < 1e-12
        assert gradient.abs().max() < 1e-12


def test_renormalized_top_k_is_exact_for_a_tempered_teacher() -> None:
    x, weight, bias, ids, logprobs = problem()
    z, teacher = F.linear(x, weight, bias), torch.full((17, 29), -torch.inf, dtype=torch.float64)
    teacher = teacher.scatter(1, ids, logprobs)
    p = (z / 3).softmax(-1).gather(1, ids)
    q = (teacher / 3).softmax(-1).gather(1, ids)
    expected = F.kl_div((p / p.sum(-1, keepdim=True)).log(), q, reduction="batchmean")
    loss = linear_topk_kl(x, weight, ids, logprobs, linear_bias=bias, tail="renormalize", temperature=3.0)
    torch.testing.assert_close(loss, expected, **EXACT)


def test_ignored_tail_is_a_renormalized_teacher_against_all_classes() -> None:
    """sum_K q (log q - log p) = M * KL(q / M || p) + M log M, M the stored mass: the docs say so."""
    x, weight, bias, ids, logprobs = problem()
    mass = logprobs.exp().sum(-1)
    student = F.linear(x, weight, bias).log_softmax(-1).gather(1, ids)
    kl = F.kl_div(student, logprobs - mass.log()[:, None], reduction="none", log_target=True).sum(-1)
    loss = linear_topk_kl(x, weight, ids, logprobs, linear_bias=bias, tail="ignore", reduction="none")
    torch.testing.assert_close(loss, mass * kl + mass * mass.log(), **EXACT)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", KINDS)
def test_vocabularies_of_different_size(kind: str, tail: str) -> None:
    """Teacher larger: mass on ids that the student lacks is tail. Teacher smaller: softmax over the shared prefix."""
    x, weight, bias, _, _ = problem()
    _, _, _, ids, logprobs = problem(v=40, k=6)
    assert (ids >= 29).any(-1).sum() > 5
    check(x, weight, bias, ids, logprobs, kind=kind, tail=tail, temperature=1.5)
    _, _, _, ids, logprobs = problem(v=20, k=6)
    target = torch.arange(17) * 7 % 29  # inside and outside of the teacher's vocabulary
    assert (target >= 20).any()
    check(
        x, weight, bias, ids, logprobs, kind=kind, tail=tail, temperature=1.5, teacher_vocab=20, target=target,
        cross_entropy_weight=0.4,
    )  # fmt: skip
    # A student whose extra classes do not exist.
    smaller = linear_topk_kl(x, weight[:20], ids, logprobs, linear_bias=bias[:20], kind=kind, tail=tail)
    prefix = linear_topk_kl(x, weight, ids, logprobs, linear_bias=bias, kind=kind, tail=tail, teacher_vocab=20)
    torch.testing.assert_close(prefix, smaller, **EXACT)


@pytest.mark.parametrize("with_target", [False, True])
def test_padding_and_rows_without_a_shared_class(with_target: bool) -> None:
    x, weight, bias, ids, logprobs = problem()
    ids[1, 2:], ids[2, 0], ids[3] = -1, -1, 40 + torch.arange(5)
    logprobs[1, 2:] = torch.nan  # never read
    options: dict[str, Any] = {"kind": "reverse"}
    if with_target:
        ids[4] = -1  # a token without a teacher still has its cross-entropy
        options.update(target=torch.arange(17), cross_entropy_weight=0.5)
    check(x, weight, bias, ids, logprobs, **options)


def test_ignored_tokens() -> None:
    """By target, by weight 0, and without a target by a row of padding: no loss, no gradient, no part in the mean."""
    x, weight, bias, ids, logprobs = problem()
    kept = torch.ones(17, dtype=torch.bool)
    kept[::3] = False
    expected = linear_topk_kl(x[kept], weight, ids[kept], logprobs[kept], linear_bias=bias)
    target = torch.where(kept, 3, -100)
    padded = torch.where(kept[:, None], ids, -1)
    for options in (
        {"target": target},
        {"target": torch.where(kept, 3, 11), "ignore_index": 11},
        {"token_weight": kept},
        {"topk_ids": padded},
    ):
        poisoned = torch.where(kept[:, None], x, torch.nan).requires_grad_()
        call: dict[str, Any] = {"topk_ids": ids, **options}
        loss = linear_topk_kl(poisoned, weight, call.pop("topk_ids"), logprobs, linear_bias=bias, **call)
        torch.testing.assert_close(loss, expected, **EXACT)
        (gradient,) = torch.autograd.grad(loss, poisoned)
        assert (gradient[~kept] == 0).all()
        assert (gradient[kept] != 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
@pytest.mark.parametrize("how", ["ignored", "weightless", "padding", "empty"])
def test_nothing_kept_is_zero_not_nan(reduction: str, mode: str, how: str) -> None:
    x, weight, bias, ids, logprobs = problem(n=0 if how == "empty" else 9)
    options: dict[str, Any] = {"reduction": reduction, "mode": mode, "outputs": ("kl", "lse", "argmax")}
    if how == "ignored":
        options.update(target=torch.full((9,), -100), cross_entropy_weight=1.0, num_valid=0)
    if how == "weightless":
        options["token_weight"] = torch.zeros(9)
    if how == "padding":
        ids = torch.full_like(ids, -1)
    inputs = leaves(x, weight, bias)
    out = linear_topk_kl(inputs[0], inputs[1], ids, logprobs, linear_bias=inputs[2], **options)
    assert torch.equal(out.loss, torch.zeros_like(out.loss))
    assert (out.kl == 0).all()
    assert (out.argmax == -1).all()
    for leaf, gradient in zip(inputs, torch.autograd.grad(out.loss.sum(), inputs), strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))


def test_cross_entropy_alone_is_linear_cross_entropy() -> None:
    x, weight, bias, ids, logprobs = problem()
    target = torch.arange(17)
    target[::4] = -100
    token_weight = torch.linspace(0, 2, 17, dtype=torch.float64)
    mixed = linear_topk_kl(
        x, weight, ids, logprobs, linear_bias=bias, target=target, cross_entropy_weight=0.6, token_weight=token_weight,
        denominator=4.0,
    )  # fmt: skip
    options: dict[str, Any] = {"linear_bias": bias, "token_weight": token_weight, "denominator": 4.0}
    alone = linear_topk_kl(x, weight, ids, logprobs, target=target, **options)
    hard = linear_cross_entropy(x, weight, target, **options)
    torch.testing.assert_close(mixed, alone + 0.6 * hard, **EXACT)


@pytest.mark.parametrize("trainable", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", ["auto", "min_memory"])
def test_each_input_asks_for_its_own_gradient(trainable: tuple[int, ...], reduction: str, mode: str) -> None:
    x, weight, bias, ids, logprobs = problem()
    options: dict[str, Any] = {"reduction": reduction, "kind": "jsd", "token_weight": torch.linspace(0, 2, 17)}
    results = []
    for backend in ("auto", "reference"):
        inputs = [t.requires_grad_(bool(on)) for t, on in zip(leaves(x, weight, bias), trainable, strict=True)]
        loss = linear_topk_kl(
            inputs[0], inputs[1], ids, logprobs, linear_bias=inputs[2], mode=mode, chunk_bytes=4 * 29 * 8,
            backend=backend, **options,
        )  # fmt: skip
        loss.backward(upstream_like(loss) * 2.5)
        results.append([t.grad for t in inputs])
    for mine, truth, on in zip(*results, trainable, strict=True):
        assert (mine is not None) == bool(on)
        if on:
            torch.testing.assert_close(mine, truth, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_lora_head_equals_the_merged_head(dtype: torch.dtype, reduction: str) -> None:
    x, weight, bias, ids, logprobs = (t.to(dtype) if i < 3 else t for i, t in enumerate(problem()))
    g = torch.Generator().manual_seed(5)
    a, b = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((3, 7), (29, 3)))
    mine, truth = leaves(x, a, b), leaves(x.double(), a.double(), b.double())
    loss = linear_topk_kl(
        mine[0], weight, ids, logprobs, linear_bias=bias, lora_a=mine[1], lora_b=mine[2], lora_scale=0.3,
        reduction=reduction, chunk_bytes=4 * 29 * 8,
    )  # fmt: skip
    merged = weight.double() + 0.3 * truth[2] @ truth[1]
    expected = linear_topk_kl(
        truth[0], merged, ids, logprobs, linear_bias=bias.double(), reduction=reduction, backend="reference"
    )
    # bfloat16: logits in float32 (the loss to 1e-6), gradients rounded on their way to the GEMMs.
    loss_tolerance = EXACT if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(loss.double(), expected, **loss_tolerance)
    up = upstream_like(loss)
    loss.backward(up)
    expected.backward(up.double())
    for m, t in zip(mine, truth, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(m.grad, t.grad, **EXACT)
        else:
            assert (m.grad.double() - t.grad).norm() < 8e-3 * t.grad.norm()


def test_outputs() -> None:
    x, weight, bias, ids, logprobs = problem()
    target = torch.arange(17)
    target[::4] = -100
    kept = target != -100
    out = linear_topk_kl(
        x.requires_grad_(), weight, ids, logprobs, linear_bias=bias, target=target, temperature=2.0,
        scale_by_temperature_squared=True, teacher_vocab=29, outputs=("kl", "logprob", "lse", "argmax"),
    )  # fmt: skip
    assert isinstance(out, LinearTopkKLOutput)
    z = F.linear(x.detach(), weight, bias)
    kl = written_down(z, ids, logprobs, temperature=2.0)
    torch.testing.assert_close(out.kl, torch.where(kept, kl, 0.0), **EXACT)
    logp = z.log_softmax(-1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(out.logprob, torch.where(kept, logp, 0.0), **EXACT)
    torch.testing.assert_close(out.lse, torch.where(kept, z.logsumexp(-1), 0.0), **EXACT)
    assert torch.equal(out.argmax, torch.where(kept, z.argmax(-1), -1))
    assert not out.kl.requires_grad
    torch.testing.assert_close(out.loss, 4 * kl[kept].mean(), **EXACT)
    only = linear_topk_kl(x, weight, ids, logprobs, outputs=("kl",))
    assert only.logprob is None
    assert only.lse is None


@pytest.mark.parametrize(("kind", "tail"), list(itertools.product(KINDS, TAILS)))
def test_gradcheck(kind: str, tail: str) -> None:
    x, weight, bias, ids, logprobs = problem(5, 4, 9, 3)
    a, b = torch.randn(2, 4, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)

    def loss(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return linear_topk_kl(
            x, weight, ids, logprobs, linear_bias=bias, lora_a=a, lora_b=b, kind=kind, tail=tail, temperature=1.7,
            teacher_vocab=None if kind == "jsd" else 9, target=ids[:, 2].roll(1), cross_entropy_weight=0.3,
            reduction="none", softcap=6.0,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves(x, weight, bias, a, b))
    assert torch.autograd.gradcheck(lambda x: loss(x, weight, bias, a, b).mean(), leaves(x))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 20),
    v=st.sampled_from([1, 2, 3, 31, 97]),
    k=st.sampled_from([1, 2, 31, 256]),
    teacher_vocab=st.sampled_from([None, 1, 2, 30, 97, 300]),
    chunk_rows=st.integers(1, 30),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(KINDS),
    tail=st.sampled_from(TAILS),
    hard=st.booleans(),
)
def test_any_shape(
    n: int, v: int, k: int, teacher_vocab: int | None, chunk_rows: int, seed: int, kind: str, tail: str, hard: bool
) -> None:
    """Against the reference, with teachers of any vocabulary, padded at random, and with k past either vocabulary."""
    g = torch.Generator().manual_seed(seed)
    x, weight, bias, _, _ = problem(n, 3, v, 1, seed=seed)
    size = teacher_vocab or 300
    teacher = torch.randn(n, size, generator=g, dtype=torch.float64).log_softmax(-1)
    logprobs, ids = F.pad(teacher, (0, max(0, k - size)), value=-torch.inf).topk(k, -1)
    ids = torch.where((ids < size) & (torch.rand(n, k, generator=g) < 0.8), ids, -1)
    options: dict[str, Any] = {"kind": kind, "tail": tail, "teacher_vocab": teacher_vocab, "linear_bias": bias}
    if hard:
        options.update(target=torch.randint(0, v, (n,), generator=g), cross_entropy_weight=0.5)
    results = []
    for backend in ("auto", "reference"):
        mine = leaves(x, weight)
        loss = linear_topk_kl(
            *mine, ids, logprobs, chunk_bytes=chunk_rows * v * 8, reduction="none", backend=backend, **options
        )
        loss.backward(upstream_like(loss))
        results.append([loss, *(m.grad for m in mine)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **EXACT)


def test_operator_checks() -> None:
    x, weight, bias, ids, logprobs = (t.float() if t.is_floating_point() else t for t in problem())
    target = torch.arange(17) % 29
    for reduction, needs in (("mean", [True, True, True, False, False]), ("none", [False] * 5)):
        call = (
            None, *leaves(x, weight), ids, logprobs, target, *leaves(bias), torch.rand(17), None, None, None, 1.0,
            "forward", "bucket", 2.0, 0.5, 1e-6, None, 4.0, 0.3, 9.0, 1.0, reduction, -100,
            5.0 if reduction == "mean" else None, None, False, None, needs, [True, True, True, True],
        )  # fmt: skip
        torch.library.opcheck(linear_topk_kl_op, call)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_graph_break(reduction: str) -> None:
    x, weight, _, ids, logprobs = problem(dtype=torch.float32)

    def step(x: Tensor, weight: Tensor) -> Tensor:
        return linear_topk_kl(x.tanh(), weight, ids, logprobs, reduction=reduction, kind="reverse", temperature=1.5)

    made = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        inputs = leaves(x, weight)
        loss = function(*inputs)
        made.append((loss, *torch.autograd.grad(loss.square().sum(), inputs)))
    for value, expected in zip(*made, strict=True):
        torch.testing.assert_close(value, expected)


def test_checkpointing_and_autocast() -> None:
    x, weight, _, ids, logprobs = problem(dtype=torch.float32)

    def step(x: Tensor, weight: Tensor) -> Tensor:
        return linear_topk_kl(x.tanh(), weight, ids, logprobs)

    plain, saved = leaves(x, weight), leaves(x, weight)
    step(*plain).backward()
    checkpoint(step, *saved, use_reentrant=False).backward()
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = step(*plain)
    expected = linear_topk_kl(x.tanh().bfloat16(), weight.bfloat16(), ids, logprobs)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_its_logits_in_float32(kind: str) -> None:
    """Peaked distributions, where logits rounded to bfloat16 spoil the gradient (the reason for wide logits)."""
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 32, generator=g).bfloat16(), (torch.randn(500, 32, generator=g)).bfloat16()
    teacher = (x.double() @ weight.double().t() + 0.3 * torch.randn(64, 500, generator=g)).log_softmax(-1)
    logprobs, ids = teacher.topk(8, -1)

    def gradient(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        (leaf,) = leaves(x)
        loss = linear_topk_kl(leaf, weight, ids, logprobs, kind=kind, **options)
        return torch.autograd.grad(loss, leaf)[0].double()

    truth = gradient(x.double(), weight.double(), backend="reference")
    rounded_z = (x.float() @ weight.float().t()).bfloat16()  # what a bfloat16 GEMM leaves of the logits
    z_gradient = gradient(rounded_z.double(), torch.eye(500, dtype=torch.float64), backend="reference")
    spoiled = z_gradient @ weight.double()
    ours = float((gradient(x, weight) - truth).norm() / truth.norm())
    theirs = float((spoiled - truth).norm() / truth.norm())
    assert ours < 0.006  # one rounding of the logits' gradient and one of dX
    assert theirs > 4 * ours


ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tail": "drop"}, ValueError, r"tail must be one of .* got 'drop'"),
    ({"kind": "js"}, ValueError, r"kind must be one of .* got 'js'"),
    ({"temperature": 0.0}, ValueError, r"temperature must be finite and > 0, got 0.0"),
    ({"beta": 0.5}, ValueError, r"beta belongs to kind='jsd'"),
    ({"kind": "jsd", "beta": 1.0}, ValueError, r"beta must be between 0 and 1"),
    ({"tail_floor": 0.0}, ValueError, r"tail_floor must be between 0 and 1"),
    ({"teacher_vocab": 3}, ValueError, r"topk_ids must be below teacher_vocab \(3\)"),
    ({"cross_entropy_weight": 0.5}, ValueError, r"target must be given for a cross_entropy_weight"),
    ({"backend": "triton"}, ValueError, r"backend='triton': linear_topk_kl has no row pass of that kind"),
    ({"token_weight": -torch.ones(17)}, ValueError, r"token_weight must not be negative"),
    ({"topk_ids": torch.zeros(17, 5, dtype=torch.int64)}, ValueError, r"must not name a class twice for one token"),
    ({"topk_ids": torch.zeros(17, 5)}, TypeError, r"topk_ids must hold integer class ids"),
    ({"topk_ids": torch.zeros(17, 300, dtype=torch.int64)}, ValueError, r"topk_ids must have between 1 and 256"),
    ({"topk_ids": torch.zeros(3, 5, dtype=torch.int64)}, ValueError, r"topk_ids must be \(17, k\) like input's tokens"),
    ({"topk_logprobs": torch.zeros(17, 5)}, ValueError, r"must sum to a probability of at most 1"),
    ({"topk_logprobs": torch.full((17, 5), torch.nan)}, ValueError, r"topk_logprobs must be finite"),
    ({"topk_logprobs": torch.full((17, 5), 0.5)}, ValueError, r"topk_logprobs must be log-probabilities, at most 0"),
    ({"topk_logprobs": torch.zeros(17, 4)}, ValueError, r"topk_logprobs must be \(17, 5\) like topk_ids"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[message[:40] for *_, message in ERRORS])
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, weight, _, ids, logprobs = problem(dtype=torch.float32)
    change = dict(change)
    ids, logprobs = change.pop("topk_ids", ids), change.pop("topk_logprobs", logprobs)
    with pytest.raises(error, match=message):
        linear_topk_kl(x, weight, ids, logprobs, **change)
