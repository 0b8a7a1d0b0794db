// The frame of a screening pass over few codes, where listing candidates costs more than computing scores: all scores
// of a tile of rows, then for each row the codes that reach its threshold. A row with one of them is decided; only the
// others get a list. Rows are started anew, whatever an earlier pass has found. Not for topk.
//
// Included by each AVX-512 level and compiled with its flags; see exact_distance.h. A Kernel provides, beside what
// screen.h asks for,
//   static void scores(rows, row_length, screened, group, out, out_length)   of a tile; at padding -inf
//   static void look(row, screened, group, out)                              as in screen_groups.h
//   static void add(list, threshold, scores, first_position)                 as there
#pragma once

#include "kernels/codebook_lookup/screen_groups.h"

namespace soho {
namespace {

constexpr int64_t kFewShortCodes = 512;  // of so few channels that screen_groups.h is the other way
constexpr int64_t kFewLongCodes = 2048;  // where computing scores is cheap beside listing them

// So few rows are looked at one by one, since a tile of one takes as long as a whole one.
constexpr int64_t kFewRows = 3;
constexpr int64_t kCodesOfFewRows = 8192;

inline bool are_few_rows(const ScreenedCodes& screened, int64_t num_rows) {
  return num_rows <= kFewRows && screened.num_distinct <= kCodesOfFewRows;
}

// Twice the error bound of 16 rows; NaN where a row cannot be screened.
inline __m512 windows_of(const ScoreBound& bound, const float* squares, const float* rounding_squares) {
  const auto up = [](double term) { return _mm512_set1_ps(static_cast<float>(2.0 * term * (1 + 0x1p-18))); };
  const __m512 square = _mm512_load_ps(squares), lost = _mm512_load_ps(rounding_squares);
  __m512 window = _mm512_fmadd_ps(_mm512_sqrt_ps(square), up(bound.per_length), up(bound.constant));
  window = _mm512_fmadd_ps(square, up(bound.per_square), window);
  window = _mm512_fmadd_ps(_mm512_sqrt_ps(lost), up(bound.per_loss), window);
  const __m512 infinity = _mm512_set1_ps(kInfinity);
  const __mmask16 finite =
      _mm512_cmp_ps_mask(square, infinity, _CMP_LT_OQ) & _mm512_cmp_ps_mask(lost, infinity, _CMP_LT_OQ);
  return _mm512_mask_blend_ps(finite, _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()), window);
}

// The largest of each row's scores in each lane, of vectors [begin, end).
template <int num_rows>
void largest_of_lanes(const float* scores, int64_t length, int64_t begin, int64_t end, __m512* best) {
  for (int r = 0; r < num_rows; ++r) best[r] = _mm512_load_ps(scores + r * length + 16 * begin);
  for (int64_t v = begin + 1; v < end; ++v) {
    for (int r = 0; r < num_rows; ++r) best[r] = _mm512_max_ps(best[r], _mm512_load_ps(scores + r * length + 16 * v));
  }
}

inline __m512 lowered16(__m512 values) {
  return _mm512_fnmadd_ps(_mm512_abs_ps(values), _mm512_set1_ps(0x1p-22f), values);
}

// What the scores of one row have to reach, of two adjacent groups at a time.
struct TierLimits {
  __m512 group[2];

  TierLimits(const ScreenedCodes& screened, const float* limits, int64_t stride)
      : screened_(screened), limits_(limits), stride_(stride) {
    group[0] = group[1] = _mm512_set1_ps(limits[0]);
  }

  void move_to(int64_t first) {
    if (first + 1 < next_) return;
    for (int64_t n = 0; n < 2; ++n) {
      while (first + n >= screened_.tiers[tier_].end_group && tier_ + 1 < screened_.num_tiers) ++tier_;
      group[n] = _mm512_set1_ps(limits_[tier_ * stride_]);
      next_ = n == 0 || next_ == screened_.tiers[tier_].end_group ? screened_.tiers[tier_].end_group : 0;
    }
  }

