// Number types of the tree-edit dynamic program. The forward pass is one template; the type decides what it
// computes:
//   double    partition function in the linear domain, with a damping factor a node against overflow;
//   Wide      the same with an exponent of its own for every value: any range, about three times slower;
//   Tropical  (max, +): the exact hard distance.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace structloss {

// mantissa * 2^(256 * exponent) with mantissa in [2^-128, 2^128] or zero. The large radix makes additions of
// nearby values plain additions, and a product needs one comparison in the common case.
struct Wide {
    double mantissa;
    int64_t exponent;
};

constexpr double kWideHigh = 0x1p128;
constexpr double kWideLow = 0x1p-128;
constexpr double kWideRadixDown = 0x1p-256;
constexpr double kWideRadixUp = 0x1p256;
// Far below every exponent that a product of real weights reaches, far above overflow when two of them add
// up.
constexpr int64_t kWideZeroExponent = -(int64_t{1} << 60);

inline Wide normalised(double mantissa, int64_t exponent) {
    if (mantissa > kWideHigh) return {mantissa * kWideRadixDown, exponent + 1};
    if (mantissa < kWideLow) {
        if (mantissa == 0.0) return {0.0, kWideZeroExponent};
        return {mantissa * kWideRadixUp, exponent - 1};
    }
    return {mantissa, exponent};
}

inline Wide operator*(Wide x, Wide y) { return normalised(x.mantissa * y.mantissa, x.exponent + y.exponent); }

inline Wide operator+(Wide x, Wide y) {
    if (x.exponent == y.exponent) return normalised(x.mantissa + y.mantissa, x.exponent);
    const Wide& big = x.exponent > y.exponent ? x : y;
    const Wide& small = x.exponent > y.exponent ? y : x;
    // Two radix steps apart, the smaller value is below 2^-256 of the larger one.
    if (big.exponent - small.exponent > 1) return big;
    return normalised(big.mantissa + small.mantissa * kWideRadixDown, big.exponent);
}

struct Tropical {
    double value;
};

inline Tropical operator*(Tropical x, Tropical y) { return {x.value + y.value}; }
inline Tropical operator+(Tropical x, Tropical y) { return {x.value > y.value ? x.value : y.value}; }

template <class Number>
Number zero();
template <>
inline double zero<double>() {
    return 0.0;
}
template <>
inline Wide zero<Wide>() {
    return {0.0, kWideZeroExponent};
}
template <>
inline Tropical zero<Tropical>() {
    return {-std::numeric_limits<double>::infinity()};
}

template <class Number>
Number one();
template <>
inline double one<double>() {
    return 1.0;
}
template <>
inline Wide one<Wide>() {
    return {1.0, 0};
}
template <>
inline Tropical one<Tropical>() {
    return {0.0};
}

// Only plain doubles are damped; the other types need no tilt.
inline double damp(double value, double damping) { return value * damping; }
inline Wide damp(Wide value, double) { return value; }
inline Tropical damp(Tropical value, double) { return value; }

// exp(log_weight) in the number type; log_weight may be -infinity, which gives an exact zero.
inline void set_exp(double log_weight, double& out) { out = std::exp(log_weight); }
inline void set_exp(double log_weight, Wide& out) {
    constexpr double kLogRadix = 256.0 * 0.693147180559945309417;
    constexpr double kLogRadixTail = 256.0 * 2.319046813846299558e-17;
    if (log_weight < -1e15) {
        out = zero<Wide>();
        return;
    }
    const double steps = std::nearbyint(log_weight / kLogRadix);
    const double rest = std::fma(-steps, kLogRadixTail, std::fma(-steps, kLogRadix, log_weight));
    out = normalised(std::exp(rest), static_cast<int64_t>(steps));
}
inline void set_exp(double log_weight, Tropical& out) { out = {log_weight}; }

inline double log_of(double value) { return std::log(value); }
inline double log_of(Wide value) {
    constexpr double kLogRadix = 256.0 * 0.693147180559945309417;
    return std::log(value.mantissa) + kLogRadix * static_cast<double>(value.exponent);
}

inline double reciprocal(double value) { return 1.0 / value; }
inline Wide reciprocal(Wide value) { return normalised(1.0 / value.mantissa, -value.exponent); }

// A probability, so no exponent above zero is left.
inline double probability(double value) { return value; }
inline double probability(Wide value) {
    return std::ldexp(value.mantissa, value.exponent < -8 ? -2048 : static_cast<int>(256 * value.exponent));
}

// Largest value seen: the range certificate of the plain-double path (tree_alignment.cpp); the others need
// none.
inline void see(double& peak, double value) { peak = value > peak ? value : peak; }
inline void see(double&, Wide) {}
inline void see(double&, Tropical) {}

}  // namespace structloss
