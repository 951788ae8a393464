"""`torch.library` operators of tree alignment: registration, autograd, vmap and the choice of a backend.

The forward pass computes posterior and entropy, so the backward pass is a multiplication (as in CTC):

    d relabel = P * g,    d delete = (1 - row sums of P) * g,    d insert = (1 - column sums of P) * g,
    d temperature = -entropy * g
"""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# What "auto" takes where it can be imported, best first. The device kernels join the list for CUDA tensors when they
# have been measured against the CPU kernels with a copy each way; until then they are served on request only.
_AUTO = {"cuda": ("cpu",), "cpu": ("cpu",)}
_NEEDS = {"cpu": "the compiled extension structloss._C", "cuda": "the CUDA extension structloss._C_cuda"}
_BUILD = "build it with `pip install .` in a checkout"
_warned = False


def _kernels(name: str) -> ModuleType:
    """The module of a backend. Imported late: Triton has to stay out of `import structloss`."""
    return import_module(f"structloss.tree_alignment.{name}")


def choose_backend(backend: str, device: torch.device) -> str:
    """The backend that serves a call. Raises instead of using another one than asked for."""
    global _warned
    if backend == "reference":
        return backend
    if backend in ("cpu", "cuda", "triton"):
        if backend != "triton" and device.type != backend:
            raise RuntimeError(
                f'backend="{backend}" needs {backend.upper()} tensors, got {device}; use backend="auto" or move them'
            )
        error = _kernels(backend).import_error
        if error is not None:
            needed = _NEEDS.get(backend, "the package triton")
            how = _BUILD if backend in _NEEDS else "install it"
            raise RuntimeError(f'backend="{backend}" needs {needed} ({error}); {how}, or use backend="auto"')
        return backend
    if backend != "auto":
        raise ValueError(f'backend must be "auto", "reference", "cpu", "cuda" or "triton", got {backend!r}')
    for name in _AUTO.get(device.type, _AUTO["cpu"]):
        if _kernels(name).import_error is None:
            return name
    if not _warned:
        _warned = True
        warnings.warn(
            f"tree alignment runs in plain torch, hundreds of times slower, because {_NEEDS['cpu']} is missing "
            f"({_kernels('cpu').import_error}); {_BUILD}",
            RuntimeWarning,
            stacklevel=2,
        )
    return "reference"


def _prepare(
    backend: str, table_columns: int, relabel: Tensor | None, labels: tuple[Tensor, Tensor], tensors: list[Tensor]
) -> tuple[ModuleType, list[Tensor | None], dict[str, Any]]:
    """The backend, the tensors where it wants them (relabel first), and what it alone takes."""
    name = choose_backend(backend, tensors[0].device)
    extra: dict[str, Any] = {"table_columns": table_columns} if name == "cuda" else {}
    if relabel is None and name == "cpu":  # it reads the labels: the costs would be most of the memory
        extra["labels"] = (labels[0].cpu(), labels[1].cpu())
    elif relabel is None:
        relabel = unit_relabel(*labels, tensors[0].dtype)
    prepared = [None if x is None else x.detach() for x in (relabel, *tensors)]
    if name in ("cpu", "reference"):
        prepared = [None if x is None else x.cpu() for x in prepared]
    return _kernels(name), prepared, extra


def unit_relabel(label_a: Tensor, label_b: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N, M): 0 where the labels agree, 1 where not."""
    return (label_a[:, :, None] != label_b[:, None, :]).to(dtype)


def _check_temperature(temperature: Tensor) -> None:
    if temperature.device.type != "cpu":
        return  # reading it would wait for the device
    wrong = ~((temperature > 0) & torch.isfinite(temperature))
    if wrong.any():
        pair = int(wrong.nonzero()[0])
        raise ValueError(f"temperature[{pair}] = {temperature[pair].item()}; temperature must be finite and > 0")


@torch.library.custom_op("structloss::soft_tree_alignment", mutates_args=())
def soft_tree_alignment(
    relabel: Tensor | None,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    temperature: Tensor,
    method: str,
    max_cells: int,
    table_columns: int,
    backend: str,
    need_posterior: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value (B,), posterior (B, N, M), entropy (B,) and method index (B,); temperature is (B,) float64.

    Where `relabel` is None, a match costs 0 where the labels agree and 1 where not.
    Without `need_posterior`, posterior and entropy are empty. The entropy of the distribution over mappings is minus
    the derivative of the value with respect to the temperature. `table_columns` bounds the columns of the keyroot
    tables of a tree, 0 where nobody knows.
    """
    device = delete.device
    tensors = [delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b, temperature]
    kernels, inputs, extra = _prepare(backend, table_columns, relabel, (label_a, label_b), tensors)
    _check_temperature(temperature)
    value, posterior, entropy, used = kernels.soft_tree_alignment(*inputs, method, max_cells, need_posterior, **extra)
    if not need_posterior:
        posterior, entropy = value.new_empty(0, 0, 0), value.new_empty(0)
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
    label_a,
    label_b,
    temperature,
    method,
    max_cells,
    table_columns,
    backend,
    need_posterior,
):
    batch, n = delete.shape
    posterior = delete.new_empty((batch, n, insert.shape[1]) if need_posterior else (0, 0, 0))
    entropy = delete.new_empty(batch if need_posterior else 0)
    return delete.new_empty(batch), posterior, entropy, sizes_a.new_empty(batch)