 private:
  const ScreenedCodes& screened_;
  const float* const limits_;
  const int64_t stride_;
  int64_t tier_ = 0, next_ = 0;  // the end of this tier, 0 where the two groups have two
};

template <class Kernel, bool has_tiers>
LookupCounts screen_few_codes_of(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                 int64_t end) {
  constexpr int64_t kRows = Kernel::kRows, kBlocks = (kRows + 15) / 16;
  const int64_t num_tiers = has_tiers ? screened.num_tiers : 1;
  const auto end_group_of = [&](int64_t tier) {
    return has_tiers ? screened.tiers[tier].end_group : screened.num_groups;
  };
  LookupCounts counts;
  UndecidedRows undecided(args, begin, end);
  if (!screened.screenable) return {0, 0, undecided.skip_all()};
  DefaultFloatEnvironment environment;
  Panel panel(screened.num_steps, kRows);
  const ExactCopies copies(args, 1);
  const Comparison comparison(args, screened, copies);
  const int64_t num_vectors = (screened.num_distinct + 15) / 16;
  // Scores of the rows begin off the strides that map all of them to a few cache sets.
  const int64_t length = (screened.num_distinct + 63) / 64 * 64 + 16;
  static_assert(kFewRows * (kCodesOfFewRows + 16) <= 16 * (kFewLongCodes + 16));
  alignas(64) float scores[16 * kBlocks * (kFewLongCodes + 16)];  // at most 264 KB; the heap's pages would be new ones
  const int64_t num_used = end - begin <= kFewRows ? end - begin : 16 * kBlocks;
  for (int64_t r = 0; r < num_used; ++r)  // what no tile writes: padding
    std::fill(scores + r * length + (r < kRows ? screened.num_distinct / Kernel::kCodes * Kernel::kCodes : 0),
              scores + (r + 1) * length, -kInfinity);
  // Of each tier, what a score has to reach.
  alignas(64) float limits[kMostTiers][16 * kBlocks], square[16 * kBlocks] = {}, lost[16 * kBlocks] = {};
  int64_t row_id[kRows], num_rows;
  Kernel::begin();
  while ((num_rows = undecided.take(kRows, kRows, row_id)) > 0) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const RowLengths lengths = convert_row<Kernel>(args, screened, row_id[r], panel.row(r));
      square[r] = lengths.square;
      lost[r] = lengths.rounding_square;
      if constexpr (has_tiers) panel.keep(r, lengths);
    }
    const bool are_few = num_rows <= kFewRows;
    panel.num_rows = num_rows;
    for (int64_t tier = 0, group = 0; tier < num_tiers; ++tier) {
      if constexpr (has_tiers) panel.set_unit(screened, tier);
      for (; group < end_group_of(tier); ++group) {
        float* out = scores + group * Kernel::kCodes;
        if (are_few) {
          for (int64_t r = 0; r < num_rows; ++r) Kernel::look(panel.row(r), screened, group, out + r * length);
        } else {
          Kernel::scores(panel.words, panel.row_length, screened, group, out, length);
        }
      }
    }
    for (int64_t block = 0; block < (are_few ? 1 : 16 * kBlocks); block += 16) {
      __m512 half[kMostTiers], highest = _mm512_set1_ps(-kInfinity);
      for (int64_t tier = 0, begin_vector = 0; tier < num_tiers; ++tier) {
        const int64_t most = 2 * end_group_of(tier), end_vector = most < num_vectors ? most : num_vectors;
        __m512 best[16];
        if (are_few) {
          for (int64_t r = 0; r < num_rows; ++r)
            largest_of_lanes<1>(scores + r * length, length, begin_vector, end_vector, best + r);
          std::fill(best + num_rows, best + 16, best[0]);
        } else {
          largest_of_lanes<16>(scores + block * length, length, begin_vector, end_vector, best);
        }
        const __m512 window = windows_of(comparison.bounds[tier], square + block, lost + block);
        begin_vector = end_vector;
        if constexpr (!has_tiers) {
          _mm512_store_ps(limits[0] + block, _mm512_sub_ps(largest_of_each(best), window));
        } else {
          half[tier] = _mm512_mul_ps(window, _mm512_set1_ps(0.5f));
          // In this order: of NaN the highest is NaN.
          highest = _mm512_max_ps(highest, lowered16(_mm512_sub_ps(largest_of_each(best), half[tier])));
        }
      }
      for (int64_t tier = 0; has_tiers && tier < num_tiers; ++tier)
        _mm512_store_ps(limits[tier] + block, lowered16(_mm512_sub_ps(highest, half[tier])));
    }
    int64_t num_left = 0;  // pairs
    for (int64_t r = 0; r < num_rows; ++r) {
      const __m512 limit = _mm512_set1_ps(limits[0][r]);
      TierLimits limit_of(screened, limits[0] + r, 16 * kBlocks);
      uint64_t hits[kCodesOfFewRows / 64];
      int64_t num_hits = 0, last_hit = 0;
      for (int64_t word = 0; 64 * word < screened.num_distinct; ++word) {
        if constexpr (has_tiers) limit_of.move_to(2 * word);
        hits[word] = 0;
#pragma GCC unroll 4
        for (int64_t v = 0; v < 4; ++v) {
          const __m512 score = _mm512_load_ps(scores + r * length + 64 * word + 16 * v);
          const __m512 lowest = has_tiers ? limit_of.group[v / 2] : limit;
          hits[word] |= uint64_t{_mm512_cmp_ps_mask(score, lowest, _CMP_GE_OQ)} << 16 * v;
        }
        num_hits += __builtin_popcountll(hits[word]);
        last_hit = hits[word] != 0 ? 64 * word + __builtin_ctzll(hits[word]) : last_hit;
      }
      if (num_hits == 1) {
        if (args.distance != nullptr) copies.load_row(0, row_id[r]);
        write_row(args, copies, 0, row_id[r], screened.codes[last_hit]);
        continue;
      }
      float threshold;
      Candidates& list = panel.lists[0];
      begin_row(comparison, row_id[r], {square[r], lost[r]}, panel.row(r), threshold, list);
      list.first = list.count = 0;
      list.has_nearest = false;
      if (num_hits == 0 || num_hits > kListLength) {
        for (int64_t tier = 0, group = 0; tier < num_tiers; ++tier) {
          if constexpr (has_tiers) enter_tier(list, threshold, {square[r], lost[r]}, tier);
          for (; group < end_group_of(tier) && list.state == kListed; ++group) {
            const int64_t first = group * Kernel::kCodes;
            Kernel::add(list, threshold, scores + r * length + first, static_cast<int32_t>(first));
          }
        }
      } else if (list.state == kListed) {
        threshold = limits[0][r];
        [[maybe_unused]] int64_t tier = 0;
        for (int64_t word = 0; 64 * word < screened.num_distinct; ++word) {
          for (uint64_t left = hits[word]; left != 0; left &= left - 1, ++list.count) {
            const int64_t position = 64 * word + __builtin_ctzll(left);
            list.position[list.count] = static_cast<int32_t>(position);
            list.score[list.count] = scores[r * length + position];
            if constexpr (has_tiers) {
              while (position >= end_group_of(tier) * Kernel::kCodes) ++tier;
              const float limit = limits[tier][r];
              if (tier > 0)
                list.score[list.count] += threshold - limit + 0x1p-20f * (std::abs(threshold) + std::abs(limit));
            }
            list.best = std::max(list.best, list.score[list.count]);
          }
        }
      }
      num_left += finish_row(threshold, list, counts);
    }
    counts.undecided += undecided.skip(static_cast<double>(num_left) / (num_rows * screened.num_distinct));
  }
  Kernel::end();
  return counts;
}

template <class Kernel>
LookupCounts screen_few_codes(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                              int64_t end) {
  const bool has_tiers = screened.has_tiers();
  return (has_tiers ? screen_few_codes_of<Kernel, true> : screen_few_codes_of<Kernel, false>)(args, screened, begin,
                                                                                              end);
}

}  // namespace
}  // namespace soho
