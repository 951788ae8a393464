// The loops over one row of logits, on vectors: a few hundred to a few thousand logits a call, so that what
// one loop reads the next one finds in the first-level cache.
//
// A logit a of the head becomes z = cap * tanh(scale * a / cap), or z = scale * a without a cap; exp(z - top)
// is summed, with the largest z (`top`) taken off first. Sixteen lanes whatever the vector width, no fused
// multiply-add, sums over lanes in a fixed order: every instruction set gives the same bits. A lane adds 32
// numbers in single precision; sums of those are in double precision.
//
// Per logit: 4 (2) bytes read, the same written where there is a gradient, about 30 operations an exp.
//
// This header is included by translation units that are compiled for newer instruction sets than the machine
// at hand may have. It must not use inline functions of the standard library: the linker would be free to
// take those versions for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace structloss {

struct BFloat16 {
    uint16_t bits;
};

constexpr int64_t kRowLanes = 16;

struct ExpSums {
    double sum;     // of exp(z - top)
    double moment;  // of exp(z - top) * (z - top), 0 where not asked for
};

// `z` and `slope` hold a multiple of 16 floats; `count` is of any size unless it says "rounded", which is
// that multiple: behind the end z is -infinity.
template <class Logit>
struct RowKernels {
    // z from logits; with a cap also slope = 1 - tanh^2 where it is not null. cap = 0 is no cap.
    void (*load)(const Logit* logits, int64_t count, float scale, float cap, float* z, float* slope);

    // Sum of class_weight * z, or of z where class_weight is null.
    double (*dot)(const float* z, const float* class_weight, int64_t count);

    // The largest z, at least the lowest finite number. NaN is passed over: it comes out of the sum.
    float (*largest)(const float* z, int64_t rounded);

    // exp(z - top) summed and, where `out` is not null, written: times slope unless that is null.
    ExpSums (*exponentials)(const float* z, const float* slope, int64_t count, float top, bool moment,
                            Logit* out);

    // out = (others * exp(z - top) - flat * class_weight) * slope; a null class_weight or slope counts as 1.
    // `out` may be where z is.
    void (*gradient)(const float* z, const float* slope, const float* class_weight, int64_t count, float top,
                     float others, float flat, Logit* out);
};

struct RowKernelSet {
    RowKernels<float> float32;
    RowKernels<BFloat16> bfloat16;
    const char* name;
};

extern const RowKernelSet kBaselineRowKernels;
extern const RowKernelSet kAvx2RowKernels;    // x86 only
extern const RowKernelSet kAvx512RowKernels;  // x86 only

// The widest that this processor runs; STRUCTLOSS_CPU=baseline|avx2|avx512 asks for a narrower one.
const RowKernelSet& row_kernels();

}  // namespace structloss
