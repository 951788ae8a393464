// The bodies of strip_kernels.hpp for vectors of kBytes. Every including file compiles its own copy.
#pragma once

#include "strip_kernels.hpp"

namespace structloss {
namespace {

template <class Scalar, int kBytes>
struct VectorOf {
    typedef Scalar Type __attribute__((vector_size(kBytes), may_alias));
};

struct Plus {
    template <class Value>
    static Value add(Value x, Value y) {
        return x + y;
    }
    template <class Value>
    static Value times(Value x, Value y) {
        return x * y;
    }
};

struct MaxPlus {
    template <class Value>
    static Value add(Value x, Value y) {
        return x > y ? x : y;
    }
    template <class Value>
    static Value times(Value x, Value y) {
        return x + y;
    }
};

template <class Scalar, int kBytes>
struct Kernels {
    using Mask = typename MaskOf<Scalar>::Type;
    using Vector = typename VectorOf<Scalar, kBytes>::Type;
    using Masks = typename VectorOf<Mask, kBytes>::Type;
    static constexpr int kLanes = kStripLanes<Scalar>;
    static constexpr int kWidth = kBytes / sizeof(Scalar);
    static constexpr int kParts = kLanes / kWidth;

    static Vector load(const Scalar* from) { return *reinterpret_cast<const Vector*>(from); }
    static void store(Scalar* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
    static Masks load(const Mask* from) { return *reinterpret_cast<const Masks*>(from); }
    static Vector where(Masks mask, Vector value) {
        return reinterpret_cast<Vector>(mask & reinterpret_cast<Masks>(value));
    }

    template <class Ops, bool kAnchor, bool kDamp>
    static void forward(const Strips<Scalar>& strips, Scalar damping, const Scalar* subtree,
                        const Scalar* anchor, const Scalar* previous, Scalar* out) {
        Vector running[kParts] = {};
        for (int32_t step = 0; step < strips.steps; ++step) {
            for (int part = 0; part < kParts; ++part) {
                const int64_t at = (int64_t{step} * kParts + part) * kWidth;
                Vector match = load(subtree + at);
                if (kAnchor) match = Ops::times(match, load(anchor + at));
                // Zero is neutral for both: a (max, +) score of a forest pair is never negative.
                running[part] = where(load(strips.inside + at), Ops::add(running[part], match));
                const Vector before = kDamp ? load(previous + at) * damping : load(previous + at);
                store(out + at, Ops::add(before, running[part]));
            }
        }
        alignas(64) Scalar end[kLanes];
        alignas(64) Scalar carry[kLanes];
        for (int part = 0; part < kParts; ++part) store(end + part * kWidth, running[part]);
        carry[0] = 0;
        for (int lane = 1; lane < kLanes; ++lane) {
            const Scalar through = strips.first_boundary[lane - 1] == strips.steps ? carry[lane - 1] : 0;
            carry[lane] = Ops::add(end[lane - 1], through);
        }
        for (int32_t step = 0; step < strips.longest_head; ++step) {
            for (int part = 0; part < kParts; ++part) {
                const int64_t at = (int64_t{step} * kParts + part) * kWidth;
                const Masks head = load(strips.first_boundary + part * kWidth) > static_cast<Mask>(step);
                store(out + at, Ops::add(load(out + at), where(head, load(carry + part * kWidth))));
            }
        }
    }

    static void sum(const Strips<Scalar>& strips, Scalar damping, const Scalar* subtree, const Scalar* anchor,
                    const Scalar* previous, Scalar* out) {
        (anchor ? forward<Plus, true, true> : forward<Plus, false, true>)(strips, damping, subtree, anchor,
                                                                          previous, out);
    }

    static void max(const Strips<Scalar>& strips, const Scalar* subtree, const Scalar* anchor,
                    const Scalar* previous, Scalar* out) {
        (anchor ? forward<MaxPlus, true, false> : forward<MaxPlus, false, false>)(strips, 1, subtree, anchor,
                                                                                  previous, out);
    }

    template <bool kAnchor, bool kFreshSubtree, bool kFreshAnchor>
    static Scalar reverse_row(const Strips<Scalar>& strips, Scalar damping, const Scalar* subtree,
                              const Scalar* anchor, Scalar* current, Scalar* sums, Scalar* adjoint_subtree,
                              Scalar* adjoint_anchor) {
        const auto collect = [](Scalar* adjoint, const Vector& term, bool fresh) {
            store(adjoint, fresh ? term : load(adjoint) + term);
        };
        Vector running[kParts] = {};
        for (int32_t step = strips.steps - 1; step >= 0; --step) {
            for (int part = 0; part < kParts; ++part) {
                const int64_t at = (int64_t{step} * kParts + part) * kWidth;
                running[part] = where(load(strips.inside + at), running[part] + load(current + at));
                store(sums + at, running[part]);
            }
        }
        alignas(64) Scalar end[kLanes];
        alignas(64) Scalar carry[kLanes];
        for (int part = 0; part < kParts; ++part) store(end + part * kWidth, running[part]);
        carry[kLanes - 1] = 0;
        for (int lane = kLanes - 2; lane >= 0; --lane) {
            const Scalar through = strips.last_boundary[lane + 1] < 0 ? carry[lane + 1] : 0;
            carry[lane] = end[lane + 1] + through;
        }
        Vector peak[kParts] = {};
        for (int32_t step = strips.steps - 1; step >= 0; --step) {
            for (int part = 0; part < kParts; ++part) {
                const int64_t at = (int64_t{step} * kParts + part) * kWidth;
                const Masks body = load(strips.last_boundary + part * kWidth) < static_cast<Mask>(step);
                const Vector sum = load(sums + at) + where(body, load(carry + part * kWidth));
                const Vector value = load(current + at);
                // An infinity stays where a NaN follows it: the comparison with NaN is false.
                peak[part] = MaxPlus::add(MaxPlus::add(sum, value), peak[part]);
                store(current + at, value * damping);
                if (kAnchor) collect(adjoint_anchor + at, sum * load(subtree + at), kFreshAnchor);
                collect(adjoint_subtree + at, kAnchor ? sum * load(anchor + at) : sum, kFreshSubtree);
            }
        }
        Scalar largest = 0;
        for (int part = 0; part < kParts; ++part) {
            for (int lane = 0; lane < kWidth; ++lane)
                largest = MaxPlus::add(Scalar{peak[part][lane]}, largest);
        }
        return largest;
    }

    static Scalar reverse(const Strips<Scalar>& strips, Scalar damping, const Scalar* subtree,
                          const Scalar* anchor, Scalar* current, Scalar* sums, Scalar* adjoint_subtree,
                          bool fresh_subtree, Scalar* adjoint_anchor, bool fresh_anchor) {
        const auto row =
            !anchor ? fresh_subtree ? reverse_row<false, true, false> : reverse_row<false, false, false>
            : fresh_anchor  ? fresh_subtree ? reverse_row<true, true, true> : reverse_row<true, false, true>
            : fresh_subtree ? reverse_row<true, true, false>
                            : reverse_row<true, false, false>;
        return row(strips, damping, subtree, anchor, current, sums, adjoint_subtree, adjoint_anchor);
    }

    static void add(const Scalar* values, Scalar* out, size_t count) {
        for (size_t k = 0; k < count; k += kWidth) store(out + k, load(out + k) + load(values + k));
    }

    // exp(x) = 2^k exp(r), |r| <= ln 2 / 2, by the Taylor polynomial of degree 13; 2^k in two factors, so
    // that the results below 2^-1022 are right too.
    static Vector exp_of(Vector x) {
        const Vector lowest = Vector{} - 800.0;
        x = x > lowest ? x : lowest;
        constexpr double kRound = 0x1.8p52;  // x + kRound - kRound rounds to an integer
        const Vector shifted = x * 1.44269504088896340736 + kRound;
        const Vector k = shifted - kRound;
        const Vector r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
        constexpr double kFactorials[] = {1.0,       1.0,        2.0,         6.0,         24.0,
                                          120.0,     720.0,      5040.0,      40320.0,     362880.0,
                                          3628800.0, 39916800.0, 479001600.0, 6227020800.0};
        Vector sum = Vector{} + 1.0 / kFactorials[13];
        for (int term = 12; term >= 0; --term) sum = sum * r + 1.0 / kFactorials[term];
        const Masks exponent = reinterpret_cast<Masks>(shifted) - reinterpret_cast<Masks>(Vector{} + kRound);
        const Masks half = exponent >> 1;
        const Vector first = reinterpret_cast<Vector>((half + 1023) << 52);
        const Vector second = reinterpret_cast<Vector>((exponent - half + 1023) << 52);
        return sum * first * second;
    }

    static void exp(const double* log_weight, double shift, double* out, size_t count) {
        for (size_t k = 0; k < count; k += kWidth) store(out + k, exp_of(load(log_weight + k) - shift));
    }
};

// Eight elements at a time whatever the vectors, so that sums come out the same.
template <class Cost>
struct CostLoops {
    static constexpr int kBlock = 8;

