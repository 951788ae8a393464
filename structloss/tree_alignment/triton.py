"""Tree alignment by Triton kernels, for those who install without a CUDA compiler: one program a pair.

The recursion is that of the other backends (:mod:`structloss.tree_alignment.reference`). A row of a table is a gather,
a product and a segmented scan over the columns of all tables, in blocks that hand a carry on, so no size is tied to the
block. Rows live in a scratch tensor; a barrier stands between the store of a row and the gather from it. The reverse
pass sums what several columns send to one address by scans too: it is deterministic and has no atomic operation.

Range. Values are plain float64 in which every row node is damped by exp(-tilt): Z~ = Z exp(-tilt |F|), match weights
exp(w - tilt). With n <= m nodes, largest weight W >= 0 and L = log C(n + m, n), a forest pair of a rows has
``-tilt a <= log Z~ <= (W - tilt) a + log C(a + m, a)``, because there are at most C(a + m, a) mappings. The tilt
``W / 2 + L / 2n`` bounds both sides by ``tilt n``, whatever the trees are, and is taken where that is at most 650 (200
nodes: a temperature of 0.4 with unit costs). Elsewhere a tilt of 3/4 W is tried and *certified*, as in csrc/cpu: if all
values and all adjoints stay below 2^960, underflow has cost less than 2^-114 per operation. Pairs that fail, pairs that
are hopeless from the start, and values without a posterior (nothing would certify them) outside the safe range are
computed by the same kernel in the log domain, with a logaddexp for every addition. Nothing saturates. Which launches
there are is decided on the host; a failed trial is seen by the second launch alone, so that nobody waits for it.

The hard distance is the same kernel in (max, +). Per cell the forward pass moves 4 numbers and the reverse pass about
12, through L1 and L2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from structloss.tree_alignment import reference, triton_kernels
from structloss.tree_alignment.table_program import Ints, TableProgram
from structloss.tree_alignment.triton_rows import LINEAR, LOG, MAX, import_error

# Stands for log 0. Finite, so that differences of two of them are not NaN; exp of it is exactly 0.
_LOG_ZERO = -1e30
_SAFE_LOG_RANGE = 650.0
# A match weight that underflows has w < tilt - 708, and P <= exp(w).
_LARGEST_TRIAL_TILT = 600.0
_HOPELESS_LOG_RANGE = 6000.0
# Scratch for the pairs of one launch; a pair that needs more gets a launch of its own.
_SCRATCH_BYTES = 1 << 30
# One column a thread: more of them would spill, in the log domain above all.
_LARGEST_BLOCK = 512
_REGISTERS = 128
_HEADER = 19  # words a pair, see _Launches


@dataclass(frozen=True)
class _Batch:
    """All pairs of a call, with their programs on the device."""

    program: TableProgram
    active: Ints  # pairs of two non-empty trees, those with the most cells first
    log_weight: Tensor  # (B, N, M) float64: (delete + insert - relabel) / temperature, _LOG_ZERO where forbidden
    base: Tensor  # (B,) sum of delete and insert
    largest: NDArray[np.float64]  # (B,) largest log weight, at least 0


def _checked(
    relabel: Tensor,
    delete: Tensor,
    insert: Tensor,
    leftmost_a: Tensor,
    leftmost_b: Tensor,
    sizes_a: Tensor,
    sizes_b: Tensor,
    temperature: Tensor | None,
    method: str,
    max_cells: int,
) -> _Batch:
    """Checks, log weights and programs. One copy from the device, of trees, sizes and a word or two a pair."""
    _require_device(relabel.device)
    batch, width_a, width_b = relabel.shape
    d, e, c = (x.detach().double() for x in (delete, insert, relabel))
    in_a = torch.arange(width_a, device=d.device) < sizes_a[:, None]
    in_b = torch.arange(width_b, device=d.device) < sizes_b[:, None]
    inside = in_a[:, :, None] & in_b[:, None, :]
    d, e = torch.where(in_a, d, 0.0), torch.where(in_b, e, 0.0)
    bad = torch.stack(
        [
            (~((d >= 0) & torch.isfinite(d))).any(1),
            (~((e >= 0) & torch.isfinite(e))).any(1),
            (inside & ~(c >= 0)).flatten(1).any(1),
        ]
    ).any(0)
    weight = d[:, :, None] + e[:, None, :] - c
    if temperature is not None:
        bad |= ~((temperature > 0) & torch.isfinite(temperature))
        weight = weight / temperature[:, None, None]
    weight = torch.where(inside & (weight > _LOG_ZERO), weight, _LOG_ZERO)
    floor = weight.new_zeros(batch, 1)
    largest = torch.cat([weight.flatten(1), floor], 1).amax(1)
    words = [leftmost_a, leftmost_b, sizes_a, sizes_b, bad.long(), largest.view(torch.int64)]
    host = torch.cat([x.reshape(-1) for x in words]).cpu().numpy()
    parts = np.split(host, np.cumsum([x.numel() for x in words])[:-1])
    trees_a, trees_b = parts[0].reshape(batch, width_a), parts[1].reshape(batch, width_b)
    program = TableProgram.of(trees_a, trees_b, parts[2], parts[3], method, max_cells)
    for p in np.flatnonzero(parts[4])[:1]:
        _refuse(int(p), relabel, delete, insert, int(parts[2][p]), int(parts[3][p]), temperature)
    peak = parts[5].view(np.float64)
    for p in np.flatnonzero(~(peak <= 1e15))[:1]:
        raise ValueError(
            f"costs of pair {p} are too large: (delete + insert - relabel) / temperature reaches {peak[p]}, at most "
            "1e15 is supported"
        )
    active = np.flatnonzero(program.row_sizes)
    active = active[np.argsort([-program.cells[p] for p in active], kind="stable")]
    return _Batch(program, active, weight, d.sum(1) + e.sum(1), peak)


def _refuse(
    pair: int, relabel: Tensor, delete: Tensor, insert: Tensor, n: int, m: int, temperature: Tensor | None
) -> None:
    """Raises the error of the reference for the costs of a pair that are no costs."""
    reference.check_costs("delete", delete[pair, :n].detach().cpu(), False, pair)
    reference.check_costs("insert", insert[pair, :m].detach().cpu(), False, pair)
    reference.check_costs("relabel", relabel[pair, :n, :m].detach().cpu(), True, pair)
    if temperature is not None:
        raise ValueError(f"temperature[{pair}] = {temperature[pair].item()}; it must be finite and > 0")


def _require_device(device: torch.device) -> None:
    if import_error is not None:
        raise RuntimeError(
            f'backend="triton" needs the package triton ({import_error}); install it, or use backend="auto"'
        )
    if device.type != "cuda" and not triton_kernels.interpreted():
        raise RuntimeError(
            f'backend="triton" needs CUDA tensors, got {device}; use backend="cpu" or "auto" there. (Set '
            "TRITON_INTERPRET=1 before the first import to run the kernels slowly on CPU tensors, for tests.)"
        )


class _Launches:
    """The programs of a batch on its device, and how many pairs share the scratch of one launch."""

    def __init__(self, batch: _Batch, need_posterior: bool) -> None:
        rows, columns = batch.program.rows, batch.program.columns
        active = batch.active
        device = batch.log_weight.device
        _, n, m = batch.log_weight.shape
        strides = np.where(batch.program.swapped[active, None], [[1, m]], [[m, 1]])
        lines = rows.count + 1 + (2 + rows.levels if need_posterior else 0)
        self.words = (lines * columns.width)[active]
        limit = _SCRATCH_BYTES // 8
        launch, used, begin = [0], 0, np.zeros_like(self.words)
        for k, words in enumerate(self.words.tolist()):
            if used and used + words > limit:
                launch.append(k)
                used = 0
            begin[k] = used
            used += words
        self.ranges = list(zip(launch, [*launch[1:], len(active)], strict=True)) if len(active) else []
        fields = [
            *(active, batch.program.row_sizes[active], rows.count[active], rows.begin[active]),
            *(rows.closed_count[active], rows.closed_begin[active], columns.width[active], columns.begin[active]),
            *(columns.by_node_count[active], columns.by_node_begin[active]),
            *(columns.by_anchor_count[active], columns.by_anchor_begin[active]),
            *(batch.program.column_sizes[active], columns.node_begin[active], active * n * m),
            *(strides[:, 0], strides[:, 1], begin, rows.node_begin[active]),
        ]
        self.header = torch.from_numpy(np.stack(fields, 1)).to(device)
        arrays = [
            *(rows.record, rows.closed, np.stack([columns.node, columns.anchor], 1)),
            *(columns.by_node, columns.by_anchor),
            *(np.stack([columns.nodes, columns.interior], 1), rows.left, rows.nodes, rows.table),
            *(columns.left, columns.table),
        ]
        flat = torch.from_numpy(np.concatenate([x.reshape(-1) for x in arrays]).astype(np.int32)).to(device)
        self.arrays = flat.split([x.size for x in arrays])
        self.width = columns.width[active]

    def block(self, begin: int, end: int) -> int:
        return min(_LARGEST_BLOCK, max(32, 1 << (int(self.width[begin:end].max()) - 1).bit_length()))

    def scratch(self, begin: int, end: int) -> Tensor:
        return torch.empty(int(self.words[begin:end].sum()), dtype=torch.float64, device=self.header.device)


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
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Value (B,), posterior (B, N, M) or None, entropy (B,), method index (B,); float64 inside.

    Raises:
        ValueError: as the other backends, for costs, temperatures, trees and budgets.
        RuntimeError: no triton, or tensors that are not on a CUDA device.
    """
    batch = _checked(relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b, temperature, method, max_cells)
    device = relabel.device
    tilt, undone, certain = _ranges(batch, need_posterior)
    log_partition = torch.zeros(relabel.shape[0], dtype=torch.float64, device=device)
    posterior = torch.zeros_like(batch.log_weight) if need_posterior else log_partition
    numbers = (batch.log_weight, torch.empty_like(batch.log_weight), posterior)
    state = (torch.from_numpy(tilt).to(device), torch.from_numpy(undone).to(device), log_partition)
    launches = _Launches(batch, need_posterior)
    for begin, end in launches.ranges:
        scratch = launches.scratch(begin, end)
        here = batch.active[begin:end]
        if not undone[here].all():
            _launch(launches, begin, end, numbers, state, scratch, LINEAR, need_posterior)
        if not certain[here].all():
            _launch(launches, begin, end, numbers, state, scratch, LOG, need_posterior)
    value = batch.base - temperature * log_partition
    used = torch.from_numpy(batch.program.flattened.astype(np.int64)).to(device)
    if not need_posterior:
        return value.to(relabel.dtype), None, relabel.new_zeros(relabel.shape[0]), used
    expected = (posterior * torch.where(posterior > 0, batch.log_weight, 0.0)).flatten(1).sum(1)
    return value.to(relabel.dtype), posterior.to(relabel.dtype), (log_partition - expected).to(relabel.dtype), used


