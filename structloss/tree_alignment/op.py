"""`torch.library` operators of tree alignment: registration, autograd and the choice of a backend.

The forward pass computes the posterior, so the backward pass is a multiplication (as in CTC):

    d relabel = P * g,    d delete = (1 - row sums of P) * g,    d insert = (1 - column sums of P) * g
"""

import warnings

import torch
from torch import Tensor

from structloss.tree_alignment import cpu, reference

_warned = False


def choose_backend(backend: str, device: torch.device) -> str:
    """The backend that serves a call: "cpu" or "reference". Raises instead of using another one than asked for."""
    global _warned
    if backend in ("cuda", "triton"):
        raise RuntimeError(f'backend="{backend}" for tree alignment is not built in this version; use backend="auto"')
    if backend == "reference":
        return backend
    if backend == "cpu":
        if device.type != "cpu":
            raise RuntimeError(f'backend="cpu" needs CPU tensors, got {device}; use backend="auto" or move them')
        if cpu.import_error is not None:
            raise RuntimeError(
                f'backend="cpu" needs the compiled extension structloss._C ({cpu.import_error}); build it with '
                '`pip install .` in a checkout, or use backend="reference"'
            )
        return backend
    if backend != "auto":
        raise ValueError(f'backend must be "auto", "reference", "cpu", "cuda" or "triton", got {backend!r}')
    if cpu.import_error is None:
        return "cpu"
    if not _warned:
        _warned = True
        warnings.warn(
            f"tree alignment runs in plain torch, hundreds of times slower, because the compiled extension "
            f"structloss._C is missing ({cpu.import_error}); build it with `pip install .` in a checkout",
            RuntimeWarning,
            stacklevel=2,
        )
    return "reference"


def _on_cpu(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().cpu() for x in tensors]


