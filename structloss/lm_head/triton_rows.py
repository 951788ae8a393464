"""The Triton kernel of the row pass: one program a row at a time, logits in, loss and gradient out.

Bytes. A row of V logits of b bytes is swept twice. The first sweep reads it from memory (V b), the second reads it
again and writes the gradient over it (V b). The grid has so few programs that the rows in their hands fit the
second-level cache, so the second read is meant to come from there: V b read and V b written to memory a row, which is
the floor. (A row of 128k bfloat16 logits is 256 KiB, more than the shared memory of a multiprocessor.) Class weights
add 4 V bytes from the cache a sweep. Arithmetic: 1 + 1 / TILE exponentials an element in the first sweep, 1 in the
second.

Resources for sm_90, compiled ahead of time by tests/structloss/test_lm_head_triton.py (Triton 3.6, bfloat16, 32 warps):
62 registers a thread for the plain loss, 42 without a gradient, 64 with every flag (and 8 bytes of stack); 128 bytes of
shared memory.
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

# Stands for "no logit here". Finite, so that differences of two of them are not NaN; beside any logit it adds nothing.
_LOWEST = constant(-3.4028234663852886e38)
_NO_CLASS = constant(2**31 - 1)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return import_error is None and not isinstance(finish_rows, triton.JITFunction)


@jit
def _log1p(e):
    """log(1 + e) for 0 <= e <= 1, to the last bits of a small e (Kahan's correction)."""
    u = 1.0 + e
    return tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@jit
def _tanh(x):
    """To 2e-7 of its value everywhere: near 0 by its series, where 1 - exp(-2 |x|) would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = 1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835))))
    return tl.where(s < 0.0625, x * near, tl.where(x < 0, -far, far))


@jit
def _capped(a, logit_scale, softcap, CAP: tl.constexpr, SCALE: tl.constexpr):
    """The model's logit of the head's output, and tanh of the softcap (unused without one)."""
    z = a.to(tl.float32)
    if SCALE:
        z = z * logit_scale
    t = z
    if CAP:
        t = _tanh(z / softcap)
        z = t * softcap
    return z, t


@jit
def finish_rows(
    logits_ptr,  # (rows, vocab), rows `row_stride` elements apart; overwritten with their gradient if GRADIENT
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
    row_stride,
    rows,
    vocab,
    upstream_stride,
    eps,
    z_loss,
    softcap,
    logit_scale,
    GRADIENT: tl.constexpr,
    WEIGHT: tl.constexpr,
    UNLIKELY: tl.constexpr,
    CLASSES: tl.constexpr,
    SMOOTH: tl.constexpr,
    Z_LOSS: tl.constexpr,
    CAP: tl.constexpr,
    SCALE: tl.constexpr,
    ENTROPY: tl.constexpr,
    ARGMAX: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)[None, :]
    step = tl.arange(0, TILE)[:, None] * BLOCK
    programs = tl.num_programs(0)
    for turn in range(0, (rows - tl.program_id(0) + programs - 1) // programs):
        row = tl.program_id(0) + turn * programs
        base = logits_ptr + row.to(tl.int64) * row_stride
        target = tl.load(target_ptr + row).to(tl.int32)
        z_target, _slope = _capped(tl.load(base + target), logit_scale, softcap, CAP, SCALE)

        # First sweep: each lane keeps the maximum, the sum and what else is asked for of the classes that it meets.
        top = tl.full([BLOCK], _LOWEST, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        weighted = tl.zeros([BLOCK], tl.float32)
        smooth = tl.zeros([BLOCK], tl.float32)
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        best_class = tl.full([BLOCK], _NO_CLASS, tl.int32)
        for start in range(0, vocab, TILE * BLOCK):
            column = start + step + lane
            inside = column < vocab
            a = tl.load(base + column, mask=inside, other=float("-inf"), eviction_policy="evict_last")
            z, _t = _capped(a, logit_scale, softcap, CAP, SCALE)
            z = tl.where(inside, z, float("-inf"))
            if SMOOTH:
                c = 1.0
                if CLASSES:
                    c = tl.load(class_weight_ptr + column, mask=inside, other=0.0)
                smooth += tl.sum(tl.where(inside, c * z, 0.0), 0)
            z = tl.where(column == target, _LOWEST, z)
            if ARGMAX:
                tile_best = tl.max(z, 0)
                tile_class = tl.min(tl.where(z == tile_best[None, :], column, _NO_CLASS), 0)
                best_class = tl.where(tile_best > best, tile_class, best_class)
                best = tl.maximum(best, tile_best)
            higher = tl.maximum(top, tl.max(z, 0))
            e = tl.exp(z - higher[None, :])
            shrink = tl.exp(top - higher)
            total = total * shrink + tl.sum(e, 0)
            if ENTROPY:
                weighted = weighted * shrink + tl.sum(e * tl.maximum(z, _LOWEST), 0)
            top = higher

        # The row's numbers. `o` is the log-sum-exp of the classes that are not the target.
        highest = tl.max(top, 0)
        shrink = tl.exp(top - highest)
        sum_other = tl.sum(total * shrink, 0)
        lse_other = highest + tl.log(sum_other)
        margin = z_target - lse_other
        e = tl.exp(-tl.abs(margin))
        soft_part = _log1p(e)
        nll = tl.maximum(-margin, 0.0) + soft_part
        unlikelihood = tl.maximum(margin, 0.0) + soft_part
        lse = tl.maximum(z_target, lse_other) + soft_part
        p_target = tl.where(margin < 0, e, 1.0) / (1.0 + e)
        p_other = tl.where(margin < 0, 1.0, e) / (1.0 + e)
        tl.store(logprob_ptr + row, -nll)
        tl.store(lse_ptr + row, lse)
        if ENTROPY:
            mean_other = tl.sum(weighted * shrink, 0) / sum_other
            binary = tl.where(p_target > 0, p_target * nll, 0.0) + p_other * unlikelihood
            tl.store(entropy_ptr + row, binary + p_other * (lse_other - mean_other))
        if ARGMAX:
            other = tl.max(best, 0)
            other_class = tl.min(tl.where(best == other, best_class, _NO_CLASS), 0)
            tie = tl.minimum(other_class, target)
            chosen = tl.where(z_target > other, target, tl.where(z_target == other, tie, other_class))
            tl.store(argmax_ptr + row, chosen.to(tl.int64))

        weight = 1.0
        if WEIGHT:
            weight = tl.load(weight_ptr + row)
        class_target = 1.0
        class_sum = vocab * 1.0
        if CLASSES:
            class_target = tl.load(class_weight_ptr + target)
            class_sum = tl.load(class_sum_ptr)
        unlikely = False
        if UNLIKELY:
            unlikely = tl.load(unlikely_ptr + row) != 0
        hard = (1.0 - eps) * nll
        spread_smooth = 0.0
        if SMOOTH:
            spread_smooth = (eps / vocab) * (class_sum * lse - tl.sum(smooth, 0))
        if UNLIKELY:
            hard = tl.where(unlikely, unlikelihood, hard)
            if SMOOTH:
                spread_smooth = tl.where(unlikely, 0.0, spread_smooth)
        if Z_LOSS:
            hard += z_loss * lse * lse
        tl.store(loss_ptr + row, weight * (class_target * hard + spread_smooth))

        # Second sweep: others * r - flat * c away from the target, r the softmax without it.
        if GRADIENT:
            scale = tl.load(upstream_ptr + row * upstream_stride) * logit_scale * weight
            scale_target = scale * class_target
            minus_push = -(1.0 - eps) * scale_target * p_other
            if UNLIKELY:
                minus_push = tl.where(unlikely, scale_target * p_target, minus_push)
            spread = 0.0
            if Z_LOSS:
                spread = 2.0 * z_loss * scale_target * lse
            at_target = minus_push
            flat = 0.0
            if SMOOTH:
                flat = scale * (eps / vocab)
                if UNLIKELY:
                    flat = tl.where(unlikely, 0.0, flat)
                spread += flat * class_sum
                at_target -= flat * class_target
            at_target += spread * p_target
            others = (spread * p_other - minus_push) / sum_other
            for start in range(0, vocab, TILE * BLOCK):
                column = start + step + lane
                inside = column < vocab
                a = tl.load(base + column, mask=inside, other=float("-inf"), eviction_policy="evict_first")
                z, t = _capped(a, logit_scale, softcap, CAP, SCALE)
                g = others * tl.exp(tl.where(column == target, _LOWEST, z) - highest)
                if SMOOTH:
                    c = 1.0
                    if CLASSES:
                        c = tl.load(class_weight_ptr + column, mask=inside, other=0.0)
                    g -= flat * c
                g = tl.where(column == target, at_target, g)
                if CAP:
                    g *= 1.0 - t * t
                tl.store(base + column, g.to(logits_ptr.dtype.element_ty), mask=inside)


@jit
def scale_unless_one(values_ptr, scale_ptr, count, BLOCK: tl.constexpr):
    """values *= scale in place. Nobody waits for the scale: where it is 1, nothing is read or written."""
    scale = tl.load(scale_ptr).to(tl.float32)
    if scale != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        values = tl.load(values_ptr + at, mask=inside).to(tl.float32) * scale
        tl.store(values_ptr + at, values.to(values_ptr.dtype.element_ty), mask=inside)
