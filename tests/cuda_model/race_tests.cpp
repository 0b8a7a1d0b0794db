// The race check itself: planted races are named with every seed, ordered accesses are let be.
#include <stdexcept>
#include <string>

#include "../kernels/check.h"
#include "common/cuda_device.cuh"
#include "cuda_model_tests.h"

namespace {

using namespace soho;

enum class Plant { kNothing, kRace };

template <Plant plant>
__global__ void hand_over_in_block(int* out) {
  __shared__ int values[96];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (plant == Plant::kNothing) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % 96];
}

// A shuffle brings the lanes together but orders no memory.
template <Plant plant>
__global__ void hand_over_in_warp(int* out) {
  int* values = reinterpret_cast<int*>(dynamic_shared());
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __shfl_sync(0xffffffffu, 1, 0);
  if (plant == Plant::kNothing) __syncwarp();
  out[threadIdx.x] = values[threadIdx.x ^ 1];
}

// Read, then overwritten by another lane.
template <Plant plant>
__global__ void overwrite(int* out) {
  out[32 + threadIdx.x] = out[threadIdx.x];
  if (plant == Plant::kNothing) __syncwarp(threadIdx.x < 16 ? 0xffffu : 0xffff0000u);
  out[threadIdx.x ^ 3] = 5;
}

template <Plant plant>
__global__ void load_tile(int* out) {
  uint16_t* tile = reinterpret_cast<uint16_t*>(dynamic_shared());
  copy_async_16(tile + 8 * threadIdx.x, reinterpret_cast<uint16_t*>(out) + 8 * threadIdx.x);
  copy_async_commit();
  copy_async_wait<0>();
  if (plant == Plant::kNothing) __syncwarp();
  uint32_t fragment[4];
  ldmatrix_x4(fragment, tile + 8 * ((threadIdx.x + 1) % 32));
}

template <Plant plant>
__global__ void count(int* out) {
  if (plant == Plant::kNothing)
    atomicAdd(out, 1);
  else
    *out += 1;
}

template <Plant plant>
__global__ void mix(int* out) {
  atomicAdd(out, 1);
  if (plant == Plant::kRace) out[64 + threadIdx.x] = *out;
}

void check(void (*correct)(int*), void (*planted)(int*), dim3 grid, dim3 block) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (const bool is_planted : {false, true}) {
      std::vector<int> memory(256);
      std::string text;
      soho_model::set_seed(seed);
      try {
        launch(is_planted ? planted : correct, grid, block, 1024, nullptr, memory.data());
      } catch (const std::runtime_error& error) {
        text = error.what();
      }
      CHECK(is_planted ? text.find("data race") != std::string::npos : text.empty());
      if (!is_planted && !text.empty()) std::printf("%s\n", text.c_str());
    }
  }
}

}  // namespace

void test_races() {
  check(hand_over_in_block<Plant::kNothing>, hand_over_in_block<Plant::kRace>, 1, 96);
  check(hand_over_in_warp<Plant::kNothing>, hand_over_in_warp<Plant::kRace>, 1, 32);
  check(overwrite<Plant::kNothing>, overwrite<Plant::kRace>, 1, 32);
  check(load_tile<Plant::kNothing>, load_tile<Plant::kRace>, 1, 32);
  check(count<Plant::kNothing>, count<Plant::kRace>, 1, 32);
  check(count<Plant::kNothing>, count<Plant::kRace>, 40, 1);  // between blocks
  check(mix<Plant::kNothing>, mix<Plant::kRace>, 1, 64);
}
