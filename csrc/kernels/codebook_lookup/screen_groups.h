// The frame of a screening pass over few channels, where looking through scores costs more than computing them: the
// highest score of each group of codes for a panel of rows, then a second look at the groups that reach a row's
// threshold. Rows are started anew, whatever an earlier pass has found. Not for topk: one group may hold several of the
// nearest codes.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. A Kernel provides, beside what
// screen.h asks for,
//   static void highest(rows, row_length, screened, group, out)   the highest score of a group, per row
//   static void look(row, screened, group, out)                   the scores of one row, per code
//   static void add(list, threshold, scores, first_position)      those that reach the row's threshold to its list
#pragma once

#include "kernels/codebook_lookup/screen.h"

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

template <class Kernel>
LookupCounts screen_groups(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kRows = Kernel::kRows;
  static_assert(kGroupRows % kRows == 0 && kGroupRows <= kMaxPanelRows);
  const int64_t most_groups = screened.num_groups < kGroupsPerChunk ? screened.num_groups : kGroupsPerChunk;
  const Scratch highest_memory(sizeof(float) * (most_groups * kGroupRows + kListSlack));
  float* highest = static_cast<float*>(highest_memory.data());
  return screen_panels<Kernel>(args, screened, begin, end, kGroupRows, [&](Panel& panel) {
    alignas(64) float best[kGroupRows], scores[Kernel::kCodes];
    const int64_t num_rows = panel.num_rows, num_padded = panel.num_padded, row_length = panel.row_length;
    const float* words = panel.words;
    float* threshold = panel.threshold;
    Candidates* lists = panel.lists;
    for (int64_t r = 0; r < num_rows; ++r) {
      lists[r].first = lists[r].count = 0;
      lists[r].has_nearest = false;
    }
    for (int64_t chunk = 0; chunk < screened.num_groups; chunk += most_groups) {
      const int64_t num_groups = screened.num_groups - chunk < most_groups ? screened.num_groups - chunk : most_groups;
      for (int64_t g = 0; g < num_groups; ++g) {
        for (int64_t r = 0; r < num_padded; r += kRows)
          Kernel::highest(words + r * row_length, row_length, screened, chunk + g, highest + g * kGroupRows + r);
      }
      for (int64_t r = 0; r < num_padded; ++r) best[r] = -kInfinity;
      for (int64_t g = 0; g < num_groups; ++g) {
        for (int64_t r = 0; r < num_padded; ++r) {
          const float value = highest[g * kGroupRows + r];
          best[r] = value > best[r] ? value : best[r];
        }
      }
      for (int64_t r = 0; r < num_rows; ++r) {
        if (lists[r].state != kListed || !(best[r] > lists[r].best)) continue;
        lists[r].best = best[r];
        threshold[r] = best[r] - lists[r].window;
      }
      for (int64_t g = 0; g < num_groups; ++g) {
        for (int64_t first = 0; first < num_padded; first += kFloatLanes) {
          uint32_t hits = rows_reaching(highest + g * kGroupRows + first, threshold + first);
          for (; hits != 0; hits &= hits - 1) {
            const int64_t r = first + __builtin_ctz(hits);
            if (r >= num_rows) break;
            Kernel::look(words + r * row_length, screened, chunk + g, scores);
            Kernel::add(lists[r], threshold[r], scores, static_cast<int32_t>((chunk + g) * Kernel::kCodes));
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace soho