@torch.library.custom_op("structloss::soft_tree_alignment", mutates_args=())
def soft_tree_alignment(
    relabel: Tensor,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    temperature: float,
    method: str,
    max_cells: int,
    backend: str,
    need_posterior: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value (B,), posterior (B, N, M), entropy (B,) and method index (B,).

    Without `need_posterior`, posterior and entropy are empty. The entropy of the distribution over mappings is minus
    the derivative of the value with respect to the temperature.
    """
    kernels = cpu if choose_backend(backend, relabel.device) == "cpu" else reference
    inputs = _on_cpu(relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b)
    value, posterior, entropy, used = kernels.soft_tree_alignment(
        *inputs, temperature, method, max_cells, need_posterior
    )
    if posterior is None:
        posterior, entropy = value.new_empty(0, 0, 0), value.new_empty(0)
    device = relabel.device
    return value.to(device), posterior.to(device), entropy.to(device), used.to(device)


@soft_tree_alignment.register_fake
def _(
    relabel,
    delete,
    insert,
    leftmost_a,
    leftmost_b,
    sizes_a,
    sizes_b,
    temperature,
    method,
    max_cells,
    backend,
    need_posterior,
):
    batch = relabel.shape[0]
    posterior = relabel.new_empty(relabel.shape if need_posterior else (0, 0, 0))
    entropy = relabel.new_empty(batch if need_posterior else 0)
    return relabel.new_empty(batch), posterior, entropy, sizes_a.new_empty(batch)


def _soft_setup_context(ctx, inputs, output):
    relabel, delete, insert, _, _, sizes_a, sizes_b, *_, need_posterior = inputs
    _, posterior, entropy, used = output
    ctx.need_posterior = need_posterior
    ctx.mark_non_differentiable(posterior, entropy, used)
    ctx.save_for_backward(posterior, sizes_a, sizes_b, relabel, delete, insert)


def _soft_backward(ctx, grad, *_):
    if not ctx.need_posterior:
        raise RuntimeError("soft_tree_alignment was called with need_posterior=False and cannot be differentiated")
    needs = ctx.needs_input_grad[:3]
    grads = soft_tree_alignment_backward(grad, *ctx.saved_tensors, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 9


# The costs are arguments only so that a second derivative finds its way to the refusal below: without them it would be
# zero in silence.
@torch.library.custom_op("structloss::soft_tree_alignment_backward", mutates_args=())
def soft_tree_alignment_backward(
    grad: Tensor,
    posterior: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    relabel: Tensor,
    delete: Tensor,
    insert: Tensor,
    need_relabel: bool,
    need_delete: bool,
    need_insert: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the costs; those that are not needed are empty."""
    d_relabel, d_delete, d_insert = (grad.new_empty(0) for _ in range(3))
    if need_relabel:
        d_relabel = posterior * grad[:, None, None]
    if need_delete:
        d_delete = (_inside(delete, sizes_a) - posterior.sum(2)) * grad[:, None]
    if need_insert:
        d_insert = (_inside(insert, sizes_b) - posterior.sum(1)) * grad[:, None]
    return d_relabel, d_delete, d_insert


def _inside(costs: Tensor, sizes: Tensor) -> Tensor:
    """1 at nodes, 0 at padding."""
    positions = torch.arange(costs.shape[1], device=costs.device)
    return (positions < sizes.to(costs.device)[:, None]).to(costs.dtype)


@soft_tree_alignment_backward.register_fake
def _(grad, posterior, sizes_a, sizes_b, relabel, delete, insert, need_relabel, need_delete, need_insert):
    return (
        torch.empty_like(posterior) if need_relabel else grad.new_empty(0),
        grad.new_empty(delete.shape) if need_delete else grad.new_empty(0),
        grad.new_empty(insert.shape) if need_insert else grad.new_empty(0),
    )


def _refuse_second_order(ctx, *grads):
    raise RuntimeError(
        "soft_tree_edit_distance has no second derivative: its gradient, the posterior, is computed as a constant. "
        "Drop create_graph=True, or differentiate structloss.tree_alignment.reference.log_partition by autograd"
    )


soft_tree_alignment.register_autograd(_soft_backward, setup_context=_soft_setup_context)
soft_tree_alignment_backward.register_autograd(_refuse_second_order)


@torch.library.custom_op("structloss::hard_tree_alignment", mutates_args=())
def hard_tree_alignment(
    relabel: Tensor,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    method: str,
    max_cells: int,
    backend: str,
    need_mapping: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance (B,), partners (B, N) and (B, M) (empty without `need_mapping`), method index (B,)."""
    kernels = cpu if choose_backend(backend, relabel.device) == "cpu" else reference
    inputs = _on_cpu(relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b)
    distance, match_a, match_b, used = kernels.hard_tree_alignment(*inputs, method, max_cells, need_mapping)
    if match_a is None or match_b is None:
        match_a, match_b = used.new_empty(0, 0), used.new_empty(0, 0)
    device = relabel.device
    return distance.to(device), match_a.to(device), match_b.to(device), used.to(device)


@hard_tree_alignment.register_fake
def _(
    relabel,
    delete,
    insert,
    leftmost_a,
    leftmost_b,
    sizes_a,
    sizes_b,
    method,
    max_cells,
    backend,
    need_mapping,
):
    batch, n, m = relabel.shape
    index = {"dtype": torch.int64}
    return (
        relabel.new_empty(batch),
        relabel.new_empty((batch, n) if need_mapping else (0, 0), **index),
        relabel.new_empty((batch, m) if need_mapping else (0, 0), **index),
        relabel.new_empty(batch, **index),
    )


def _hard_setup_context(ctx, inputs, output):
    *_, sizes_a, sizes_b, _, _, _, need_mapping = inputs
    _, match_a, match_b, used = output
    ctx.need_mapping = need_mapping
    ctx.mark_non_differentiable(match_a, match_b, used)
    ctx.save_for_backward(match_a, match_b, sizes_a, sizes_b)


def _hard_backward(ctx, grad, *_):
    """The subgradient that the mapping found gives; the distance is piecewise linear, ties are broken by the kernel."""
    if not ctx.need_mapping:
        raise RuntimeError("hard_tree_alignment was called with need_mapping=False and cannot be differentiated")
    match_a, match_b, sizes_a, sizes_b = ctx.saved_tensors
    d_relabel = d_delete = d_insert = None
    if ctx.needs_input_grad[0]:
        matched = match_a[:, :, None] == torch.arange(match_b.shape[1], device=match_b.device)
        d_relabel = matched.to(grad.dtype) * grad[:, None, None]
    if ctx.needs_input_grad[1]:
        d_delete = _inside(grad.new_empty(match_a.shape), sizes_a) * (match_a < 0) * grad[:, None]
    if ctx.needs_input_grad[2]:
        d_insert = _inside(grad.new_empty(match_b.shape), sizes_b) * (match_b < 0) * grad[:, None]
    return d_relabel, d_delete, d_insert, *(None,) * 8


hard_tree_alignment.register_autograd(_hard_backward, setup_context=_hard_setup_context)
