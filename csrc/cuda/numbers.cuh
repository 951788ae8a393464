// Number types of the tree alignment kernels. One forward pass, the type decides what it computes:
//   double          partition function in the linear domain, rows damped against overflow (range.cuh)
//   Scaled<double>  the same with an exponent of its own for every value: any range
//   Scaled<float>   the same for cards whose float64 units are few
//   MaxPlus<Real>   (max, +): the exact hard distance
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace structloss::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// mantissa * 2^(kLog2Radix * exponent), mantissa in [1 / kHigh, kHigh] or zero. The radix is large, so that
// most sums need no shift and a product one comparison. A zero's exponent lies far below every other, and two
// of them add up without overflow.
template <class Mantissa>
struct ScaledRange;

template <>
struct ScaledRange<double> {
    using Exponent = long long;
    static constexpr int kLog2Radix = 256;
    static constexpr double kHigh = 0x1p128, kLow = 0x1p-128, kRadixUp = 0x1p256, kRadixDown = 0x1p-256;
    static constexpr Exponent kZeroExponent = -(1LL << 60);
    // Largest total log weight of a mapping that the exponents hold with room to spare.
    static constexpr double kLargestLog = 1e19;
};

template <>
struct ScaledRange<float> {
    using Exponent = int;
    static constexpr int kLog2Radix = 32;
    static constexpr float kHigh = 0x1p16f, kLow = 0x1p-16f, kRadixUp = 0x1p32f, kRadixDown = 0x1p-32f;
    static constexpr Exponent kZeroExponent = -(1 << 30);
    static constexpr double kLargestLog = 5e9;
};

template <class Mantissa>
struct Scaled {
    Mantissa mantissa;
    typename ScaledRange<Mantissa>::Exponent exponent;
};

template <class Mantissa>
__device__ inline Scaled<Mantissa> normalised(Mantissa mantissa,
                                              typename ScaledRange<Mantissa>::Exponent exponent) {
    using Range = ScaledRange<Mantissa>;
    if (mantissa > Range::kHigh) return {mantissa * Range::kRadixDown, exponent + 1};
    if (mantissa < Range::kLow) {
        if (mantissa == Mantissa(0)) return {Mantissa(0), Range::kZeroExponent};
        return {mantissa * Range::kRadixUp, exponent - 1};
    }
    return {mantissa, exponent};
}

template <class Mantissa>
__device__ inline Scaled<Mantissa> operator*(Scaled<Mantissa> x, Scaled<Mantissa> y) {
    return normalised<Mantissa>(x.mantissa * y.mantissa, x.exponent + y.exponent);
}

template <class Mantissa>
__device__ inline Scaled<Mantissa> operator+(Scaled<Mantissa> x, Scaled<Mantissa> y) {
    if (x.exponent == y.exponent) return normalised<Mantissa>(x.mantissa + y.mantissa, x.exponent);
    const bool ordered = x.exponent > y.exponent;
    const Scaled<Mantissa> big = ordered ? x : y;
    const Scaled<Mantissa> small = ordered ? y : x;
    // Two radix steps apart, the smaller value is below the last bit of the larger one.
    if (big.exponent - small.exponent > 1) return big;
    return normalised<Mantissa>(big.mantissa + small.mantissa * ScaledRange<Mantissa>::kRadixDown,
                                big.exponent);
}

template <class Real>
struct MaxPlus {
    Real value;
};

template <class Real>
__device__ inline MaxPlus<Real> operator*(MaxPlus<Real> x, MaxPlus<Real> y) {
    return {x.value + y.value};
}

template <class Real>
__device__ inline MaxPlus<Real> operator+(MaxPlus<Real> x, MaxPlus<Real> y) {
    return {x.value > y.value ? x.value : y.value};
}

// zero, one and exp(log_weight), which may be -infinity: an exact zero.
template <class Number>
struct Make;

template <>
struct Make<double> {
    static __device__ double zero() { return 0.0; }
    static __device__ double one() { return 1.0; }
    static __device__ double exp_of(double log_weight) { return exp(log_weight); }
};

// exp of a double that fits in the mantissa.
__device__ inline double mantissa_exp(double x, double) { return exp(x); }
__device__ inline float mantissa_exp(double x, float) {
    const float rounded = static_cast<float>(x);
    const float rest = static_cast<float>(x - rounded);
    const float value = expf(rounded);
    return fmaf(value, rest, value);
}

