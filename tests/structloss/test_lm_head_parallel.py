"""Heads over two gloo processes: a shared vocabulary, and DTensor heads as `fully_shard` makes them.

Each `check_` function runs on both ranks. The oracle is the head in one piece: `backend="reference"`, or
`torch.nn.functional` where FSDP2 itself is the measure.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

from structloss.lm_head import linear_cross_entropy, linear_logprob
from structloss.lm_head.chunks import rows_per_chunk
from tests.structloss.test_lm_head import OPTIONS
from tests.structloss.two_processes import run_in_two_processes

N, D, V, RANK = 37, 7, 11, 3
CUTS = (slice(0, 7), slice(7, 11))  # uneven: ranks must not cut the tokens into chunks by their own size
CHUNK = 5 * 7 * 8  # bytes: five rows of the larger shard in float64
# Shared and whole heads differ by summation order: measured 1e-14 of the largest entry in float64; float32 against the
# float64 reference 1.7e-6.
EXACT = {"rtol": 1e-12, "atol": 1e-12}
SINGLE = {"rtol": 2e-5, "atol": 5e-6}


class Problem:
    """A head in one piece and this rank's part of it; names as `linear_cross_entropy` has them."""

    def __init__(self, dtype: torch.dtype = torch.float64, *, n: int = N, v: int = V, cuts: Any = CUTS) -> None:
        g = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

        self.cut = cuts[dist.get_rank()]
        self.input, self.linear_weight, self.linear_bias = randn(n, D), randn(v, D), randn(v)
        self.lora_a, self.lora_b = randn(RANK, D), randn(v, RANK)
        self.target = torch.randint(0, v, (n,), generator=g)
        self.target[torch.rand(n, generator=g) < 0.35] = -100
        self.classes = torch.rand(v, generator=g, dtype=torch.float64) + 0.1
        self.signed = torch.randn(n, generator=g, dtype=torch.float64)
        self.signed[::6] = 0
        self.upstream = torch.randn(n, generator=g, dtype=torch.float64)
        self.upstream[:4] = 0

    def leaves(self, shared: bool, names: tuple[str, ...], trained: tuple[str, ...]) -> dict[str, Tensor]:
        made = {}
        for name in names:
            value = getattr(self, name)
            if shared and name in ("linear_weight", "linear_bias", "lora_b"):
                value = value[self.cut]
            made[name] = value.clone().requires_grad_(name in trained)
        return made

    def options(self, shared: bool, options: dict[str, Any]) -> dict[str, Any]:
        made = {"lora_scale": 0.7, **options}
        if made.get("weight") == "classes":
            made["weight"] = self.classes[self.cut] if shared else self.classes
        if made.get("token_weight") == "signed":
            made["token_weight"] = self.signed
        if shared:
            made.setdefault("process_group", dist.group.WORLD)
            made.setdefault("chunk_bytes", CHUNK)
        else:
            made.update(backend="reference", mode="auto")
        return made


ALL = ("input", "linear_weight", "linear_bias", "lora_a", "lora_b")
OUTPUTS = ("logprob", "lse", "entropy", "argmax")


def compare(
    problem: Problem,
    options: dict[str, Any],
    *,
    names: tuple[str, ...] = ALL,
    trained: tuple[str, ...] = ALL,
    tolerance: dict[str, float] = EXACT,
    call: Callable[..., Any] = linear_cross_entropy,
) -> None:
    """Loss, outputs and every gradient of the shared call against those of the head in one piece."""
    results = []
    for shared in (True, False):
        leaves = problem.leaves(shared, names, trained)
        if not shared and tolerance is not EXACT:
            leaves = {k: t.detach().double().requires_grad_(t.requires_grad) for k, t in leaves.items()}
        made = call(target=problem.target, outputs=OUTPUTS, **leaves, **problem.options(shared, options))
        loss = made.loss
        if trained:
            loss.backward(problem.upstream.to(loss.dtype) if loss.dim() else torch.tensor(-0.7, dtype=loss.dtype))
        results.append((made, {name: leaves[name].grad for name in names}))
    (mine, gradients), (truth, expected) = results
    for got, want in zip(mine, truth, strict=True):
        torch.testing.assert_close(got, want, check_dtype=False, **tolerance)
        peers = [torch.empty_like(got) for _ in range(2)]
        dist.all_gather(peers, got.detach().contiguous())
        assert torch.equal(*peers)  # bit by bit on all ranks
    for name in names:
        want = expected[name]
        assert (want is None) == (gradients[name] is None) == (name not in trained)
        if want is not None:
            assert want.abs().max() > 1e-3
            part = want[problem.cut] if name in ("linear_weight", "linear_bias", "lora_b") else want
            torch.testing.assert_close(gradients[name], part, check_dtype=False, **tolerance)


