// The bodies of row_kernels.hpp for vectors of kBytes. Every including file compiles its own copy.
#pragma once

#include "row_kernels.hpp"

namespace structloss {
namespace {

constexpr float kLowest = -0x1.fffffep127f;

// Sixteen numbers as kParts vectors. Memory may lie anywhere.
template <class Scalar, int kPartBytes>
struct Lanes {
    typedef Scalar Part __attribute__((vector_size(kPartBytes), aligned(sizeof(Scalar)), may_alias));
    static constexpr int kWidth = kPartBytes / sizeof(Scalar);
    static constexpr int kParts = static_cast<int>(kRowLanes) / kWidth;
    static Part load(const Scalar* from, int part) {
        return *reinterpret_cast<const Part*>(from + part * kWidth);
    }
    static void store(Scalar* to, int part, Part value) {
        *reinterpret_cast<Part*>(to + part * kWidth) = value;
    }
};

template <int kBytes>
struct RowLoops {
    using Floats = Lanes<float, kBytes>;
    using Words = Lanes<uint32_t, kBytes>;
    using Vector = typename Floats::Part;
    using Bits = typename Words::Part;
    static constexpr int kParts = Floats::kParts;
    static constexpr int kGroups = 4;         // of sixteen lanes, each with its own running sum
    static constexpr int64_t kSummed = 2048;  // logits that a float sum spans

    static Vector all(float value) { return Vector{} + value; }

    // --- logits in and out ---------------------------------------------------------------------------------

    static Vector widen(const float* from, int part) { return Floats::load(from, part); }
    static Vector widen(const BFloat16* from, int part) {
        using Halves = Lanes<uint16_t, kBytes / 2>;
        const auto halves = Halves::load(reinterpret_cast<const uint16_t*>(from), part);
        return reinterpret_cast<Vector>(__builtin_convertvector(halves, Bits) << 16);
    }

    static void narrow(float* to, int part, Vector value) { Floats::store(to, part, value); }
    static void narrow(BFloat16* to, int part, Vector value) {
        using Halves = Lanes<uint16_t, kBytes / 2>;
        // To nearest; ties go away from zero, which is as near as to even. A NaN stays one unless its upper
        // bits are all ones and its lower ones count: none comes out of bfloat16 logits or out of arithmetic.
        const Bits rounded = (reinterpret_cast<Bits>(value) + 0x8000u) >> 16;
        Halves::store(reinterpret_cast<uint16_t*>(to), part,
                      __builtin_convertvector(rounded, typename Halves::Part));
    }

    // --- functions -----------------------------------------------------------------------------------------

    // exp(x) for x <= 0 within 1 unit in the last place; exactly 0 below -87.7, where 2^k has no exponent
    // left. 2^k (1 + r + r^2 q(r)), |r| <= ln 2 / 2, q fitted to the relative error of exp: 3e-9.
    static Vector exp_of(Vector x, Vector& clamped) {
        const Vector smallest = all(-88.0f);
        clamped = smallest > x ? smallest : x;  // NaN stays
        const Vector round = all(0x1.8p23f);    // x + round - round rounds to an integer
        const Vector shifted = clamped * 0x1.715476p0f + round;
        const Vector k = shifted - round;
        const Vector r = (clamped - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
        Vector q = r * 0x1.6a23d0p-10f + 0x1.123a20p-7f;
        q = q * r + 0x1.5558f2p-5f;
        q = q * r + 0x1.555492p-3f;
        q = q * r + 0x1.fffffcp-2f;
        const Vector fraction = (q * r) * r + r + 1.0f;
        const Bits exponent = (reinterpret_cast<Bits>(shifted) << 23) + (127u << 23);
        return fraction * reinterpret_cast<Vector>(exponent);
    }

    static Vector exp_of(Vector x) {
        Vector clamped;
        return exp_of(x, clamped);
    }

    // tanh(u), and 1 - tanh^2 = 4 e / (1 + e)^2 with e = exp(-2 |u|), which loses nothing where tanh is
    // near 1. Near 0 an odd polynomial, relative error 5e-9 up to 0.625; beyond it 1 - e cancels no digits.
    static Vector tanh_of(Vector u, Vector& slope) {
        const Vector size = u < 0.0f ? -u : u;
        const Vector e = exp_of(size * -2.0f);
        const Vector inverse = 1.0f / (1.0f + e);
        const Vector far = (1.0f - e) * inverse;
        slope = 4.0f * e * inverse * inverse;
        const Vector square = size * size;
        Vector q = square * -0x1.75e1c4p-8f + 0x1.52269ap-6f;
        q = q * square + -0x1.b83c5ap-5f;
        q = q * square + 0x1.110726p-3f;
        q = q * square + -0x1.555532p-2f;
        const Vector near = size + size * (square * q);
        const Vector value = size < 0.625f ? near : far;
        return u < 0.0f ? -value : value;
    }
};

template <class Logit, int kBytes>
struct RowKernelsOf : RowLoops<kBytes> {
    using Loops = RowLoops<kBytes>;
    using Floats = typename Loops::Floats;
    using Vector = typename Loops::Vector;
    static constexpr int kParts = Loops::kParts;

