"""Tree alignment by the compiled CPU kernels (csrc/cpu): checks memory, hands over addresses."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import structloss._C as _C
except ImportError as error:  # the extension is optional at run time
    import_error: ImportError | None = error
else:
    import_error = None

_METHODS = {"exact": 0, "flattened": 1, "auto": 2}


def _addresses(
    relabel: Tensor | None,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    method: str,
    max_cells: int,
    labels: tuple[Tensor, Tensor] | None,
) -> tuple[object, list[Tensor]]:
    """The argument block of the kernels and the tensors that have to outlive the call."""
    dtype = delete.dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"delete must be float32 or float64, got {dtype}")
    (batch, width_a), width_b = delete.shape, insert.shape[-1]
    given: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {
        "delete": (delete.detach(), (batch, width_a), dtype),
        "insert": (insert.detach(), (batch, width_b), dtype),
        "leftmost_a": (leftmost_a, (batch, width_a), torch.int64),
        "leftmost_b": (leftmost_b, (batch, width_b), torch.int64),
        "sizes_a": (sizes_a, (batch,), torch.int64),
        "sizes_b": (sizes_b, (batch,), torch.int64),
    }
    if relabel is not None:
        given["relabel"] = (relabel.detach(), (batch, width_a, width_b), dtype)
    elif labels is not None:
        given["label_a"] = (labels[0], (batch, width_a), torch.int64)
        given["label_b"] = (labels[1], (batch, width_b), torch.int64)
    else:
        raise ValueError("relabel: got None, and no labels to make the default costs from")
    memory = {}
    for name, (tensor, shape, dtype) in given.items():
        if tensor.device.type != "cpu" or tuple(tensor.shape) != shape or tensor.dtype != dtype:
            got = f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name} must be a CPU tensor {shape} of {dtype}, got {got}")
        memory[name] = tensor.contiguous()
    block = _C.TreePairAddresses(
        double_precision=delete.dtype == torch.float64,
        batch=batch,
        width_a=width_a,
        width_b=width_b,
        **{name: 0 for name in ("relabel", "label_a", "label_b") if name not in memory},
        **{name: tensor.data_ptr() for name, tensor in memory.items()},
        method=_METHODS[method],
        max_cells=max_cells,
        threads=torch.get_num_threads(),
    )
    return block, list(memory.values())


def soft_tree_alignment(
    relabel: Tensor | None,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    temperature: Tensor,
    method: str,
    max_cells: int,
    need_posterior: bool,
    labels: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Value (B,), posterior (B, N, M) or None, entropy (B,), method index (B,)."""
    block, kept = _addresses(
        relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b, method, max_cells, labels
    )
    value = delete.new_empty(delete.shape[0])
    entropy = torch.empty_like(value)
    used = torch.empty(delete.shape[0], dtype=torch.int64)
    posterior = delete.new_zeros(*delete.shape, insert.shape[1]) if need_posterior else None
    # An empty posterior has no address; it has no entry to fill either.
    address = 0 if posterior is None else posterior.data_ptr()
    temperature = temperature.detach().contiguous()
    if temperature.dtype != torch.float64 or temperature.shape != value.shape or temperature.device.type != "cpu":
        got = f"{tuple(temperature.shape)} of {temperature.dtype} on {temperature.device}"
        raise ValueError(f"temperature must be a CPU tensor {tuple(value.shape)} of float64, got {got}")
    _C.soft_tree_alignment(
        block, temperature.data_ptr(), value.data_ptr(), address, entropy.data_ptr(), used.data_ptr()
    )
    del kept
    return value, posterior, entropy, used


def hard_tree_alignment(
    relabel: Tensor | None,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    method: str,
    max_cells: int,
    need_mapping: bool,
    labels: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Distance (B,), partners (B, N) and (B, M) or None, method index (B,)."""
    block, kept = _addresses(
        relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b, method, max_cells, labels
    )
    distance = delete.new_empty(delete.shape[0])
    used = torch.empty(delete.shape[0], dtype=torch.int64)
    match_a = torch.full_like(delete, -1, dtype=torch.int64) if need_mapping else None
    match_b = torch.full_like(insert, -1, dtype=torch.int64) if need_mapping else None
    if match_a is None or match_b is None:
        addresses = (0, 0)
    else:
        match_a, match_b = match_a.contiguous(), match_b.contiguous()
        addresses = (match_a.data_ptr(), match_b.data_ptr())
    _C.hard_tree_alignment(block, distance.data_ptr(), *addresses, used.data_ptr())
    del kept
    return distance, match_a, match_b, used
