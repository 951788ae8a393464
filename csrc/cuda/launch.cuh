// Host side of a launch: how much memory a block needs, how many blocks there are.
#pragma once

#include <algorithm>

#include "cuda/work_queue.cuh"

namespace structloss::cuda {

inline int64_t rounded_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

inline Capacity capacity_of(const TreePairs& pairs, int threads, bool soft, bool detail) {
    const int64_t smaller = std::min(pairs.width_a, pairs.width_b);
    const int64_t larger = std::max(pairs.width_a, pairs.width_b);
    Capacity room{};
    room.rows = smaller;
    room.columns = larger;
    room.node_pairs = pairs.width_a * pairs.width_b;
    room.stride = rounded_up(std::max<int64_t>(pairs.table_columns, 1), threads);
    // Tables nest at most once every two nodes; in the reverse pass anchor rows are kept beside them.
    room.backing_rows = soft && detail ? smaller + 3 : smaller / 2 + 4;
    room.adjoints = soft && detail ? room.node_pairs : 0;
    room.mapping_cells = !soft && detail ? (pairs.width_a + 1) * (pairs.width_b + 1) : 0;
    return room;
}

template <class Number>
Room room_of(const TreePairs& pairs, const Launch& launch, bool soft, bool detail) {
    Room room{};
    room.capacity = capacity_of(pairs, launch.threads, soft, detail);
    Carver block{nullptr};
    Workspace<Number>{}.carve(block, room.capacity);
    Carver header{nullptr};
    WorkQueue{}.carve(header, pairs.batch);
    room.block_bytes = rounded_up(block.used, 256);
    room.header_bytes = rounded_up(header.used, 256);
    room.shared_bytes = launch.shared_bytes;
    return room;
}

// Static shared memory of any kernel here, and some more.
constexpr int kStaticSharedBytes = 2048;

// Lets a kernel have all the shared memory that there is. Always the same number, so that threads of the host
// that launch it with different sizes do not take it away from each other.
template <class Kernel>
int allow_shared_memory(Kernel* kernel) {
    int device = 0, most = 0;
    if (const int error = cudaGetDevice(&device)) return error;
    if (const int error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device))
        return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                most - kStaticSharedBytes);
}

template <class Argument>
int launch_kernel(void (*kernel)(Argument), int64_t blocks, int threads, int shared_bytes, Argument argument,
                  void* stream) {
    if (shared_bytes > 0) {
        if (const int error = allow_shared_memory(kernel)) return error;
    }
    void* arguments[] = {&argument};
    const auto status =
        cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                         arguments, static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream));
    return status != cudaSuccess ? status : cudaGetLastError();
}

// Fills the plan and the order of the queue: two small launches.
int launch_plan(const TreePairs& pairs, const WorkQueue& queue, int64_t* used, int32_t* status, void* stream);

struct SoftArguments {
    TreePairs pairs;
    WorkQueue queue;
    Room room;
    const double* temperature;
    void* value;
    void* posterior;
    void* entropy;
    int32_t* status;
    char* workspace;
    bool again;  // works off queue.again instead of queue.order
};

struct HardArguments {
    TreePairs pairs;
    WorkQueue queue;
    Room room;
    void* distance;
    int64_t* match_a;
    int64_t* match_b;
    int32_t* status;
    char* workspace;
};

}  // namespace structloss::cuda