def check_every_option() -> None:
    problem = Problem()
    for options in OPTIONS.values():
        for reduction in ("sum", "none"):
            for mode in ("auto", "min_memory"):
                compare(problem, {**options, "reduction": reduction, "mode": mode})


def check_means_and_denominators() -> None:
    problem = Problem()
    for options in ({}, {"weight": "classes"}, {"weight": "classes", "token_weight": "signed", "denominator": 3.0}):
        compare(problem, options)
    kept = int((problem.target != -100).sum())
    compare(problem, {"denominator": torch.tensor(5.0), "num_valid": kept, "check_targets": True})


def check_float32() -> None:
    problem = Problem(torch.float32)
    for options in (OPTIONS["plain"], OPTIONS["all"]):
        for reduction in ("sum", "none"):
            compare(problem, {**options, "reduction": reduction, "chunk_bytes": CHUNK // 2}, tolerance=SINGLE)


def check_what_is_trained() -> None:
    """Every part of the head by itself, with and without bias and LoRA."""
    problem = Problem()
    for reduction in ("mean", "none"):
        for trained in ((), *((name,) for name in ALL), ("input", "lora_a", "lora_b"), ("linear_weight", "input")):
            compare(problem, {"reduction": reduction}, trained=trained)
        compare(problem, {"reduction": reduction}, names=ALL[:2], trained=ALL[:2])


def check_sizes() -> None:
    """One token, a vocabulary of one row a rank, all targets in one shard, one chunk for all."""
    for n, v, cuts in ((1, 11, CUTS), (2, 2, (slice(0, 1), slice(1, 2))), (37, 11, (slice(0, 1), slice(1, 11)))):
        problem = Problem(n=n, v=v, cuts=cuts)
        problem.target = problem.target.clamp(min=0)
        problem.upstream[:] = 0.3
        compare(problem, {"reduction": "none"})
    for low in (0, 7):
        problem = Problem()
        problem.target = problem.target.clamp(min=0) % 4 + low
        compare(problem, {**OPTIONS["all"], "chunk_bytes": None, "reduction": "sum"})


def check_strided_inputs_and_leading_dimensions() -> None:
    problem = Problem(n=36)
    whole = linear_cross_entropy(problem.input, problem.linear_weight, problem.target, reduction="none")
    strided = problem.input.view(4, 9, D).transpose(1, 2).contiguous().transpose(1, 2)
    weight = problem.linear_weight.t().contiguous().t()[problem.cut]
    target = problem.target.to(torch.int32).view(4, 9)
    loss = linear_cross_entropy(strided, weight, target, reduction="none", process_group=dist.group.WORLD)
    torch.testing.assert_close(loss, whole.view(4, 9), **EXACT)


def check_nothing_kept() -> None:
    for n in (0, 5):
        problem = Problem(n=n)
        problem.target[:] = -100
        leaves = problem.leaves(True, ALL, ALL)
        made = linear_cross_entropy(target=problem.target, outputs=OUTPUTS, **leaves, **problem.options(True, {}))
        assert made.loss.item() == 0.0
        made.loss.backward()
        for leaf in leaves.values():
            assert leaf.grad is not None
            assert not leaf.grad.any()
        assert made.argmax.tolist() == [-1] * n


def check_ties_and_certain_tokens() -> None:
    """The argmax of a tie is the lowest class, wherever it lies; a sure token keeps its unlikelihood's gradient."""
    x = torch.eye(4, dtype=torch.float64)
    weight = torch.zeros(V, 4, dtype=torch.float64)
    weight[[3, 9], 0] = 2.0  # a tie across the shards, target the higher
    weight[[8, 9], 1] = 2.0
    weight[10, 2] = 60.0  # p rounds to 1
    weight[2, 3] = 60.0
    target = torch.tensor([9, 8, 10, 10])
    cut = CUTS[dist.get_rank()]
    leaf = x.clone().requires_grad_()
    made = linear_cross_entropy(
        leaf, weight[cut], target, token_weight=torch.tensor([1.0, 1, -1, 1]), reduction="sum",
        outputs=("argmax", "entropy"), process_group=dist.group.WORLD,
    )  # fmt: skip
    assert made.argmax is not None
    assert made.argmax.tolist() == [3, 8, 10, 2]
    made.loss.backward()
    # -log(1 - p_y) at row 2, with nine equal others and one of them at 0: z_y - log 10.
    others = torch.tensor(10.0, dtype=torch.float64).log()
    rest = -torch.log_softmax(x @ weight.T, -1)[[0, 1, 3], [9, 8, 10]].sum()
    torch.testing.assert_close(made.loss, 60 - others + rest)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[2, 2], torch.tensor(60.0, dtype=torch.float64))


def check_classes_of_probability_zero() -> None:
    """A shard that is masked out entirely (bias -inf): finite entropy, loss and gradients, as in one piece."""
    problem = Problem()
    problem.target = problem.target.clamp(min=-100, max=6)
    problem.linear_bias[7:] = -torch.inf
    for options in ({}, {"z_loss": 0.1, "token_weight": "signed"}):
        compare(problem, {**options, "reduction": "sum"}, trained=("input", "lora_a", "linear_weight"))
    problem.linear_bias[1:] = -torch.inf  # only the target is left
    problem.target[:] = 0
    made = linear_cross_entropy(
        problem.input, problem.linear_weight[problem.cut], problem.target, outputs=("entropy",),
        linear_bias=problem.linear_bias[problem.cut], process_group=dist.group.WORLD,
    )  # fmt: skip
    assert made.loss.item() == 0.0
    assert made.entropy is not None
    assert not made.entropy.any()


def check_logprob() -> None:
    problem = Problem()
    mine, truth = problem.leaves(True, ALL, ALL), problem.leaves(False, ALL, ALL)
    logprob, expected = (
        linear_logprob(target=problem.target, **leaves, **problem.options(shared, {"softcap": 5.0}))
        for shared, leaves in ((True, mine), (False, truth))
    )
    torch.testing.assert_close(logprob, expected, **EXACT)
    logprob.backward(problem.upstream)
    expected.backward(problem.upstream)
    torch.testing.assert_close(mine["input"].grad, truth["input"].grad, **EXACT)
    torch.testing.assert_close(mine["lora_b"].grad, truth["lora_b"].grad[problem.cut], **EXACT)  # type: ignore[index]


def check_bfloat16() -> None:
    """No worse than 1.5 times the error of the unshared bfloat16 call against float64, for loss and every gradient."""
    g = torch.Generator().manual_seed(2)
    n, d, v = 96, 64, 501
    cut = slice(0, 300) if dist.get_rank() == 0 else slice(300, v)
    x, weight = (torch.randn(s, generator=g).bfloat16() for s in ((n, d), (v, d)))
    weight = (weight.float() * 0.3).bfloat16()
    target = torch.randint(0, v, (n,), generator=g)
    results = []
    for kind in ("float64", "whole", "shared"):
        dtype = torch.float64 if kind == "float64" else torch.bfloat16
        own = weight[cut] if kind == "shared" else weight
        leaves = [t.to(dtype).clone().requires_grad_() for t in (x, own)]
        group = dist.group.WORLD if kind == "shared" else None
        loss = linear_cross_entropy(*leaves, target, process_group=group, chunk_bytes=20 * 300 * 2)
        loss.backward()
        assert leaves[0].grad is not None
        assert leaves[1].grad is not None
        rows = leaves[1].grad if kind == "shared" else leaves[1].grad[cut]
        results.append([t.double() for t in (loss, leaves[0].grad, rows)])
    for truth, whole, shared in zip(*results, strict=True):
        limit = 1.5 * (whole - truth).norm() + 1e-6 * truth.norm()
        assert (shared - truth).norm() <= limit, ((shared - truth).norm(), (whole - truth).norm())


def check_collectives() -> None:
    """One all-gather to compare the calls and, a chunk, one all-gather and one all-reduce of its kept rows."""
    problem = Problem()
    calls: list[tuple[str, tuple[int, ...]]] = []
    gather, reduce = dist.all_gather, dist.all_reduce

    def all_gather(tensors: list[Tensor], tensor: Tensor, **options: Any) -> None:
        calls.append(("gather", tuple(tensor.shape)))
        gather(tensors, tensor, **options)

    def all_reduce(tensor: Tensor, **options: Any) -> None:
        calls.append(("reduce", tuple(tensor.shape)))
        reduce(tensor, **options)

    dist.all_gather, dist.all_reduce = all_gather, all_reduce
    try:
        leaves = problem.leaves(True, ("input", "linear_weight"), ("input",))
        linear_cross_entropy(target=problem.target, **leaves, **problem.options(True, {})).backward()
    finally:
        dist.all_gather, dist.all_reduce = gather, reduce
    kept = int((problem.target != -100).sum())
    rows = rows_per_chunk(kept, 7, torch.float64, "cpu", trainable=False, chunk_bytes=CHUNK)
    sizes = [min(rows, kept - start) for start in range(0, kept, rows)]
    assert len(sizes) > 3
    assert calls == [("gather", (5,)), *(c for s in sizes for c in (("gather", (2, s)), ("reduce", (s, D))))]


def check_kept_graph_and_autocast() -> None:
    problem = Problem(torch.float32)
    leaves = problem.leaves(True, ALL[:2], ALL[:2])
    loss = linear_cross_entropy(target=problem.target, **leaves, **problem.options(True, {"mode": "min_memory"}))
    loss.backward(retain_graph=True)
    once = {name: leaf.grad.clone() for name, leaf in leaves.items()}  # type: ignore[union-attr]
    loss.backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, 2 * once[name])
    with torch.autocast("cpu", torch.bfloat16):
        cast = linear_cross_entropy(target=problem.target, **leaves, **problem.options(True, {}))
    torch.testing.assert_close(cast, loss, rtol=2e-2, atol=0)
    assert cast != loss


