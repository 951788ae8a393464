// Batched tree alignment on the CPU over padded arrays. See tree_alignment.cpp for the passes.
#pragma once

#include <cstdint>

namespace structloss {

enum class Method : int64_t { kExact = 0, kFlattened = 1, kAuto = 2 };

// Costs are row-major: relabel (batch, width_a, width_b), remove (batch, width_a), insert (batch, width_b);
// leftmost (batch, width). Padding is never read. Without relabel costs (null) a match costs 0 where the
// labels (batch, width) agree and 1 where not.
template <class Cost>
struct TreePairs {
    int64_t batch;
    int64_t width_a;
    int64_t width_b;
    const int64_t* leftmost_a;
    const int64_t* leftmost_b;
    const int64_t* sizes_a;
    const int64_t* sizes_b;
    const Cost* relabel;
    const Cost* remove;
    const Cost* insert;
    const int64_t* label_a;
    const int64_t* label_b;
    Method method;
    int64_t max_cells;
    int64_t threads;
};

// temperature (finite and > 0), value, entropy (batch,); posterior (batch, width_a, width_b), zero-filled by
// the caller, or null; used (batch,) gets the method of each pair. The derivative of the value with respect
// to the temperature is -entropy, filled only with a posterior. Throws std::invalid_argument that names the
// argument.
template <class Cost>
void soft_tree_alignment(const TreePairs<Cost>& pairs, const double* temperature, Cost* value,
                         Cost* posterior, Cost* entropy, int64_t* used);

// match_a (batch, width_a) and match_b (batch, width_b), filled with -1 by the caller, or both null.
template <class Cost>
void hard_tree_alignment(const TreePairs<Cost>& pairs, Cost* distance, int64_t* match_a, int64_t* match_b,
                         int64_t* used);

}  // namespace structloss
