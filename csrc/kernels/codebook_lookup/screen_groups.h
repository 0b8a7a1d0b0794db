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

#include <type_traits>

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
[[gnu::always_inline]] inline __m512 largest_of_each(const __m512 (&v)[16]) {
  return combined_lanes(v, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
}
#endif

// Of codes in tiers: bounds for the rows of a panel. Their thresholds and lists are measured by that of the first tier.
struct RowBounds {
  alignas(64) float square[kGroupRows], length[kGroupRows], lost[kGroupRows], first[kGroupRows];
  alignas(64) float shift_of[kGroupRows], limit[kGroupRows + kListSlack];

  void set(const Panel& panel) {
    for (int64_t r = 0; r < kGroupRows + kListSlack; ++r) limit[r] = kInfinity;
    const ScoreBound& bound = panel.lists[0].comparison->bounds[0];
    for (int64_t r = 0; r < panel.num_rows; ++r) {
      square[r] = panel.lengths[r].square;
      length[r] = std::sqrt(square[r]) * (1 + 0x1p-22f);
      lost[r] = std::sqrt(panel.lengths[r].rounding_square) * (1 + 0x1p-22f);
      first[r] = at(bound, r);
      panel.lists[r].best = kInfinity;  // what a tier's scores say of the best is said by raise()
    }
  }

  float at(const ScoreBound& bound, int64_t r) const {
    constexpr double kUp = 1 + 0x1p-20;
    return static_cast<float>(bound.constant * kUp) + static_cast<float>(bound.per_length * kUp) * length[r] +
           static_cast<float>(bound.per_square * kUp) * square[r] + static_cast<float>(bound.per_loss * kUp) * lost[r];
  }

  // By the highest scores of a tier.
  void raise(const ScoreBound& bound, const float* best, int64_t num_rows, float* threshold) const {
    for (int64_t r = 0; r < num_rows; ++r) {
      const float value = best[r] - at(bound, r) - first[r], low = value - 0x1p-21f * std::abs(best[r]);
      threshold[r] = low > threshold[r] ? low : threshold[r];
    }
  }

  // What a tier's scores have to reach.
  const float* limits(const ScoreBound& bound, const float* threshold, int64_t num_rows) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const float own = at(bound, r), shift = own - first[r], slack = 0x1p-21f * (std::abs(threshold[r]) + own);
      limit[r] = threshold[r] - shift - slack;
      shift_of[r] = shift + (slack < kInfinity ? slack : 0.0f);
    }
    return limit;
  }

  void shift(int64_t r, float* scores, int64_t num_scores) const {
    for (int64_t k = 0; k < num_scores; ++k) scores[k] += shift_of[r];
  }
};

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
    const auto screen = [&]<bool kHasTiers>(std::bool_constant<kHasTiers>) {
      RowBounds bounds;
      if constexpr (kHasTiers) bounds.set(panel);
      for (int64_t chunk = 0; chunk < screened.num_groups; chunk += most_groups) {
        const int64_t left = screened.num_groups - chunk, num_groups = left < most_groups ? left : most_groups;
        // Calls work(tier, begin, end) for the groups of each tier.
        const auto for_tiers = [&](auto work) {
          if constexpr (!kHasTiers) return work(0, 0, num_groups);
          int64_t begin_group = 0;
          for (int64_t tier = 0; begin_group < num_groups; ++tier) {
            const int64_t end_group = screened.tiers[tier].end_group - chunk;
            if (end_group <= begin_group) continue;
            panel.set_unit(screened, tier);
            work(tier, begin_group, end_group < num_groups ? end_group : num_groups);
            begin_group = end_group;
          }
        };
        for_tiers([&](int64_t tier, int64_t begin_group, int64_t end_group) {
          for (int64_t g = begin_group; g < end_group; ++g) {
            for (int64_t r = 0; r < num_padded; r += kRows)
              Kernel::highest(words + r * row_length, row_length, screened, chunk + g, highest + g * kGroupRows + r);
          }
          for (int64_t r = 0; r < num_padded; ++r) best[r] = -kInfinity;
          for (int64_t g = begin_group; g < end_group; ++g) {
            for (int64_t r = 0; r < num_padded; ++r) {
              const float value = highest[g * kGroupRows + r];
              best[r] = value > best[r] ? value : best[r];
            }
          }
          if constexpr (kHasTiers) return bounds.raise(lists[0].comparison->bounds[tier], best, num_rows, threshold);
          for (int64_t r = 0; r < num_rows; ++r) {
            if (lists[r].state != kListed || !(best[r] > lists[r].best)) continue;
            lists[r].best = best[r];
            threshold[r] = best[r] - lists[r].window;
          }
        });
        for_tiers([&](int64_t tier, int64_t begin_group, int64_t end_group) {
          const float* limit = threshold;
          if constexpr (kHasTiers) limit = bounds.limits(lists[0].comparison->bounds[tier], threshold, num_rows);
          for (int64_t g = begin_group; g < end_group; ++g) {
            for (int64_t first = 0; first < num_padded; first += kFloatLanes) {
              uint32_t hits = rows_reaching(highest + g * kGroupRows + first, limit + first);
              for (; hits != 0; hits &= hits - 1) {
                const int64_t r = first + __builtin_ctz(hits);
                if (r >= num_rows) break;
                Kernel::look(words + r * row_length, screened, chunk + g, scores);
                if constexpr (kHasTiers) bounds.shift(r, scores, Kernel::kCodes);
                Kernel::add(lists[r], threshold[r], scores, static_cast<int32_t>((chunk + g) * Kernel::kCodes));
              }
            }
          }
        });
      }
    };
    screened.has_tiers() ? screen(std::true_type()) : screen(std::false_type());
  });
}

}  // namespace
}  // namespace soho
