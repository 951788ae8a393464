// Hard alignment: tree edit distance and, where wanted, one optimal mapping, one block a pair.
//
// A cell costs 3 operations and moves 6 numbers (4 bytes, 8 for float64 costs) of shared memory and 8 bytes
// of column program through L1; a cell of the tables that a mapping visits 4 numbers of global memory, mostly
// L2. Device memory: relabel is read twice, t written once. Shared memory: rows of numbers, as many as the
// launch gives.
//
// nvcc 13.0, sm_90a (sm_80): 108 (105) registers; 448 bytes of static shared memory for float32, 512 for
// float64. No spills.
#include "cuda/costs.cuh"
#include "cuda/launch.cuh"
#include "cuda/mapping.cuh"

namespace structloss::cuda {
namespace {

__device__ void write_result(const HardArguments& arguments, int64_t p, int status, double distance) {
    if (threadIdx.x != 0) return;
    arguments.status[p] = status;
    store_cost(arguments.distance, p, status == kOk ? distance : NAN, arguments.pairs.double_costs != 0);
}

template <class Real>
__device__ void align(const HardArguments& arguments, int64_t p) {
    const PairPlan plan = arguments.queue.plan[p];
    if (plan.status != kOk) return write_result(arguments, p, plan.status, 0.0);

    const TreePairs& pairs = arguments.pairs;
    PairState<MaxPlus<Real>> pair;
    prepare(pairs, plan, p, arguments.room, arguments.workspace, false, pair);
    __shared__ PairCosts costs;
    if (threadIdx.x == 0) {
        costs.set(pairs, p, pair.space.row_tree, pair.space.column_tree, plan.swapped != 0, 1.0);
    }
    __syncthreads();
    __shared__ CostSummary summary;
    costs.summarise(pair.n, pair.m, summary);
    if (summary.status != kOk || pair.n == 0 || pair.m == 0) {
        return write_result(arguments, p, summary.status, summary.base);
    }

    costs.for_each(pair.n, pair.m, [&](int i, int j) {
        pair.space.subtree[static_cast<int64_t>(i) * pair.m + j] =
            Make<MaxPlus<Real>>::exp_of(costs.log_weight(i, j));
    });
    __syncthreads();
    const MaxPlus<Real> best = run_forward(pair, false);
    write_result(arguments, p, kOk, summary.base - static_cast<double>(best.value));
    if (arguments.match_a == nullptr) return;
    MappingTrace<Real>::run(pair, [&](int i, int j) {
        const int64_t a = costs.node_a(i, j);
        const int64_t b = costs.node_b(i, j);
        arguments.match_a[p * pairs.width_a + a] = b;
        arguments.match_b[p * pairs.width_b + b] = a;
    });
}

template <class Real>
__global__ void __launch_bounds__(kMaxThreads, 2) hard_kernel(HardArguments arguments) {
    const WorkQueue& queue = arguments.queue;
    for (;;) {
        const int k = draw(&queue.counter[0]);
        if (k >= arguments.pairs.batch) return;
        align<Real>(arguments, queue.order[k]);
    }
}

template <class Real>
int run(HardArguments arguments, const Launch& launch, void* stream) {
    arguments.room = room_of<MaxPlus<Real>>(arguments.pairs, launch, false, arguments.match_a != nullptr);
    const int64_t needed = arguments.room.header_bytes + launch.blocks * arguments.room.block_bytes;
    if (needed > launch.workspace_bytes) return cudaErrorInvalidValue;
    return launch_kernel(hard_kernel<Real>, launch.blocks, launch.threads, launch.shared_bytes, arguments,
                         stream);
}

}  // namespace

int hard_tree_alignment(const TreePairs& pairs, void* distance, int64_t* match_a, int64_t* match_b,
                        int64_t* used, int32_t* status, const Launch& launch, void* workspace, void* stream) {
    if (pairs.batch == 0) return cudaSuccess;
    WorkQueue queue;
    Carver header{static_cast<char*>(workspace)};
    queue.carve(header, pairs.batch);
    if (const int error = launch_plan(pairs, queue, used, status, stream)) return error;
    const HardArguments arguments{pairs,   queue,   Room{}, distance,
                                  match_a, match_b, status, static_cast<char*>(workspace)};
    return pairs.double_costs != 0 ? run<double>(arguments, launch, stream)
                                   : run<float>(arguments, launch, stream);
}

const void* hard_kernel_address(bool double_costs) {
    return double_costs ? reinterpret_cast<const void*>(hard_kernel<double>)
                        : reinterpret_cast<const void*>(hard_kernel<float>);
}

}  // namespace structloss::cuda
