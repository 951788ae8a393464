// One optimal mapping out of a finished (max, +) forward pass. Tables of the forests that the path visits are
// computed again from the stored subtree terms; each is left at once for the next, so memory is one table.
// Ties are broken the same way always: rather unmatched than matched, last node of the smaller tree first.
#pragma once

#include "cuda/forward.cuh"

namespace structloss::cuda {

template <class Real>
class MappingTrace {
  public:
    // match(i, j) is called by one thread for every matched pair.
    template <class Match>
    __device__ static void run(PairState<MaxPlus<Real>>& pair, const Match& match) {
        __shared__ int pending;
        if (threadIdx.x == 0) {
            pair.space.pending[0] = make_int4(0, pair.n - 1, 0, pair.m - 1);
            pending = 1;
        }
        SegmentLinks links;
        links.build(1, 1);  // one segment, and nothing in front of it; ends with a barrier
        while (pending > 0) {
            const int4 top = pair.space.pending[pending - 1];
            const MappingTrace trace{pair, top.x, top.y, top.z, top.w, top.w - top.z + 2};
            trace.fill(links);
            if (threadIdx.x == 0) pending = trace.walk(pending - 1, match);
            __syncthreads();
        }
    }

  private:
    PairState<MaxPlus<Real>>& pair_;
    int first_;  // rows: nodes first_ .. last_ of the smaller tree
    int last_;
    int column_first_;
    int column_last_;
    int64_t stride_;

    __device__ MappingTrace(PairState<MaxPlus<Real>>& pair, int first, int last, int column_first,
                            int column_last, int64_t stride)
        : pair_(pair),
          first_(first),
          last_(last),
          column_first_(column_first),
          column_last_(column_last),
          stride_(stride) {}

    __device__ MaxPlus<Real>* row(int i) const {
        return pair_.space.mapping_table + (i - first_ + 1) * stride_;
    }
    __device__ const MaxPlus<Real>* subtree(int i) const {
        return pair_.space.subtree + static_cast<int64_t>(i) * pair_.m;
    }

    // Column 0 and the row first_ - 1 are the empty forests.
    __device__ void fill(const SegmentLinks& links) const {
        const int width = column_last_ - column_first_ + 1;
        const int threads = static_cast<int>(blockDim.x);
        const int thread = static_cast<int>(threadIdx.x);
        const int* left = pair_.space.column_tree.left;
        for (int c = thread; c <= width; c += threads) row(first_ - 1)[c] = Make<MaxPlus<Real>>::one();
        for (int i = first_ + thread; i <= last_; i += threads) row(i)[0] = Make<MaxPlus<Real>>::one();
        const int steps = (width + threads - 1) / threads;
        const int begin = min(1 + thread * steps, width + 1);
        const int end = min(begin + steps, width + 1);
        for (int i = first_; i <= last_; ++i) {
            __syncthreads();
            const MaxPlus<Real>* anchor = row(pair_.space.rows[i].left - 1);
            const MaxPlus<Real>* previous = row(i - 1);
            MaxPlus<Real>* out = row(i);
            MaxPlus<Real> running = Make<MaxPlus<Real>>::zero();
            for (int c = begin; c < end; ++c) {
                const int j = column_first_ + c - 1;
                running = running + subtree(i)[j] * anchor[left[j] - column_first_];
                out[c] = previous[c] + running;
            }
            const MaxPlus<Real> carry = carry_from_before(links, running, pair_.parity);
            for (int c = begin; c < end; ++c) out[c] = out[c] + carry;
        }
        __syncthreads();
    }

    // Follows the path from the last cell; returns how many forests are pending then.
    template <class Match>
    __device__ int walk(int pending, const Match& match) const {
        int i = last_;
        int j = column_last_;
        while (i >= first_ && j >= column_first_) {
            const int c = j - column_first_ + 1;
            const Real value = row(i)[c].value;
            if (value == row(i - 1)[c].value) {
                --i;
                continue;
            }
            const int left = pair_.space.rows[i].left;
            const int column_left = pair_.space.column_tree.left[j];
            if ((subtree(i)[j] * row(left - 1)[column_left - column_first_]).value != value) {
                --j;
                continue;
            }
            match(i, j);
            if (left == first_ && column_left == column_first_) {
                --i;  // nothing is left of the two subtrees: their inside is this table's own prefix
                --j;
            } else {
                if (left < i && column_left < j) {
                    pair_.space.pending[pending++] = make_int4(left, i - 1, column_left, j - 1);
                }
                i = left - 1;
                j = column_left - 1;
            }
        }
        return pending;
    }
};

}  // namespace structloss::cuda
