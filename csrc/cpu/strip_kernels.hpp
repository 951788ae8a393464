// The two loops in which tree alignment spends its time, on vectors.
//
// A row of the dynamic program (tree_program.hpp: the columns of all tables of the second tree side by side)
// is cut into kStripLanes strips of equal length, one a vector lane, and stored interleaved: column c is
// element (c % steps) * lanes + c / steps. A running sum then needs no shuffle: every lane adds up its own
// strip, and a second sweep adds what came in from the strips before. The same operations in the same order
// whatever the vector width, without fused multiply-add, so every instruction set gives the same bits.
//
// This header is included by translation units that are compiled for newer instruction sets than the machine
// at hand may have. It must not use inline functions of the standard library: the linker would be free to
// take those versions for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace structloss {

template <class Scalar>
struct MaskOf;
template <>
struct MaskOf<double> {
    using Type = int64_t;
};
template <>
struct MaskOf<float> {
    using Type = int32_t;
};

template <class Scalar>
constexpr int32_t kStripLanes = 64 / sizeof(Scalar);

// Where the segments of a row begin. A boundary column (and padding at the end) has inside 0, other columns
// -1.
template <class Scalar>
struct Strips {
    using Mask = typename MaskOf<Scalar>::Type;
    static constexpr int32_t kLanes = kStripLanes<Scalar>;
    int32_t steps = 0;
    const Mask* inside = nullptr;             // (steps, lanes)
    alignas(64) Mask first_boundary[kLanes];  // step of a strip's first boundary column, `steps` without one
    alignas(64) Mask last_boundary[kLanes];   // of its last one, -1 without one
    Mask longest_head = 0;                    // the largest first_boundary
};

// All arrays (steps, lanes), aligned to 64 bytes.
//
// sum and max are one loop, with (+, x) or (max, +) for (add, times):
//     out = add(damping * previous, N),   N = running add inside each segment of times(subtree, anchor)
// without an anchor (a spine row: the boundary row, all ones) N runs over subtree. Max does not damp.
// Between the caller's arrays (no alignment) and ours.
template <class Cost>
struct CostKernels {
    // out[j] = 0 where labels[j] is `label`, else 1.
    void (*unit)(int64_t label, const int64_t* labels, size_t count, Cost* out);
    // out[j] = (first + second[j] - relabel[j]) * scale; raises `top` to the largest. False for a cost that
    // is negative or NaN.
    bool (*weights)(double first, const Cost* second, const Cost* relabel, double scale, size_t count,
                    double* out, double* top);
    // out[j] = adjoint[j] * subtree[j]; returns the sum of out[j] * log_weight[j], where -infinity counts 0.
    double (*posterior)(const double* adjoint, const double* subtree, const double* log_weight, size_t count,
                        Cost* out);
};

struct StripKernels {
    void (*sum)(const Strips<double>& strips, double damping, const double* subtree, const double* anchor,
                const double* previous, double* out);
    void (*max)(const Strips<double>& strips, const double* subtree, const double* anchor,
                const double* previous, double* out);
    void (*max_float)(const Strips<float>& strips, const float* subtree, const float* anchor,
                      const float* previous, float* out);

    // The adjoint of sum. R = running sum of `current` from the right inside each segment (left in `sums`);
    //     adjoint_subtree += R * anchor,  adjoint_anchor += R * subtree,  current *= damping.
    // Without an anchor adjoint_subtree += R alone. An adjoint that is `fresh` is set and not added to.
    // Returns the largest R or `current` seen.
    double (*reverse)(const Strips<double>& strips, double damping, const double* subtree,
                      const double* anchor, double* current, double* sums, double* adjoint_subtree,
                      bool fresh_subtree, double* adjoint_anchor, bool fresh_anchor);

    // out[k] += values[k], `count` a multiple of 8, both aligned.
    void (*add)(const double* values, double* out, size_t count);

    // out[k] = exp(log_weight[k] - shift) for `count` elements (rounded up to a multiple of 8: buffers must
    // have room), within 2 units in the last place; exactly 0 for -infinity.
    void (*exp)(const double* log_weight, double shift, double* out, size_t count);

    CostKernels<float> costs_float;
    CostKernels<double> costs_double;

    const char* name;
};

extern const StripKernels kBaselineKernels;
extern const StripKernels kAvx2Kernels;    // x86 only
extern const StripKernels kAvx512Kernels;  // x86 only

// The widest that this processor runs; STRUCTLOSS_CPU=baseline|avx2|avx512 asks for a narrower one.
const StripKernels& strip_kernels();

}  // namespace structloss
