"""Triton kernels of tree alignment: see structloss/tree_alignment/triton.py for what they compute and in which range.

All rows of a pair are kept in its scratch: the boundary row, a row for every row of the program, then (reverse pass)
the adjoint of the row in hand, its sums from the right, and a row of adjoints for every level of anchors.
"""

from __future__ import annotations

from structloss.tree_alignment.table_program import LAST, LEAF, LEVEL_SHIFT, SPINE, TOP, WHOLE
from structloss.tree_alignment.triton_rows import (
    LINEAR,
    add_runs,
    constant,
    finish_row,
    import_error,
    jit,
    plus,
    scan_row,
    subtree_row,
    suffix_row,
)

if import_error is None:
    import triton
    import triton.language as tl

_LINEAR = constant(LINEAR)
_SPINE, _TOP, _LEAF, _LAST, _WHOLE = (constant(x) for x in (SPINE, TOP, LEAF, LAST, WHOLE))
_LEVEL_SHIFT = constant(LEVEL_SHIFT)
# Largest value and adjoint with which the linear domain is certified; see triton.py.
_PEAK = constant(2.0**960)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return import_error is None and not isinstance(align, triton.JITFunction)


@jit
def align(
    header_ptr,
    row_ptr,
    closed_ptr,
    column_ptr,
    by_node_ptr,
    by_anchor_ptr,
    node_ptr,
    log_weight_ptr,
    subtree_ptr,
    posterior_ptr,
    tilt_ptr,
    undone_ptr,
    log_partition_ptr,
    scratch_ptr,
    turn,
    ZERO: tl.constexpr,
    ONE: tl.constexpr,
    SEMIRING: tl.constexpr,
    NEED_POSTERIOR: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADER: tl.constexpr,
):
    """One pair, if it is its turn: `undone` is 1 where the linear domain leaves a pair to the log domain."""
    header_ptr += tl.program_id(0) * HEADER
    pair = tl.load(header_ptr)
    size = tl.load(header_ptr + 1)
    rows = tl.load(header_ptr + 2).to(tl.int32)
    row_ptr += tl.load(header_ptr + 3) * 4
    closed = tl.load(header_ptr + 4).to(tl.int32)
    closed_ptr += tl.load(header_ptr + 5)
    line = tl.load(header_ptr + 6)  # int64: a slot times a line may pass 2^31
    width = line.to(tl.int32)
    column_ptr += tl.load(header_ptr + 7) * 2
    by_node = tl.load(header_ptr + 8).to(tl.int32)
    by_node_ptr += tl.load(header_ptr + 9)
    by_anchor = tl.load(header_ptr + 10).to(tl.int32)
    by_anchor_ptr += tl.load(header_ptr + 11)
    nodes = tl.load(header_ptr + 12).to(tl.int32)
    node_ptr += tl.load(header_ptr + 13) * 2
    log_weight_ptr += tl.load(header_ptr + 14)
    subtree_ptr += tl.load(header_ptr + 14)
    posterior_ptr += tl.load(header_ptr + 14)
    row_stride = tl.load(header_ptr + 15)
    stride = tl.load(header_ptr + 16)
    scratch_ptr += tl.load(header_ptr + 17)
    tilt = tl.load(tilt_ptr + pair)
    damping = tl.exp(-tilt)
    if tl.load(undone_ptr + pair) != turn:
        return

    lane = tl.arange(0, BLOCK)
    zero = tl.zeros((), tl.float64) + ZERO
    peak = tl.zeros((BLOCK,), tl.float64)
    for c0 in range(0, width, BLOCK):
        tl.store(scratch_ptr + c0 + lane, tl.zeros((BLOCK,), tl.float64) + ONE, mask=c0 + lane < width)
    tl.debug_barrier()
    for k in range(0, closed):
        at = tl.load(closed_ptr + k) * row_stride
        peak = subtree_row(
            node_ptr,
            nodes,
            log_weight_ptr + at,
            subtree_ptr + at,
            stride,
            scratch_ptr,
            tilt,
            peak,
            ZERO,
            SEMIRING,
            BLOCK,
        )
    tl.debug_barrier()
    for r in range(0, rows):
        at = tl.load(row_ptr + r * 4) * row_stride
        previous_ptr = scratch_ptr + tl.load(row_ptr + r * 4 + 1) * line
        anchor_ptr = scratch_ptr + tl.load(row_ptr + r * 4 + 2) * line
        out_ptr = scratch_ptr + (r + 1) * line
        if (tl.load(row_ptr + r * 4 + 3) & _SPINE) != 0:
            peak = subtree_row(
                node_ptr,
                nodes,
                log_weight_ptr + at,
                subtree_ptr + at,
                stride,
                previous_ptr,
                tilt,
                peak,
                ZERO,
                SEMIRING,
                BLOCK,
            )
            tl.debug_barrier()
        peak = scan_row(
            column_ptr,
            width,
            subtree_ptr + at,
            stride,
            previous_ptr,
            anchor_ptr,
            out_ptr,
            damping,
            peak,
            zero,
            ZERO,
            SEMIRING,
            BLOCK,
        )
        tl.debug_barrier()
    partition = tl.load(scratch_ptr + (rows + 1) * line - 1)
    if SEMIRING == _LINEAR:
        if not ((tl.max(peak, 0) <= _PEAK) & (partition >= 1.0 / _PEAK)):
            tl.store(undone_ptr + pair, 1)
            return
        tl.store(log_partition_ptr + pair, tl.log(partition) + tilt * size)
        seed = 1.0 / partition
    else:
        tl.store(log_partition_ptr + pair, partition)
        seed = -partition
    if NEED_POSTERIOR:
        current_ptr = scratch_ptr + (rows + 1) * line
        suffix_ptr = current_ptr + width
        levels_ptr = suffix_ptr + width
        for back in range(0, rows):
            r = rows - 1 - back
            at = tl.load(row_ptr + r * 4) * row_stride
            anchor_ptr = scratch_ptr + tl.load(row_ptr + r * 4 + 2) * line
            code = tl.load(row_ptr + r * 4 + 3)
            level_ptr = levels_ptr + (code >> _LEVEL_SHIFT) * line
            row_seed = tl.where(back == 0, seed, zero)
            peak = suffix_row(
                column_ptr,
                width,
                current_ptr,
                suffix_ptr,
                level_ptr,
                row_seed,
                code & _LAST,
                code & _TOP,
                damping,
                peak,
                zero,
                ZERO,
                SEMIRING,
                BLOCK,
            )
            tl.debug_barrier()
            add_runs(
                by_node_ptr,
                by_node,
                column_ptr,
                posterior_ptr + at,
                stride,
                suffix_ptr,
                anchor_ptr,
                1,
                code & _WHOLE,
                zero,
                0,
                ZERO,
                SEMIRING,
                BLOCK,
            )
            if (code & _SPINE) == 0:
                add_runs(
                    by_anchor_ptr,
                    by_anchor,
                    column_ptr,
                    level_ptr,
                    1,
                    suffix_ptr,
                    subtree_ptr + at,
                    stride,
                    code & _WHOLE,
                    zero,
                    1,
                    ZERO,
                    SEMIRING,
                    BLOCK,
                )
            tl.debug_barrier()
            if (code & _SPINE) != 0:
                peak = finish_row(
                    node_ptr,
                    nodes,
                    log_weight_ptr + at,
                    subtree_ptr + at,
                    posterior_ptr + at,
                    stride,
                    current_ptr,
                    tilt,
                    peak,
                    False,
                    ZERO,
                    SEMIRING,
                    BLOCK,
                )
            elif (code & _LEAF) != 0:
                # The row before is the anchor itself, and all rows that use it have been seen.
                for c0 in range(0, width, BLOCK):
                    c = c0 + lane
                    current = tl.load(current_ptr + c, mask=c < width, other=ZERO)
                    collected = tl.load(level_ptr + c, mask=c < width, other=ZERO)
                    tl.store(current_ptr + c, plus(current, collected, SEMIRING), mask=c < width)
            tl.debug_barrier()
        for k in range(0, closed):
            at = tl.load(closed_ptr + k) * row_stride
            peak = finish_row(
                node_ptr,
                nodes,
                log_weight_ptr + at,
                subtree_ptr + at,
                posterior_ptr + at,
                stride,
                current_ptr,
                tilt,
                peak,
                True,
                ZERO,
                SEMIRING,
                BLOCK,
            )
        if SEMIRING == _LINEAR:
            tl.store(undone_ptr + pair, tl.where(tl.max(peak, 0) <= _PEAK, 0, 1))


