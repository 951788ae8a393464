// The columns of a ColumnProgram laid out in strips (strip_kernels.hpp), and the index work around the vector
// loops: what a row reads from nodes and from other columns. Nodes of the second tree have the numbers of the
// caller's arrays here, so that costs are read and posteriors written without a permutation.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "arena.hpp"
#include "strip_kernels.hpp"
#include "tree_program.hpp"

namespace structloss {

template <class Scalar>
class StripProgram {
  public:
    static constexpr int32_t kLanes = kStripLanes<Scalar>;
    using Mask = typename Strips<Scalar>::Mask;

    Strips<Scalar> strips;
    std::vector<int32_t> interior;  // node j -> position of the forest "subtree of j without j"
    int32_t count = 0;              // positions of a row
    int32_t last = 0;               // position of the whole second tree

    void build(const OrientedTree& tree, const ColumnProgram& columns) {
        strips.steps = (columns.width + kLanes - 1) / kLanes;
        count = strips.steps * kLanes;
        last = position(columns.width - 1);
        node_.assign(count, tree.size);
        inside_.reserve(count);
        std::fill_n(inside_.get(), count, Mask{0});
        strips.inside = inside_.get();
        far_.clear();
        for (const ColumnProgram::Segment& segment : columns.segments) {
            for (int32_t x = 0; x < segment.count; ++x) {
                const int32_t j = segment.first + x;
                const int32_t column = segment.begin + x + 1;
                const int32_t at = position(column);
                const int32_t anchor = segment.begin + tree.leftmost[j] - segment.first;
                node_[at] = tree.node[j];
                inside_.get()[at] = -1;
                if (anchor != column - 1 || at < kLanes) far_.push_back({at, position(anchor)});
            }
        }
        interior.resize(tree.size);
        for (int32_t j = 0; j < tree.size; ++j) interior[tree.node[j]] = position(columns.interior[j]);
        find_boundaries();
    }

    // out[c] = values[node of column c]; `values` has one element more than nodes, for the boundary columns.
    void expand(const Scalar* values, Scalar* out) const {
        for (int32_t at = 0; at < count; ++at) out[at] = values[node_[at]];
    }

    // The adjoint of expand.
    void add_up(const Scalar* columns, Scalar* values) const {
        for (int32_t at = 0; at < count; ++at) values[node_[at]] += columns[at];
    }

    // out[c] = row[column of the forest left of the subtree that ends in c]: the column before it for a leaf.
    void gather_anchor(const Scalar* row, Scalar* out) const {
        std::fill_n(out, kLanes, Scalar{0});
        std::memcpy(out + kLanes, row, (count - kLanes) * sizeof(Scalar));
        for (const Far& far : far_) out[far.at] = row[far.anchor];
    }

    // The adjoint of gather_anchor; spoils `anchor`.
    void scatter_anchor(const StripKernels& kernels, Scalar* anchor, Scalar* row) const {
        for (const Far& far : far_) {
            row[far.anchor] += anchor[far.at];
            anchor[far.at] = 0;
        }
        kernels.add(anchor + kLanes, row, count - kLanes);
    }

  private:
    struct Far {
        int32_t at;
        int32_t anchor;
    };
    std::vector<int32_t> node_;
    std::vector<Far> far_;  // columns whose anchor is not one step back in their own strip
    Buffer<Mask> inside_;

    int32_t position(int32_t column) const { return column % strips.steps * kLanes + column / strips.steps; }

    void find_boundaries() {
        strips.longest_head = 0;
        for (int32_t lane = 0; lane < kLanes; ++lane) {
            Mask first = static_cast<Mask>(strips.steps);
            Mask last = -1;
            for (int32_t step = 0; step < strips.steps; ++step) {
                if (strips.inside[step * kLanes + lane]) continue;
                if (first == strips.steps) first = step;
                last = step;
            }
            strips.first_boundary[lane] = first;
            strips.last_boundary[lane] = last;
            strips.longest_head = std::max(strips.longest_head, first);
        }
    }
};

}  // namespace structloss