def check_compile() -> None:
    """The operator takes the group's name, so that a compiled graph has no break and the right numbers."""
    problem = Problem(torch.float32)
    for reduction in ("mean", "none"):

        def step(leaves: dict[str, Tensor], reduction: str = reduction) -> Tensor:
            loss = linear_cross_entropy(
                leaves["input"] * 1.5, leaves["linear_weight"], problem.target, reduction=reduction,
                process_group=dist.group.WORLD, chunk_bytes=CHUNK,
            )  # fmt: skip
            return loss.sum() * 0.7

        results = []
        for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            leaves = problem.leaves(True, ALL[:2], ALL[:2])
            loss = function(leaves)
            loss.backward()
            results.append([loss, *(leaf.grad for leaf in leaves.values())])
        for eager, compiled in zip(*results, strict=True):
            torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)


def refused(message: str, kind: type[Exception], call: Callable[[], object]) -> None:
    """On both ranks, so that none is left waiting."""
    with pytest.raises(kind, match=f"^{message}"):
        call()


def check_ranks_that_disagree() -> None:
    problem, rank = Problem(), dist.get_rank()
    weight = problem.linear_weight[problem.cut]
    same = {"process_group": dist.group.WORLD}

    def call(x: Tensor = problem.input, w: Tensor = weight, t: Tensor = problem.target, **options: Any) -> Any:
        return lambda: linear_cross_entropy(x, w, t, **same, **options)

    swapped = problem.target.clone()
    swapped[[0, 1]] = torch.tensor([3, 4][:: 1 if rank else -1])
    refused("process_group: every rank must be given the same target", ValueError, call(t=swapped))
    other = problem.signed.clone()
    other[rank] = 0
    refused("process_group: .* weight of 0", ValueError, call(token_weight=other, reduction="sum"))
    refused("process_group: .* options of the call", ValueError, call(softcap=3.0 + rank))
    refused(
        "process_group: .* options of the call", ValueError, call(x=problem.input.clone().requires_grad_(rank == 0))
    )
    n = 20 + rank
    wanted = r"process_group: every rank must be given the same number of tokens, got \[20, 21\]"
    refused(wanted, ValueError, call(x=problem.input[:n], t=problem.target[:n]))
    wanted = r"process_group: .* width of input, got \[6, 7\]"
    refused(wanted, ValueError, call(x=problem.input[:, : 6 + rank], w=weight[:, : 6 + rank]))
    empty = problem.linear_weight[:0] if rank else problem.linear_weight
    refused(r"linear_weight: every rank .* at least one row .* got \[11, 0\]", ValueError, call(w=empty))
    loss = linear_logprob(problem.input, weight.clone().requires_grad_(), problem.target, **same)
    upstream = torch.ones(N, dtype=torch.float64)
    upstream[(problem.target != -100).nonzero()[rank]] = 0
    refused("process_group: every rank must be given the same target", ValueError, lambda: loss.backward(upstream))


