// Reverse pass: the posterior P(i, j) = x dZ/dx / Z of every node pair, by the adjoint of forward.cuh. All
// values are sums of products of non-negative numbers, no division but the seed 1 / Z, so the same number
// types serve. Anchor rows of a table are computed again before it is worked off; no other row is needed.
#pragma once

#include "cuda/forward.cuh"

namespace structloss::cuda {

// The three rows of numbers in front of the slots.
template <class Number>
struct ReverseRows {
    Number* current;    // adjoint of the row in hand
    Number* by_anchor;  // products of the row, in the order in which they are added up
    Number* by_node;
};

// Takes the adjoint of row i apart: `current` turns into the damped part that belongs to the row before it,
// the products go to the subtree terms and to the anchor row (null: constant).
template <class Number>
__device__ inline void reverse_products(PairState<Number>& pair, const ReverseRows<Number>& rows,
                                        const Number* subtree, const Number* anchor) {
    const int threads = static_cast<int>(blockDim.x);
    const int thread = static_cast<int>(threadIdx.x);
    Number* current = rows.current;
    Number before_start = Make<Number>::zero();
    for (int step = 0, c = thread; step < pair.links.steps_before_start; ++step, c += threads) {
        before_start = before_start + current[c];
    }
    Number running = carry_from_after(pair.links, before_start, pair.parity);
    for (int step = pair.layout.steps - 1; step >= 0; --step) {
        const int c = step * threads + thread;
        const Column column = pair.space.columns[c];
        const Number value = current[c];
        current[c] = damp(value, pair.damping);
        see(pair.peak, value);
        if (column.node < 0) {
            running = Make<Number>::zero();
            continue;
        }
        const ReverseColumn places = pair.space.reverse_columns[c];
        running = running + value;
        see(pair.peak, running);
        rows.by_node[places.by_node] = anchor == nullptr ? running : running * anchor[column.anchor];
        if (anchor != nullptr) {
            // Also where the anchor is the empty forest: its value may have shrunk to nothing (range.cuh).
            const Number product = running * subtree[column.node];
            see(pair.peak, product);
            if (places.by_anchor >= 0) rows.by_anchor[places.by_anchor] = product;
        }
    }
    __syncthreads();
}

template <class Number>
__device__ inline Number sum_range(const Number* values, int begin, int count) {
    Number sum = values[begin];
    for (int k = 1; k < count; ++k) sum = sum + values[begin + k];
    return sum;
}

// Adds the products up for the anchor row. Its adjoint is opened by the highest node of the left path and
// goes to the row in front of the leaf in the end; only columns in front of a leaf have one.
template <class Number>
__device__ inline void collect_anchor(PairState<Number>& pair, const ReverseRows<Number>& rows, bool opens,
                                      bool closes, Number* slot) {
    const int threads = static_cast<int>(blockDim.x);
    for (int step = 0, c = static_cast<int>(threadIdx.x); step < pair.layout.steps; ++step, c += threads) {
        const ReverseColumn places = pair.space.reverse_columns[c];
        if (places.anchor_count == 0) continue;
        Number sum = sum_range(rows.by_anchor, places.anchor_begin, places.anchor_count);
        if (!opens) sum = slot[c] + sum;
        if (closes) {
            rows.current[c] = rows.current[c] + sum;
        } else {
            slot[c] = sum;
        }
    }
}

// Adds the products up for dZ/dt(i, .). On the left path of its table they are complete: no table before this
// one holds node i. `match_weight(i, j)` gives x(i, j) again, `largest_weight` bounds it.
template <class Number, class MatchWeight>
__device__ inline void collect_subtrees(PairState<Number>& pair, const ReverseRows<Number>& rows, int i,
                                        bool whole, bool spine, bool leaf, const MatchWeight& match_weight,
                                        Number largest_weight) {
    Number* adjoint = pair.space.adjoint + static_cast<int64_t>(i) * pair.m;
    const int* begin = pair.space.node_begin;
    for (int j = static_cast<int>(threadIdx.x); j < pair.m; j += static_cast<int>(blockDim.x)) {
        Number sum = sum_range(rows.by_node, begin[j], begin[j + 1] - begin[j]);
        if (!whole) sum = adjoint[j] + sum;
        adjoint[j] = sum;
        if (!spine) continue;
        see(pair.peak, sum);
        if (leaf) continue;
        // Below a leaf j there is only the empty forest, a constant, but one that may have shrunk to nothing.
        const int interior = pair.space.interior[j];
        if (interior == 0) {
            see(pair.peak, sum * largest_weight);
        } else {
            rows.current[interior] = rows.current[interior] + sum * match_weight(i, j);
        }
    }
}

template <class Number, class MatchWeight>
__device__ inline void reverse_table(PairState<Number>& pair, int table, Number seed,
                                     const MatchWeight& match_weight, Number largest_weight) {
    const Table range = pair.space.tables[table];
    const Row first = pair.space.rows[range.first];
    const bool whole = table + 1 == pair.tables;
    const ReverseRows<Number> rows{pair.memory.row(0), pair.memory.row(1), pair.memory.row(2)};
    const int threads = static_cast<int>(blockDim.x);
    const int root = whole ? pair.layout.address(pair.layout.width - 1) : -1;
    for (int step = 0, c = static_cast<int>(threadIdx.x); step < pair.layout.steps; ++step, c += threads) {
        rows.current[c] = c == root ? seed : Make<Number>::zero();
    }
    for (int i = range.last; i >= range.first; --i) {
        const Row row = pair.space.rows[i];
        const bool leaf = row.left == i;
        const bool spine = row.left == range.first;
        const Number* subtree = pair.space.subtree + static_cast<int64_t>(i) * pair.m;
        const Number* anchor = spine ? nullptr : pair.memory.kept(row.leaf_rank - first.leaf_rank - 1);
        reverse_products(pair, rows, subtree, anchor);
        if (!spine) {
            Number* slot = row.top == row.left ? nullptr : pair.anchor_slot(row.nested, first.nested);
            collect_anchor(pair, rows, row.top == i, leaf, slot);
        }
        collect_subtrees(pair, rows, i, whole, spine, leaf, match_weight, largest_weight);
        if (spine) __syncthreads();  // the first node is on the left path: so ends every table
    }
}

// Fills space.adjoint; the posterior is adjoint * subtree, element by element. The forward pass must have
// kept the rows of its last table.
template <class Number, class MatchWeight>
__device__ inline void run_reverse(PairState<Number>& pair, Number partition, const MatchWeight& match_weight,
                                   Number largest_weight) {
    pair.peak = 0;
    for (int table = pair.tables - 1; table >= 0; --table) {
        if (table + 1 < pair.tables) run_table(pair, table, false, true);
        reverse_table(pair, table, reciprocal(partition), match_weight, largest_weight);
    }
}

}  // namespace structloss::cuda
