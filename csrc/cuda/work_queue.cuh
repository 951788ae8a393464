// How blocks share a batch out: a header in front of the workspace with the plan of every pair, their order
// by descending work, and counters from which blocks draw. Which block takes a pair does not change its
// result.
#pragma once

#include "cuda/forward.cuh"

namespace structloss::cuda {

struct WorkQueue {
    PairPlan* plan;    // (batch,)
    int32_t* order;    // (batch,) pairs by descending work
    int32_t* again;    // (batch,) pairs beyond the range of plain doubles
    int32_t* counter;  // next of order, next of again, length of again

    __host__ __device__ void carve(Carver& carver, int64_t batch) {
        plan = carver.take<PairPlan>(batch);
        order = carver.take<int32_t>(batch);
        again = carver.take<int32_t>(batch);
        counter = carver.take<int32_t>(3);
    }
};

// The next number of a counter, the same for the whole block.
__device__ inline int draw(int32_t* counter) {
    __shared__ int drawn;
    __syncthreads();
    if (threadIdx.x == 0) drawn = atomicAdd(counter, 1);
    __syncthreads();
    return drawn;
}

// Memory that the launch gives to the block.
__device__ inline char* dynamic_shared_memory() {
#ifdef STRUCTLOSS_CUDA_ON_HOST
    return cuda_on_host::dynamic_shared_memory();
#else
    extern __shared__ __align__(16) char memory[];
    return memory;
#endif
}

struct Room {
    Capacity capacity;
    int64_t block_bytes;   // of one block, a multiple of 256
    int64_t header_bytes;  // in front of the first block, a multiple of 256
    int32_t shared_bytes;
};

// Trees, workspace and storage of one pair; the numbers are still to come. An empty tree has none of it, but
// also no node whose place is asked for.
template <class Number>
__device__ inline void prepare(const TreePairs& pairs, const PairPlan& plan, int64_t p, const Room& room,
                               char* workspace, bool reverse, PairState<Number>& pair) {
    Carver carver{workspace + room.header_bytes + blockIdx.x * room.block_bytes};
    pair.space.carve(carver, room.capacity);
    const int64_t* left_a = pairs.leftmost_a + p * pairs.width_a;
    const int64_t* left_b = pairs.leftmost_b + p * pairs.width_b;
    const int size_a = static_cast<int>(pairs.sizes_a[p]);
    const int size_b = static_cast<int>(pairs.sizes_b[p]);
    pair.space.row_tree.size = plan.swapped ? size_b : size_a;
    pair.space.column_tree.size = plan.swapped ? size_a : size_b;
    pair.n = pair.space.row_tree.size;
    pair.m = pair.space.column_tree.size;
    if (pair.n == 0 || pair.m == 0) return;
    pair.space.row_tree.build(plan.swapped ? left_b : left_a, plan.orientation);
    pair.space.column_tree.build(plan.swapped ? left_a : left_b, plan.orientation);
    build_program(pair, reverse);
    const int stride = pair.layout.stride();
    const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(Number));
    pair.memory = {reinterpret_cast<Number*>(dynamic_shared_memory()),
                   static_cast<int>(room.shared_bytes / row_bytes), pair.space.backing,
                   static_cast<int>(room.capacity.backing_rows), stride};
}

}  // namespace structloss::cuda