def check_arguments() -> None:
    problem = Problem()
    weight = problem.linear_weight[problem.cut]

    def call(t: Tensor = problem.target, **options: Any) -> Any:
        return lambda: linear_cross_entropy(problem.input, weight, t, **{"process_group": dist.group.WORLD, **options})

    refused(r"process_group must be a torch.distributed.ProcessGroup .* got str", TypeError, call(process_group="tp"))
    for backend in ("reference", "cpu", "triton", "cuda"):
        refused("backend=.* does not serve process_group", ValueError, call(backend=backend))
    refused(r"target must be in \[0, 11\)", ValueError, call(t=problem.target.clamp(min=11)))
    rows = problem.cut.stop - problem.cut.start
    refused(rf"weight must be \({rows},\)", ValueError, call(weight=problem.classes))


# ---- DTensor heads


class Model(nn.Module):
    """Embedding, trunk and head; the head runs as a layer, or in the loss as `hidden W^T`."""

    def __init__(self, *, tied: bool = False, frozen: bool = False, inside: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.trunk = nn.Embedding(V, D), nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight
        self.head.requires_grad_(not frozen)
        self.inside = inside

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.trunk(self.embed(ids)).tanh()
        if self.inside:
            return linear_cross_entropy(hidden, self.head.weight, ids.roll(-1, 1), linear_bias=self.head.bias)
        return hidden


def whole_gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for name, p in model.named_parameters()
    }


