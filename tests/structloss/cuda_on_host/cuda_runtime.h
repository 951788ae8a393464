// Stand-in for CUDA's header that lets a C++ compiler build the kernels for the host, for tests only. A block
// runs at a time, each of its threads as a fiber (ucontext) that gives way at barriers and warp operations
// and nowhere else. Who goes on next is drawn from a seeded generator: a result that depends on a barrier
// that is not there changes with the seed.
#pragma once
#define STRUCTLOSS_CUDA_ON_HOST

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    explicit dim3(unsigned x_) : x(x_) {}
};
struct int4 {
    int x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

using std::max;
using std::min;

namespace cuda_on_host {

constexpr size_t kStackBytes = 128 << 10;

struct Fiber {
    ucontext_t context;  // where it starts; from then on jumps, which make no system call
    jmp_buf place;
    bool started = false;
    std::unique_ptr<char[]> stack;
    dim3 thread;
    bool done = false;
    const uint64_t* waiting_for = nullptr;  // runs again when this differs from waited_value
    uint64_t waited_value = 0;
    int parity = 0;
};

struct Warp {
    uint64_t generation = 0;
    int arrived = 0;
    unsigned char value[2][32][16];
};

struct Device {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    jmp_buf scheduler;
    Fiber* current = nullptr;
    dim3 block_index, block_size, grid_size;
    uint64_t generation = 0;
    int arrived = 0;
    std::function<void()> body;
    std::mt19937 random{0};
    std::vector<char> shared;
    int shared_limit = 64 << 10;
    int processors = 2;
};

inline Device& device() {
    static Device instance;
    return instance;
}

inline char* dynamic_shared_memory() {
    const auto address = reinterpret_cast<uintptr_t>(device().shared.data());
    return reinterpret_cast<char*>((address + 15) / 16 * 16);
}

inline void wait_until_changed(const uint64_t& generation) {
    Device& d = device();
    d.current->waiting_for = &generation;
    d.current->waited_value = generation;
    if (_setjmp(d.current->place) == 0) _longjmp(d.scheduler, 1);
}

inline void arrive(uint64_t& generation, int& arrived, int expected) {
    if (++arrived == expected) {
        arrived = 0;
        ++generation;
        return;
    }
    wait_until_changed(generation);
}

inline void run_fiber() {
    Device& d = device();
    d.body();
    d.current->done = true;
    _longjmp(d.scheduler, 1);
}

inline void resume(Fiber& fiber) {
    Device& d = device();
    d.current = &fiber;
    if (_setjmp(d.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

// All fibers of one block to their end; false when those that are left wait for one that never comes.
inline bool run_block() {
    Device& d = device();
    const unsigned count = d.block_size.x;
    if (d.fibers.size() < count) d.fibers.resize(count);
    d.warps.assign((count + 31) / 32, Warp{});
    d.arrived = 0;
    for (unsigned t = 0; t < count; ++t) {
        Fiber& fiber = d.fibers[t];
        if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
        fiber.thread = dim3(t);
        fiber.done = fiber.started = false;
        fiber.waiting_for = nullptr;
        fiber.parity = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
    }
    // The first warp of the order that can go on does, as long as it can: the others lag behind by all that
    // barriers allow. Now and then the order changes.
    std::vector<unsigned> warps(d.warps.size()), lanes(32);
    std::iota(warps.begin(), warps.end(), 0);
    std::iota(lanes.begin(), lanes.end(), 0);
    for (;;) {
        if (d.random() % 16 == 0) {
            std::shuffle(warps.begin(), warps.end(), d.random);
            std::shuffle(lanes.begin(), lanes.end(), d.random);
        }
        bool left = false;
        bool moved = false;
        for (size_t w = 0; w < warps.size() && !moved; ++w) {
            for (const unsigned lane : lanes) {
                Fiber& fiber = d.fibers[warps[w] * 32 + lane];
                if (fiber.done) continue;
                left = true;
                if (fiber.waiting_for != nullptr && *fiber.waiting_for == fiber.waited_value) continue;
                moved = true;
                fiber.waiting_for = nullptr;
                resume(fiber);
            }
        }
        if (!left) return true;
        if (!moved) return false;
    }
}

// The value that lane `source` of the warp brought along.
template <class T>
T exchange(T value, int source) {
    static_assert(sizeof(T) <= 16, "one register pair at a time");
    Device& d = device();
    Fiber& self = *d.current;
    Warp& warp = d.warps[self.thread.x / 32];
    const int parity = self.parity;
    self.parity ^= 1;
    std::memcpy(warp.value[parity][self.thread.x % 32], &value, sizeof(T));
    arrive(warp.generation, warp.arrived, 32);
    T out;
    std::memcpy(&out, warp.value[parity][source], sizeof(T));
    return out;
}

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::device().current->thread)
#define blockIdx (cuda_on_host::device().block_index)
#define blockDim (cuda_on_host::device().block_size)
#define gridDim (cuda_on_host::device().grid_size)

inline void __syncthreads() {
    cuda_on_host::Device& d = cuda_on_host::device();
    cuda_on_host::arrive(d.generation, d.arrived, static_cast<int>(d.block_size.x));
}

template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return cuda_on_host::exchange(value, lane >= distance ? lane - distance : lane);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return cuda_on_host::exchange(value, lane + distance < 32 ? lane + distance : lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return cuda_on_host::exchange(value, (static_cast<int>(threadIdx.x) % 32) ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
    unsigned bits = predicate ? 1u << threadIdx.x % 32 : 0;
    for (int mask = 1; mask < 32; mask *= 2) bits |= __shfl_xor_sync(0, bits, mask);
    return bits;
}

inline int atomicAdd(int* address, int value) {
    const int old = *address;
    *address += value;
    return old;
}
inline int atomicMax(int* address, int value) {
    const int old = *address;
    *address = max(old, value);
    return old;
}

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __double2hiint(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<int>(bits >> 32);
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchTimeout = 702 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor,
    cudaDevAttrSingleToDoublePrecisionPerfRatio
};

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess              ? "no error"
           : error == cudaErrorLaunchTimeout ? "deadlock"
                                             : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const cuda_on_host::Device& d = cuda_on_host::device();
    *value = attribute == cudaDevAttrMultiProcessorCount                ? d.processors
             : attribute == cudaDevAttrSingleToDoublePrecisionPerfRatio ? 2
                                                                        : d.shared_limit;
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
    return bytes <= cuda_on_host::device().shared_limit ? cudaSuccess : cudaErrorInvalidValue;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
    return *blocks = 1, cudaSuccess;
}

// Blocks one after the other, the last one first at times; shared memory starts as NaN.
template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
    cuda_on_host::Device& d = cuda_on_host::device();
    d.grid_size = grid;
    d.block_size = block;
    const Argument& argument = *static_cast<Argument*>(arguments[0]);
    d.body = [&] { kernel(argument); };
    const bool backwards = d.random() % 2 != 0;
    for (unsigned k = 0; k < grid.x; ++k) {
        d.block_index = dim3(backwards ? grid.x - 1 - k : k);
        d.shared.assign(shared_bytes + 16, static_cast<char>(0xff));
        if (!cuda_on_host::run_block()) return cudaErrorLaunchTimeout;
    }
    return cudaSuccess;
}
