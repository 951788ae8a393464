// A number with an exponent of its own: any range, several times slower than a plain double.
#pragma once

#include <cmath>
#include <cstdint>

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
constexpr Wide kWideZero{0.0, -(int64_t{1} << 60)};
constexpr Wide kWideOne{1.0, 0};

inline Wide normalised(double mantissa, int64_t exponent) {
    if (mantissa > kWideHigh) return {mantissa * kWideRadixDown, exponent + 1};
    if (mantissa < kWideLow) {
        if (mantissa == 0.0) return kWideZero;
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

inline Wide reciprocal(Wide value) { return normalised(1.0 / value.mantissa, -value.exponent); }

inline Wide wide_exp(double log_value) {
    constexpr double kLogRadix = 256.0 * 0.693147180559945309417;
    constexpr double kLogRadixTail = 256.0 * 2.319046813846299558e-17;
    if (log_value < -1e15) return kWideZero;
    const double steps = std::nearbyint(log_value / kLogRadix);
    const double rest = std::fma(-steps, kLogRadixTail, std::fma(-steps, kLogRadix, log_value));
    return normalised(std::exp(rest), static_cast<int64_t>(steps));
}

inline double log_of(Wide value) {
    constexpr double kLogRadix = 256.0 * 0.693147180559945309417;
    return std::log(value.mantissa) + kLogRadix * static_cast<double>(value.exponent);
}

// The value of a probability: no exponent above zero is left.
inline double probability(Wide value) {
    return std::ldexp(value.mantissa, value.exponent < -8 ? -2048 : static_cast<int>(256 * value.exponent));
}

}  // namespace structloss
