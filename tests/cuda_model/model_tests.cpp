// The model itself: planted mistakes show, and each instruction equals its plain computation.
#include <cmath>
#include <random>
#include <set>
#include <stdexcept>
#include <string>

#include "../kernels/check.h"
#include "common/cuda_device.cuh"
#include "common/element.h"
#include "cuda_model_tests.h"

namespace {

using namespace soho;

// What the launch says, or "".
template <class... Parameters, class... Args>
std::string complaint(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  try {
    launch(kernel, grid, block, shared_bytes, nullptr, args...);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

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

__global__ void ends_before_the_barrier() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void waits_at_two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void leaves_a_lane_out() {
  if (threadIdx.x != 3) __shfl_sync(0xffffffffu, 1, 0);
}

__global__ void disagrees() {
  if (threadIdx.x < 16) {
    __ballot_sync(0xffffffffu, 1);
  } else {
    __syncwarp();
  }
}

__global__ void masks_itself_out() { __syncwarp(0xfffffffeu); }

__global__ void loads_misaligned() {
  uint32_t out[4];
  ldmatrix_x4(out, dynamic_shared() + 2);
}

__global__ void multiplies_with_half_a_warp() {
  float c[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 16) mma_float16(c, a, b);
}

__global__ void copies_misaligned(const char* global) { copy_async_16(dynamic_shared(), global + 4); }

void test_divergence_is_named() {
  const std::string ended = complaint(ends_before_the_barrier, 1, 64, 0);
  CHECK(has(ended, "block (0, 0, 0): no thread can go on: ") && has(ended, "1 threads (the first is 5) ended") &&
        has(ended, "63 threads (the first is 0) wait at __syncthreads model_tests.cpp:"));
  const std::string two = complaint(waits_at_two_barriers, 1, 64, 0);
  CHECK(has(two, "32 threads (the first is 0) wait") && has(two, "32 threads (the first is 32) wait"));
  CHECK(has(complaint(leaves_a_lane_out, 1, 32, 0), "31 threads (the first is 0) wait at __shfl_sync"));
  CHECK(has(complaint(disagrees, 1, 32, 0), "lanes of a warp disagree"));
  CHECK(has(complaint(masks_itself_out, 1, 32, 0), "the mask leaves out the calling lane"));
  CHECK(has(complaint(loads_misaligned, 1, 32, 1024), "no multiple of 16"));
  CHECK(has(complaint(multiplies_with_half_a_warp, 1, 16, 0), "needs the 32 lanes"));
  alignas(16) const char bytes[32] = {};
  CHECK(has(complaint(copies_misaligned, 1, 1, 16, bytes), "no multiple of 16"));
  CHECK(has(complaint(masks_itself_out, 1, 2048, 0), "1 to 1024 threads"));
  CHECK(complaint(ends_before_the_barrier, 1, 4, 0).empty());  // and the model goes on after an error
}

struct WarpResults {
  int shuffled, up, turned;
  unsigned ballot, same;
  int any, all;
};

__global__ void use_warp_words(WarpResults* out) {
  const int lane = static_cast<int>(threadIdx.x % 32), value = lane * lane % 7;
  const unsigned all = 0xffffffffu;
  WarpResults& r = out[threadIdx.x];
  r.shuffled = __shfl_sync(all, value, lane + 3, 8);
  r.up = __shfl_up_sync(all, value, 2);
  r.turned = __shfl_xor_sync(all, value, 5);
  r.ballot = __ballot_sync(all, value > 2);
  r.same = __match_any_sync(all, value);
  r.any = __any_sync(all, value == 4);
  r.all = __all_sync(all, value < 7);
  if (lane < 8) r.any += __any_sync(0xffu, lane > 7);
}

void test_warp_words() {
  std::vector<WarpResults> out(64);
  launch(use_warp_words, 1, 64, 0, nullptr, out.data());
  const auto value = [](int lane) { return lane * lane % 7; };
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32;
    unsigned ballot = 0, same = 0;
    for (int other = 0; other < 32; ++other) {
      ballot |= unsigned{value(other) > 2} << other;
      same |= unsigned{value(other) == value(lane)} << other;
    }
    const WarpResults& r = out[t];
    CHECK(r.shuffled == value(lane / 8 * 8 + (lane + 3) % 8));
    CHECK(r.up == value(lane < 2 ? lane : lane - 2) && r.turned == value(lane ^ 5));
    CHECK(r.ballot == ballot && r.same == same && r.any == 1 && r.all == 1);
  }
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

__global__ void count_blocks(unsigned* order, unsigned* next) {
  if (threadIdx.x == 0 && threadIdx.y == 0) order[atomicAdd(next, 1)] = blockIdx.x + gridDim.x * blockIdx.y;
}

void test_blocks_and_atomics() {
  std::vector<unsigned> order(12);
  unsigned next = 0;
  soho_model::set_seed(1);
  launch(count_blocks, dim3(4, 3), dim3(8, 4), 0, nullptr, order.data(), &next);
  CHECK(next == 12);
  CHECK(std::set<unsigned>(order.begin(), order.end()).size() == 12);
  CHECK(!std::is_sorted(order.begin(), order.end()));
}

void test_conversions() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float brain = widen_bfloat16(half), narrow = widen_float16(half);
    CHECK(std::isnan(brain) || round_bfloat16(brain) == half);
    CHECK(std::isnan(narrow) || round_float16(narrow) == half);
    CHECK(std::isnan(narrow) ? std::isnan(float16_to_float(half)) : narrow == float16_to_float(half));
  }
  CHECK(round_float16(65519.0f) == 0x7bff && round_float16(65520.0f) == 0x7c00);
  CHECK(round_float16(0x1p-25f) == 0 && round_float16(0x1.8p-25f) == 1 && round_float16(2049.0f) == 0x6800);
  CHECK(round_bfloat16(1.0f + 0x1p-8f) == 0x3f80 && round_bfloat16(1.0f + 0x1.8p-8f) == 0x3f81);
}

}  // namespace

void test_model() {
  test_missing_barriers_show();
  test_divergence_is_named();
  test_warp_words();
  for (bool small_integers : {true, false}) {
    test_multiply(small_integers);
  }
  test_copies();
  test_blocks_and_atomics();
  test_conversions();
}
