// Forward pass: the partition function over tree mappings (or their best score) by the unambiguous
// form of Zhang and Shasha's recursion. With v, w the last roots of the forests F, G:
//
//     Z(F, G) = Z(F - v, G) + N(F, G)
//     N(F, G) = N(F, G - w) + t(v, w) Z(F - T_v, G - T_w)
//     t(v, w) = x(v, w) Z(T_v - v, T_w - w),      Z(empty, .) = Z(., empty) = 1, N(empty, .) = 0
//
// Every mapping is counted once, so that Z is a sum over mappings and not over edit scripts. In row form,
// with b the second term of N, a row is a gather, a product and a running sum inside each column segment. Per
// cell: 2 multiplications, 2 additions (4 and 2 with damping), 3 reads and 1 write of a number.
#pragma once

#include "arena.hpp"
#include "numbers.hpp"
#include "tree_program.hpp"

namespace structloss {

struct PairProgram {
    OrientedTree first;
    OrientedTree second;
    ColumnProgram columns;
    RowProgram rows;
};

// Node pairs are row-major and oriented: index i * second.size + j.
template <class Number>
struct PairState {
    explicit PairState(const PairProgram& shared)
        : first(shared.first), second(shared.second), columns(shared.columns), rows(shared.rows) {}

    const OrientedTree& first;
    const OrientedTree& second;
    const ColumnProgram& columns;
    const RowProgram& rows;
    double damping_first = 1.0;   // factor for every node of the first tree inside a forest
    double damping_second = 1.0;  // the same for the second tree
    Buffer<Number> weight;        // x(i, j), (n, m)
    Buffer<Number> subtree;       // t(i, j), (n, m)
    Buffer<Number> row_slots;     // (rows.slots, columns.width)
    double peak = 0.0;            // largest value of the forward pass, plain doubles only

    Number* slot(int32_t index) { return row_slots.get() + static_cast<size_t>(index) * columns.width; }
};

// out[c] = damped previous[c] + N[c] for all columns.
template <class Number>
inline void scan_row(const ColumnProgram& columns, const int32_t* leftmost, double damping_first,
                     double damping_second, const Number* subtree, const Number* previous,
                     const Number* anchor, Number* out, double& peak) {
    double row_peak = peak;
    for (const ColumnProgram::Segment& segment : columns.segments) {
        const Number* previous_segment = previous + segment.begin;
        // anchor_segment[l(j)] is the column of the forest left of node j's subtree.
        const Number* anchor_segment = anchor + segment.begin - segment.first;
        const Number* subtree_segment = subtree + segment.first;
        const int32_t* leftmost_segment = leftmost + segment.first;
        Number* out_segment = out + segment.begin;
        out_segment[0] = damp(previous_segment[0], damping_first);
        Number running = zero<Number>();
        for (int32_t x = 0; x < segment.count; ++x) {
            running =
                damp(running, damping_second) + subtree_segment[x] * anchor_segment[leftmost_segment[x]];
            const Number value = damp(previous_segment[x + 1], damping_first) + running;
            out_segment[x + 1] = value;
            see(row_peak, value);
        }
    }
    peak = row_peak;
}

// t(i, j) for a node i on the spine of the current table; `previous` is the row of the forest T_i - i.
template <class Number>
inline void subtree_row(const ColumnProgram& columns, int32_t count, const Number* weight,
                        const Number* previous, Number* subtree, double& peak) {
    double row_peak = peak;
    for (int32_t j = 0; j < count; ++j) {
        subtree[j] = weight[j] * previous[columns.interior[j]];
        see(row_peak, subtree[j]);
    }
    peak = row_peak;
}

template <class Number>
void boundary_row(PairState<Number>& pair) {
    Number* boundary = pair.slot(0);
    for (const ColumnProgram::Segment& segment : pair.columns.segments) {
        Number value = one<Number>();
        for (int32_t x = 0; x <= segment.count; ++x) {
            boundary[segment.begin + x] = value;
            value = damp(value, pair.damping_second);
        }
    }
    see(pair.peak, one<Number>());
}

template <class Number>
void run_table(PairState<Number>& pair, size_t table) {
    const size_t count = pair.second.size;
    for (int32_t r = pair.rows.table_begin[table]; r < pair.rows.table_begin[table + 1]; ++r) {
        const RowProgram::Row& row = pair.rows.rows[r];
        Number* subtree = pair.subtree.get() + row.node * count;
        const Number* previous = pair.slot(row.previous_slot);
        if (row.spine) {
            subtree_row(pair.columns, pair.second.size, pair.weight.get() + row.node * count, previous,
                        subtree, pair.peak);
        }
        scan_row(pair.columns, pair.second.leftmost.data(), pair.damping_first, pair.damping_second, subtree,
                 previous, pair.slot(row.anchor_slot), pair.slot(row.slot), pair.peak);
    }
}

// Z of the two whole trees, neither of them empty. Programs and weights must have been built.
template <class Number>
Number run_forward(PairState<Number>& pair) {
    const size_t count = pair.second.size;
    pair.peak = 0.0;
    pair.subtree.reserve(pair.first.size * count);
    pair.row_slots.reserve(static_cast<size_t>(pair.rows.slots) * pair.columns.width);
    boundary_row(pair);
    for (int32_t i = 1; i < pair.first.size; ++i) {
        if (pair.first.leftmost[i] != i || pair.first.keyroot[i] != i) continue;
        subtree_row(pair.columns, pair.second.size, pair.weight.get() + i * count, pair.slot(0),
                    pair.subtree.get() + i * count, pair.peak);
    }
    for (size_t table = 0; table < pair.first.tables.size(); ++table) run_table(pair, table);
    return pair.slot(pair.rows.rows.back().slot)[pair.columns.width - 1];
}

}  // namespace structloss
