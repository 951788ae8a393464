// What the threads of one block do together: reductions, integer scans, and the carry of a segmented scan
// over columns. All of it has a fixed order, so results do not change from run to run.
#pragma once

#include "cuda/numbers.cuh"

namespace structloss::cuda {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 256;
constexpr int kMaxWarps = kMaxThreads / kWarp;

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_of_block() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline int warps_of_block() { return static_cast<int>(blockDim.x) / kWarp; }

// The same value in every thread. `combine` must be commutative.
template <class T, class Combine>
__device__ inline T block_reduce(T value, Combine combine) {
    __shared__ T of_warp[kMaxWarps];
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
    }
    if (lane_of_warp() == 0) of_warp[warp_of_block()] = value;
    __syncthreads();
    T result = of_warp[0];
    for (int warp = 1; warp < warps_of_block(); ++warp) result = combine(result, of_warp[warp]);
    __syncthreads();
    return result;
}

template <class T>
__device__ inline T block_sum(T value) {
    return block_reduce(value, [](T x, T y) { return x + y; });
}

template <class T>
__device__ inline T block_max(T value) {
    return block_reduce(value, [](T x, T y) { return x > y ? x : y; });
}

// values[k] turns into the sum of the values before it, and of itself where kInclusive; returns the sum of
// all.
template <bool kInclusive>
__device__ inline int scan_integers(int* values, int count) {
    __shared__ int of_warp[kMaxWarps];
    const int chunk = (count + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
    const int begin = min(static_cast<int>(threadIdx.x) * chunk, count);
    const int end = min(begin + chunk, count);
    __syncthreads();
    int sum = 0;
    for (int k = begin; k < end; ++k) sum += values[k];
    int inclusive = sum;
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const int other = __shfl_up_sync(kAllLanes, inclusive, distance);
        if (lane_of_warp() >= distance) inclusive += other;
    }
    if (lane_of_warp() == kWarp - 1) of_warp[warp_of_block()] = inclusive;
    __syncthreads();
    int before = inclusive - sum;
    int total = 0;
    for (int warp = 0; warp < warps_of_block(); ++warp) {
        if (warp < warp_of_block()) before += of_warp[warp];
        total += of_warp[warp];
    }
    for (int k = begin; k < end; ++k) {
        const int value = values[k];
        values[k] = before + (kInclusive ? value : 0);
        before += value;
    }
    __syncthreads();
    return total;
}

// How a thread's run of columns hangs together with those of its neighbours. A segment that starts inside a
// run cuts it: what is summed before the cut does not reach the columns after it.
struct SegmentLinks {
    int steps_before_start;  // columns before the first start in the own run; all of them if there is none
    int head;                // nearest lane of the warp, this one or before it, with a start; else 0
    int tail;                // nearest lane, this one or after it, with a start; else the last
    int from_warp;  // warps from_warp .. own - 1 reach this lane; own if a lane in between has a start
    int to_warp;    // the same for warps own + 1 .. to_warp in the reverse direction

    __device__ void build(int own_steps_before_start, int steps) {
        __shared__ int warp_has_start[kMaxWarps];
        steps_before_start = own_steps_before_start;
        const int lane = lane_of_warp();
        const int warp = warp_of_block();
        const unsigned starts = __ballot_sync(kAllLanes, own_steps_before_start < steps);
        const unsigned here_and_before = starts & (kAllLanes >> (kWarp - 1 - lane));
        const unsigned here_and_after = starts & (kAllLanes << lane);
        head = here_and_before == 0 ? 0 : kWarp - 1 - __clz(static_cast<int>(here_and_before));
        tail = here_and_after == 0 ? kWarp - 1 : __ffs(static_cast<int>(here_and_after)) - 1;
        if (lane == 0) warp_has_start[warp] = starts != 0;
        __syncthreads();
        from_warp = to_warp = warp;
        if ((here_and_before & ~(1u << lane)) == 0 && warp > 0) {
            --from_warp;
            while (from_warp > 0 && !warp_has_start[from_warp]) --from_warp;
        }
        if ((here_and_after & ~(1u << lane)) == 0 && warp + 1 < warps_of_block()) {
            ++to_warp;
            while (to_warp + 1 < warps_of_block() && !warp_has_start[to_warp]) ++to_warp;
        }
        __syncthreads();
    }
};

// What the columns before the own run add to it, up to its first start. `sum` is the thread's own sum since
// its last start. One barrier; `parity` alternates from call to call, so that none is needed afterwards.
template <class Number>
__device__ inline Number carry_from_before(const SegmentLinks& links, Number sum, int& parity) {
    __shared__ Number of_warp[2][kMaxWarps];
    const int lane = lane_of_warp();
    const int warp = warp_of_block();
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const Number other = shuffle_up(sum, distance);
        if (lane - distance >= links.head) sum = other + sum;
    }
    Number carry = shuffle_up(sum, 1);
    if (lane == 0) carry = Make<Number>::zero();
    if (lane == kWarp - 1) of_warp[parity][warp] = sum;
    __syncthreads();
    if (links.from_warp < warp) {
        Number before = of_warp[parity][links.from_warp];
        for (int w = links.from_warp + 1; w < warp; ++w) before = before + of_warp[parity][w];
        carry = before + carry;
    }
    parity ^= 1;
    return carry;
}

// The mirror image: what the columns after the own run add to its columns behind the last start. `sum` is the
// thread's own sum of the columns before its first start.
template <class Number>
__device__ inline Number carry_from_after(const SegmentLinks& links, Number sum, int& parity) {
    __shared__ Number of_warp[2][kMaxWarps];
    const int lane = lane_of_warp();
    const int warp = warp_of_block();
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const Number other = shuffle_down(sum, distance);
        if (lane + distance <= links.tail) sum = sum + other;
    }
    Number carry = shuffle_down(sum, 1);
    if (lane == kWarp - 1) carry = Make<Number>::zero();
    if (lane == 0) of_warp[parity][warp] = sum;
    __syncthreads();
    if (links.to_warp > warp) {
        Number after = of_warp[parity][links.to_warp];
        for (int w = links.to_warp - 1; w > warp; --w) after = of_warp[parity][w] + after;
        carry = carry + after;
    }
    parity ^= 1;
    return carry;
}

}  // namespace structloss::cuda
