// One optimal mapping out of a finished (max, +) forward pass. Tables of the forests that the path visits are
// computed again from the stored subtree terms; each is left at once for the next, so memory is one table.
// Ties are broken the same way always: rather unmatched than matched, last node of the first tree first.
#pragma once

#include <vector>

#include "strip_alignment.hpp"

namespace structloss {

template <class Number>
class Mapping {
  public:
    // Oriented node of the first tree -> oriented node of the second, -1 unmatched.
    std::vector<int32_t> match;

    void trace(const PairProgram& pair, const StripForward<MaxOps<Number>>& scores) {
        match.assign(pair.first.size, -1);
        pending_.clear();
        pending_.push_back({0, pair.first.size - 1, 0, pair.second.size - 1});
        while (!pending_.empty()) {
            const Forests forests = pending_.back();
            pending_.pop_back();
            if (forests.first_last < forests.first_first || forests.second_last < forests.second_first)
                continue;
            fill_table(pair, scores, forests);
            walk(pair, scores, forests);
        }
    }

  private:
    struct Forests {
        int32_t first_first, first_last, second_first, second_last;
    };
    std::vector<Forests> pending_;
    Buffer<Number> table_;
    size_t stride_ = 0;

    Number* row(int32_t index) { return table_.get() + index * stride_; }

    void fill_table(const PairProgram& pair, const StripForward<MaxOps<Number>>& scores, const Forests& f) {
        const int32_t height = f.first_last - f.first_first + 1;
        const int32_t width = f.second_last - f.second_first + 1;
        stride_ = width + 1;
        table_.reserve((height + size_t{1}) * stride_);
        std::fill_n(row(0), stride_, Number{0});
        for (int32_t a = 1; a <= height; ++a) {
            const int32_t i = f.first_first + a - 1;
            const Number* anchor = row(pair.first.leftmost[i] - f.first_first);
            const Number* previous = row(a - 1);
            const Number* subtree = scores.subtree(i);
            Number* out = row(a);
            out[0] = 0;
            Number running = 0;
            for (int32_t b = 1; b <= width; ++b) {
                const int32_t j = f.second_first + b - 1;
                const Number score =
                    subtree[pair.second.node[j]] + anchor[pair.second.leftmost[j] - f.second_first];
                running = running > score ? running : score;
                out[b] = previous[b] > running ? previous[b] : running;
            }
        }
    }

    void walk(const PairProgram& pair, const StripForward<MaxOps<Number>>& scores, const Forests& f) {
        int32_t i = f.first_last;
        int32_t j = f.second_last;
        while (i >= f.first_first && j >= f.second_first) {
            const int32_t a = i - f.first_first + 1;
            const int32_t b = j - f.second_first + 1;
            const Number value = row(a)[b];
            if (value == row(a - 1)[b]) {
                --i;
                continue;
            }
            const Number* subtree = scores.subtree(i);
            const int32_t first_left = pair.first.leftmost[i];
            const Number* anchor = row(first_left - f.first_first);
            const int32_t second_left = pair.second.leftmost[j];
            if (subtree[pair.second.node[j]] + anchor[second_left - f.second_first] != value) {
                --j;
                continue;
            }
            match[i] = j;
            if (first_left == f.first_first && second_left == f.second_first) {
                --i;  // nothing is left of the two subtrees: their inside is this table's own prefix
                --j;
            } else {
                pending_.push_back({first_left, i - 1, second_left, j - 1});
                i = first_left - 1;
                j = second_left - 1;
            }
        }
    }
};

}  // namespace structloss
