// The passes of strip_alignment.hpp for Wide numbers, column by column and without damping: for the pairs
// whose weights do not fit plain doubles.
#pragma once

#include <algorithm>

#include "strip_alignment.hpp"
#include "wide.hpp"

namespace structloss {

class WideAlignment {
  public:
    explicit WideAlignment(const PairProgram& program) : program_(program) {}

    Buffer<Wide> weight;  // x(i, j), (n, m), filled by the caller
    const Wide* subtree(int32_t i) const { return subtree_.get() + i * nodes(); }
    const Wide* adjoint(int32_t i) const { return adjoint_subtree_.get() + i * nodes(); }

    Wide forward() {
        subtree_.reserve(program_.first.size * nodes());
        row_slots_.reserve(program_.rows.slots * width());
        std::fill_n(slot(0), width(), kWideOne);
        for (int32_t i = 1; i < program_.first.size; ++i) {
            if (program_.first.lone_leaf(i)) define_subtree(i, slot(0));
        }
        for (size_t table = 0; table < program_.first.tables.size(); ++table) run_table(table);
        return slot(program_.rows.rows.back().slot)[width() - 1];
    }

    void reverse(Wide partition, bool rows_kept) {
        const size_t pairs = program_.first.size * nodes();
        std::fill_n(adjoint_subtree_.reserve(pairs), pairs, kWideZero);
        adjoint_slots_.reserve(program_.rows.adjoint_slots * width());
        current_.reserve(width());
        const size_t last = program_.first.tables.size() - 1;
        for (size_t table = last + 1; table-- > 0;) {
            if (table != last && !rows_kept) run_table(table);
            std::fill_n(current_.get(), width(), kWideZero);
            if (table == last) current_.get()[width() - 1] = reciprocal(partition);
            reverse_table(table);
        }
    }

  private:
    const PairProgram& program_;
    Buffer<Wide> subtree_;          // t(i, j), (n, m)
    Buffer<Wide> row_slots_;        // (rows.slots, columns.width)
    Buffer<Wide> adjoint_subtree_;  // (n, m)
    Buffer<Wide> adjoint_slots_;    // (rows.adjoint_slots, columns.width): adjoints of anchor rows
    Buffer<Wide> current_;          // adjoint of the row in hand

    size_t nodes() const { return program_.second.size; }
    size_t width() const { return program_.columns.width; }
    Wide* slot(int32_t index) { return row_slots_.get() + index * width(); }

    void define_subtree(int32_t i, const Wide* inside) {
        const Wide* x = weight.get() + i * nodes();
        Wide* t = subtree_.get() + i * nodes();
        for (size_t j = 0; j < nodes(); ++j) {
            const int32_t at = program_.second.node[j];
            t[at] = x[at] * inside[program_.columns.interior[j]];
        }
    }

    void run_table(size_t table) {
        for (int32_t r = program_.rows.table_begin[table]; r < program_.rows.table_begin[table + 1]; ++r) {
            const RowProgram::Row& row = program_.rows.rows[r];
            if (row.spine) define_subtree(row.node, slot(row.previous_slot));
            scan_row(subtree(row.node), slot(row.previous_slot), slot(row.anchor_slot), slot(row.slot));
        }
    }

    void scan_row(const Wide* subtree, const Wide* previous, const Wide* anchor, Wide* out) const {
        const int32_t* leftmost = program_.second.leftmost.data();
        const int32_t* node = program_.second.node.data();
        for (const ColumnProgram::Segment& segment : program_.columns.segments) {
            // anchor_segment[l(j)] is the column of the forest left of node j's subtree.
            const Wide* anchor_segment = anchor + segment.begin - segment.first;
            out[segment.begin] = previous[segment.begin];
            Wide running = kWideZero;
            for (int32_t x = 0; x < segment.count; ++x) {
                const int32_t j = segment.first + x;
                running = running + subtree[node[j]] * anchor_segment[leftmost[j]];
                out[segment.begin + x + 1] = previous[segment.begin + x + 1] + running;
            }
        }
    }

    void reverse_table(size_t table) {
        Wide* current = current_.get();
        std::fill_n(adjoint_slots_.get(), width(), kWideZero);
        for (int32_t r = program_.rows.table_begin[table + 1] - 1; r >= program_.rows.table_begin[table];
             --r) {
            const RowProgram::Row& row = program_.rows.rows[r];
            Wide* adjoint_anchor = adjoint_slots_.get() + row.adjoint_slot * width();
            Wide* adjoint_subtree = adjoint_subtree_.get() + row.node * nodes();
            if (row.top) std::fill_n(adjoint_anchor, width(), kWideZero);
            reverse_row(subtree(row.node), slot(row.anchor_slot), adjoint_subtree, adjoint_anchor);
            if (row.leaf && !row.spine) {
                for (size_t c = 0; c < width(); ++c) current[c] = current[c] + adjoint_anchor[c];
            }
            if (!row.spine) continue;
            // The adjoint of t(i, .) is complete: no table before this one holds node i.
            const Wide* x = weight.get() + row.node * nodes();
            for (size_t j = 0; j < nodes(); ++j) {
                const int32_t at = program_.second.node[j];
                Wide& target = current[program_.columns.interior[j]];
                target = target + adjoint_subtree[at] * x[at];
            }
        }
    }

    void reverse_row(const Wide* subtree, const Wide* anchor, Wide* adjoint_subtree, Wide* adjoint_anchor) {
        const int32_t* leftmost = program_.second.leftmost.data();
        const int32_t* node = program_.second.node.data();
        for (const ColumnProgram::Segment& segment : program_.columns.segments) {
            const Wide* anchor_segment = anchor + segment.begin - segment.first;
            Wide* adjoint_anchor_segment = adjoint_anchor + segment.begin - segment.first;
            const Wide* current_segment = current_.get() + segment.begin;
            Wide running = kWideZero;
            for (int32_t x = segment.count - 1; x >= 0; --x) {
                const int32_t j = segment.first + x;
                running = running + current_segment[x + 1];
                Wide& match = adjoint_subtree[node[j]];
                match = match + running * anchor_segment[leftmost[j]];
                Wide& target = adjoint_anchor_segment[leftmost[j]];
                target = target + running * subtree[node[j]];
            }
        }
    }
};

}  // namespace structloss