def all_ids() -> Tensor:
    """(ranks, B, T): every rank's own tokens."""
    return torch.randint(0, V, (2, 3, 8), generator=torch.Generator().manual_seed(5))


def fsdp_own(ids: Tensor, **kind: Any) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Loss and gradients as FSDP2 has them with the head inside."""

    class Own(Model):
        def forward(self, ids: Tensor) -> Tensor:
            logits = self.head(super().forward(ids))
            return F.cross_entropy(logits.flatten(0, 1), ids.roll(-1, 1).flatten())

    model = Own(**kind)
    for layer in (model.trunk, model):
        fully_shard(layer)
    assert isinstance(model.head.weight, DTensor)
    loss = model(ids)
    loss.backward()
    return loss, whole_gradients(model)


def one_process(ids: Tensor, **kind: Any) -> dict[str, Tensor | None]:
    """The gradient of the mean over all ranks' losses."""
    model = Model(**kind)
    for own in ids:
        logits = F.linear(model(own), model.head.weight, model.head.bias)
        (F.cross_entropy(logits.flatten(0, 1), own.roll(-1, 1).flatten()) / len(ids)).backward()
    return whole_gradients(model)


def check_fully_shard() -> None:
    """A head of its own group outside its forward (DTensor), and one of the root's group in the root's forward (plain
    there): loss and gradients as with FSDP2's own nn.Linear, and as in one process."""
    ids = all_ids()
    own = ids[dist.get_rank()]
    for kind in ({}, {"frozen": True}, {"tied": True}):
        loss_fsdp, grad_fsdp = fsdp_own(own, **kind)
        expected = one_process(ids, **kind)
        for mode in ("auto", "min_memory", "none", "inside"):
            model = Model(**kind, inside=mode == "inside")
            if not kind.get("tied") and mode != "inside":
                fully_shard(model.head)
            fully_shard(model.trunk)
            fully_shard(model)
            weight = model.head.weight
            assert isinstance(weight, DTensor)
            if mode == "inside":
                loss = model(own)
            else:
                hidden = model(own)
                # The tied weight belongs to the root, which keeps it whole after its forward.
                assert isinstance(model.head.weight, DTensor) == (not kind.get("tied"))
                bias = model.head.bias
                target = own.roll(-1, 1)
                if mode == "none":
                    each = linear_cross_entropy(
                        hidden, model.head.weight, target, linear_bias=bias, reduction="none", chunk_bytes=CHUNK
                    )
                    loss = each.mean()
                else:
                    loss = linear_cross_entropy(hidden, model.head.weight, target, linear_bias=bias, mode=mode)
            torch.testing.assert_close(loss, loss_fsdp, rtol=1e-5, atol=1e-6)
            loss.backward()
            got = whole_gradients(model)
            assert (got["head.weight" if not kind.get("tied") else "embed.weight"] is None) == bool(kind.get("frozen"))
            for name, gradient in got.items():
                torch.testing.assert_close(gradient, grad_fsdp[name], rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def check_gathered_heads() -> None:
    """By rows, by columns, replicated, on a two-dimensional mesh; every part of the head sharded or plain."""
    problem, rank = Problem(), dist.get_rank()
    x, target = problem.input * (1.0 + rank), problem.target  # every rank its own
    parts = ("linear_weight", "linear_bias", "lora_a", "lora_b")
    line, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2), mesh_dim_names=("r", "s"))
    truth = {name: getattr(problem, name).clone().requires_grad_() for name in parts}
    losses = [
        linear_cross_entropy(x_, target=target, weight=problem.classes, backend="reference", **truth)
        for x_ in (problem.input, problem.input * 2.0)
    ]
    torch.stack(losses).mean().backward()
    for mesh, placements in (
        (line, [Shard(0)]),
        (line, [Replicate()]),
        (grid, [Replicate(), Shard(0)]),
        (grid, [Shard(0), Replicate()]),
    ):
        head = {name: distribute_tensor(getattr(problem, name), mesh, placements).requires_grad_() for name in parts}
        assert isinstance(head["linear_weight"], DTensor)
        classes = distribute_tensor(problem.classes, mesh, placements)
        loss = linear_cross_entropy(x, target=target, weight=classes, **head)
        assert type(loss) is Tensor
        torch.testing.assert_close(loss, losses[rank].detach(), **EXACT)
        loss.backward()
        for name in parts:
            gradient = head[name].grad
            assert isinstance(gradient, DTensor)
            assert gradient.placements == tuple(placements)
            torch.testing.assert_close(gradient.full_tensor(), truth[name].grad, **EXACT)
    columns = distribute_tensor(problem.linear_weight, line, [Shard(1)])
    torch.testing.assert_close(
        linear_logprob(x, columns, target), linear_logprob(x, problem.linear_weight, target), **EXACT
    )


