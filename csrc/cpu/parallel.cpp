#include "parallel.hpp"

#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace structloss {
namespace {

// The entry point of a parallel region in GNU's OpenMP library; LLVM's and Intel's have it too.
using ParallelRegion = void (*)(void (*work)(void*), void* context, unsigned threads, unsigned flags);

ParallelRegion parallel_region = nullptr;

bool find_parallel_region() {
#ifdef __linux__
    // Only where torch is in the process already; the search goes through what torch itself is linked to.
    if (void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD)) {
        parallel_region = reinterpret_cast<ParallelRegion>(dlsym(torch, "GOMP_parallel"));
    }
    // A forked child has no OpenMP threads any more, and the library would wait for them.
    pthread_atfork(nullptr, nullptr, [] { parallel_region = nullptr; });
#endif
    return true;
}

}  // namespace

void run_on_threads(int64_t threads, void (*run)(void*), void* context) {
    if (threads <= 1) return run(context);
    [[maybe_unused]] static const bool searched = find_parallel_region();
    if (parallel_region != nullptr) return parallel_region(run, context, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> helpers;
    helpers.reserve(threads);  // so that nothing throws once one of them runs
    for (int64_t t = 1; t < threads; ++t) {
        try {
            helpers.emplace_back(run, context);
        } catch (const std::system_error&) {
            break;  // no more threads to be had: those that run do the work
        }
    }
    run(context);
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace structloss
