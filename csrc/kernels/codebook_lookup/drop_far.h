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

constexpr int kFloatCodes = 4;

// Float32 squared distances of one row to kFloatCodes codes.
inline void float_distances(const float* row, const float* const* codes, int64_t num_channels, float* distance) {
  FloatLanes sum[kFloatCodes] = {no_floats(), no_floats(), no_floats(), no_floats()};
  int64_t c = 0;
  for (; c + kFloatLanes <= num_channels; c += kFloatLanes) {
    const FloatLanes x = load_floats(row + c);
#pragma GCC unroll 4
    for (int k = 0; k < kFloatCodes; ++k) sum[k] = add_square_of_difference(x, load_floats(codes[k] + c), sum[k]);
  }
  if (c < num_channels) {
    float last[kFloatCodes + 1][kFloatLanes] = {};
    std::memcpy(last[kFloatCodes], row + c, sizeof(float) * (num_channels - c));
    for (int k = 0; k < kFloatCodes; ++k) {
      std::memcpy(last[k], codes[k] + c, sizeof(float) * (num_channels - c));
      sum[k] = add_square_of_difference(load_floats(last[kFloatCodes]), load_floats(last[k]), sum[k]);
    }
  }
  for (int k = 0; k < kFloatCodes; ++k) distance[k] = sum_of_floats(sum[k]);
}

// The same of one code, in chains that do not wait for each other.
inline float float_distance(const float* row, const float* code, int64_t num_channels) {
  FloatLanes sum[4] = {no_floats(), no_floats(), no_floats(), no_floats()};
  int64_t c = 0;
  for (; c + 4 * kFloatLanes <= num_channels; c += 4 * kFloatLanes) {
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const int64_t at = c + n * kFloatLanes;
      sum[n] = add_square_of_difference(load_floats(row + at), load_floats(code + at), sum[n]);
    }
  }
  for (; c + kFloatLanes <= num_channels; c += kFloatLanes)
    sum[0] = add_square_of_difference(load_floats(row + c), load_floats(code + c), sum[0]);
  if (c < num_channels) {
    float last[2][kFloatLanes] = {};
    std::memcpy(last[0], row + c, sizeof(float) * (num_channels - c));
    std::memcpy(last[1], code + c, sizeof(float) * (num_channels - c));
    sum[1] = add_square_of_difference(load_floats(last[0]), load_floats(last[1]), sum[1]);
  }
  return sum_of_floats((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Whether float32 distances of this size have the relative error above.
inline bool distance_is_relative(float distance) {
  return distance > 0x1p-80f && distance < std::numeric_limits<float>::infinity();
}

// No code farther than this is the nearest, in float32 distances.
inline float far_from(float smallest, int64_t num_channels) {
  return smallest * (1 + (static_cast<float>(num_channels) / 8 + 12) * 0x1p-22f);
}

// The same where squares may vanish, or overflow: then nothing is.
inline float float_limit(float smallest, int64_t num_channels) {
  const float limit = far_from(smallest, num_channels);
  return limit > 0x1p-78f ? limit : 0x1p-78f;
}

// Keeps of `count` ascending positions those that may be the nearest; returns how many. code_of(position) is a code of
// num_channels; distance has room for count + 3.
template <class CodeOf>
int32_t drop_far(const float* row, int64_t num_channels, int32_t count, int32_t* position, float* distance,
                 CodeOf code_of) {
  float smallest = std::numeric_limits<float>::infinity();
  for (int32_t first = 0; first < count; first += kFloatCodes) {
    const float* codes[kFloatCodes];
    for (int32_t k = 0; k < kFloatCodes; ++k) codes[k] = code_of(position[first + k < count ? first + k : count - 1]);
    float_distances(row, codes, num_channels, distance + first);
    for (int32_t k = 0; k < kFloatCodes; ++k)
      smallest = distance[first + k] < smallest ? distance[first + k] : smallest;
  }
  if (!distance_is_relative(smallest)) return count;
  const float limit = far_from(smallest, num_channels);
  int32_t kept = 0;
  for (int32_t n = 0; n < count; ++n) {
    position[kept] = position[n];
    kept += distance[n] <= limit;
  }
  return kept;
}

}  // namespace
}  // namespace soho
