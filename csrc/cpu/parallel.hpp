// Threads for the CPU kernels: torch's own, so that no two pools fight for the cores.
//
// torch's OpenMP threads spin for some milliseconds after each of its parallel operations. Threads of our own
// would have to share their cores with them: measured, two threads then took as long as one. The extension is
// not linked against torch, so the entry point of its OpenMP library is looked up when it is first needed.
// Without one (another system, another parallel backend) plain threads do the work.
#pragma once

#include <atomic>
#include <cstdint>

namespace structloss {

// Ask for all of torch's threads or for one: of a smaller team the runtime ends the other threads and starts
// them anew in torch's next operation.

// Calls run(context) on up to `threads` threads at once, the caller's among them, and returns when all have.
// `run` must not throw, and one call must do all the work when it is the only one.
void run_on_threads(int64_t threads, void (*run)(void*), void* context);

// work(t) on up to `threads` threads, t = 0, 1, ... in no order. `work` shares its items by itself, as from a
// counter, and keeps its own failures.
template <class Work>
void on_threads(int64_t threads, Work work) {
    struct Context {
        Work& work;
        std::atomic<int64_t> next{0};
    } context{work, {0}};
    run_on_threads(
        threads,
        [](void* shared) {
            Context& mine = *static_cast<Context*>(shared);
            mine.work(mine.next++);
        },
        &context);
}

}  // namespace structloss
