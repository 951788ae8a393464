// Forward and reverse pass over the strips: the partition function over tree mappings, or their best score,
// and the adjoint of every match. With v, w the last roots of the forests F, G:
//
//     Z(F, G) = Z(F - v, G) + N(F, G)
//     N(F, G) = N(F, G - w) + t(v, w) Z(F - T_v, G - T_w)
//     t(v, w) = x(v, w) Z(T_v - v, T_w - w),      Z(empty, .) = Z(., empty) = 1, N(empty, .) = 0
//
// Every mapping is counted once, so that Z is a sum over mappings and not over edit scripts. With (max, +) in
// the place of (+, x) the same lines give the best total weight of a mapping. In row form, with b the second
// term of N, a row is a product and a running sum inside each column segment.
//
// Nodes of the first tree are damped: Z~(F, G) = Z(F, G) damping^|F|, which the caller puts into x too.
#pragma once

#include <algorithm>

#include "arena.hpp"
#include "strips.hpp"
#include "tree_program.hpp"

namespace structloss {

struct PairProgram {
    OrientedTree first;
    OrientedTree second;
    ColumnProgram columns;
    RowProgram rows;
};

// (+, x) on doubles with damping; values beyond kPeak end the pass (tree_alignment.cpp has the reason).
struct SumOps {
    using Scalar = double;
    static constexpr double kOne = 1.0;
    static constexpr double kPeak = 0x1p960;
    double damping = 1.0;

    void row(const StripKernels& kernels, const Strips<double>& strips, const double* subtree,
             const double* anchor, const double* previous, double* out) const {
        kernels.sum(strips, damping, subtree, anchor, previous, out);
    }
    static double times(double x, double y) { return x * y; }
    static bool in_range(double value) { return value <= kPeak; }
};

// (max, +), exact in float where the caller has checked that no sum of weights rounds.
template <class Number>
struct MaxOps {
    using Scalar = Number;
    static constexpr Number kOne = 0;

    void row(const StripKernels& kernels, const Strips<float>& strips, const float* subtree,
             const float* anchor, const float* previous, float* out) const {
        kernels.max_float(strips, subtree, anchor, previous, out);
    }
    void row(const StripKernels& kernels, const Strips<double>& strips, const double* subtree,
             const double* anchor, const double* previous, double* out) const {
        kernels.max(strips, subtree, anchor, previous, out);
    }
    static Number times(Number x, Number y) { return x + y; }
    static bool in_range(Number) { return true; }
};

// A node is met in several tables: up to this many (node, column) values are laid out once and kept.
constexpr size_t kStoredColumns = size_t{1} << 20;

template <class Ops>
class StripForward {
  public:
    using Scalar = typename Ops::Scalar;

    StripForward(const PairProgram& program, const StripKernels& kernels)
        : program_(program), kernels_(kernels) {}

    Ops ops;
    Buffer<Scalar> weight;         // x(i, j), (n, m), filled by the caller
    StripProgram<Scalar> columns;  // built by the caller
    const Scalar* subtree(int32_t i) const { return subtree_.get() + i * stride(); }  // t(i, .)
    const Scalar* anchor_row(int32_t slot) const {
        return slot == 0 ? nullptr : anchors_.get() + anchor_offset(slot);
    }

    // Whether (n, columns) arrays are laid out once and kept.
    bool columns_stored() const { return program_.first.size * size_t{1} * columns.count <= kStoredColumns; }

    // t(i, .) in columns.
    const Scalar* expanded_subtree(int32_t i) {
        if (columns_stored()) return expanded_.get() + i * static_cast<size_t>(columns.count);
        columns.expand(subtree(i), expanded_.get());
        return expanded_.get();
    }

    // Z~ of the two whole trees; false where a value left the range.
    bool run(Scalar& result) {
        const size_t n = program_.first.size;
        const size_t count = columns.count;
        subtree_.reserve(n * stride());
        anchors_.reserve((program_.rows.slots - RowProgram::kFirstKept) * count);
        expanded_.reserve(columns_stored() ? n * count : count);
        std::fill_n(ones_.reserve(count), count, Ops::kOne);
        for (Buffer<Scalar>& row : rows_) row.reserve(count);
        for (int32_t i = 1; i < program_.first.size; ++i) {
            if (program_.first.lone_leaf(i)) define_subtree(i, ones_.get());
        }
        for (size_t table = 0; table < program_.first.tables.size(); ++table) {
            if (!run_table(table)) return false;
        }
        result = last_row_[columns.last];
        return true;
    }

    // The rows of one table; leaves its anchor rows behind.
    bool run_table(size_t table) {
        const RowProgram& program = program_.rows;
        const Scalar* previous = ones_.get();
        for (int32_t r = program.table_begin[table]; r < program.table_begin[table + 1]; ++r) {
            const RowProgram::Row& row = program.rows[r];
            if (row.spine) define_subtree(row.node, previous);
            Scalar* out = rows_[r & 1].get();
            ops.row(kernels_, columns.strips, expanded_subtree(row.node), anchor_row(row.anchor_slot),
                    previous, out);
            // Z~ grows with the second forest, so the whole second tree has the largest value of the row.
            if (!ops.in_range(out[columns.last])) return false;
            if (row.slot >= RowProgram::kFirstKept)
                columns.gather_anchor(out, anchors_.get() + anchor_offset(row.slot));
            previous = out;
        }
        last_row_ = previous;
        return true;
    }