@jit
def trace(
    header_ptr,
    node_ptr,
    row_left_ptr,
    row_node_ptr,
    row_table_ptr,
    column_left_ptr,
    column_table_ptr,
    subtree_ptr,
    scratch_ptr,
    pending_ptr,
    match_row_ptr,
    match_column_ptr,
    pending_stride,
    match_stride,
    HEADER: tl.constexpr,
):
    """One optimal mapping out of the finished (max, +) rows; ties: rather unmatched than matched."""
    header_ptr += tl.program_id(0) * HEADER
    pair = tl.load(header_ptr)
    i = tl.load(header_ptr + 1).to(tl.int32) - 1
    width = tl.load(header_ptr + 6)
    j = tl.load(header_ptr + 12).to(tl.int32) - 1
    node_ptr += tl.load(header_ptr + 13) * 2
    column_left_ptr += tl.load(header_ptr + 13)
    column_table_ptr += tl.load(header_ptr + 13)
    subtree_ptr += tl.load(header_ptr + 14)
    row_stride = tl.load(header_ptr + 15)
    stride = tl.load(header_ptr + 16)
    scratch_ptr += tl.load(header_ptr + 17)
    row_left_ptr += tl.load(header_ptr + 18)
    row_node_ptr += tl.load(header_ptr + 18)
    row_table_ptr += tl.load(header_ptr + 18)
    pending_ptr += pair * pending_stride
    match_row_ptr += pair * match_stride
    match_column_ptr += pair * match_stride
    # Forests [first, i] and [left, j] are explained; what lies inside of the matches is still pending.
    first = i * 0
    left = j * 0
    depth = i * 0
    while depth >= 0:
        while (i >= first) & (j >= left):
            table = tl.load(row_table_ptr + first)
            segment = tl.load(column_table_ptr + left)
            column = segment + j - left + 1
            value = tl.load(scratch_ptr + (table + i - first + 1) * width + column)
            above = tl.load(scratch_ptr + tl.where(i > first, table + i - first, 0) * width + column)
            if value == above:
                i -= 1
            else:
                row_leaf = tl.load(row_left_ptr + i)
                column_leaf = tl.load(column_left_ptr + j)
                slot = tl.where(row_leaf > first, table + row_leaf - first, 0)
                anchor = tl.load(scratch_ptr + slot * width + segment + column_leaf - left)
                row = tl.load(row_node_ptr + i)
                node = tl.load(node_ptr + 2 * j)
                subtree = tl.load(subtree_ptr + row * row_stride + node * stride)
                if subtree + anchor != value:
                    j -= 1
                else:
                    tl.store(match_row_ptr + row, node)
                    tl.store(match_column_ptr + node, row)
                    tl.store(pending_ptr + depth * 4, row_leaf)
                    tl.store(pending_ptr + depth * 4 + 1, i - 1)
                    tl.store(pending_ptr + depth * 4 + 2, column_leaf)
                    tl.store(pending_ptr + depth * 4 + 3, j - 1)
                    depth += 1
                    i = row_leaf - 1
                    j = column_leaf - 1
        tl.debug_barrier()
        depth -= 1
        if depth >= 0:
            first = tl.load(pending_ptr + depth * 4)
            i = tl.load(pending_ptr + depth * 4 + 1)
            left = tl.load(pending_ptr + depth * 4 + 2)
            j = tl.load(pending_ptr + depth * 4 + 3)
        tl.debug_barrier()