def _soft_setup_context(ctx, inputs, output):
    sizes_a, sizes_b, need_posterior = inputs[5], inputs[6], inputs[-1]
    value, posterior, entropy, used = output
    ctx.need_posterior = need_posterior
    ctx.mark_non_differentiable(posterior, entropy, used)
    ctx.save_for_backward(posterior, entropy, sizes_a, sizes_b, value)


def _soft_backward(ctx, grad, *_):
    if not ctx.need_posterior:
        raise RuntimeError("soft_tree_alignment was called with need_posterior=False and cannot be differentiated")
    needs = [*ctx.needs_input_grad[:3], ctx.needs_input_grad[9]]
    grads = soft_tree_alignment_backward(grad, *ctx.saved_tensors, *needs)
    d_relabel, d_delete, d_insert, d_temperature = (g if need else None for g, need in zip(grads, needs, strict=True))
    return d_relabel, d_delete, d_insert, *(None,) * 6, d_temperature, *(None,) * 5


# The value is an argument only so that a second derivative finds its way to the refusal below: without it that would be
# zero in silence.
@torch.library.custom_op("structloss::soft_tree_alignment_backward", mutates_args=())
def soft_tree_alignment_backward(
    grad: Tensor,
    posterior: Tensor,
    entropy: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    value: Tensor,
    need_relabel: bool,
    need_delete: bool,
    need_insert: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the costs and of the temperature; those that are not needed are empty."""
    d_relabel, d_delete, d_insert, d_temperature = (grad.new_empty(0) for _ in range(4))
    if need_relabel:
        d_relabel = posterior * grad[:, None, None]
    if need_delete:
        d_delete = torch.where(inside_tree(posterior.shape[1], sizes_a), 1 - posterior.sum(2), 0) * grad[:, None]
    if need_insert:
        d_insert = torch.where(inside_tree(posterior.shape[2], sizes_b), 1 - posterior.sum(1), 0) * grad[:, None]
    if need_temperature:
        d_temperature = -entropy.double() * grad
    return d_relabel, d_delete, d_insert, d_temperature


def inside_tree(width: int, sizes: Tensor) -> Tensor:
    """True at nodes, False at padding."""
    return torch.arange(width, device=sizes.device) < sizes[:, None]


@soft_tree_alignment_backward.register_fake
def _(
    grad,
    posterior,
    entropy,
    sizes_a,
    sizes_b,
    value,
    need_relabel,
    need_delete,
    need_insert,
    need_temperature,
):
    batch, n, m = posterior.shape
    return (
        torch.empty_like(posterior) if need_relabel else grad.new_empty(0),
        grad.new_empty(batch, n) if need_delete else grad.new_empty(0),
        grad.new_empty(batch, m) if need_insert else grad.new_empty(0),
        grad.new_empty(batch, dtype=torch.float64) if need_temperature else grad.new_empty(0),
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
    relabel: Tensor | None,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    method: str,
    max_cells: int,
    table_columns: int,
    backend: str,
    need_mapping: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance (B,), partners (B, N) and (B, M) (empty without `need_mapping`), method index (B,)."""
    device = delete.device
    tensors = [delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b]
    kernels, inputs, extra = _prepare(backend, table_columns, relabel, (label_a, label_b), tensors)
    distance, match_a, match_b, used = kernels.hard_tree_alignment(*inputs, method, max_cells, need_mapping, **extra)
    if not need_mapping:
        match_a, match_b = used.new_empty(0, 0), used.new_empty(0, 0)
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
    label_a,
    label_b,
    method,
    max_cells,
    table_columns,
    backend,
    need_mapping,
):
    batch = delete.shape[0]
    match_a, match_b = (sizes_a.new_empty(x.shape if need_mapping else (0, 0)) for x in (delete, insert))
    return delete.new_empty(batch), match_a, match_b, sizes_a.new_empty(batch)


def _hard_setup_context(ctx, inputs, output):
    sizes_a, sizes_b, need_mapping = inputs[5], inputs[6], inputs[-1]
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
        d_relabel = matched * grad[:, None, None]
    if ctx.needs_input_grad[1]:
        d_delete = (inside_tree(match_a.shape[1], sizes_a) & (match_a < 0)) * grad[:, None]
    if ctx.needs_input_grad[2]:
        d_insert = (inside_tree(match_b.shape[1], sizes_b) & (match_b < 0)) * grad[:, None]
    return d_relabel, d_delete, d_insert, *(None,) * 11


hard_tree_alignment.register_autograd(_hard_backward, setup_context=_hard_setup_context)


def _vmap_over(op, has_need: bool) -> None:
    """vmap folds its dimension into the batch, where every pair is independent of the others."""

    def folded(info, in_dims, *args):
        size = info.batch_size
        inputs = []
        for x, dim in zip(args, in_dims, strict=True):
            if isinstance(x, Tensor):
                x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
                batch = x.shape[1]
                x = x.flatten(0, 1)
            inputs.append(x)
        if has_need:  # inside vmap nobody sees that a tensor of the outside requires a gradient
            wanted = any(x.requires_grad for x in inputs if isinstance(x, Tensor))
            inputs[-1] = inputs[-1] or (wanted and torch.is_grad_enabled())
        outputs = op(*inputs)
        # What was not asked for is empty and has no batch.
        asked = [x.shape[0] == size * batch for x in outputs]
        outputs = tuple(x.unflatten(0, (size, batch)) if ok else x for x, ok in zip(outputs, asked, strict=True))
        return outputs, tuple(0 if ok else None for ok in asked)

    op.register_vmap(folded)


_vmap_over(soft_tree_alignment, True)
_vmap_over(soft_tree_alignment_backward, False)
_vmap_over(hard_tree_alignment, True)