template <class Mantissa>
struct Make<Scaled<Mantissa>> {
    using Range = ScaledRange<Mantissa>;
    static __device__ Scaled<Mantissa> zero() { return {Mantissa(0), Range::kZeroExponent}; }
    static __device__ Scaled<Mantissa> one() { return {Mantissa(1), 0}; }
    static __device__ Scaled<Mantissa> exp_of(double log_weight) {
        constexpr double kLogRadix = Range::kLog2Radix * 0.693147180559945309417;
        constexpr double kLogRadixTail = Range::kLog2Radix * 2.319046813846299558e-17;
        // P(i, j) <= exp(w): such a match changes no digit, but products of many might leave the exponents.
        if (log_weight < -1e4) return zero();
        const double steps = rint(log_weight * (1.0 / kLogRadix));
        const double rest = fma(-steps, kLogRadixTail, fma(-steps, kLogRadix, log_weight));
        return normalised<Mantissa>(mantissa_exp(rest, Mantissa(0)),
                                    static_cast<typename Range::Exponent>(steps));
    }
};

template <class Real>
struct Make<MaxPlus<Real>> {
    static __device__ MaxPlus<Real> zero() { return {-static_cast<Real>(INFINITY)}; }
    static __device__ MaxPlus<Real> one() { return {Real(0)}; }
    static __device__ MaxPlus<Real> exp_of(double log_weight) { return {static_cast<Real>(log_weight)}; }
};

// Only plain doubles are damped; the other types need no tilt.
__device__ inline double damp(double value, double damping) { return value * damping; }
template <class Number>
__device__ inline Number damp(Number value, double) {
    return value;
}

__device__ inline double log_of(double value) { return log(value); }
template <class Mantissa>
__device__ inline double log_of(Scaled<Mantissa> value) {
    constexpr double kLogRadix = ScaledRange<Mantissa>::kLog2Radix * 0.693147180559945309417;
    return log(static_cast<double>(value.mantissa)) + kLogRadix * static_cast<double>(value.exponent);
}

__device__ inline double reciprocal(double value) { return 1.0 / value; }
template <class Mantissa>
__device__ inline Scaled<Mantissa> reciprocal(Scaled<Mantissa> value) {
    return normalised<Mantissa>(Mantissa(1) / value.mantissa, -value.exponent);
}

// A probability, so no large exponent is left.
__device__ inline double probability(double value) { return value; }
template <class Mantissa>
__device__ inline double probability(Scaled<Mantissa> value) {
    constexpr int kLog2Radix = ScaledRange<Mantissa>::kLog2Radix;
    constexpr int kLowest = -2048 / kLog2Radix;
    const int steps = value.exponent < kLowest ? kLowest : static_cast<int>(value.exponent);
    return ldexp(static_cast<double>(value.mantissa), kLog2Radix * steps);
}

// High word of the largest plain double seen, which orders positive doubles, infinity and NaN alike: the
// range certificate (range.cuh). The other types need none.
__device__ inline void see(int& peak, double value) {
    const int high = __double2hiint(value);
    peak = high > peak ? high : peak;
}
template <class Number>
__device__ inline void see(int&, Number) {}

template <class T>
__device__ inline T shuffle_up(T value, int distance) {
    return __shfl_up_sync(kAllLanes, value, distance);
}
template <class T>
__device__ inline T shuffle_down(T value, int distance) {
    return __shfl_down_sync(kAllLanes, value, distance);
}
template <class Mantissa>
__device__ inline Scaled<Mantissa> shuffle_up(Scaled<Mantissa> value, int distance) {
    return {shuffle_up(value.mantissa, distance), shuffle_up(value.exponent, distance)};
}
template <class Mantissa>
__device__ inline Scaled<Mantissa> shuffle_down(Scaled<Mantissa> value, int distance) {
    return {shuffle_down(value.mantissa, distance), shuffle_down(value.exponent, distance)};
}
template <class Real>
__device__ inline MaxPlus<Real> shuffle_up(MaxPlus<Real> value, int distance) {
    return {shuffle_up(value.value, distance)};
}

}  // namespace structloss::cuda
