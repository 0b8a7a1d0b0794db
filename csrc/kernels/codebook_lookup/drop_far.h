// Candidates of a coarse screening against each other in float32, before float64 decides; of squared distances alone.
//
// The float32 distance, a sum of squared differences, has a small relative error: one rounding of each difference, at
// most C/8 + 8 roundings of sums, 2^-24 each. So a code whose distance exceeds the smallest by more than (C/8 + 12)
// 2^-22 of it is not the nearest. Where squares overflow or vanish nothing is dropped.
//
// Included by each vector level and compiled with its flags; see exact_distance.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>

namespace soho {
namespace {

#ifdef __AVX512F__
constexpr int64_t kFloatLanes = 16;
using FloatLanes = __m512;
inline FloatLanes load_floats(const float* values) { return _mm512_loadu_ps(values); }
inline FloatLanes no_floats() { return _mm512_setzero_ps(); }
inline FloatLanes add_square_of_difference(FloatLanes x, FloatLanes d, FloatLanes sum) {
  const __m512 difference = _mm512_sub_ps(x, d);
  return _mm512_fmadd_ps(difference, difference, sum);
}
inline __m256 halves_added(FloatLanes sum) {
  return _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
}
#else
constexpr int64_t kFloatLanes = 8;
using FloatLanes = __m256;
inline FloatLanes load_floats(const float* values) { return _mm256_loadu_ps(values); }
inline FloatLanes no_floats() { return _mm256_setzero_ps(); }
inline FloatLanes add_square_of_difference(FloatLanes x, FloatLanes d, FloatLanes sum) {
  const __m256 difference = _mm256_sub_ps(x, d);
  return _mm256_fmadd_ps(difference, difference, sum);
}
inline __m256 halves_added(FloatLanes sum) { return sum; }
#endif

inline float sum_of_floats(FloatLanes sum) {
  const __m256 eight = halves_added(sum);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Keeps of `count` ascending positions those that may be the nearest; returns how many. code_of(position) is a code of
// num_channels; distance has room for count + 3.
template <class CodeOf>
int32_t drop_far(const float* row, int64_t num_channels, int32_t count, int32_t* position, float* distance,
                 CodeOf code_of) {
  constexpr int kCodes = 4;
  constexpr float kOverflow = std::numeric_limits<float>::infinity();
  float smallest = kOverflow;
  for (int32_t first = 0; first < count; first += kCodes) {
    const float* codes[kCodes];
    for (int32_t k = 0; k < kCodes; ++k) codes[k] = code_of(position[first + k < count ? first + k : count - 1]);
    FloatLanes sum[kCodes] = {no_floats(), no_floats(), no_floats(), no_floats()};
    int64_t c = 0;
    for (; c + kFloatLanes <= num_channels; c += kFloatLanes) {
      const FloatLanes x = load_floats(row + c);
#pragma GCC unroll 4
      for (int k = 0; k < kCodes; ++k) sum[k] = add_square_of_difference(x, load_floats(codes[k] + c), sum[k]);
    }
    if (c < num_channels) {
      float last[kCodes + 1][kFloatLanes] = {};
      std::memcpy(last[kCodes], row + c, sizeof(float) * (num_channels - c));
      for (int k = 0; k < kCodes; ++k) {
        std::memcpy(last[k], codes[k] + c, sizeof(float) * (num_channels - c));
        sum[k] = add_square_of_difference(load_floats(last[kCodes]), load_floats(last[k]), sum[k]);
      }
    }
    for (int k = 0; k < kCodes; ++k) {
      distance[first + k] = sum_of_floats(sum[k]);
      smallest = distance[first + k] < smallest ? distance[first + k] : smallest;
    }
  }
  if (!(smallest > 0x1p-80f && smallest < kOverflow)) return count;
  const float limit = smallest * (1 + (static_cast<float>(num_channels) / 8 + 12) * 0x1p-22f);
  int32_t kept = 0;
  for (int32_t n = 0; n < count; ++n) {
    position[kept] = position[n];
    kept += distance[n] <= limit;
  }
  return kept;
}

}  // namespace
}  // namespace soho
