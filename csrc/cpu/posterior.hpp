// Reverse pass: the posterior P(i, j) = x dZ/dx / Z of every node pair, by the adjoint of partition.hpp. All
// values are sums of products of non-negative numbers, no division but the seed 1 / Z, so the same number
// types serve. Per cell: 4 multiplications and 4 additions, 5 reads and 3 writes of a number.
#pragma once

#include <algorithm>

#include "partition.hpp"

namespace structloss {

template <class Number>
struct Adjoints {
    Buffer<Number> subtree;  // dZ/dt / Z, (n, m)
    Buffer<Number> slots;    // (rows.adjoint_slots, columns.width): adjoints of anchor rows
    Buffer<Number> current;  // adjoint of the row in hand
    double peak = 0.0;       // largest adjoint, plain doubles only
};

// Takes the adjoint of one row apart: `current` turns into the damped part that belongs to the row before it,
// the products go to the subtree terms and to the anchor row.
template <class Number>
inline void adjoint_row(const ColumnProgram& columns, const int32_t* leftmost, double damping_first,
                        double damping_second, const Number* subtree, const Number* anchor, Number* current,
                        Number* adjoint_subtree, Number* adjoint_anchor, double& peak) {
    double row_peak = peak;
    for (const ColumnProgram::Segment& segment : columns.segments) {
        const Number* anchor_segment = anchor + segment.begin - segment.first;
        Number* adjoint_anchor_segment = adjoint_anchor + segment.begin - segment.first;
        const Number* subtree_segment = subtree + segment.first;
        Number* adjoint_subtree_segment = adjoint_subtree + segment.first;
        const int32_t* leftmost_segment = leftmost + segment.first;
        Number* current_segment = current + segment.begin;
        Number running = zero<Number>();
        for (int32_t x = segment.count - 1; x >= 0; --x) {
            const Number value = current_segment[x + 1];
            running = damp(running, damping_second) + value;
            see(row_peak, running);
            current_segment[x + 1] = damp(value, damping_first);
            const int32_t left = leftmost_segment[x];
            adjoint_subtree_segment[x] = adjoint_subtree_segment[x] + running * anchor_segment[left];
            adjoint_anchor_segment[left] = adjoint_anchor_segment[left] + running * subtree_segment[x];
        }
        see(row_peak, current_segment[0]);
        current_segment[0] = damp(current_segment[0], damping_first);
    }
    peak = row_peak;
}

template <class Number>
void reverse_table(PairState<Number>& pair, Adjoints<Number>& adjoint, size_t table) {
    const size_t count = pair.second.size;
    const size_t width = pair.columns.width;
    Number* current = adjoint.current.get();
    std::fill_n(adjoint.slots.get(), width, zero<Number>());
    for (int32_t r = pair.rows.table_begin[table + 1] - 1; r >= pair.rows.table_begin[table]; --r) {
        const RowProgram::Row& row = pair.rows.rows[r];
        Number* adjoint_anchor = adjoint.slots.get() + row.adjoint_slot * width;
        Number* adjoint_subtree = adjoint.subtree.get() + row.node * count;
        if (row.top) std::fill_n(adjoint_anchor, width, zero<Number>());
        adjoint_row(pair.columns, pair.second.leftmost.data(), pair.damping_first, pair.damping_second,
                    pair.subtree.get() + row.node * count, pair.slot(row.anchor_slot), current,
                    adjoint_subtree, adjoint_anchor, adjoint.peak);
        if (row.leaf) {
            for (size_t c = 0; c < width; ++c) current[c] = current[c] + adjoint_anchor[c];
        }
        if (row.spine) {
            // The adjoint of t(i, .) is complete: no table before this one holds node i.
            const Number* weight = pair.weight.get() + row.node * count;
            double row_peak = adjoint.peak;
            for (size_t j = 0; j < count; ++j) {
                see(row_peak, adjoint_subtree[j]);
                Number& target = current[pair.columns.interior[j]];
                target = target + adjoint_subtree[j] * weight[j];
            }
            adjoint.peak = row_peak;
        }
    }
    // What is left belongs to the boundary row, a constant; only its size matters (range certificate).
    for (size_t c = 0; c < width; ++c) see(adjoint.peak, current[c]);
}

// Fills adjoint.subtree; the posterior is adjoint.subtree * pair.subtree, element by element. With kKeepTable
// the anchor rows of all tables but the last are computed again.
template <class Number>
void run_reverse(PairState<Number>& pair, Adjoints<Number>& adjoint, Number partition, bool all_rows_kept) {
    const size_t width = pair.columns.width;
    adjoint.peak = 0.0;
    Number* subtree = adjoint.subtree.reserve(static_cast<size_t>(pair.first.size) * pair.second.size);
    std::fill_n(subtree, static_cast<size_t>(pair.first.size) * pair.second.size, zero<Number>());
    adjoint.slots.reserve(pair.rows.adjoint_slots * width);
    Number* current = adjoint.current.reserve(width);
    const size_t last = pair.first.tables.size() - 1;
    for (size_t table = last + 1; table-- > 0;) {
        if (table != last && !all_rows_kept) run_table(pair, table);
        std::fill_n(current, width, zero<Number>());
        if (table == last) current[width - 1] = reciprocal(partition);
        reverse_table(pair, adjoint, table);
    }
}

}  // namespace structloss
