// Soft alignment: value, posterior and entropy, one block a pair.
//
// A cell (a row and a column of the tables) costs 4 flops forward, with the posterior 4 more where its table
// is computed again and 7 in reverse; it moves 6 numbers forward and 9 in reverse, plus 8 and 24 bytes of
// column program through L1. Device memory: relabel is read twice, with the posterior three times and once
// more for pairs of inner nodes, and the posterior is written once; t and dZ/dt (8 bytes a node pair each)
// and the anchor rows of one table mostly stay in L2. Shared memory: rows of numbers, as many as the launch
// gives.
//
// nvcc 13.0, sm_90a and sm_80: float64 128 registers and 672 bytes of static shared memory, Scaled<double>
// 114 and 896, Scaled<float> 114 and 640. No spills.
#include "cuda/costs.cuh"
#include "cuda/launch.cuh"
#include "cuda/range.cuh"
#include "cuda/reverse.cuh"

namespace structloss::cuda {
namespace {

template <class Number>
__device__ void set_weights(PairState<Number>& pair, const PairCosts& costs, double tilt) {
    pair.damping = exp(-tilt);
    __syncthreads();
    costs.for_each(pair.n, pair.m, [&](int i, int j) {
        pair.space.subtree[static_cast<int64_t>(i) * pair.m + j] =
            Make<Number>::exp_of(costs.log_weight(i, j) - tilt);
    });
    __syncthreads();
}

template <class Number>
__device__ void reverse(PairState<Number>& pair, const PairCosts& costs, double tilt, double largest,
                        Number partition) {
    const auto match_weight = [&](int i, int j) {
        return Make<Number>::exp_of(costs.log_weight(i, j) - tilt);
    };
    run_reverse(pair, partition, match_weight, Make<Number>::exp_of(largest - tilt));
}

// log Z of the pair; false where the number type cannot say.
template <class Number>
__device__ bool solve(PairState<Number>& pair, const PairCosts& costs, const double& largest, bool detail,
                      double& log_partition) {
    set_weights(pair, costs, 0.0);
    const Number partition = run_forward(pair, detail);
    if (detail) reverse(pair, costs, 0.0, largest, partition);
    log_partition = log_of(partition);
    return true;
}

template <>
__device__ bool solve<double>(PairState<double>& pair, const PairCosts& costs, const double& largest,
                              bool detail, double& log_partition) {
    TiltSearch search(largest, pair.n, pair.m, detail);
    while (search.try_next()) {
        set_weights(pair, costs, search.tilt);
        const double partition = run_forward(pair, detail);
        const int forward_peak = block_max(pair.peak);
        int reverse_peak = 0;
        if (detail && search.forward_is_sound(forward_peak, partition)) {
            reverse(pair, costs, search.tilt, largest, partition);
            reverse_peak = block_max(pair.peak);
        }
        if (search.accept(forward_peak, reverse_peak, partition)) {
            log_partition = log(partition) + search.tilt * pair.n;
            return true;
        }
    }
    return false;
}

// P = t dZ/dt / Z into the posterior; returns the sum of P w.
template <class Number>
__device__ double write_posterior(const PairState<Number>& pair, const PairCosts& costs, void* posterior) {
    double expected = 0.0;
    costs.for_each(pair.n, pair.m, [&](int i, int j) {
        const int64_t k = static_cast<int64_t>(i) * pair.m + j;
        const double matched = probability(pair.space.adjoint[k] * pair.space.subtree[k]);
        store_cost(posterior, costs.place(i, j), matched, costs.double_costs);
        if (matched > 0.0) expected += matched * costs.log_weight(i, j);
    });
    return block_sum(expected);
}

__device__ void write_result(const SoftArguments& arguments, int64_t p, int status, double value,
                             double entropy) {
    if (threadIdx.x != 0) return;
    const bool double_costs = arguments.pairs.double_costs != 0;
    arguments.status[p] = status;
    store_cost(arguments.value, p, status == kOk ? value : NAN, double_costs);
    store_cost(arguments.entropy, p, status == kOk ? entropy : NAN, double_costs);
}

template <class Number>
struct LargestLog {
    static constexpr double value = 1e300;
};
template <class Mantissa>
struct LargestLog<Scaled<Mantissa>> {
    static constexpr double value = ScaledRange<Mantissa>::kLargestLog;
};

template <class Number>
__device__ void align(const SoftArguments& arguments, int64_t p) {
    const PairPlan plan = arguments.queue.plan[p];
    const double temperature = arguments.temperature[p];
    int status = plan.status;
    if (status == kOk && !(temperature > 0.0 && temperature <= 1.7976931348623157e308))
        status = kBadTemperature;
    if (status != kOk) return write_result(arguments, p, status, 0.0, 0.0);

    const TreePairs& pairs = arguments.pairs;
    const bool detail = arguments.posterior != nullptr;
    PairState<Number> pair;
    prepare(pairs, plan, p, arguments.room, arguments.workspace, detail, pair);
    __shared__ PairCosts costs;
    if (threadIdx.x == 0) {
        costs.set(pairs, p, pair.space.row_tree, pair.space.column_tree, plan.swapped != 0,
                  1.0 / temperature);
    }
    __syncthreads();
    __shared__ CostSummary summary;
    costs.summarise(pair.n, pair.m, summary);
    status = summary.status;
    if (pair.n == 0 || pair.m == 0) return write_result(arguments, p, status, summary.base, 0.0);
    if (status == kOk && summary.largest * pair.n > LargestLog<Number>::value) status = kCostsTooLarge;
    if (status != kOk) return write_result(arguments, p, status, 0.0, 0.0);

    double log_partition = 0.0;
    if (!solve(pair, costs, summary.largest, detail, log_partition)) {
        if (threadIdx.x == 0) arguments.queue.again[atomicAdd(&arguments.queue.counter[2], 1)] = p;
        return;
    }
    const double expected = detail ? write_posterior(pair, costs, arguments.posterior) : log_partition;
    write_result(arguments, p, kOk, summary.base - arguments.temperature[p] * log_partition,
                 log_partition - expected);
}

template <class Number>
__global__ void __launch_bounds__(kMaxThreads, 2) soft_kernel(SoftArguments arguments) {
    const WorkQueue& queue = arguments.queue;
    const int count = arguments.again ? queue.counter[2] : static_cast<int>(arguments.pairs.batch);
    for (;;) {
        const int k = draw(&queue.counter[arguments.again ? 1 : 0]);
        if (k >= count) return;
        align<Number>(arguments, arguments.again ? queue.again[k] : queue.order[k]);
    }
}

// Launches the kernel of one number type on as many blocks as its rows leave room for in the workspace.
template <class Number>
int run(SoftArguments arguments, const Launch& launch, void* stream) {
    const bool detail = arguments.posterior != nullptr;
    arguments.room = room_of<Number>(arguments.pairs, launch, true, detail);
    const int64_t fitting =
        (launch.workspace_bytes - arguments.room.header_bytes) / arguments.room.block_bytes;
    if (fitting < 1) return cudaErrorInvalidValue;
    return launch_kernel(soft_kernel<Number>, std::min<int64_t>(launch.blocks, fitting), launch.threads,
                         launch.shared_bytes, arguments, stream);
}

}  // namespace

int soft_tree_alignment(const TreePairs& pairs, const double* temperature, void* value, void* posterior,
                        void* entropy, int64_t* used, int32_t* status, Arithmetic arithmetic,
                        const Launch& launch, void* workspace, void* stream) {
    if (pairs.batch == 0) return cudaSuccess;
    WorkQueue queue;
    Carver header{static_cast<char*>(workspace)};
    queue.carve(header, pairs.batch);
    if (const int error = launch_plan(pairs, queue, used, status, stream)) return error;
    SoftArguments arguments{
        pairs, queue, Room{}, temperature, value, posterior, entropy, status, static_cast<char*>(workspace),
        false};
    if (arithmetic == kSoftFloat32) return run<Scaled<float>>(arguments, launch, stream);
    if (const int error = run<double>(arguments, launch, stream)) return error;
    arguments.again = true;
    return run<Scaled<double>>(arguments, launch, stream);
}

const void* soft_kernel_address(Arithmetic arithmetic) {
    return arithmetic == kSoftFloat32 ? reinterpret_cast<const void*>(soft_kernel<Scaled<float>>)
                                      : reinterpret_cast<const void*>(soft_kernel<double>);
}

}  // namespace structloss::cuda
