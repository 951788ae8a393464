"""Device functions of the Triton kernels of tree alignment: what happens to one row, in blocks of columns.

`SEMIRING` says what addition and multiplication are: LINEAR (+, *), LOG (logaddexp, +) or MAX (max, +); `ZERO` is its
zero. Every function ends without a barrier. A block has one column a thread, so that a thread that reads and writes an
address is the only one to do so.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError as error:  # optional at run time; the kernels below are then plain functions that nobody calls
    import_error: ImportError | None = error

    def jit(function):
        return function

    def constant(value):
        return value
else:
    import_error = None
    jit = triton.jit
    constant = tl.constexpr

LINEAR, LOG, MAX = 0, 1, 2
_LINEAR, _LOG, _MAX = (constant(x) for x in (LINEAR, LOG, MAX))


@jit
def plus(x, y, SEMIRING: tl.constexpr):
    if SEMIRING == _LINEAR:
        return x + y
    elif SEMIRING == _MAX:
        return tl.maximum(x, y)
    else:
        return tl.maximum(x, y) + tl.log(1.0 + tl.exp(-tl.abs(x - y)))


@jit
def times(x, y, SEMIRING: tl.constexpr):
    if SEMIRING == _LINEAR:
        return x * y
    else:
        return x + y


@jit
def _linear_combine(flag_x, x, flag_y, y):
    return flag_x | flag_y, tl.where(flag_y != 0, y, x + y)


@jit
def _log_combine(flag_x, x, flag_y, y):
    return flag_x | flag_y, tl.where(flag_y != 0, y, plus(x, y, _LOG))


@jit
def _max_combine(flag_x, x, flag_y, y):
    return flag_x | flag_y, tl.where(flag_y != 0, y, tl.maximum(x, y))


@jit
def running(flag, value, carry, SEMIRING: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of `value` since the last flag, and the last of them; `carry` is what the block before ended with."""
    if SEMIRING == _LINEAR:
        flagged, sums = tl.associative_scan((flag.to(tl.int32), value), 0, _linear_combine)
    elif SEMIRING == _MAX:
        flagged, sums = tl.associative_scan((flag.to(tl.int32), value), 0, _max_combine)
    else:
        flagged, sums = tl.associative_scan((flag.to(tl.int32), value), 0, _log_combine)
    sums = tl.where(flagged != 0, sums, plus(carry, sums, SEMIRING))
    return sums, tl.sum(tl.where(tl.arange(0, BLOCK) == BLOCK - 1, sums, 0.0), 0)


@jit
def match_weights(log_weight_ptr, node, inside, stride, tilt, SEMIRING: tl.constexpr, ZERO: tl.constexpr):
    log_weight = tl.load(log_weight_ptr + node * stride, mask=inside, other=ZERO)
    if SEMIRING == _LINEAR:
        return tl.exp(log_weight - tilt)
    else:
        return log_weight


