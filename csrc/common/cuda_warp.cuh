// What the threads of a warp, and the warps of a block, do together.
#pragma once

#include "common/cuda_device.cuh"

namespace soho {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Of `num_lanes` (a power of two) adjacent lanes, in each of them. All lanes of the warp take part.
template <class T>
__device__ __forceinline__ T warp_sum(T value, int num_lanes = kWarp) {
  for (int step = num_lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
__device__ __forceinline__ float warp_max(float value, int num_lanes = kWarp) {
  for (int step = num_lanes / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// The sum of the values of the threads before this one in a block of one dimension, and of all of them. All threads
// take part; `sums` is in shared memory, and a second call with it needs a barrier in between.
template <int num_warps, class T>
__device__ __forceinline__ T block_prefix_sum(T value, T (&sums)[num_warps], T& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  T sum = value;  // of this lane and those before
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  T before = sum - value;
  total = 0;
  for (int w = 0; w < num_warps; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return before;
}

}  // namespace
}  // namespace soho
