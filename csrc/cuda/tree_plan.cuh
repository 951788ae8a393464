// What a block finds out about a tree before it works on a pair: whether its arrays are a forest at all, what
// either decomposition costs, and the arrays of the tree in the orientation that was chosen.
#pragma once

#include "cuda/block.cuh"
#include "cuda/tree_alignment.hpp"

namespace structloss::cuda {

// kMirrored reverses the order of children (the right-path decomposition); kFlattenedTree puts the nodes in
// pre-order and forgets ancestry, which turns the tree alignment into a sequence alignment.
enum Orientation : int32_t { kAsGiven = 0, kMirrored = 1, kFlattenedTree = 2 };

// How one pair is computed; written by the plan kernel.
struct PairPlan {
    int64_t cells;
    int64_t columns;
    int32_t orientation;
    int32_t swapped;  // the rows are the second tree, the smaller one
    int32_t status;
    int32_t used;
};

// Work and columns of both decompositions of one tree.
struct TreeCost {
    long long given = 0;
    long long mirrored = 0;
    long long given_columns = 0;
    long long mirrored_columns = 0;
    int bad = 0;
};

// Every thread walks the children of its nodes, last child first: they must cover exactly the nodes below. A
// child starts a table of the left-path decomposition unless it is the first one, of the right-path
// decomposition unless it is the last one. Node `size` is the virtual root above a forest.
__device__ inline TreeCost measure_tree(const int64_t* leftmost, int64_t size) {
    TreeCost cost;
    for (int64_t i = threadIdx.x; i <= size; i += blockDim.x) {
        const int64_t first = i == size ? 0 : leftmost[i];
        cost.bad |= first < 0 || first > i;
        int64_t covered = cost.bad ? first : i;
        while (covered > first) {
            const int64_t child = covered - 1;
            const int64_t child_first = leftmost[child];
            if (child_first < first || child_first > child) {
                cost.bad = 1;
                break;
            }
            const int64_t subtree = covered - child_first;
            const int64_t columns = subtree > 1 ? subtree + 1 : 0;
            if (child_first != first) cost.given += subtree, cost.given_columns += columns;
            if (covered != i) cost.mirrored += subtree, cost.mirrored_columns += columns;
            covered = child_first;
        }
    }
    cost.bad = block_max(cost.bad);
    cost.given = block_sum(cost.given) + size;
    cost.mirrored = block_sum(cost.mirrored) + size;
    cost.given_columns = block_sum(cost.given_columns) + size + 1;
    cost.mirrored_columns = block_sum(cost.mirrored_columns) + size + 1;
    return cost;
}

__device__ inline int64_t saturating_product(int64_t x, int64_t y) {
    constexpr int64_t kLargest = INT64_MAX;
    return x != 0 && y > kLargest / x ? kLargest : x * y;
}

// By the whole block; the same in every thread.
__device__ inline PairPlan plan_pair(const TreePairs& pairs, int64_t p) {
    PairPlan plan{0, 0, kAsGiven, 0, kOk, kExact};
    const int64_t n = pairs.sizes_a[p];
    const int64_t m = pairs.sizes_b[p];
    if (n < 0 || n > pairs.width_a || m < 0 || m > pairs.width_b) {
        plan.status = kBadSizes;
        return plan;
    }
    const TreeCost a = measure_tree(pairs.leftmost_a + p * pairs.width_a, n);
    const TreeCost b = measure_tree(pairs.leftmost_b + p * pairs.width_b, m);
    if (a.bad || b.bad) {
        plan.status = a.bad ? kBadLeftmostA : kBadLeftmostB;
        return plan;
    }
    const int64_t given = saturating_product(a.given, b.given);
    const int64_t mirrored = saturating_product(a.mirrored, b.mirrored);
    plan.orientation = mirrored < given ? kMirrored : kAsGiven;
    plan.cells = mirrored < given ? mirrored : given;
    plan.swapped = n > m;
    if (mirrored < given) {
        plan.columns = plan.swapped ? a.mirrored_columns : b.mirrored_columns;
    } else {
        plan.columns = plan.swapped ? a.given_columns : b.given_columns;
    }
    if (pairs.method == kExact && plan.cells > pairs.max_cells) plan.status = kTooManyCells;
    if (pairs.method == kFlattened || (pairs.method == kAuto && plan.cells > pairs.max_cells)) {
        plan.orientation = kFlattenedTree;
        plan.used = kFlattened;
        plan.cells = n * m;
        plan.columns = (plan.swapped ? n : m) + 1;
    }
    if (n == 0 || m == 0) plan.columns = 0;
    if (plan.status == kOk && plan.columns > pairs.table_columns) plan.status = kTooManyColumns;
    return plan;
}

// Arrays of a tree in post-order of the chosen orientation. All have size entries (+ 1 where noted).
struct TreeArrays {
    int size;
    int* left;    // leftmost leaf
    int* node;    // oriented position -> position in the arrays that were given
    int* depth;   // number of ancestors (size + 1)
    int* top;     // leaf -> highest node of its left path (leaf 0: the virtual root, size - 1), else -1
    int* nested;  // number of tables of two nodes and more, but the whole tree's, that hold the node (size +
                  // 1)

    __device__ bool is_leaf(int i) const { return left[i] == i; }
    // i ends a table of two nodes or more that is not the whole tree's.
    __device__ bool ends_table(int i) const { return left[i] > 0 && left[i] < i && top[left[i]] == i; }

    __device__ void build(const int64_t* leftmost, int32_t orientation) {
        const int threads = static_cast<int>(blockDim.x);
        const int thread = static_cast<int>(threadIdx.x);
        for (int i = thread; i < size; i += threads) left[i] = static_cast<int>(leftmost[i]), node[i] = i;
        count_ancestors();
        if (orientation != kAsGiven) {
            // The pre-order rank of a node counts the nodes left of its subtree and its ancestors.
            for (int i = thread; i < size; i += threads) {
                const int preorder = static_cast<int>(leftmost[i]) + depth[i];
                const int position = orientation == kMirrored ? size - 1 - preorder : preorder;
                const int below = orientation == kMirrored ? i - static_cast<int>(leftmost[i]) : 0;
                node[position] = i;
                left[position] = position - below;
            }
            __syncthreads();
            count_ancestors();
        }
        for (int i = thread; i < size; i += threads) top[i] = -1;
        for (int i = thread; i <= size; i += threads) nested[i] = 0;
        __syncthreads();
        for (int i = thread; i < size; i += threads) atomicMax(&top[left[i]], i);
        __syncthreads();
        if (thread == 0) top[0] = size - 1;
        __syncthreads();
        for (int i = thread; i < size; i += threads) {
            if (!ends_table(i)) continue;
            atomicAdd(&nested[left[i]], 1);
            atomicAdd(&nested[i + 1], -1);
        }
        scan_integers<true>(nested, size);
    }

  private:
    __device__ void count_ancestors() {
        const int threads = static_cast<int>(blockDim.x);
        const int thread = static_cast<int>(threadIdx.x);
        for (int i = thread; i <= size; i += threads) depth[i] = 0;
        __syncthreads();
        for (int i = thread; i < size; i += threads) {
            atomicAdd(&depth[left[i]], 1);
            atomicAdd(&depth[i + 1], -1);
        }
        scan_integers<true>(depth, size);
        for (int i = thread; i < size; i += threads) depth[i] -= 1;
        __syncthreads();
    }
};

}  // namespace structloss::cuda
