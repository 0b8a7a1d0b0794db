// The model itself: planted mistakes show, and each instruction equals its plain computation.
#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "../kernels/check.h"
#include "common/cuda_device.cuh"
#include "common/element.h"
#include "cuda_model_tests.h"

namespace {

using namespace soho;

// Each thread reads what its neighbour wrote.
template <bool planted>
__global__ void turn_block(int* out) {
  __shared__ int values[96];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (!planted) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % 96];
}

template <bool planted>
__global__ void turn_warp(int* out) {
  int* values = reinterpret_cast<int*>(dynamic_shared());
  if (threadIdx.x % 2 == 0)  // a divergent write
    values[threadIdx.x] = values[threadIdx.x + 1] = static_cast<int>(threadIdx.x);
  if (!planted) __syncwarp();
  out[threadIdx.x] = values[(threadIdx.x + 2) % 32];
}

template <class Kernel, class Wanted>
int num_wrong_seeds(Kernel kernel, int num_threads, Wanted wanted) {
  int wrong = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    soho_model::set_seed(seed);
    std::vector<int> out(num_threads);
    launch(kernel, 1, num_threads, 128, nullptr, out.data());
    for (int t = 0; t < num_threads; ++t) {
      if (out[t] != wanted(t)) {
        ++wrong;
        break;
      }
    }
  }
  return wrong;
}

void test_missing_barriers_show() {
  const auto block_wanted = [](int t) { return (t + 1) % 96; };
  const auto warp_wanted = [](int t) { return (t + 2) % 32 / 2 * 2; };
  CHECK(num_wrong_seeds(turn_block<false>, 96, block_wanted) == 0);
  CHECK(num_wrong_seeds(turn_block<true>, 96, block_wanted) > 10);
  CHECK(num_wrong_seeds(turn_warp<false>, 32, warp_wanted) == 0);
  CHECK(num_wrong_seeds(turn_warp<true>, 32, warp_wanted) > 10);
}

// Loads A row by row and B column by column with ldmatrix, and multiplies.
__global__ void multiply(const uint16_t* a, const uint16_t* b, float* c) {
  __shared__ __align__(16) uint16_t left[16 * 16], right[8 * 32];  // of right, the second half is read and not used
  for (unsigned i = threadIdx.x; i < 256; i += 32) left[i] = a[i];
  for (unsigned i = threadIdx.x; i < 128; i += 32) right[i % 8 * 16 + i / 8] = b[i];
  __syncwarp();
  const unsigned lane = threadIdx.x;
  uint32_t fragment[4], columns[4];
  ldmatrix_x4(fragment, left + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x4(columns, right + lane % 8 * 16 + lane / 8 % 2 * 8);
  float sums[4];
  for (int part = 0; part < 4; ++part) sums[part] = c[(lane / 4 + part / 2 * 8) * 8 + lane % 4 * 2 + part % 2];
  mma_float16(sums, fragment, {columns[0], columns[1]});
  for (int part = 0; part < 4; ++part) c[(lane / 4 + part / 2 * 8) * 8 + lane % 4 * 2 + part % 2] = sums[part];
}

void test_multiply(bool small_integers) {
  std::mt19937 engine(3);
  std::set<std::vector<float>> seen;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    soho_model::set_seed(seed);
    std::vector<uint16_t> a(256), b(128);
    std::vector<float> c(128), start(128);
    engine.seed(3);
    const auto draw = [&] {
      const float value =
          small_integers ? static_cast<float>(engine() % 9) - 4 : std::normal_distribution<float>()(engine);
      return round_float16(value);
    };
    for (uint16_t& x : a) x = draw();
    for (uint16_t& x : b) x = draw();
    for (float& x : start) x = widen_float16(draw());
    c = start;
    launch(multiply, 1, 32, 0, nullptr, a.data(), b.data(), c.data());
    seen.insert(c);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        double exact = start[row * 8 + column], magnitude = std::fabs(exact);
        for (int k = 0; k < 16; ++k) {
          const double product = static_cast<double>(widen_float16(a[row * 16 + k])) * widen_float16(b[k * 8 + column]);
          exact += product;
          magnitude += std::fabs(product);
        }
        const double error = std::fabs(c[row * 8 + column] - exact);
        CHECK(error <= (small_integers ? 0.0 : 24 * 0x1p-23 * magnitude));
      }
    }
  }
  CHECK(small_integers ? seen.size() == 1 : seen.size() > 1);  // the rounding follows the seed
}

__global__ void copy_and_read(const int* global, int* out, int wait_for_them) {
  int* shared = reinterpret_cast<int*>(dynamic_shared());
  copy_async_16(shared + 4 * threadIdx.x, global + 4 * threadIdx.x, 12);
  copy_async_commit();
  copy_async_16(shared + 128 + 4 * threadIdx.x, global + 4 * threadIdx.x);
  copy_async_commit();
  if (wait_for_them == 2)
    copy_async_wait<0>();
  else if (wait_for_them == 1)
    copy_async_wait<1>();
  __syncthreads();
  const unsigned next = (threadIdx.x + 1) % 32;
  for (unsigned i = 0; i < 4; ++i) out[5 * threadIdx.x + i] = shared[4 * next + i];
  out[5 * threadIdx.x + 4] = shared[128 + 4 * next];
}

void test_copies() {
  std::vector<int> global(128), out(160);
  for (int i = 0; i < 128; ++i) global[i] = i + 1;
  for (int wait_for_them : {0, 1, 2}) {
    int wrong_first = 0, wrong_second = 0;
    for (uint64_t seed = 0; seed < 5; ++seed) {
      soho_model::set_seed(seed);
      launch(copy_and_read, 1, 32, 256 * sizeof(int), nullptr, global.data(), out.data(), wait_for_them);
      for (int t = 0; t < 32; ++t) {
        const int next = (t + 1) % 32;
        for (int i = 0; i < 4; ++i) wrong_first += out[5 * t + i] != (i < 3 ? 4 * next + i + 1 : 0);
        wrong_second += out[5 * t + 4] != 4 * next + 1;
      }
    }
    CHECK((wrong_first == 0) == (wait_for_them >= 1));
    CHECK((wrong_second == 0) == (wait_for_them == 2));
  }
}

}  // namespace

void test_model() {
  test_missing_barriers_show();
  for (bool small_integers : {true, false}) {
    test_multiply(small_integers);
  }
  test_copies();
}