    static void unit(int64_t label, const int64_t* labels, size_t count, Cost* out) {
        for (size_t j = 0; j < count; ++j) out[j] = labels[j] == label ? Cost{0} : Cost{1};
    }

    static bool weights(double first, const Cost* second, const Cost* relabel, double scale, size_t count,
                        double* out, double* top) {
        double largest[kBlock];
        int64_t valid[kBlock];
        for (int lane = 0; lane < kBlock; ++lane) largest[lane] = *top, valid[lane] = -1;
        size_t j = 0;
        for (; j + kBlock <= count; j += kBlock) {
            for (int lane = 0; lane < kBlock; ++lane)
                weight(first, second, relabel, scale, j + lane, out, largest[lane], valid[lane]);
        }
        for (int lane = 0; j < count; ++j, ++lane)
            weight(first, second, relabel, scale, j, out, largest[lane], valid[lane]);
        bool all_valid = true;
        for (int lane = 0; lane < kBlock; ++lane) {
            *top = largest[lane] > *top ? largest[lane] : *top;
            all_valid &= valid[lane] != 0;
        }
        return all_valid;
    }

    static inline void weight(double first, const Cost* second, const Cost* relabel, double scale, size_t j,
                              double* out, double& largest, int64_t& valid) {
        const double cost = relabel[j];
        const double value = (first + static_cast<double>(second[j]) - cost) * scale;
        out[j] = value;
        largest = value > largest ? value : largest;
        valid = cost >= 0.0 ? valid : 0;
    }