  private:
    const PairProgram& program_;
    const StripKernels& kernels_;
    Buffer<Scalar> subtree_;   // (n, m + 1)
    Buffer<Scalar> anchors_;   // kept rows, as gather_anchor leaves them
    Buffer<Scalar> expanded_;  // (n, columns) or, when not stored, one row
    Buffer<Scalar> ones_;
    Buffer<Scalar> rows_[2];
    const Scalar* last_row_ = nullptr;

    size_t stride() const { return program_.second.size + size_t{1}; }
    size_t anchor_offset(int32_t slot) const {
        return (slot - RowProgram::kFirstKept) * static_cast<size_t>(columns.count);
    }

    // `inside` is the row of the forest "subtree of i without i".
    void define_subtree(int32_t i, const Scalar* inside) {
        const size_t m = program_.second.size;
        const Scalar* x = weight.get() + i * m;
        Scalar* t = subtree_.get() + i * stride();
        for (size_t j = 0; j < m; ++j) t[j] = Ops::times(x[j], inside[columns.interior[j]]);
        t[m] = 0;
        if (columns_stored()) columns.expand(t, expanded_.get() + i * static_cast<size_t>(columns.count));
    }
};

// dZ/dt(i, j) / Z for all node pairs. All values are sums of products of non-negative numbers; the only
// division is the seed 1 / Z.
class StripReverse {
  public:
    StripReverse(StripForward<SumOps>& forward, const PairProgram& program, const StripKernels& kernels)
        : forward_(forward), program_(program), kernels_(kernels) {}

    const double* adjoint(int32_t i) const { return subtree_.get() + i * stride(); }

    // False where an adjoint left the range. Without `rows_kept` the anchor rows of all tables but the last
    // are computed again.
    bool run(double partition, bool rows_kept) {
        const size_t n = program_.first.size;
        std::fill_n(subtree_.reserve(n * stride()), n * stride(), 0.0);
        anchors_.reserve(program_.rows.adjoint_slots * count());
        current_.reserve(count());
        sums_.reserve(count());
        const bool all_stored = forward_.columns_stored();
        columns_.reserve(all_stored ? n * count() : count());
        const size_t last = program_.first.tables.size() - 1;
        for (size_t table = last + 1; table-- > 0;) {
            if (table != last && !rows_kept) forward_.run_table(table);
            std::fill_n(current_.get(), count(), 0.0);
            if (table == last) current_.get()[forward_.columns.last] = 1.0 / partition;
            if (!run_table(table, table == last)) return false;
        }
        for (int32_t i = 1; all_stored && i < program_.first.size; ++i) {
            if (program_.first.lone_leaf(i)) add_up_columns(i);
        }
        return true;
    }

  private:
    StripForward<SumOps>& forward_;
    const PairProgram& program_;
    const StripKernels& kernels_;
    Buffer<double> subtree_;  // (n, m + 1)
    Buffer<double> columns_;  // the same in columns: (n, columns) or, when not stored, one row
    Buffer<double> anchors_;  // adjoints of anchor rows, as gather_anchor leaves them
    Buffer<double> current_;  // adjoint of the row in hand
    Buffer<double> sums_;

    size_t stride() const { return program_.second.size + size_t{1}; }
    size_t count() const { return forward_.columns.count; }
    double* columns(int32_t i) { return columns_.get() + (forward_.columns_stored() ? i * count() : 0); }
    void add_up_columns(int32_t i) { forward_.columns.add_up(columns(i), subtree_.get() + i * stride()); }

    // The table of everything is the first to be run and holds all nodes: it finds nothing to add to.
    bool run_table(size_t table, bool everything) {
        const RowProgram& program = program_.rows;
        const bool fresh = everything || !forward_.columns_stored();
        for (int32_t r = program.table_begin[table + 1] - 1; r >= program.table_begin[table]; --r) {
            const RowProgram::Row& row = program.rows[r];
            double* adjoint_anchor = anchors_.get() + row.adjoint_slot * count();
            const double peak = kernels_.reverse(
                forward_.columns.strips, forward_.ops.damping, forward_.expanded_subtree(row.node),
                forward_.anchor_row(row.anchor_slot), current_.get(), sums_.get(), columns(row.node), fresh,
                adjoint_anchor, row.top);
            if (!SumOps::in_range(peak)) return false;
            if (row.spine || !forward_.columns_stored()) add_up_columns(row.node);
            if (row.leaf && !row.spine)
                forward_.columns.scatter_anchor(kernels_, adjoint_anchor, current_.get());
            if (row.spine && !pass_inside(row.node)) return false;
        }
        return true;
    }

    // The adjoint of t(i, .) is complete: no table before this one holds node i.
    bool pass_inside(int32_t i) {
        const size_t m = program_.second.size;
        const double* x = forward_.weight.get() + i * m;
        const double* adjoint = subtree_.get() + i * stride();
        double peak = 0.0;
        for (size_t j = 0; j < m; ++j) {
            current_.get()[forward_.columns.interior[j]] += adjoint[j] * x[j];
            peak = adjoint[j] > peak ? adjoint[j] : peak;
        }
        return SumOps::in_range(peak);
    }
};

}  // namespace structloss