def tensor_parallel(problem: Problem, mesh: DeviceMesh) -> dict[str, Tensor]:
    placements = {name: [Shard(0)] for name in ("linear_weight", "linear_bias", "lora_b")}
    return {
        name: distribute_tensor(getattr(problem, name), mesh, placements.get(name, [Replicate()])).requires_grad_()
        for name in ALL
    }


def check_tensor_parallel_heads() -> None:
    """A replicated DTensor input, or a named group: no rank gathers the head."""
    problem, mesh = Problem(), init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    truth = problem.leaves(False, ALL, ALL)
    options = {"weight": problem.classes, "label_smoothing": 0.1}
    expected = linear_cross_entropy(target=problem.target, backend="reference", **options, **truth)
    expected.backward()
    classes = distribute_tensor(problem.classes, mesh, [Shard(0)])
    for named in (False, True):
        leaves = tensor_parallel(problem, mesh)
        extra: dict[str, Any] = {"target": distribute_tensor(problem.target, mesh, [Replicate()])}
        if named:
            leaves["input"] = problem.input.clone().requires_grad_()
            extra = {"target": problem.target, "process_group": mesh.get_group("tp")}
        full, DTensor.full_tensor = DTensor.full_tensor, None  # type: ignore[assignment, method-assign]
        try:
            loss = linear_cross_entropy(weight=classes, label_smoothing=0.1, **leaves, **extra)
        finally:
            DTensor.full_tensor = full  # type: ignore[method-assign]
        torch.testing.assert_close(loss, expected, **EXACT)
        loss.backward()
        for name, leaf in leaves.items():
            gradient = leaf.grad
            assert isinstance(gradient, DTensor) == (not (named and name == "input"))
            gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            torch.testing.assert_close(gradient, truth[name].grad, **EXACT)
    replicated = distribute_tensor(problem.linear_weight, mesh, [Replicate()])
    x = distribute_tensor(problem.input, mesh, [Replicate()])
    expected = linear_cross_entropy(problem.input, problem.linear_weight, problem.target)
    for weight in (replicated, problem.linear_weight):
        torch.testing.assert_close(linear_cross_entropy(x, weight, problem.target), expected, **EXACT)


