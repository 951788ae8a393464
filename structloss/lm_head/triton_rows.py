"""Triton kernels of the LM head: the row pass, and the scaling of a stored gradient.

See structloss/lm_head/triton.py for who calls them, what they move and what they take of a multiprocessor, and
structloss/lm_head/row_pass.py for the formulas, in which the target class is taken out of the softmax.

Vectors and numbers that are not needed are None, and what they would cost is not compiled. A block of a row is (LANES,
WIDTH): WIDTH neighbouring logits are one 16-byte access of one thread, so that a reduction over them stays in the
thread. Every lane carries a running maximum and sum of its own from block to block; lanes meet once a row.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError as error:  # optional at run time; the kernels below are then plain functions that nobody calls
    import_error: ImportError | None = error

    def jit(function=None, **options):
        return function if function is not None else jit

    def constant(value):
        return value
else:
    import_error = None
    jit = triton.jit
    constant = tl.constexpr

# Stands for the target's logit among the other classes', as in the torch pass: finite, so that a row without any other
# class stays free of NaN, and its exponential is 0 beside any real logit.
_LOWEST = constant(-3.4028234663852886e38)
# exp(_FAR) is 0, and so is exp(_FAR) * _FAR.
_FAR = constant(-1000.0)
_NO_CLASS = constant(2**31 - 1)
_LOG2_E = constant(1.4426950408889634)
# Slices of per-row vectors: their alignment changes from chunk to chunk and is worth no second compilation.
_PER_ROW = (
    *("target_ptr", "weight_ptr", "unlikely_ptr", "upstream_ptr"),
    *("loss_ptr", "logprob_ptr", "lse_ptr", "entropy_ptr", "argmax_ptr"),
)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return import_error is None and not isinstance(finish_rows, triton.JITFunction)


@jit
def _softplus(x):
    """log(1 + exp(x)). The logarithm is 2 artanh(e / (2 + e)), e <= 1, by its series: relative error 1e-7 for any e."""
    e = tl.exp(-tl.abs(x))
    w = e / (2.0 + e)
    q = w * w
    series = 1.0 / 11.0 + q * (1.0 / 13.0 + q * (1.0 / 15.0))
    series = 1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * series))
    return tl.maximum(x, 0.0) + 2.0 * w * (1.0 + q * (1.0 / 3.0 + q * series))


@jit
def _bend(a, logit_scale, softcap):
    """z = softcap * tanh(logit_scale * a / softcap), and dz / d(logit_scale * a)."""
    if logit_scale is not None:
        a = a * logit_scale
    slope = a
    if softcap is not None:
        small = tl.exp(-2.0 * tl.abs(a / softcap))
        inverse = 1.0 / (1.0 + small)
        size = softcap * ((1.0 - small) * inverse)
        a = tl.where(a < 0, -size, size)
        slope = 4.0 * small * inverse * inverse
    return a, slope


@jit
def _read(row_ptr, column, logit_scale, softcap, VOCAB: tl.constexpr, EDGE: tl.constexpr, POLICY: tl.constexpr):
    """Logits of a block, -inf behind the last class, and their slopes."""
    a = tl.load(row_ptr + column, mask=column < EDGE, other=-float("inf"), eviction_policy=POLICY).to(tl.float32)
    z, slope = _bend(a, logit_scale, softcap)
    if (EDGE != VOCAB) or ((logit_scale is not None) or (softcap is not None)):
        z = tl.where(column < VOCAB, z, -float("inf"))
    return z, slope


@jit
def _class_weights(class_weight_ptr, column, VOCAB: tl.constexpr):
    if class_weight_ptr is None:
        return tl.where(column < VOCAB, 1.0, 0.0)
    else:
        return tl.load(class_weight_ptr + column, mask=column < VOCAB, other=0.0)


@jit(do_not_specialize=["upstream_stride"], do_not_specialize_on_alignment=_PER_ROW)
def finish_rows(
    logits_ptr,
    target_ptr,
    weight_ptr,
    unlikely_ptr,
    upstream_ptr,
    class_weight_ptr,
    class_sum_ptr,
    loss_ptr,
    logprob_ptr,
    lse_ptr,
    entropy_ptr,
    argmax_ptr,
    stride,
    upstream_stride,
    smoothing,
    z_loss,
    logit_scale,
    softcap,
    VOCAB: tl.constexpr,
    EDGE: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A row a program: its loss and statistics and, where there is an upstream gradient, dlogits in place of logits.

    Columns from VOCAB to EDGE are scratch. A target outside of [0, VOCAB) makes the row NaN.
    """
    BLOCK: tl.constexpr = LANES * WIDTH
    BLOCKS: tl.constexpr = (VOCAB + BLOCK - 1) // BLOCK
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    target = tl.load(target_ptr + row)
    known = (target >= 0) & (target < VOCAB)
    z_target = tl.load(row_ptr + target, mask=known, other=float("nan")).to(tl.float32)
    z_target, _slope = _bend(z_target, logit_scale, softcap)
    class_target = 1.0
    if class_weight_ptr is not None:
        class_target = tl.load(class_weight_ptr + target, mask=known, other=0.0)
    target = tl.where(known, target, -1).to(tl.int32)

    # moment = sum exp(z - top) (z - top) and smooth = sum c_v z_v, this one with the target; best and undefined are the
    # lowest class of the maximum and the lowest that is NaN.
    lane = tl.arange(0, LANES)[:, None] * WIDTH
    place = tl.arange(0, WIDTH)[None, :]
    top = tl.full([LANES], _LOWEST, tl.float32)
    total = tl.zeros([LANES], tl.float32)
    moment = tl.zeros([LANES], tl.float32)
    smooth = tl.zeros([LANES], tl.float32)
    best = tl.full([LANES], _NO_CLASS, tl.int32)
    undefined = tl.full([LANES], _NO_CLASS, tl.int32)
    for block in range(BLOCKS):
        start = block * BLOCK
        column = start + (lane + place)
        z, slope = _read(row_ptr, column, logit_scale, softcap, VOCAB, EDGE, "evict_last")
        if smoothing is not None:
            weighted = tl.where(column < VOCAB, z * _class_weights(class_weight_ptr, column, VOCAB), 0.0)
            smooth += tl.sum(weighted, 1)
        if (target >= start) & (target < start + BLOCK):
            z = tl.where(place == target - start - lane, _LOWEST, z)
        highest = tl.max(z, 1)
        if argmax_ptr is not None:
            first = tl.min(tl.where(z == highest[:, None], column, _NO_CLASS), 1)
            first = tl.where(highest >= top, first, _NO_CLASS)
            best = tl.where(highest > top, first, tl.minimum(best, first))
            undefined = tl.minimum(undefined, tl.min(tl.where(z != z, column, _NO_CLASS), 1))
        new_top = tl.maximum(top, highest)
        step = top - new_top
        distance = z - new_top[:, None]
        weight = tl.exp2(distance * _LOG2_E)
        shrink = tl.exp2(step * _LOG2_E)
        if entropy_ptr is not None:
            moment = shrink * (moment + total * tl.maximum(step, _FAR))
            moment += tl.sum(weight * tl.maximum(distance, _FAR), 1)
        total = total * shrink + tl.sum(weight, 1)
        top = new_top

    step = top
    top = tl.max(step, 0)
    if argmax_ptr is not None:
        other = tl.min(tl.where(step == top, best, _NO_CLASS), 0)
        tie = tl.where(z_target == top, tl.minimum(other, target), other)
        found = tl.where(z_target > top, target, tie)
        undefined = tl.min(undefined, 0)
        tl.store(argmax_ptr + row, tl.where(undefined < _NO_CLASS, undefined, found).to(tl.int64))
    step = step - top
    weight = tl.exp2(step * _LOG2_E)
    sum_other = tl.sum(total * weight, 0)
    lse_other = top + tl.log(sum_other)
    margin = z_target - lse_other
    nll = _softplus(-margin)
    unlikelihood = _softplus(margin)
    p_target = 1.0 / (1.0 + tl.exp(-margin))
    p_other = 1.0 / (1.0 + tl.exp(margin))
    lse = tl.maximum(z_target, lse_other) + _softplus(-tl.abs(margin))
    tl.store(logprob_ptr + row, -nll)
    tl.store(lse_ptr + row, lse)
    if entropy_ptr is not None:
        moment = tl.sum(weight * (moment + total * tl.maximum(step, _FAR)), 0)
        binary = tl.where(p_target > 0, p_target * nll, 0.0) + p_other * unlikelihood
        tl.store(entropy_ptr + row, binary + p_other * (tl.log(sum_other) - moment / sum_other))

    hard = nll
    soft = 0.0
    unlikely = False
    if unlikely_ptr is not None:
        unlikely = tl.load(unlikely_ptr + row) != 0
    if smoothing is not None:
        class_sum = 1.0 * VOCAB
        if class_sum_ptr is not None:
            class_sum = tl.load(class_sum_ptr)
        hard = (1.0 - smoothing) * nll
        soft = smoothing / VOCAB * (class_sum * lse - tl.sum(smooth, 0))
    if unlikely_ptr is not None:
        hard = tl.where(unlikely, unlikelihood, hard)
        soft = tl.where(unlikely, 0.0, soft)
    loss = hard
    if z_loss is not None:
        loss += z_loss * lse * lse
    loss = class_target * loss + soft
    row_weight = 1.0
    if weight_ptr is not None:
        row_weight = tl.load(weight_ptr + row)
    tl.store(loss_ptr + row, row_weight * loss)

    if upstream_ptr is not None:
        # minus_push * (onehot - r) is the gradient of the hard part, spread multiplies the whole softmax (z-loss and
        # smoothing move the lse), flat is smoothing's -c_v.
        scale = tl.load(upstream_ptr + row * upstream_stride) * row_weight
        if logit_scale is not None:
            scale *= logit_scale
        scale_target = scale * class_target
        minus_push = -scale_target * p_other
        if smoothing is not None:
            minus_push *= 1.0 - smoothing
        if unlikely_ptr is not None:
            minus_push = tl.where(unlikely, scale_target * p_target, minus_push)
        spread = 0.0
        if z_loss is not None:
            spread += 2.0 * z_loss * scale_target * lse
        flat = 0.0
        if smoothing is not None:
            flat = scale * (smoothing / VOCAB)
            if unlikely_ptr is not None:
                flat = tl.where(unlikely, 0.0, flat)
            spread += flat * class_sum
        at_target = minus_push + spread * p_target
        if smoothing is not None:
            if class_weight_ptr is None:
                at_target -= flat
            else:
                at_target -= flat * class_target
        coefficient = (spread * p_other - minus_push) / sum_other
        # From the end of the row, which was read last, to its beginning.
        for back in range(BLOCKS):
            start = (BLOCKS - 1 - back) * BLOCK
            column = start + (lane + place)
            z, slope = _read(row_ptr, column, logit_scale, softcap, VOCAB, EDGE, "evict_first")
            gradient = coefficient * tl.exp2((z - top) * _LOG2_E)
            if smoothing is not None:
                gradient -= flat * _class_weights(class_weight_ptr, column, VOCAB)
            if (target >= start) & (target < start + BLOCK):
                gradient = tl.where(place == target - start - lane, at_target, gradient)
            if softcap is not None:
                gradient *= slope
            gradient = gradient.to(logits_ptr.dtype.element_ty)
            tl.store(row_ptr + column, gradient, mask=column < EDGE, eviction_policy="evict_first")


@jit
def scale_unless_one(gradient_ptr, scale_ptr, count, BLOCK: tl.constexpr):
    """gradient *= scale, in place; a scale of exactly 1 touches nothing. `count` is the number of elements."""
    scale = tl.load(scale_ptr)
    if scale != 1.0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        while start < count:
            place = start + tl.arange(0, BLOCK)
            inside = place < count
            gradient = tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32) * scale
            tl.store(gradient_ptr + place, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)
            start += tl.num_programs(0).to(tl.int64) * BLOCK
