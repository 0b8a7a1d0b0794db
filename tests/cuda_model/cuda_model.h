// The CUDA execution model on a CPU: what common/cuda_device.cuh is replaced by when a .cu file is compiled by a C++
// compiler. It has the words of CUDA that the kernels use, and no others. A thread is a fiber, a block runs alone, its
// threads in a random order that the seed fixes.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

#include "common/cuda_status.h"
#include "copies.h"
#include "execution.h"
#include "races.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local  // execution.cpp finds them where thread-local variables lie

#define SOHO_MODEL_VECTOR2(name, type, bytes) \
  struct alignas(bytes) name {                \
    type x, y;                                \
  };                                          \
  inline name make_##name(type x, type y) { return {x, y}; }
#define SOHO_MODEL_VECTOR4(name, type, bytes) \
  struct alignas(bytes) name {                \
    type x, y, z, w;                          \
  };                                          \
  inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
SOHO_MODEL_VECTOR2(float2, float, 8)
SOHO_MODEL_VECTOR2(uint2, unsigned, 8)
SOHO_MODEL_VECTOR4(float4, float, 16)
SOHO_MODEL_VECTOR4(uint4, unsigned, 16)
#undef SOHO_MODEL_VECTOR2
#undef SOHO_MODEL_VECTOR4

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(static_cast<T>(a), static_cast<T>(b));  // of a number and NaN the number
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }

namespace soho_model {

inline int64_t float64_products = 0;                  // by __dmul_rn
inline int shared_bytes_of_multiprocessor = 1 << 17;  // as a test sets it
inline size_t largest_shared_bytes = 0;               // dynamic, of a block of any launch

}  // namespace soho_model

// Compiled with -ffp-contract=off, each rounds once.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline double __dsub_rn(double a, double b) { return a - b; }
__attribute__((no_sanitize("thread"))) inline double __dmul_rn(double a, double b) {  // the count is not the kernel's
  ++soho_model::float64_products;
  return a * b;
}

inline long long __double2ll_rd(double value) {  // saturates
  const double whole = std::floor(value);
  if (!(whole >= -0x1p63)) return std::numeric_limits<long long>::min();
  return whole >= 0x1p63 ? std::numeric_limits<long long>::max() : static_cast<long long>(whole);
}

// Past the first cache.
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}

// Atomics.
namespace soho_model {

// Threads take turns in no particular order at an atomic.
template <class T, class Change>
__attribute__((no_sanitize("thread"))) T change(T* p, Change next) {
  pass_turn();
  report(thread_rank(), p, sizeof(T), Access::kAtomic);
  const T before = *p;
  *p = next(before);
  return before;
}

template <class T>
using Operand = std::type_identity_t<T>;

}  // namespace soho_model

template <class T>
T atomicAdd(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicMin(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return std::min(old, v); });
}
template <class T>
T atomicMax(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return std::max(old, v); });
}
template <class T>
T atomicCAS(T* p, soho_model::Operand<T> expected, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return old == expected ? v : old; });
}

inline void __syncthreads(soho_model::Site site = soho_model::Site::current()) { soho_model::meet_in_block(site); }

// What a warp does together.
namespace soho_model {

inline unsigned lane_id() { return thread_rank() % kWarpSize; }

// Each lane brings a value and takes one made of all; Make(mask, values, lane).
template <class T, class R, class Make>
R exchange(const char* call, uint32_t mask, T value, Site site, Make make) {
  struct Brought {
    T value;
    R result;
    Make make;
  } brought{value, R{}, make};
  meet_in_warp(
      call, mask, &brought,
      [](uint32_t present, void* const* all) {
        T values[kWarpSize]{};
        for (unsigned lane = 0; lane < kWarpSize; ++lane) {
          if (present >> lane & 1) values[lane] = static_cast<Brought*>(all[lane])->value;
        }
        for (unsigned lane = 0; lane < kWarpSize; ++lane) {
          if (present >> lane & 1) {
            Brought& own = *static_cast<Brought*>(all[lane]);
            own.result = own.make(present, values, lane);
          }
        }
      },
      site);
  return brought.result;
}

// What a shuffle reads from a lane that takes no part is undefined: another value each time.
template <class T>
T shuffled(uint32_t present, const T* values, unsigned lane, int source, unsigned width) {
  const unsigned first = lane & ~(width - 1);
  if (source < static_cast<int>(first) || source >= static_cast<int>(first + width)) return values[lane];
  if (present >> source & 1) return values[source];
  const uint64_t garbage = random_bits();
  T value;
  std::memcpy(&value, &garbage, sizeof(T));
  return value;
}

}  // namespace soho_model

