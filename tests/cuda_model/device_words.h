// CUDA's qualifiers, vector types and arithmetic.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local  // execution.cpp finds them where thread-local variables lie
#define __constant__ static const

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
SOHO_MODEL_VECTOR2(double2, double, 16)
SOHO_MODEL_VECTOR2(int2, int, 8)
SOHO_MODEL_VECTOR2(uint2, unsigned, 8)
SOHO_MODEL_VECTOR4(float4, float, 16)
SOHO_MODEL_VECTOR4(int4, int, 16)
SOHO_MODEL_VECTOR4(uint4, unsigned, 16)
SOHO_MODEL_VECTOR2(longlong2, long long, 16)
SOHO_MODEL_VECTOR2(ulonglong2, unsigned long long, 16)
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
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __ffsll(long long x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1; }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
  return reversed;
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }

// Compiled with -ffp-contract=off, each rounds once.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }

// Rounded up. The exact value is in reach: a product of floats and the sign of a rounding error fit a double.
inline float __double2float_ru(double a) {
  const float nearest = static_cast<float>(a);
  return static_cast<double>(nearest) < a ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
}
inline float __fmul_ru(float a, float b) { return __double2float_ru(static_cast<double>(a) * b); }
inline float __fadd_ru(float a, float b) {
  const float sum = a + b;
  const double left = static_cast<double>(a) - sum;  // both lie close or one is negligible: its sign with b is exact
  return std::isfinite(sum) && left + b > 0 ? std::nextafter(sum, std::numeric_limits<float>::infinity()) : sum;
}
inline float __fsqrt_ru(float a) {
  const float root = std::sqrt(a);
  return static_cast<double>(root) * root < a ? std::nextafter(root, std::numeric_limits<float>::infinity()) : root;
}

inline long long __double2ll_rd(double value) {  // saturates
  const double whole = std::floor(value);
  if (!(whole >= -0x1p63)) return std::numeric_limits<long long>::min();
  return whole >= 0x1p63 ? std::numeric_limits<long long>::max() : static_cast<long long>(whole);
}

namespace soho {

inline float widen_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

inline uint16_t round_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = __float_as_uint(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

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

inline uint32_t round_bfloat16_pair(float low, float high) {
  return round_bfloat16(low) | uint32_t{round_bfloat16(high)} << 16;
}
inline uint32_t round_float16_pair(float low, float high) {
  return round_float16(low) | uint32_t{round_float16(high)} << 16;
}

}  // namespace soho
