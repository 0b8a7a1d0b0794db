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
  return combined_lanes(v, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
}
#endif

}  // namespace
}  // namespace soho