def _ranges(batch: _Batch, need_posterior: bool) -> tuple[NDArray[np.float64], Ints, NDArray[np.bool_]]:
    """(tilt, whether the log domain is needed from the start, whether the tilt is safe without a certificate)."""
    n, m = np.maximum(batch.program.row_sizes, 1), batch.program.column_sizes
    log_mappings = np.array(
        [math.lgamma(a + b + 1) - math.lgamma(a + 1) - math.lgamma(b + 1) for a, b in zip(n, m, strict=True)]
    )
    tilt = batch.largest / 2 + log_mappings / (2 * n)
    certain = tilt * n <= _SAFE_LOG_RANGE
    trial = 0.75 * batch.largest
    hopeless = (not need_posterior) | (batch.largest * n > _HOPELESS_LOG_RANGE) | (trial > _LARGEST_TRIAL_TILT)
    return np.where(certain, tilt, trial), (~certain & hopeless).astype(np.int64), certain


def _constants(semiring: int) -> dict[str, object]:
    linear = semiring == LINEAR
    zero, one = (0.0, 1.0) if linear else (_LOG_ZERO, 0.0)
    return {"ZERO": zero, "ONE": one, "SEMIRING": semiring, "HEADER": _HEADER}


def _launch(
    launches: _Launches,
    begin: int,
    end: int,
    numbers: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    scratch: Tensor,
    semiring: int,
    need_posterior: bool,
) -> None:
    block = launches.block(begin, end)
    with torch.cuda.device_of(scratch):
        triton_kernels.align[(end - begin,)](
            launches.header[begin:end],
            *launches.arrays[:6],
            *numbers,
            *state,
            scratch,
            int(semiring == LOG),
            **_constants(semiring),
            NEED_POSTERIOR=need_posterior,
            BLOCK=block,
            num_warps=block // 32,
            num_stages=1,
            maxnreg=_REGISTERS,
        )


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
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Distance (B,), partners (B, N) and (B, M) with -1 for none (or None), method index (B,); errors as above."""
    batch = _checked(relabel, delete, insert, leftmost_a, leftmost_b, sizes_a, sizes_b, None, method, max_cells)
    device = relabel.device
    pairs, n, m = relabel.shape
    best = torch.zeros(pairs, dtype=torch.float64, device=device)
    subtree = torch.empty_like(batch.log_weight)
    numbers = (batch.log_weight, subtree, best)
    state = (torch.zeros_like(best), torch.zeros(pairs, dtype=torch.int64, device=device), best)
    match_row, match_column = torch.full((2, pairs, max(n, m)), -1, dtype=torch.int64, device=device)
    pending = torch.empty(pairs, 4 * (min(n, m) + 1), dtype=torch.int32, device=device)
    launches = _Launches(batch, False)
    for begin, end in launches.ranges:
        scratch = launches.scratch(begin, end)
        _launch(launches, begin, end, numbers, state, scratch, MAX, False)
        if need_mapping:
            with torch.cuda.device_of(scratch):
                triton_kernels.trace[(end - begin,)](
                    launches.header[begin:end],
                    *launches.arrays[5:],
                    subtree,
                    scratch,
                    pending,
                    match_row,
                    match_column,
                    pending.shape[1],
                    max(n, m),
                    HEADER=_HEADER,
                    num_warps=1,
                )
    distance = (batch.base - best).to(relabel.dtype)
    used = torch.from_numpy(batch.program.flattened.astype(np.int64)).to(device)
    if not need_mapping:
        return distance, None, None, used
    swapped = torch.from_numpy(batch.program.swapped).to(device)[:, None]
    match_a = torch.where(swapped, match_column, match_row)[:, :n]
    match_b = torch.where(swapped, match_row, match_column)[:, :m]
    return distance, match_a.contiguous(), match_b.contiguous(), used