@jit
def subtree_row(
    node_ptr,
    nodes,
    log_weight_ptr,
    subtree_ptr,
    stride,
    previous_ptr,
    tilt,
    peak,
    ZERO: tl.constexpr,
    SEMIRING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """t(i, .) from the row of the forest T_i - i."""
    for j0 in range(0, nodes, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        inside = j < nodes
        node = tl.load(node_ptr + 2 * j, mask=inside, other=0)
        interior = tl.load(node_ptr + 2 * j + 1, mask=inside, other=0)
        below = tl.load(previous_ptr + interior, mask=inside, other=ZERO)
        weight = match_weights(log_weight_ptr, node, inside, stride, tilt, SEMIRING, ZERO)
        subtree = times(weight, below, SEMIRING)
        tl.store(subtree_ptr + node * stride, subtree, mask=inside)
        peak = tl.maximum(peak, tl.where(inside, subtree, ZERO))
    return peak


@jit
def scan_row(
    column_ptr,
    width,
    subtree_ptr,
    stride,
    previous_ptr,
    anchor_ptr,
    out_ptr,
    damping,
    peak,
    zero,
    ZERO: tl.constexpr,
    SEMIRING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = damped previous + N, for the columns of all tables."""
    carry = zero
    for c0 in range(0, width, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        inside = c < width
        node = tl.load(column_ptr + 2 * c, mask=inside, other=-1)
        matched = node >= 0
        left = tl.load(column_ptr + 2 * c + 1, mask=inside, other=0)
        subtree = tl.load(subtree_ptr + node * stride, mask=matched, other=ZERO)
        anchor = tl.load(anchor_ptr + left, mask=matched, other=ZERO)
        sums, carry = running(node < 0, times(subtree, anchor, SEMIRING), carry, SEMIRING, BLOCK)
        previous = tl.load(previous_ptr + c, mask=inside, other=ZERO)
        if SEMIRING == _LINEAR:
            previous *= damping
        value = plus(previous, sums, SEMIRING)
        tl.store(out_ptr + c, value, mask=inside)
        peak = tl.maximum(peak, value)
    return peak


@jit
def suffix_row(
    column_ptr,
    width,
    current_ptr,
    suffix_ptr,
    level_ptr,
    seed,
    fresh,
    top,
    damping,
    peak,
    zero,
    ZERO: tl.constexpr,
    SEMIRING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums the adjoint of a row from the right; `current` turns into the damped part that the row before gets.

    A table begins with a `fresh` adjoint: `seed` in the last column, zero elsewhere.
    """
    carry = zero
    kept = tl.where(fresh == 0, width, 0)
    reset = tl.where(top == 0, 0, width)
    for k0 in range(0, width, BLOCK):
        c = width - 1 - k0 - tl.arange(0, BLOCK)
        inside = c >= 0
        value = tl.load(current_ptr + c, mask=inside & (c < kept), other=ZERO)
        value = tl.where((c == width - 1) & (c >= kept), seed, value)
        following = tl.load(column_ptr + 2 * c + 2, mask=inside & (c + 1 < width), other=-1)
        sums, carry = running(following < 0, value, carry, SEMIRING, BLOCK)
        tl.store(suffix_ptr + c, sums, mask=inside)
        if SEMIRING == _LINEAR:
            value *= damping
        tl.store(current_ptr + c, value, mask=inside)
        tl.store(level_ptr + c, tl.zeros((BLOCK,), tl.float64) + ZERO, mask=inside & (c < reset))
        peak = tl.maximum(peak, sums)
    return peak


@jit
def add_runs(
    order_ptr,
    count,
    column_ptr,
    out_ptr,
    out_stride,
    suffix_ptr,
    factor_ptr,
    factor_stride,
    whole,
    zero,
    KEY: tl.constexpr,
    ZERO: tl.constexpr,
    SEMIRING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[key] += sum of suffix * factor over the columns with that key, which stand together in `order`.

    The key is the columns' node (KEY 0), which takes the factor from the anchor, or the anchor (KEY 1) and the other
    way round. The table of everything (`whole`) comes first and does not add, it begins the sums of a node. The last
    column of a run writes its sum, so that no two threads write to one address.
    """
    carry = zero
    added = count
    if KEY == 0:
        added = tl.where(whole == 0, count, 0)
    for k0 in range(0, count, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        inside = k < count
        c = tl.load(order_ptr + k, mask=inside, other=0)
        key = tl.load(column_ptr + 2 * c + KEY, mask=inside, other=-1)
        before = tl.load(order_ptr + k - 1, mask=inside & (k > 0), other=0)
        before = tl.load(column_ptr + 2 * before + KEY, mask=inside & (k > 0), other=-1)
        after = tl.load(order_ptr + k + 1, mask=k + 1 < count, other=0)
        after = tl.load(column_ptr + 2 * after + KEY, mask=k + 1 < count, other=-1)
        suffix = tl.load(suffix_ptr + c, mask=inside, other=ZERO)
        factor_key = tl.load(column_ptr + 2 * c + 1 - KEY, mask=inside, other=0)
        factor = tl.load(factor_ptr + factor_key * factor_stride, mask=inside, other=ZERO)
        sums, carry = running(key != before, times(suffix, factor, SEMIRING), carry, SEMIRING, BLOCK)
        last = inside & (key != after)
        old = tl.load(out_ptr + key * out_stride, mask=last & (k < added), other=ZERO)
        tl.store(out_ptr + key * out_stride, plus(old, sums, SEMIRING), mask=last)


@jit
def finish_row(
    node_ptr,
    nodes,
    log_weight_ptr,
    subtree_ptr,
    posterior_ptr,
    stride,
    current_ptr,
    tilt,
    peak,
    closed: tl.constexpr,
    ZERO: tl.constexpr,
    SEMIRING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The adjoint of t(i, .) is complete: turns it into the posterior and passes it on to the row of T_i - i."""
    for j0 in range(0, nodes, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        inside = j < nodes
        node = tl.load(node_ptr + 2 * j, mask=inside, other=0)
        adjoint = tl.load(posterior_ptr + node * stride, mask=inside, other=ZERO)
        peak = tl.maximum(peak, adjoint)
        if not closed:
            # Nothing depends on the boundary column 0, which stands for the inside of several nodes.
            interior = tl.load(node_ptr + 2 * j + 1, mask=inside, other=0)
            weight = match_weights(log_weight_ptr, node, inside, stride, tilt, SEMIRING, ZERO)
            current = tl.load(current_ptr + interior, mask=interior > 0, other=ZERO)
            current = plus(current, times(adjoint, weight, SEMIRING), SEMIRING)
            tl.store(current_ptr + interior, current, mask=interior > 0)
        subtree = tl.load(subtree_ptr + node * stride, mask=inside, other=ZERO)
        matched = times(adjoint, subtree, SEMIRING)
        if SEMIRING != _LINEAR:
            matched = tl.exp(matched)
        tl.store(posterior_ptr + node * stride, matched, mask=inside)
    return peak