    static double posterior(const double* adjoint, const double* subtree, const double* log_weight,
                            size_t count, Cost* out) {
        double expected[kBlock] = {};
        size_t j = 0;
        for (; j + kBlock <= count; j += kBlock) {
            for (int lane = 0; lane < kBlock; ++lane) {
                const double matched = adjoint[j + lane] * subtree[j + lane];
                out[j + lane] = static_cast<Cost>(matched);
                const double term = matched * log_weight[j + lane];
                expected[lane] += matched > 0.0 ? term : 0.0;
            }
        }
        for (int lane = 0; j < count; ++j, ++lane) {
            const double matched = adjoint[j] * subtree[j];
            out[j] = static_cast<Cost>(matched);
            expected[lane] += matched > 0.0 ? matched * log_weight[j] : 0.0;
        }
        double sum = 0.0;
        for (int lane = 0; lane < kBlock; ++lane) sum += expected[lane];
        return sum;
    }
};

template <int kBytes>
constexpr StripKernels make_kernels(const char* name) {
    return {Kernels<double, kBytes>::sum,
            Kernels<double, kBytes>::max,
            Kernels<float, kBytes>::max,
            Kernels<double, kBytes>::reverse,
            Kernels<double, kBytes>::add,
            Kernels<double, kBytes>::exp,
            {CostLoops<float>::unit, CostLoops<float>::weights, CostLoops<float>::posterior},
            {CostLoops<double>::unit, CostLoops<double>::weights, CostLoops<double>::posterior},
            name};
}

}  // namespace
}  // namespace structloss