inline void __syncwarp(unsigned mask = 0xffffffffu, soho_model::Site site = soho_model::Site::current()) {
  soho_model::meet_in_warp("__syncwarp", mask, nullptr, nullptr, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, T>("__shfl_sync", mask, value, site,
                                    [=](uint32_t present, const T* values, unsigned lane) {
                                      const unsigned from = (lane & ~(width - 1)) | (source & (width - 1));
                                      return soho_model::shuffled(present, values, lane, from, width);
                                    });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, T>("__shfl_up_sync", mask, value, site,
                                    [=](uint32_t present, const T* values, unsigned lane) {
                                      return soho_model::shuffled(present, values, lane, lane - delta, width);
                                    });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, T>("__shfl_xor_sync", mask, value, site,
                                    [=](uint32_t present, const T* values, unsigned lane) {
                                      return soho_model::shuffled(present, values, lane, lane ^ lanes, width);
                                    });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<int, unsigned>("__ballot_sync", mask, predicate, site,
                                             [](uint32_t present, const int* values, unsigned) {
                                               unsigned votes = 0;
                                               for (unsigned lane = 0; lane < 32; ++lane)
                                                 votes |= unsigned{(present >> lane & 1) && values[lane]} << lane;
                                               return votes;
                                             });
}
inline int __any_sync(unsigned mask, int predicate, soho_model::Site site = soho_model::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, soho_model::Site site = soho_model::Site::current()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, unsigned>(
      "__match_any_sync", mask, value, site, [](uint32_t present, const T* values, unsigned own) {
        unsigned same = 0;
        for (unsigned lane = 0; lane < 32; ++lane)
          same |= unsigned{(present >> lane & 1) && values[lane] == values[own]} << lane;
        return same;
      });
}

namespace soho_model {

// c + the sum of 16 exact products, as one of several machines makes it; see matrix.cpp.
float add_products(float c, const double (&products)[16]);

void multiply_fragments(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site);
void load_fragments(uint32_t (&out)[4], const void* row, const Site& site);

}  // namespace soho_model

namespace soho {

inline float widen_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

inline float widen_float16(uint16_t bits) {
  const float magnitude =
      (bits & 0x7c00u) == 0x7c00u
          ? __uint_as_float(0x7f800000u | uint32_t{bits & 0x3ffu} << 13)
          : std::ldexp(static_cast<float>((bits & 0x7c00u) == 0 ? bits & 0x3ffu : (bits & 0x3ffu) | 0x400u),
                       std::max((bits >> 10 & 0x1f), 1) - 25);
  return bits & 0x8000u ? -magnitude : magnitude;
}

inline uint16_t round_float16(float value) {
  const uint16_t sign = static_cast<uint16_t>(__float_as_uint(value) >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00u;
  if (magnitude == 0) return sign;
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude < 2^exponent
  const int step = std::max(exponent - 11, -24);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -step)));  // at most 2^11
  return static_cast<uint16_t>(sign | (units + (static_cast<uint32_t>(step + 24) << 10)));
}

inline void mma_float16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        soho_model::Site site = soho_model::Site::current()) {
  soho_model::multiply_fragments(c, a, b, site);
}
inline void ldmatrix_x4(uint32_t (&out)[4], const void* shared_row,
                        soho_model::Site site = soho_model::Site::current()) {
  soho_model::load_fragments(out, shared_row, site);
}

inline unsigned char* dynamic_shared() { return soho_model::block_memory(); }

inline void copy_async_16(void* shared, const void* global, int num_bytes = 16) {
  soho_model::start_copy(shared, global, 16, num_bytes);
}
inline void copy_async_commit() { soho_model::commit_copies(); }
template <int pending>
void copy_async_wait() {
  soho_model::wait_for_copies(pending);
}

template <class... Parameters, class... Args>
CudaStatus launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, CudaStream, Args... args) {
  soho_model::largest_shared_bytes = std::max(soho_model::largest_shared_bytes, shared_bytes);
  const std::tuple<Parameters...> parameters(static_cast<Parameters>(args)...);
  soho_model::run_grid(grid, block, shared_bytes, [&] { std::apply(kernel, parameters); });
  return 0;
}

inline CudaStatus clear(void* memory, int byte, size_t num_bytes, CudaStream) {
  if (num_bytes > 0) std::memset(memory, byte, num_bytes);
  return 0;
}

inline int num_multiprocessors() { return 3; }
inline int shared_bytes_of_multiprocessor() { return soho_model::shared_bytes_of_multiprocessor; }

}  // namespace soho
