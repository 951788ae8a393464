// What has to be known before the first number: the plan of every pair and the order of the batch.
//
// plan_kernel reads the leftmost leaves (8 bytes a node), one block a pair, each node walked over once as a
// child. order_kernel compares every two pairs, which costs nothing beside their alignment.
//
// nvcc 13.0, sm_90a (sm_80): plan_kernel 72 (68) registers, 96 bytes of shared memory; order_kernel 26 (24)
// registers, none. No spills.
#include "cuda/launch.cuh"

namespace structloss::cuda {

const void* soft_kernel_address(Arithmetic arithmetic);
const void* hard_kernel_address(bool double_costs);

namespace {

constexpr int kPlanThreads = 128;
constexpr int64_t kMaxOrdered = 1 << 15;  // larger batches fill the card in any order

struct PlanArguments {
    TreePairs pairs;
    PairPlan* plan;    // or null
    int64_t* cells;    // or null
    int64_t* columns;  // or null
    int64_t* used;
    int32_t* status;
};

__global__ void __launch_bounds__(kMaxThreads, 2) plan_kernel(PlanArguments arguments) {
    for (int64_t p = blockIdx.x; p < arguments.pairs.batch; p += gridDim.x) {
        const PairPlan plan = plan_pair(arguments.pairs, p);
        if (threadIdx.x != 0) continue;
        if (arguments.plan != nullptr) arguments.plan[p] = plan;
        if (arguments.cells != nullptr) arguments.cells[p] = plan.cells;
        if (arguments.columns != nullptr) arguments.columns[p] = plan.columns;
        arguments.used[p] = plan.used;
        arguments.status[p] = plan.status;
    }
}

struct OrderArguments {
    WorkQueue queue;
    int64_t batch;
};

__global__ void __launch_bounds__(kMaxThreads, 2) order_kernel(OrderArguments arguments) {
    const WorkQueue& queue = arguments.queue;
    const int64_t p = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (p < 3) queue.counter[p] = 0;
    if (p >= arguments.batch) return;
    int64_t rank = p;
    if (arguments.batch <= kMaxOrdered) {
        rank = 0;
        const int64_t cells = queue.plan[p].cells;
        for (int64_t q = 0; q < arguments.batch; ++q) {
            const int64_t other = queue.plan[q].cells;
            rank += other > cells || (other == cells && q < p);
        }
    }
    queue.order[rank] = static_cast<int32_t>(p);
}

int launch_plan_kernel(const PlanArguments& arguments, void* stream) {
    const int64_t blocks = std::min<int64_t>(arguments.pairs.batch, 1 << 20);
    return launch_kernel(plan_kernel, blocks, kPlanThreads, 0, arguments, stream);
}

int threads_for(int64_t columns) {
    return columns <= 96 ? 32 : columns <= 256 ? 64 : columns <= 768 ? 128 : 256;
}

// Shared memory for the rows in hand and some nesting, without keeping other blocks off the multiprocessor.
int choose_shared_bytes(const TreePairs& pairs, int64_t row_bytes, int32_t* bytes) {
    int device = 0, processors = 0, per_block = 0, per_processor = 0;
    if (const int error = cudaGetDevice(&device)) return error;
    const auto ask = [&](int* value, cudaDeviceAttr attribute) {
        return cudaDeviceGetAttribute(value, attribute, device);
    };
    if (const int error = ask(&processors, cudaDevAttrMultiProcessorCount)) return error;
    if (const int error = ask(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin)) return error;
    if (const int error = ask(&per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor)) return error;
    constexpr int64_t kWantedRows = 11, kMostBlocks = 4;
    const int64_t resident = std::min((pairs.batch + processors - 1) / processors, kMostBlocks);
    const int64_t most = std::min<int64_t>(per_block, per_processor / resident - 1024) - kStaticSharedBytes;
    const int64_t rows = std::max<int64_t>(std::min(kWantedRows, most / row_bytes), 0);
    *bytes = static_cast<int32_t>(rows * row_bytes);
    return cudaSuccess;
}

}  // namespace

int launch_plan(const TreePairs& pairs, const WorkQueue& queue, int64_t* used, int32_t* status,
                void* stream) {
    const PlanArguments plan{pairs, queue.plan, nullptr, nullptr, used, status};
    if (const int error = launch_plan_kernel(plan, stream)) return error;
    const int64_t blocks = (pairs.batch + kMaxThreads - 1) / kMaxThreads;
    return launch_kernel(order_kernel, blocks, kMaxThreads, 0, OrderArguments{queue, pairs.batch}, stream);
}

int plan_tree_alignment(const TreePairs& pairs, int64_t* cells, int64_t* columns, int64_t* used,
                        int32_t* status, void* stream) {
    if (pairs.batch == 0) return cudaSuccess;
    return launch_plan_kernel(PlanArguments{pairs, nullptr, cells, columns, used, status}, stream);
}

int choose_launch(const TreePairs& pairs, Arithmetic arithmetic, bool detail, int64_t memory_budget,
                  int32_t threads, Launch* launch) {
    *launch = {1, threads > 0 ? threads : threads_for(pairs.table_columns), 0, 0};
    if (launch->threads % kWarp != 0 || launch->threads > kMaxThreads || pairs.batch >= INT32_MAX ||
        pairs.table_columns >= INT32_MAX - kMaxThreads) {
        return cudaErrorInvalidValue;
    }
    if (pairs.batch == 0) return cudaSuccess;
    const bool soft = arithmetic != kHard;
    const bool double_hard = !soft && pairs.double_costs != 0;
    const int64_t number_bytes = soft || double_hard ? 8 : 4;
    const int64_t stride = capacity_of(pairs, launch->threads, soft, detail).stride;
    if (const int error = choose_shared_bytes(pairs, stride * number_bytes, &launch->shared_bytes))
        return error;
    const void* kernel = soft ? soft_kernel_address(arithmetic) : hard_kernel_address(double_hard);
    int device = 0, processors = 0, resident = 0;
    if (const int error = allow_shared_memory(kernel)) return error;
    if (const int error = cudaGetDevice(&device)) return error;
    if (const int error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device))
        return error;
    if (const int error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &resident, kernel, launch->threads, static_cast<size_t>(launch->shared_bytes)))
        return error;
    const int64_t blocks = std::min<int64_t>(pairs.batch, int64_t{std::max(resident, 1)} * processors);
    const Room room = !soft && !double_hard ? room_of<MaxPlus<float>>(pairs, *launch, soft, detail)
                                            : room_of<double>(pairs, *launch, soft, detail);
    const int64_t affordable = (memory_budget - room.header_bytes) / room.block_bytes;
    launch->blocks = static_cast<int32_t>(std::max<int64_t>(std::min(blocks, affordable), 1));
    launch->workspace_bytes = room.header_bytes + launch->blocks * room.block_bytes;
    if (arithmetic == kSoft) {
        // The second kernel, for pairs beyond the range, needs more a block: room for one, and for as many as
        // the first has where the budget allows it.
        const int64_t larger = room_of<Scaled<double>>(pairs, *launch, soft, detail).block_bytes;
        const int64_t as_many = room.header_bytes + launch->blocks * larger;
        launch->workspace_bytes =
            std::max({launch->workspace_bytes, room.header_bytes + larger, std::min(as_many, memory_budget)});
    }
    return cudaSuccess;
}

int float64_slowdown(int32_t* ratio) {
    int device = 0;
    if (const int error = cudaGetDevice(&device)) return error;
    return cudaDeviceGetAttribute(ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, device);
}

const char* error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int device_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : -1;
}

}  // namespace structloss::cuda
