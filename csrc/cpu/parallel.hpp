// Threads for the CPU kernels: torch's own, so that no two pools fight for the cores.
//
// torch's OpenMP threads spin for some milliseconds after each of its parallel operations. Threads of our own
// would have to share their cores with them: measured, two threads then took as long as one. The extension is
// not linked against torch, so the entry point of its OpenMP library is looked up when it is first needed.
// Without one (another system, another parallel backend) plain threads do the work.
#pragma once

#include <cstdint>
#include <type_traits>

namespace structloss {

// Calls work() on up to `threads` threads at once, the caller's among them, and waits for all of them. `work`
// must not throw: it takes its share of the items from a counter and keeps its own failures.
void run_on_threads(int64_t threads, void (*work)(void*), void* context);

template <class Work>
void run_on_threads(int64_t threads, Work&& work) {
    run_on_threads(
        threads, [](void* context) { (*static_cast<std::remove_reference_t<Work>*>(context))(); }, &work);
}

}  // namespace structloss
