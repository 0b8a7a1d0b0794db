// What passes share that keep the highest score of each group of codes for a panel of rows.
//
// Included by each vector level and compiled with its flags; see exact_distance.h.
#pragma once

#include "kernels/codebook_lookup/drop_far.h"

namespace soho {
namespace {

constexpr int64_t kGroupRows = 168;       // of a panel: a multiple of 14 and of 6
constexpr int64_t kGroupsPerChunk = 256;  // whose highest scores are kept at a time

// Which of kFloatLanes adjacent values reach the limits.
inline uint32_t rows_reaching(const float* values, const float* limits) {
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_loadu_ps(limits), _CMP_GE_OQ);
#else
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values), _mm256_loadu_ps(limits), _CMP_GE_OQ)));
#endif
}

#ifdef __AVX512F__
// The largest of each of 16 vectors.
inline __m512 largest_of_each(const __m512 (&v)[16]) {
  __m512 pair[8], four[4], eight[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pair[i] = _mm512_max_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    four[i] = _mm512_max_ps(_mm512_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0x44),
                            _mm512_shuffle_ps(pair[2 * i], pair[2 * i + 1], 0xee));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    eight[i] = _mm512_max_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
  return _mm512_max_ps(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88), _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd));
}
#endif

}  // namespace
}  // namespace soho
