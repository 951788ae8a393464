// The CUDA sources as they are, built for the host, behind a C interface for ctypes. Workspaces are full of
// NaN, and a guard behind them shows writes beyond their end.
#include "cuda/hard_alignment.cu"
#include "cuda/plan.cu"
#include "cuda/soft_alignment.cu"

using namespace structloss::cuda;

namespace {

constexpr int kGuardBroken = 1000;
constexpr char kPoison = static_cast<char>(0xff);
int pairs_again = 0;

template <class Run>
int with_guarded_workspace(const TreePairs& pairs, const Launch& launch, const Run& run) {
    constexpr size_t kGuard = 1 << 16;
    std::vector<char> memory(launch.workspace_bytes + kGuard + 256, kPoison);
    char* begin = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256);
    const int status = run(begin);
    Carver header{begin};
    WorkQueue queue;
    queue.carve(header, pairs.batch);
    pairs_again = pairs.batch == 0 ? 0 : queue.counter[2];
    const char* guard = begin + launch.workspace_bytes;
    if (!std::all_of(guard, guard + kGuard, [](char c) { return c == kPoison; })) return kGuardBroken;
    return status;
}

}  // namespace

extern "C" {

void reset_device(unsigned seed, int shared_limit, int processors) {
    cuda_on_host::Device& device = cuda_on_host::device();
    device.random.seed(seed);
    device.shared_limit = shared_limit;
    device.processors = processors;
}

// Pairs of the last soft alignment that plain doubles could not hold.
int host_pairs_again() { return pairs_again; }

int host_choose_launch(const TreePairs* pairs, int arithmetic, int detail, int64_t budget, int threads,
                       Launch* launch) {
    return choose_launch(*pairs, static_cast<Arithmetic>(arithmetic), detail != 0, budget, threads, launch);
}

int host_plan(const TreePairs* pairs, int64_t* cells, int64_t* columns, int64_t* used, int32_t* status) {
    return plan_tree_alignment(*pairs, cells, columns, used, status, nullptr);
}

int host_soft(const TreePairs* pairs, const double* temperature, void* value, void* posterior, void* entropy,
              int64_t* used, int32_t* status, int arithmetic, const Launch* launch) {
    return with_guarded_workspace(*pairs, *launch, [&](char* workspace) {
        return soft_tree_alignment(*pairs, temperature, value, posterior, entropy, used, status,
                                   static_cast<Arithmetic>(arithmetic), *launch, workspace, nullptr);
    });
}

int host_hard(const TreePairs* pairs, void* distance, int64_t* match_a, int64_t* match_b, int64_t* used,
              int32_t* status, const Launch* launch) {
    return with_guarded_workspace(*pairs, *launch, [&](char* workspace) {
        return hard_tree_alignment(*pairs, distance, match_a, match_b, used, status, *launch, workspace,
                                   nullptr);
    });
}
}
