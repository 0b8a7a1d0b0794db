// Candidates of a coarse screening against each other in float32, before float64 decides; of squared distances alone.
//
// The float32 distance, a sum of squared differences, has a small relative error: one rounding of each difference, at
// most C/8 + 8 roundings of sums, 2^-24 each. So a code whose distance exceeds the smallest by more than (C/8 + 12)
// 2^-22 of it is not the nearest. Where squares overflow or vanish nothing is dropped.
//
// Included by each vector level and compiled with its flags; see exact_distance.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "common/vectors.h"
#include "kernels/codebook_lookup/passes.h"

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
constexpr int kFloatRows = kFloatLanes / kFloatCodes;  // of a tile with as many codes

// The first `count` of kFloatLanes values, and zeros.
inline FloatLanes load_some_floats(const float* values, int64_t count) {
  if (count >= kFloatLanes) return load_floats(values);
#ifdef __AVX512F__
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), values);
#elif defined(__aarch64__)
  float some[kFloatLanes] = {};
  std::memcpy(some, values, sizeof(float) * count);
  return load_floats(some);
#else
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(values, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
#endif
}

#ifdef __AVX512F__
// Of each of 16 vectors what `combine` makes of its lanes.
template <class Combine>
[[gnu::always_inline]] inline __m512 combined_lanes(const __m512 (&v)[16], Combine combine) {
  __m512 pair[8], four[4], eight[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pair[i] = combine(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    four[i] = combine(_mm512_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0x44),
                      _mm512_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0xee));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    eight[i] = combine(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                       _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
  return combine(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88), _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd));
}

inline FloatLanes sums_of_floats(const FloatLanes (&v)[kFloatLanes]) {
  return combined_lanes(v, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}

inline uint32_t lanes_within(FloatLanes values, const float* limits) {
  return _mm512_cmp_ps_mask(values, load_floats(limits), _CMP_LE_OQ);
}
inline void store_floats(float* target, FloatLanes values) { _mm512_storeu_ps(target, values); }
#else
inline FloatLanes sums_of_floats(const FloatLanes (&v)[kFloatLanes]) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

inline uint32_t lanes_within(FloatLanes values, const float* limits) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(values, load_floats(limits), _CMP_LE_OQ)));
}
inline void store_floats(float* target, FloatLanes values) { _mm256_storeu_ps(target, values); }
#endif

// Float32 squared distances of kFloatRows adjacent rows to kFloatCodes codes, those of a row side by side.
inline FloatLanes tile_distances(const float* rows, const float* const* codes, int64_t num_channels) {
  FloatLanes sum[kFloatLanes];
#pragma GCC unroll 16
  for (int n = 0; n < kFloatLanes; ++n) sum[n] = no_floats();
  for (int64_t c = 0; c < num_channels; c += kFloatLanes) {
    const int64_t left = num_channels - c;
    FloatLanes code[kFloatCodes];
#pragma GCC unroll 4
    for (int k = 0; k < kFloatCodes; ++k) code[k] = load_some_floats(codes[k] + c, left);
#pragma GCC unroll 4
    for (int r = 0; r < kFloatRows; ++r) {
      const FloatLanes x = load_some_floats(rows + r * num_channels + c, left);
#pragma GCC unroll 4
      for (int k = 0; k < kFloatCodes; ++k)
        sum[r * kFloatCodes + k] = add_square_of_difference(x, code[k], sum[r * kFloatCodes + k]);
    }
  }
  return sums_of_floats(sum);
}

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
    const FloatLanes x = load_some_floats(row + c, num_channels - c);
    for (int k = 0; k < kFloatCodes; ++k)
      sum[k] = add_square_of_difference(x, load_some_floats(codes[k] + c, num_channels - c), sum[k]);
  }
  for (int k = 0; k < kFloatCodes; ++k) distance[k] = sum_of_floats(sum[k]);
}

// The squared differences of a row and a code, summed lane by lane in chains that do not wait for each other.
inline FloatLanes squares_of_differences(const float* row, const float* code, int64_t num_channels) {
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
    const int64_t left = num_channels - c;
    sum[1] = add_square_of_difference(load_some_floats(row + c, left), load_some_floats(code + c, left), sum[1]);
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The float32 squared distance of one row to one code.
inline float float_distance(const float* row, const float* code, int64_t num_channels) {
  return sum_of_floats(squares_of_differences(row, code, num_channels));
}

// Codes as long as this are read in turn where they lie one behind the other: a processor reads memory ahead along one
// place of a page, not along four.
constexpr int64_t kLongCode = 8 * kFloatLanes;

// float_distances to adjacent codes.
inline void adjacent_distances(const float* row, const float* const* codes, int64_t num_channels, float* distance) {
  if (num_channels < kLongCode) return float_distances(row, codes, num_channels, distance);
  __m256 sum[kFloatCodes];
#pragma GCC unroll 4
  for (int k = 0; k < kFloatCodes; ++k) sum[k] = halves_added(squares_of_differences(row, codes[k], num_channels));
  const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
  _mm_storeu_ps(distance, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
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

// The `wanted` smallest distances so far, the smallest first.
struct SmallestDistances {
  int64_t wanted;
  float values[kMostNearest];

  explicit SmallestDistances(int64_t number) : wanted(number) {
    for (float& value : values) value = std::numeric_limits<float>::infinity();
  }
  float last() const { return values[wanted - 1]; }
  void add(float distance) {
    if (!(distance < last())) return;
    int64_t n = wanted - 1;
    for (; n > 0 && distance < values[n - 1]; --n) values[n] = values[n - 1];
    values[n] = distance;
  }
};

// Keeps of `count` ascending positions those that may be among the `wanted` nearest; returns how many.
// code_of(position) is a code of num_channels; distance has room for count + 3.
template <class CodeOf>
int32_t drop_far(const float* row, int64_t num_channels, int64_t wanted, int32_t count, int32_t* position,
                 float* distance, CodeOf code_of) {
  SmallestDistances smallest(wanted);
  for (int32_t first = 0; first < count; first += kFloatCodes) {
    const float* codes[kFloatCodes];
    for (int32_t k = 0; k < kFloatCodes; ++k) codes[k] = code_of(position[first + k < count ? first + k : count - 1]);
    float_distances(row, codes, num_channels, distance + first);
    for (int32_t k = 0; k < kFloatCodes && first + k < count; ++k) smallest.add(distance[first + k]);
  }
  if (!distance_is_relative(smallest.last())) return count;
  const float limit = far_from(smallest.last(), num_channels);
  int32_t kept = 0;
  for (int32_t n = 0; n < count; ++n) {
    position[kept] = position[n];
    kept += distance[n] <= limit;
  }
  return kept;
}

}  // namespace
}  // namespace soho
