// Range of plain doubles.
//
// Every node of the smaller tree (n nodes, a row each) is weighted by exp(-tilt), the larger one (m nodes) is
// left alone. A forest pair with a <= n rows then has log Z~ between -tilt a and (largest - tilt) a + log C(n
// + m, n): a mapping of a rows has at most a matches, and there are at most C(n + m, n) of them. `safe_tilt`
// centres that interval and is safe where it is narrow enough, whatever the trees are.
//
// Where it is wider and the reverse pass runs, a tilt that fits the typical pair is tried and *certified*: if
// the values of the forward pass and the adjoints of the reverse pass (seeded with 1 / Z~) stay below 2^960,
// then underflow was harmless. Every operation loses at most 2^-1074 by underflow, a value loses its error
// times its adjoint and an adjoint its error times its value, so the relative loss is below 2^-114 times the
// number of operations. A match weight that underflows has w < tilt - 708, and P(i, j) <= exp(w): with tilt
// <= 600 that is below e^-108. Without a certificate the pair is computed with exponents, never with a
// saturated value.
#pragma once

#include "cuda/numbers.cuh"

namespace structloss::cuda {

// The tilts to try for one pair. The same in every thread.
class TiltSearch {
  public:
    double tilt = 0.0;

    __device__ TiltSearch(const double& largest, int n, int m, bool reverse)
        : largest_(largest), rows_(n), reverse_(reverse) {
        const double nodes = static_cast<double>(n) + m;
        const double mappings = n * log(nodes / n) + m * log(nodes / m);  // no less than log C(n + m, n)
        next_ = 0.5 * largest + 0.5 * mappings / n;
        safe_ = next_ * n <= kSafeLogRange;
        if (!safe_) next_ = 0.75 * largest;
        // Where matches weigh this much, the paths through the tables spread beyond any tilt.
        left_ = safe_ ? 1 : reverse && largest * n <= kHopelessLogRange ? 2 : 0;
    }

    __device__ bool try_next() {
        tilt = next_ > 0.0 ? next_ : 0.0;
        // Beyond these, weights or the damping would overflow or vanish.
        return left_-- > 0 && tilt <= kLargestTilt && largest_ - tilt <= kLargestLogWeight;
    }

    __device__ bool forward_is_sound(int peak, double partition) const {
        return peak < kPeak && partition >= kSmallestPartition;
    }

    // Otherwise sets the next tilt.
    __device__ bool accept(int forward_peak, int reverse_peak, double partition) {
        if (safe_ && !reverse_) return true;
        if (forward_is_sound(forward_peak, partition) && reverse_peak < kPeak) return true;
        if (forward_peak >= kPeak) {
            next_ = largest_;
        } else {
            next_ = partition > 0.0 ? tilt + log(partition) / rows_ : 0.5 * tilt;
        }
        return false;
    }

  private:
    static constexpr int kPeak = 0x7bf00000;  // high word of 2^960
    static constexpr double kSmallestPartition = 0x1p-960;
    static constexpr double kSafeLogRange = 650.0;
    static constexpr double kLargestTilt = 600.0;
    static constexpr double kLargestLogWeight = 660.0;
    static constexpr double kHopelessLogRange = 16000.0;

    const double& largest_;  // in shared memory
    int rows_;
    double next_;
    bool safe_;
    bool reverse_;
    int left_;
};

}  // namespace structloss::cuda
