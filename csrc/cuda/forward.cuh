// Forward pass: the partition function over tree mappings (or their best score) by the unambiguous form of
// Zhang and Shasha's recursion. With v, w the last roots of the forests F, G:
//
//     Z(F, G) = Z(F - v, G) + N(F, G)
//     N(F, G) = N(F, G - w) + t(v, w) Z(F - T_v, G - T_w)
//     t(v, w) = x(v, w) Z(T_v - v, T_w - w),      Z(empty, .) = Z(., empty) = 1, N(empty, .) = 0
//
// A row is a gather, a product and a running sum inside each segment of columns; all tables of the larger
// tree advance together. Rows are those of the smaller tree, damped by exp(-tilt) a node (range.cuh).
#pragma once

#include "cuda/pair_program.cuh"

namespace structloss::cuda {

// The pair in hand, the same in every thread but `links`, `peak`.
template <class Number>
struct PairState {
    Workspace<Number> space;
    RowMemory<Number> memory;
    ColumnLayout layout;
    SegmentLinks links;
    int n;
    int m;
    int tables;
    double damping = 1.0;
    int peak = 0;  // high word of the largest plain double seen
    int parity = 0;

    // The first two rows take turns, the anchor rows of nested left paths follow. Siblings share a slot: the
    // row just before the later one is the last that reads it, and the copy is made one row later.
    __device__ Number* anchor_slot(int nested, int table_nested) const {
        return memory.row(kFirstSlot + nested - table_nested - 1);
    }
    static constexpr int kFirstSlot = 3;
};

// Prepares everything but the numbers. The workspace must be carved and both trees built.
template <class Number>
__device__ inline void build_program(PairState<Number>& pair, bool reverse) {
    pair.tables = build_rows(pair.space);
    pair.layout = build_columns(pair.space, reverse);
    int before_start = 0;
    while (before_start < pair.layout.steps &&
           pair.space.columns[before_start * blockDim.x + threadIdx.x].node >= 0) {
        ++before_start;
    }
    pair.links.build(before_start, pair.layout.steps);
}

// out[c] = damped previous[c] + N[c] for all columns; null stands for the row of the empty forest, all ones.
// The previous row is copied to `slot` and `kept` where they are not null.
template <class Number>
__device__ inline void scan_row(PairState<Number>& pair, const Number* subtree, const Number* previous,
                                const Number* anchor, Number* out, Number* slot, Number* kept) {
    const Column* columns = pair.space.columns;
    const int threads = static_cast<int>(blockDim.x);
    const int thread = static_cast<int>(threadIdx.x);
    Number running = Make<Number>::zero();
    for (int step = 0, c = thread; step < pair.layout.steps; ++step, c += threads) {
        const Column column = columns[c];
        const Number before = previous == nullptr ? Make<Number>::one() : previous[c];
        if (slot != nullptr) slot[c] = before;
        if (kept != nullptr) kept[c] = before;
        Number value = damp(before, pair.damping);
        if (column.node < 0) {
            running = Make<Number>::zero();
        } else {
            Number product = subtree[column.node];
            if (anchor != nullptr) product = product * anchor[column.anchor];
            running = running + product;
            value = value + running;
        }
        out[c] = value;
        see(pair.peak, value);
    }
    const Number carry = carry_from_before(pair.links, running, pair.parity);
    for (int step = 0, c = thread; step < pair.links.steps_before_start; ++step, c += threads) {
        const Number value = out[c] + carry;
        out[c] = value;
        see(pair.peak, value);
    }
}

// One table of the smaller tree; returns its last row. `subtrees`: also t(i, .) of the nodes on its left
// path, which hold their match weights x(i, .) before. `keep`: anchor rows stay for the reverse pass.
template <class Number>
__device__ inline Number* run_table(PairState<Number>& pair, int table, bool subtrees, bool keep) {
    const Table range = pair.space.tables[table];
    const Row first = pair.space.rows[range.first];
    Number* previous = nullptr;
    for (int i = range.first; i <= range.last; ++i) {
        const Row row = pair.space.rows[i];
        Number* subtree = pair.space.subtree + static_cast<int64_t>(i) * pair.m;
        Number* out = pair.memory.row((i - range.first) % 2);
        const Number* anchor = nullptr;
        Number* slot = nullptr;
        Number* kept = nullptr;
        if (row.left == range.first) {
            if (subtrees && i > range.first) {
                __syncthreads();
                for (int j = static_cast<int>(threadIdx.x); j < pair.m; j += static_cast<int>(blockDim.x)) {
                    const Number value = subtree[j] * previous[pair.space.interior[j]];
                    subtree[j] = value;
                    see(pair.peak, value);
                }
                __syncthreads();
            }
        } else if (row.left == i) {
            __syncthreads();
            anchor = previous;
            if (row.top != i) slot = pair.anchor_slot(row.nested, first.nested);
            if (keep) kept = pair.memory.kept(row.leaf_rank - first.leaf_rank - 1);
        } else {
            anchor = pair.anchor_slot(row.nested, first.nested);
        }
        scan_row(pair, subtree, static_cast<const Number*>(previous), anchor, out, slot, kept);
        previous = out;
    }
    __syncthreads();
    return previous;
}

// Z of the two whole trees, from match weights in space.subtree, which turn into the subtree terms.
template <class Number>
__device__ inline Number run_forward(PairState<Number>& pair, bool keep_last) {
    pair.peak = 0;
    const Number* last = nullptr;
    for (int table = 0; table < pair.tables; ++table) {
        last = run_table(pair, table, true, keep_last && table + 1 == pair.tables);
    }
    const Number partition = last[pair.layout.address(pair.layout.width - 1)];
    __syncthreads();
    return partition;
}

}  // namespace structloss::cuda