def check_dtensors_that_are_refused() -> None:
    problem = Problem()
    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(problem.linear_weight, mesh, [Shard(0)])
    x = distribute_tensor(problem.input, mesh, [Replicate()])
    group = mesh.get_group()

    def call(x: Tensor = problem.input, w: Tensor = weight, t: Tensor = problem.target, **options: Any) -> Any:
        return lambda: linear_cross_entropy(x, w, t, **options)

    sharded = distribute_tensor(problem.input, mesh, [Shard(0)])
    refused(r"input must be a plain tensor or a replicated DTensor.*input.to_local\(\)", ValueError, call(x=sharded))
    target = distribute_tensor(problem.target, mesh, [Shard(0)])
    refused("target must be a plain tensor or a replicated DTensor", ValueError, call(t=target))
    columns = distribute_tensor(problem.linear_weight, mesh, [Shard(1)])
    for options in ({"x": x}, {"process_group": group}):
        refused(r"linear_weight must be sharded by rows, Shard\(0\)", ValueError, call(w=columns, **options))
    refused("linear_bias must be a DTensor", ValueError, call(x=x, linear_bias=problem.linear_bias))
    grid = init_device_mesh("cpu", (1, 2))
    other = distribute_tensor(problem.linear_weight, grid, [Replicate(), Shard(0)])
    refused("input and linear_weight must be DTensors of one device mesh", ValueError, call(x=x, w=other))
    backwards = DeviceMesh("cpu", [1, 0])
    turned = distribute_tensor(problem.linear_weight, backwards, [Shard(0)])
    wanted = r"linear_weight must be sharded over the ranks of process_group in their order, \[0, 1\]; .* \[1, 0\]"
    refused(wanted, ValueError, call(w=turned, process_group=dist.group.WORLD))
    partial = DTensor.from_local(problem.linear_weight, mesh, [Partial()], run_check=False)
    refused("linear_weight must not hold partial sums", ValueError, call(w=partial))


def check_compile_with_a_dtensor_head() -> None:
    """A graph break at the gather, the right numbers around it."""
    problem, mesh = Problem(), init_device_mesh("cpu", (2,))
    results = []

    def step(x: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(x * 1.5, weight, problem.target)

    for function in (step, torch.compile(step, backend="aot_eager")):
        x = problem.input.clone().requires_grad_()
        weight = distribute_tensor(problem.linear_weight, mesh, [Shard(0)]).requires_grad_()
        loss = function(x, weight)
        loss.backward()
        assert isinstance(weight.grad, DTensor)
        results.append([loss, x.grad, weight.grad.full_tensor()])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, **EXACT)


CHECKS = [name for name in globals() if name.startswith("check_")]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    return run_in_two_processes(__name__, CHECKS, folder)


@pytest.mark.parametrize("check", CHECKS)
def test_two_processes(check: str, reports: dict[str, str]) -> None:
    assert not reports[check], reports[check]
