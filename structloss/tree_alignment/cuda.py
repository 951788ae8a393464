"""Tree alignment by the CUDA kernels (csrc/cuda): checks memory, gives workspace, hands over addresses.

Nothing waits for the device unless it has to: where `table_columns` is not given, or so large that `max_cells` might
be exceeded, the plan of the batch is read back first. So wrong costs do not raise: the pair's value (and entropy) is
NaN. ``check=True``, or the environment variable ``STRUCTLOSS_CUDA_CHECK=1``, reads the status of every pair back and
raises ValueError as the CPU does.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from structloss.tree_alignment.reference import check_costs

try:
    import structloss._C_cuda as _C
except ImportError as error:  # the extension is optional at run time
    import_error: ImportError | None = error
else:
    import_error = None

_METHODS = {"exact": 0, "flattened": 1, "auto": 2}
_SOFT, _SOFT_FLOAT32, _HARD = range(3)
# Fewer blocks run at a time where they would need more than this together.
_WORKSPACE_BYTES = 1 << 30
# Above this ratio of float32 to float64 throughput, float32 costs are computed in float32 with exponents.
_SLOW_FLOAT64 = 4
_UNBOUNDED_COLUMNS = 2**31 - 512


class _Device:
    """What the calls need from torch.cuda; the tests replace it where they run the kernels on the host."""

    type = "cuda"

    @staticmethod
    def guard(device: torch.device) -> AbstractContextManager[None]:
        return torch.cuda.device(device)

    @staticmethod
    def stream() -> int:
        return torch.cuda.current_stream().cuda_stream

    @staticmethod
    def capturing() -> bool:
        return torch.cuda.is_current_stream_capturing()


@lru_cache
def _float64_is_slow(device: torch.device) -> bool:
    with _Device.guard(device):
        return _C.float64_slowdown() > _SLOW_FLOAT64


@dataclass
class _Batch:
    """Contiguous tensors of one call; they have to outlive the launches only, the allocator keeps stream order."""

    relabel: Tensor
    delete: Tensor
    insert: Tensor
    leftmost_a: Tensor
    leftmost_b: Tensor
    sizes_a: Tensor
    sizes_b: Tensor
    method: str
    max_cells: int

    def __post_init__(self) -> None:
        if self.relabel.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"relabel must be float32 or float64, got {self.relabel.dtype}")
        batch, width_a, width_b = self.relabel.shape
        cost = self.relabel.dtype
        wanted = {
            "relabel": ((batch, width_a, width_b), cost),
            "delete": ((batch, width_a), cost),
            "insert": ((batch, width_b), cost),
            "leftmost_a": ((batch, width_a), torch.int64),
            "leftmost_b": ((batch, width_b), torch.int64),
            "sizes_a": ((batch,), torch.int64),
            "sizes_b": ((batch,), torch.int64),
        }
        for name, (shape, dtype) in wanted.items():
            self.take(name, getattr(self, name), shape, dtype)

    def take(self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        device = self.relabel.device
        if (
            device.type != _Device.type
            or tensor.device != device
            or tuple(tensor.shape) != shape
            or tensor.dtype != dtype
        ):
            got = f"{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name} must be a CUDA tensor {shape} of {dtype} beside relabel, got {got}")
        tensor = tensor.detach().contiguous()
        setattr(self, name, tensor)
        return tensor

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.relabel.dtype, device=self.relabel.device)

    def pairs(self, table_columns: int) -> Any:
        """The argument block of the kernels."""
        batch, width_a, width_b = self.relabel.shape
        return _C.TreePairs(
            batch=batch,
            width_a=width_a,
            width_b=width_b,
            leftmost_a=self.leftmost_a.data_ptr(),
            leftmost_b=self.leftmost_b.data_ptr(),
            sizes_a=self.sizes_a.data_ptr(),
            sizes_b=self.sizes_b.data_ptr(),
            relabel=self.relabel.data_ptr(),
            delete=self.delete.data_ptr(),
            insert=self.insert.data_ptr(),
            double_costs=self.relabel.dtype == torch.float64,
            method=_METHODS[self.method],
            max_cells=self.max_cells,
            table_columns=table_columns,
        )

    def bounded_columns(self, table_columns: int) -> int:
        """A bound on the columns of every pair. Raises where "exact" needs more than `max_cells`."""
        batch, width_a, width_b = self.relabel.shape
        if self.method == "flattened":
            return max(width_a, width_b) + 1
        # Tables of one node have no columns, but they are counted as cells: at most as many again.
        within = self.method == "auto" or (2 * table_columns) ** 2 <= self.max_cells
        if (table_columns > 0 and within) or batch == 0:
            return max(table_columns, 1)
        if _Device.capturing():
            known = "is not given" if table_columns <= 0 else f"= {table_columns} does not rule that out"
            raise RuntimeError(
                f"tree alignment has to read sizes back from the device, which a CUDA graph cannot capture: whether a "
                f"pair needs more than max_cells = {self.max_cells} is unknown, table_columns {known}; give a bound "
                'of the table columns, and method="auto" or a larger max_cells'
            )
        cells, columns = self.new(batch, dtype=torch.int64), self.new(batch, dtype=torch.int64)
        used, status = self.new(batch, dtype=torch.int64), self.new(batch, dtype=torch.int32)
        _C.plan_tree_alignment(
            self.pairs(_UNBOUNDED_COLUMNS),
            cells.data_ptr(),
            columns.data_ptr(),
            used.data_ptr(),
            status.data_ptr(),
            _Device.stream(),
        )
        if int(status.max().item()) != 0:
            self.refuse(status, cells)
        return max(int(columns.max().item()), 1)

    def refuse(self, status: Tensor, cells: Tensor | None = None, temperature: Tensor | None = None) -> None:
        """Raises ValueError for the first pair that has no result; returns where there is none. Waits."""
        codes = status.tolist()
        p = next((k for k, code in enumerate(codes) if code != 0), None)
        if p is None:
            return
        code = codes[p]
        n, m = int(self.sizes_a[p].item()), int(self.sizes_b[p].item())
        width_a, width_b = self.relabel.shape[1:]
        if code == _C.BAD_SIZES:
            raise ValueError(f"sizes of pair {p} are {n} and {m}, outside the padded widths {width_a} and {width_b}")
        if code in (_C.BAD_LEFTMOST_A, _C.BAD_LEFTMOST_B):
            name = "leftmost_a" if code == _C.BAD_LEFTMOST_A else "leftmost_b"
            raise ValueError(f"{name} of pair {p} does not hold the leftmost leaves of a tree in post-order")
        if code == _C.BAD_TEMPERATURE:
            got = "" if temperature is None else f" = {temperature[p].item()}"
            raise ValueError(f"temperature[{p}]{got}; temperature must be finite and > 0")
        if code == _C.BAD_DELETE:
            check_costs("delete", self.delete[p, :n], False, p)
        if code == _C.BAD_INSERT:
            check_costs("insert", self.insert[p, :m], False, p)
        if code == _C.BAD_RELABEL:
            check_costs("relabel", self.relabel[p, :n, :m], True, p)
        if code == _C.COSTS_TOO_LARGE:
            raise ValueError(
                f"costs of pair {p} are too large: (delete + insert - relabel) / temperature leaves the range that is "
                "supported"
            )
        if code == _C.TOO_MANY_CELLS:
            needed = "more" if cells is None else int(cells[p].item())
            raise ValueError(
                f'method="exact" needs {needed} cells for pair {p} ({n} and {m} nodes), more than '
                f'max_cells = {self.max_cells}; raise max_cells or use method="auto" or "flattened"'
            )
        raise ValueError(f"the tables of pair {p} ({n} and {m} nodes) have more columns than table_columns allows")

    def launch(self, table_columns: int, arithmetic: int, detail: bool) -> tuple[Any, Any, Tensor]:
        """Argument block, launch shape and workspace."""
        pairs = self.pairs(table_columns)
        shape = _C.choose_launch(pairs, arithmetic, detail, _WORKSPACE_BYTES)
        return pairs, shape, self.new(shape.workspace_bytes, dtype=torch.uint8)


def _wants_check(check: bool | None) -> bool:
    return os.environ.get("STRUCTLOSS_CUDA_CHECK", "") == "1" if check is None else check


def soft_tree_alignment(
    relabel: Tensor,
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
    table_columns: int = 0,
    check: bool | None = None,
    arithmetic: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Value (B,), posterior (B, N, M) or None, entropy (B,), method index (B,).

    table_columns: a bound on the columns of the keyroot tables of every tree in either orientation, that is, on the
        sum of (size + 1) over its tables of two nodes and more; 0 asks the device and waits for the answer.
    arithmetic: "float64", "float32" (with exponents; relative error near 1e-6) or "auto", float32 for float32 costs on
        cards with few float64 units.
    """
    if arithmetic not in ("auto", "float64", "float32"):
        raise ValueError(f'arithmetic must be "auto", "float64" or "float32", got {arithmetic!r}')
    batch = _Batch(relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b, method, max_cells)
    count = relabel.shape[0]
    temperature = batch.take("temperature", temperature, (count,), torch.float64)
    if arithmetic == "auto" and relabel.dtype == torch.float32 and _float64_is_slow(relabel.device):
        arithmetic = "float32"
    numbers = _SOFT_FLOAT32 if arithmetic == "float32" else _SOFT
    value, entropy = batch.new(count), batch.new(count)
    used, status = batch.new(count, dtype=torch.int64), batch.new(count, dtype=torch.int32)
    posterior = torch.zeros_like(batch.relabel) if need_posterior else None
    with _Device.guard(relabel.device):
        pairs, shape, workspace = batch.launch(batch.bounded_columns(table_columns), numbers, need_posterior)
        _C.soft_tree_alignment(
            pairs,
            temperature.data_ptr(),
            value.data_ptr(),
            0 if posterior is None else posterior.data_ptr(),
            entropy.data_ptr(),
            used.data_ptr(),
            status.data_ptr(),
            numbers,
            shape,
            workspace.data_ptr(),
            _Device.stream(),
        )
    if _wants_check(check):
        batch.refuse(status, temperature=temperature)
    return value, posterior, entropy, used


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
    need_mapping: bool,
    table_columns: int = 0,
    check: bool | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Distance (B,), partners (B, N) and (B, M) or None, method index (B,); computed in the dtype of the costs."""
    batch = _Batch(relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b, method, max_cells)
    count = relabel.shape[0]
    distance = batch.new(count)
    used, status = batch.new(count, dtype=torch.int64), batch.new(count, dtype=torch.int32)
    match_a = torch.full_like(batch.leftmost_a, -1) if need_mapping else None
    match_b = torch.full_like(batch.leftmost_b, -1) if need_mapping else None
    with _Device.guard(relabel.device):
        pairs, shape, workspace = batch.launch(batch.bounded_columns(table_columns), _HARD, need_mapping)
        _C.hard_tree_alignment(
            pairs,
            distance.data_ptr(),
            0 if match_a is None else match_a.data_ptr(),
            0 if match_b is None else match_b.data_ptr(),
            used.data_ptr(),
            status.data_ptr(),
            shape,
            workspace.data_ptr(),
            _Device.stream(),
        )
    if _wants_check(check):
        batch.refuse(status)
    return distance, match_a, match_b, used