    static void load(const Logit* logits, int64_t count, float scale, float cap, float* z, float* slope) {
        const int64_t whole = count / kRowLanes * kRowLanes;
        load_sixteens(logits, whole, scale, cap, z, slope);
        if (whole == count) return;
        Logit rest[kRowLanes] = {};
        __builtin_memcpy(rest, logits + whole, (count - whole) * sizeof(Logit));
        load_sixteens(rest, kRowLanes, scale, cap, z + whole, slope ? slope + whole : nullptr);
        for (int64_t at = count; at < whole + kRowLanes; ++at) z[at] = -__builtin_inff();
    }

    static void load_sixteens(const Logit* logits, int64_t count, float scale, float cap, float* z,
                              float* slope) {
        for (int64_t at = 0; at < count; at += kRowLanes) {
            for (int part = 0; part < kParts; ++part) {
                Vector value = Loops::widen(logits + at, part) * scale;
                if (cap > 0.0f) {
                    Vector flatness;
                    value = Loops::tanh_of(value / cap, flatness) * cap;
                    if (slope != nullptr) Floats::store(slope + at, part, flatness);
                }
                Floats::store(z + at, part, value);
            }
        }
    }

    // Sums of term(at, part), kTerms numbers at once, over all sixteens of `rounded` elements.
    template <int kTerms, class Term>
    static void sum(int64_t rounded, Term term, double (&total)[kTerms]) {
        for (int64_t start = 0; start < rounded; start += Loops::kSummed) {
            const int64_t stop = rounded - start < Loops::kSummed ? rounded : start + Loops::kSummed;
            Vector running[Loops::kGroups][kParts][kTerms] = {};
            int64_t at = start;
            for (; at + Loops::kGroups * kRowLanes <= stop; at += Loops::kGroups * kRowLanes) {
                for (int group = 0; group < Loops::kGroups; ++group) {
                    for (int part = 0; part < kParts; ++part)
                        term(at + group * kRowLanes, part, running[group][part]);
                }
            }
            for (; at < stop; at += kRowLanes) {
                for (int part = 0; part < kParts; ++part) term(at, part, running[0][part]);
            }
            for (int k = 0; k < kTerms; ++k) {
                float lanes[kRowLanes];
                for (int part = 0; part < kParts; ++part)
                    Floats::store(lanes, part,
                                  (running[0][part][k] + running[1][part][k]) +
                                      (running[2][part][k] + running[3][part][k]));
                double quarter[4] = {};
                for (int lane = 0; lane < kRowLanes; ++lane) quarter[lane % 4] += lanes[lane];
                total[k] += (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
            }
        }
    }

    static double dot(const float* z, const float* class_weight, int64_t count) {
        const int64_t whole = count / kRowLanes * kRowLanes;
        double total[1] = {};
        sum(
            whole,
            [=](int64_t at, int part, Vector(&running)[1]) {
                const Vector value = Floats::load(z + at, part);
                running[0] += class_weight ? value * Floats::load(class_weight + at, part) : value;
            },
            total);
        for (int64_t at = whole; at < count; ++at)
            total[0] += class_weight ? z[at] * class_weight[at] : z[at];
        return total[0];
    }

    static float largest(const float* z, int64_t rounded) {
        Vector top[kParts];
        for (int part = 0; part < kParts; ++part) top[part] = Loops::all(kLowest);
        for (int64_t at = 0; at < rounded; at += kRowLanes) {
            for (int part = 0; part < kParts; ++part) {
                const Vector value = Floats::load(z + at, part);
                top[part] = value > top[part] ? value : top[part];
            }
        }
        float best = kLowest;
        for (int part = 0; part < kParts; ++part) {
            for (int lane = 0; lane < Floats::kWidth; ++lane)
                best = top[part][lane] > best ? top[part][lane] : best;
        }
        return best;
    }

    template <bool kMoment, bool kStore>
    static void exponentials_of(const float* z, const float* slope, int64_t rounded, float top, Logit* out,
                                double (&total)[1 + kMoment]) {
        const Vector tops = Loops::all(top);
        sum(
            rounded,
            [=](int64_t at, int part, Vector(&running)[1 + kMoment]) {
                Vector distance;
                const Vector e = Loops::exp_of(Floats::load(z + at, part) - tops, distance);
                running[0] += e;
                if constexpr (kMoment) running[1] += e * distance;
                if constexpr (kStore)
                    Loops::narrow(out + at, part, slope ? e * Floats::load(slope + at, part) : e);
            },
            total);
    }

    template <bool kMoment, bool kStore>
    static ExpSums exponentials_with_rest(const float* z, const float* slope, int64_t count, float top,
                                          Logit* out) {
        double total[1 + kMoment] = {};
        const int64_t whole = count / kRowLanes * kRowLanes;
        exponentials_of<kMoment, kStore>(z, slope, whole, top, out, total);
        if (whole < count) {
            Logit rest[kRowLanes];
            exponentials_of<kMoment, kStore>(z + whole, slope ? slope + whole : nullptr, kRowLanes, top, rest,
                                             total);
            if (kStore) __builtin_memcpy(out + whole, rest, (count - whole) * sizeof(Logit));
        }
        return {total[0], kMoment ? total[kMoment] : 0.0};
    }

    static ExpSums exponentials(const float* z, const float* slope, int64_t count, float top, bool moment,
                                Logit* out) {
        if (moment) {
            return (out ? exponentials_with_rest<true, true>
                        : exponentials_with_rest<true, false>)(z, slope, count, top, out);
        }
        return (out ? exponentials_with_rest<false, true>
                    : exponentials_with_rest<false, false>)(z, slope, count, top, out);
    }

    static void gradient_of(const float* z, const float* slope, const float* class_weight, int64_t rounded,
                            float top, float others, float flat, Logit* out) {
        const Vector tops = Loops::all(top);
        for (int64_t at = 0; at < rounded; at += kRowLanes) {
            for (int part = 0; part < kParts; ++part) {
                Vector value = Loops::exp_of(Floats::load(z + at, part) - tops) * others;
                value -= class_weight ? Floats::load(class_weight + at, part) * flat : Loops::all(flat);
                if (slope != nullptr) value *= Floats::load(slope + at, part);
                Loops::narrow(out + at, part, value);
            }
        }
    }

    static void gradient(const float* z, const float* slope, const float* class_weight, int64_t count,
                         float top, float others, float flat, Logit* out) {
        const int64_t whole = count / kRowLanes * kRowLanes;
        gradient_of(z, slope, class_weight, whole, top, others, flat, out);
        if (whole == count) return;
        Logit rest[kRowLanes];
        float weights[kRowLanes] = {};
        if (class_weight) __builtin_memcpy(weights, class_weight + whole, (count - whole) * sizeof(float));
        gradient_of(z + whole, slope ? slope + whole : nullptr, class_weight ? weights : nullptr, kRowLanes,
                    top, others, flat, rest);
        __builtin_memcpy(out + whole, rest, (count - whole) * sizeof(Logit));
    }

    static constexpr RowKernels<Logit> table() { return {load, dot, largest, exponentials, gradient}; }
};

template <int kBytes>
constexpr RowKernelSet make_row_kernels(const char* name) {
    return {RowKernelsOf<float, kBytes>::table(), RowKernelsOf<BFloat16, kBytes>::table(), name};
}

}  // namespace
}  // namespace structloss
