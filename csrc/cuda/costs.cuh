// The costs of one pair: checked, summed up, and seen as log weights of oriented nodes.
#pragma once

#include "cuda/pair_program.cuh"

namespace structloss::cuda {

__device__ inline double load_cost(const void* costs, int64_t index, bool double_costs) {
    return double_costs ? static_cast<const double*>(costs)[index]
                        : static_cast<double>(static_cast<const float*>(costs)[index]);
}

__device__ inline void store_cost(void* costs, int64_t index, double value, bool double_costs) {
    if (double_costs) {
        static_cast<double*>(costs)[index] = value;
    } else {
        static_cast<float*>(costs)[index] = static_cast<float>(value);
    }
}

struct CostSummary {
    double base;     // sum of remove and insert: the cost of the empty mapping
    double largest;  // largest log weight, at least 0
    int status;
};

// w(i, j) = (remove + insert - relabel) / temperature, i a row (a node of the smaller tree), j a column.
struct PairCosts {
    const void* relabel;
    const void* remove;
    const void* insert;
    int64_t width_b;
    int64_t relabel_begin;
    int64_t remove_begin;
    int64_t insert_begin;
    const int* row_node;
    const int* column_node;
    double rate;  // 1 / temperature
    bool swapped;
    bool double_costs;

    // By one thread, the others wait: it lies in shared memory and takes no registers of the recursion.
    __device__ void set(const TreePairs& pairs, int64_t p, const TreeArrays& rows, const TreeArrays& columns,
                        bool swap, double inverse_temperature) {
        relabel = pairs.relabel;
        remove = pairs.remove;
        insert = pairs.insert;
        width_b = pairs.width_b;
        relabel_begin = p * pairs.width_a * pairs.width_b;
        remove_begin = p * pairs.width_a;
        insert_begin = p * pairs.width_b;
        row_node = rows.node;
        column_node = columns.node;
        rate = inverse_temperature;
        swapped = swap;
        double_costs = pairs.double_costs != 0;
    }

    __device__ int64_t node_a(int i, int j) const { return swapped ? column_node[j] : row_node[i]; }
    __device__ int64_t node_b(int i, int j) const { return swapped ? row_node[i] : column_node[j]; }

    // Place of the pair (i, j) in relabel and in the posterior.
    __device__ int64_t place(int i, int j) const {
        return relabel_begin + node_a(i, j) * width_b + node_b(i, j);
    }
    __device__ double log_weight(int i, int j) const {
        const int64_t a = node_a(i, j);
        const int64_t b = node_b(i, j);
        return (load_cost(remove, remove_begin + a, double_costs) +
                load_cost(insert, insert_begin + b, double_costs) -
                load_cost(relabel, relabel_begin + a * width_b + b, double_costs)) *
               rate;
    }

    // visit(i, j) for all node pairs, neighbouring threads at neighbouring nodes of the second tree.
    template <class Visit>
    __device__ void for_each(int n, int m, const Visit& visit) const {
        const int inner = swapped ? n : m;
        for (int x = warp_of_block(); x < (swapped ? m : n); x += warps_of_block()) {
            for (int y = lane_of_warp(); y < inner; y += kWarp) {
                if (swapped) {
                    visit(y, x);
                } else {
                    visit(x, y);
                }
            }
        }
    }

    // By the whole block, in a fixed order; `out` lies in shared memory.
    __device__ void summarise(int n, int m, CostSummary& out) const {
        const int count_a = swapped ? m : n;
        const int count_b = swapped ? n : m;
        int bad = 0;
        const double removed = checked_sum(remove, remove_begin, count_a, kBadDelete, bad);
        const double inserted = checked_sum(insert, insert_begin, count_b, kBadInsert, bad);
        double largest = 0.0;
        for_each(n, m, [&](int i, int j) {
            if (!(load_cost(relabel, place(i, j), double_costs) >= 0.0)) bad |= 1 << kBadRelabel;
            const double weight = log_weight(i, j);
            largest = weight > largest ? weight : largest;
        });
        bad = block_reduce(bad, [](int x, int y) { return x | y; });
        const double base = block_sum(removed) + block_sum(inserted);
        largest = block_max(largest);
        if (threadIdx.x == 0) {
            out = {base, largest, kOk};
            if (bad != 0) {
                out.status = __ffs(bad) - 1;
            } else if (largest > 1e15 || !(base <= 1.7976931348623157e308)) {
                out.status = kCostsTooLarge;
            }
        }
        __syncthreads();
    }

  private:
    __device__ double checked_sum(const void* costs, int64_t begin, int count, int status, int& bad) const {
        double sum = 0.0;
        for (int k = static_cast<int>(threadIdx.x); k < count; k += static_cast<int>(blockDim.x)) {
            const double cost = load_cost(costs, begin + k, double_costs);
            if (!(cost >= 0.0 && cost <= 1.7976931348623157e308)) bad |= 1 << status;
            sum += cost;
        }
        return sum;
    }
};

}  // namespace structloss::cuda
