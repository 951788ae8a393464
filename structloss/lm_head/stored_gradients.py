"""Gradients made in the forward, multiplied by the upstream gradient in the backward: `structloss::scale_gradient`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import Tensor

_SECOND_ORDER = (
    "the losses of structloss.lm_head have a first derivative only: the gradient is made in the forward pass; "
    "use backend='reference' for higher derivatives"
)
# Rows of a stored gradient scaled at a time, so that a bfloat16 gradient needs no float32 copy of itself.
_SCALE_ROWS = 1024


def scale_gradient_pass(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * scale in `dtype`; a one-dimensional scale multiplies the rows."""
    result = torch.empty_like(gradient, dtype=dtype, memory_format=torch.contiguous_format)
    factor = scale if scale.dim() == 0 else scale.view(-1, *[1] * (gradient.dim() - 1))
    for start in range(0, gradient.shape[0], _SCALE_ROWS):
        part = slice(start, start + _SCALE_ROWS)
        # A tensor of the gradient's rank keeps float32 factors float32 beside bfloat16 gradients.
        rows = factor.view([1] * gradient.dim()) if scale.dim() == 0 else factor[part]
        torch.mul(gradient[part], rows, out=result[part])
    return result


scale_gradient_op = torch.library.custom_op("structloss::scale_gradient", scale_gradient_pass, mutates_args=())


@scale_gradient_op.register_fake
def _(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype, memory_format=torch.contiguous_format)


def scaled(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * scale, without a second buffer where the stored gradient is not needed again."""
    if gradient.dtype == dtype and scale.dim() == 0 and type(gradient) is Tensor and _graph_is_freed():
        if scale.device.type == "cpu":
            factor = scale.item()
            return gradient if factor == 1.0 else gradient.mul_(factor)
        kernels = import_module("structloss.lm_head.triton")
        if kernels.import_error is None and scale.device.type == "cuda" and gradient.is_contiguous():
            scaled_in_place: Tensor = kernels.scale_in_place(gradient, scale)
            return scaled_in_place
        return torch.mul(gradient, scale.view([1] * gradient.dim()), out=gradient)
    if torch.is_grad_enabled():
        # create_graph: the stored gradient is a constant to autograd, and a second derivative through it
        # would be silently 0. As a leaf of its own it leads there to the operator's refusal.
        gradient = gradient.detach().requires_grad_()
    product: Tensor = scale_gradient_op(gradient, scale, dtype)
    return product


def _graph_is_freed() -> bool:
    """True in a backward that does not keep its graph: only then may a stored gradient be handed out or
    changed.
    """
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not torch.is_grad_enabled() and not keeps()


def refuse_second_order(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError(_SECOND_ORDER)


scale_gradient_op.register_autograd(refuse_second_order)
