// The frame of low-dimensional pruning (pruning.h): rows to few directions, the highest U of each group of codes for a
// panel of rows, then a second look at the groups that reach a row's threshold.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. A Kernel provides, beside kRows,
// kCodes and convert_row of screen.h,
//   kPass                                                        its PruningPass::type
//   static RowLengths round_directions(p, factor, num, words)    factor p as words; |factor p|^2 and of the rounding
//   static void multiply<num>(rows, row_length, codes, num_steps, out, out_length)   products of one tile, float32
//   static void highest(rows, row_length, radius, codes, negated_half, code_radius, num_steps, out)   U, per row
//   kCoarse, and where it is true largest_direction, round_coarse and highest_coarse: `highest` of directions in int8
//   kSifts, and where it is true sift_row, sift_code and sift   all channels in int8, see pruning_avx512.h
//   static void look(row, radius, codes, negated_half, code_radius, num_steps, out)   U of one row, per code
#pragma once

#include <memory>

#include "kernels/codebook_lookup/pruning_survivors.h"
#include "kernels/codebook_lookup/screen_groups.h"

namespace soho {
namespace {

// Which of kFloatLanes adjacent rows have a code whose U, with the window of its group, reaches the threshold.
inline uint32_t reaching(const float* highest, const float* threshold, const float* per_length, const float* per_error,
                         float length, float error, float square) {
#ifdef __AVX512F__
  __m512 reach = _mm512_add_ps(_mm512_loadu_ps(highest), _mm512_set1_ps(square));
  reach = _mm512_fmadd_ps(_mm512_loadu_ps(per_length), _mm512_set1_ps(length), reach);
  reach = _mm512_fmadd_ps(_mm512_loadu_ps(per_error), _mm512_set1_ps(error), reach);
  return _mm512_cmp_ps_mask(reach, _mm512_loadu_ps(threshold), _CMP_GE_OQ);
#else
  __m256 reach = _mm256_add_ps(_mm256_loadu_ps(highest), _mm256_set1_ps(square));
  reach = _mm256_fmadd_ps(_mm256_loadu_ps(per_length), _mm256_set1_ps(length), reach);
  reach = _mm256_fmadd_ps(_mm256_loadu_ps(per_error), _mm256_set1_ps(error), reach);
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(reach, _mm256_loadu_ps(threshold), _CMP_GE_OQ)));
#endif
}

// Of kFloatLanes adjacent rows the highest U so far and its group.
inline void keep_highest(const float* of_group, int64_t group, float* best, float* place) {
#ifdef __AVX512F__
  const __m512 score = _mm512_loadu_ps(of_group), before = _mm512_loadu_ps(best);
  const __mmask16 higher = _mm512_cmp_ps_mask(score, before, _CMP_GT_OQ);
  _mm512_mask_storeu_ps(best, higher, score);
  _mm512_mask_storeu_ps(place, higher, _mm512_set1_ps(static_cast<float>(group)));
#else
  const __m256 score = _mm256_loadu_ps(of_group), before = _mm256_loadu_ps(best);
  const __m256 higher = _mm256_cmp_ps(score, before, _CMP_GT_OQ);
  _mm256_storeu_ps(best, _mm256_blendv_ps(before, score, higher));
  const __m256 number = _mm256_set1_ps(static_cast<float>(group));
  _mm256_storeu_ps(place, _mm256_blendv_ps(_mm256_loadu_ps(place), number, higher));
#endif
}

// Which of num_scores adjacent ones reach the limit.
template <int64_t num_scores>
inline uint32_t at_least(const float* scores, float limit) {
  uint32_t hits = 0;
  for (int64_t k = 0; k < num_scores; k += kFloatLanes) {
#ifdef __AVX512F__
    const uint32_t of_lanes = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + k), _mm512_set1_ps(limit), _CMP_GE_OQ);
#else
    const uint32_t of_lanes = static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(scores + k), _mm256_set1_ps(limit), _CMP_GE_OQ)));
#endif
    hits |= of_lanes << k;
  }
  return hits;
}

constexpr int64_t kMostBytesAhead = 1 << 18, kLine = 64;

// What the U of a row may lack to a code's: by the |b| and the e_b of its group.
struct PruningWindow {
  alignas(64) float per_length[kGroupRows + kListSlack] = {};
  alignas(64) float per_error[kGroupRows + kListSlack] = {};

  // Of the rows from `first` on; what is behind the last one of a tile is set with the next.
  template <int64_t num>
  void set(int64_t first, const Projections<num>& a, double sum) {
    for (int64_t n = 0; n < num; ++n) {
      per_length[first + n] = static_cast<float>((a.error[n] + sum * a.whole[n]) * (1 + 0x1p-16));
      per_error[first + n] = static_cast<float>(a.length[n] * (1 + 0x1p-16));
    }
  }

  float at(int64_t r, float length, float error, float per_square) const {
    return per_length[r] * length + per_error[r] * error + per_square * length * length;
  }
};

// Rows that are screened together, and what is known of each.
template <class Kernel>
class PruningPanel {
 public:
  PruningPanel(const PruningWork& work)
      : work_(work),
        tile_(work.args.num_channels),
        word_memory_(sizeof(float) * kPanel * row_length_),
        coarse_memory_(Kernel::kCoarse ? sizeof(float) * kPanel * coarse_length_ : 0),
        row_memory_(sizeof(PruningRow) * kPanel),
        highest_memory_(sizeof(float) * (most_groups_ * kPanel + kListSlack)),
        number_memory_(Kernel::kSifts ? sifted_channels(work.args.num_channels) : 0) {
    static_assert(kPanel % kRows == 0);
  }

  // Projects the rows, then finds the codes that may be the nearest. The features of the rows [next, next_end) will be
  // wanted after that.
  void screen(const int64_t* rows, int64_t num_rows, int64_t next, int64_t next_end) {
    num_rows_ = num_rows;
    num_padded_ = (num_rows + kRows - 1) / kRows * kRows;
    for (int64_t r = 0; r < num_rows; ++r) rows_[r].row = rows[r];
    for (int64_t r = 0; r < num_padded_; r += kRows) project(r);
    if (work_.args.warm_start != nullptr) take_warm_starts();
    read_ahead(next, next_end);
    for (int64_t chunk = 0; chunk < work_.screened.num_groups; chunk += most_groups_) {
      const int64_t left = work_.screened.num_groups - chunk, num_groups = left < most_groups_ ? left : most_groups_;
      multiply(chunk, num_groups);
      compare_highest(chunk, num_groups);
      collect(chunk, num_groups);
    }
  }

  // Writes the index of each row that is decided. Returns which share of all codes the panel and the next pass had to
  // compare.
  double finish(LookupCounts& counts) {
    const int64_t num_codes = work_.screened.num_distinct;
    // In codes of the next pass: a row, each of its survivors in float32, and each that is sifted.
    const int64_t next_steps = work_.screened.num_steps, num_channels = work_.args.num_channels;
    const int64_t survivor_cost = 1 + 4 * num_channels / next_steps, sifted_cost = 1 + num_channels / next_steps / 4;
    const int64_t row_cost = (num_codes * (Kernel::kCoarse ? coarse_steps_ : steps_) +
                              num_directions_ * pruning_steps(Kernel::kPass, num_channels)) /
                             next_steps;
    int64_t cost = num_rows_ * row_cost;
    for (int64_t r = 0; r < num_rows_; ++r) {
      PruningRow& row = rows_[r];
      if (work_.args.warm_start != nullptr && row.num_survivors > kAlwaysCompared) compare_first(r);
      const int64_t first_cost = row.num_survivors * (Kernel::kSifts ? sifted_cost : survivor_cost);
      row.left |= row.num_survivors > kAlwaysCompared && first_cost > num_codes;
      if (!row.left) {
        if constexpr (Kernel::kSifts) {
          if (row.num_survivors > kFewSurvivors) {
            cost += first_cost;
            sift_survivors<Kernel>(work_, row, threshold_[r], static_cast<int8_t*>(number_memory_.data()));
          }
        }
        cost += finish_pruning(work_, row, threshold_[r], counts) * survivor_cost;
      }
      if (!row.left) continue;
      work_.args.index[row.row] = kUndecided;
      ++counts.undecided;
      cost += num_codes;
    }
    return static_cast<double>(cost) / static_cast<double>(num_rows_ * num_codes);
  }

 private:
  static constexpr int64_t kRows = Kernel::kRows, kWidth = Kernel::kCodes, kPanel = kGroupRows;
  static constexpr int64_t kCertified = (kRows + 7) / 8 * 8;  // whole vectors
  using OfRows = float[kPanel + kListSlack];

  void project(int64_t first) {
    const auto& [args, screened, pruning, copies] = work_;
    alignas(64) float directions[kRows][kMostDirections];
    RowLengths lengths[kRows];
    const auto row_of = [&](int64_t n) {
      return row_at(args.features, rows_[first + n].row, args.row_stride, args.features_type);
    };
    const int64_t present = num_rows_ - first < kRows ? num_rows_ - first : kRows;
    project_tile<Kernel>(screened, pruning, args.num_channels, present, args.features_type, row_of, tile_, directions,
                         lengths);
    SeveralLengths<kCertified> of_rows, rounded, coarse;
    for (int64_t n = 0; n < kRows; ++n) {
      const int64_t r = first + n;
      of_rows.set(n, lengths[n]);
      rounded.set(n,
                  Kernel::round_directions(directions[n], pruning.factor, num_directions_, words_ + r * row_length_));
      if constexpr (Kernel::kCoarse) {
        float* words = coarse_ + r * coarse_length_;
        const float largest = Kernel::largest_direction(directions[n], pruning.factor, num_directions_);
        words[0] = largest / 127.0f;
        coarse.set(n, Kernel::round_coarse(directions[n], pruning.factor, num_directions_, largest, 128,
                                           reinterpret_cast<int8_t*>(words + 1)));
      }
    }
    const auto projections = certify(of_rows, rounded, args.num_channels, num_directions_);
    code_window_.set(first, projections, sum_);
    if constexpr (Kernel::kCoarse)
      group_window_.set(first, certify(of_rows, coarse, args.num_channels, num_directions_), sum_);
    for (int64_t n = 0; n < kRows; ++n) {
      const int64_t r = first + n;
      const Projection a = projections[n];
      const bool finite = std::isfinite(a.low_square + a.length + a.error + a.radius);
      radius_[r] = finite ? static_cast<float>(a.radius * (1 + 0x1p-22)) : 0.0f;
      threshold_[r] = finite ? -kInfinity : kInfinity;
      if (n >= present) continue;
      PruningRow& row = rows_[r];
      row.low_square = a.low_square;
      row.num_survivors = row.num_known = 0;
      row.nearest = kInfinity;
      row.high_distance = kFar;
      row.left = !finite;
    }
  }

  void take_warm_starts() {
    for (int64_t r = 0; r < num_rows_; ++r) {
      if (rows_[r].left) continue;
      const int64_t code = work_.args.warm_start[rows_[r].row];
      if (code < 0 || code >= work_.args.num_codes) continue;
      if (work_.pruning.place[code] >= 0) know(r, work_.pruning.place[code]);
    }
  }

  void know(int64_t r, int32_t code) {
    work_.know(rows_[r], &code, 1);
    threshold_[r] = work_.threshold(rows_[r]);
  }

  // The survivor with the highest U, where a warm start has stood in for it: it may leave few of the others.
  void compare_first(int64_t r) {
    PruningRow& row = rows_[r];
    if (row.left) return;
    int32_t first = 0;
    for (int32_t n = 1; n < row.num_survivors; ++n)
      first = row.survivors[n].highest > row.survivors[first].highest ? n : first;
    know(r, row.survivors[first].code);
    const int32_t count = row.num_survivors;
    row.num_survivors = 0;
    for (int32_t n = 0; n < count; ++n) {
      if (n != first && row.survivors[n].highest >= threshold_[r])
        row.survivors[row.num_survivors++] = row.survivors[n];
    }
  }

  // Features are fetched while products are made: a few lines of memory with each tile.
  void read_ahead(int64_t next, int64_t next_end) {
    const auto& args = work_.args;
    const int64_t num_rows = next_end - next < kPanel ? next_end - next : kPanel;
    const int64_t bytes = num_rows * args.row_stride * element_size(args.features_type);
    ahead_ = static_cast<const char*>(row_at(args.features, next, args.row_stride, args.features_type));
    bytes_ahead_ = bytes < kMostBytesAhead ? bytes : kMostBytesAhead;
    lines_per_tile_ = bytes_ahead_ / kLine / (work_.screened.num_groups * (num_padded_ / kRows)) + 1;
  }

  // The highest U of each group, of each row.
  void multiply(int64_t chunk, int64_t num_groups) {
    const auto& pruning = work_.pruning;
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t group = chunk + g;
      const float* negated_half = pruning.negated_half + group * kWidth;
      const float* code_radius = pruning.radius + group * kWidth;
      for (int64_t r = 0; r < num_padded_; r += kRows) {
        for (int64_t line = 0; line < lines_per_tile_ && bytes_ahead_ > 0; ++line) {
          __builtin_prefetch(ahead_, 0, 2);
          ahead_ += kLine;
          bytes_ahead_ -= kLine;
        }
        float* target = highest_ + g * kPanel + r;
        if constexpr (Kernel::kCoarse) {
          Kernel::highest_coarse(coarse_ + r * coarse_length_, coarse_length_, radius_ + r,
                                 pruning.coarse_panel + group * coarse_steps_ * kWidth, pruning.coarse_unit[group],
                                 negated_half, code_radius, coarse_steps_, target);
        } else {
          Kernel::highest(words_ + r * row_length_, row_length_, radius_ + r, panel_of(group), negated_half,
                          code_radius, steps_, target);
        }
      }
    }
  }

  // The code with the highest U is the nearest one as a rule: the first threshold of a row is its score.
  void compare_highest(int64_t chunk, int64_t num_groups) {
    alignas(64) OfRows best, place;
    for (int64_t r = 0; r < kPanel + kListSlack; ++r) best[r] = -kInfinity, place[r] = 0.0f;
    for (int64_t g = 0; g < num_groups; ++g) {
      for (int64_t r = 0; r < num_padded_; r += kFloatLanes)
        keep_highest(highest_ + g * kPanel + r, g, best + r, place + r);
    }
    alignas(64) float scores[kWidth];
    for (int64_t r = 0; r < num_rows_; ++r) {
      const int64_t group = chunk + static_cast<int64_t>(place[r]);
      if (rows_[r].left || rows_[r].num_known == kMostKnownBefore) continue;
      // Known before is a warm start: from this group it is likely the nearest, and its threshold will do.
      if (rows_[r].num_known > 0 && rows_[r].known[0] / kWidth == group) continue;
      const float reach = window_of_group().at(r, work_.pruning.group_length[group], group_error_[group], per_square_);
      if (!(best[r] + reach >= threshold_[r])) continue;
      look(r, group, scores);
      int32_t highest = 0;
      for (int32_t k = 1; k < kWidth; ++k) highest = scores[k] > scores[highest] ? k : highest;
      const int32_t code = static_cast<int32_t>(group * kWidth) + highest;
      if (code < work_.screened.num_distinct && !is_known(rows_[r], code)) know(r, code);
    }
  }

  // The codes that reach their row's threshold, in the groups that do.
  void collect(int64_t chunk, int64_t num_groups) {
    alignas(64) float scores[kWidth];
    const PruningWindow& of_group = window_of_group();
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t group = chunk + g;
      const float length = work_.pruning.group_length[group], error = group_error_[group];
      const float square = per_square_ * length * length;
      for (int64_t first = 0; first < num_padded_; first += kFloatLanes) {
        uint32_t hits = reaching(highest_ + g * kPanel + first, threshold_ + first, of_group.per_length + first,
                                 of_group.per_error + first, length, error, square);
        for (; hits != 0; hits &= hits - 1) {
          const int64_t r = first + __builtin_ctz(hits);
          if (r >= num_rows_) break;
          PruningRow& row = rows_[r];
          if (row.left) continue;
          look(r, group, scores);
          const float reach = code_window_.at(r, length, work_.pruning.group_error[group], per_square_);
          uint32_t codes = at_least<kWidth>(scores, threshold_[r] - reach);
          for (; codes != 0 && !row.left; codes &= codes - 1) {
            const int32_t k = __builtin_ctz(codes), code = static_cast<int32_t>(group * kWidth) + k;
            if (code >= work_.screened.num_distinct || is_known(row, code)) continue;
            if (row.num_survivors < kMostSurvivors) {
              row.survivors[row.num_survivors++] = {code, scores[k] + reach};
            } else {
              row.left = true;
              threshold_[r] = kInfinity;
            }
          }
        }
      }
    }
  }

  void look(int64_t r, int64_t group, float* scores) const {
    Kernel::look(words_ + r * row_length_, radius_[r], panel_of(group), work_.pruning.negated_half + group * kWidth,
                 work_.pruning.radius + group * kWidth, steps_, scores);
  }

  const float* panel_of(int64_t group) const {
    return static_cast<const float*>(work_.pruning.panel) + group * steps_ * kWidth;
  }

  const PruningWindow& window_of_group() const { return Kernel::kCoarse ? group_window_ : code_window_; }

  const PruningWork& work_;
  const int64_t num_directions_ = work_.pruning.num_directions, steps_ = pruning_steps(Kernel::kPass, num_directions_);
  const int64_t coarse_steps_ = coarse_steps(num_directions_);
  const int64_t row_length_ = panel_row_length(steps_), coarse_length_ = panel_row_length(coarse_steps_);
  const int64_t most_groups_ =
      work_.screened.num_groups < kGroupsPerChunk ? work_.screened.num_groups : kGroupsPerChunk;
  const double sum_ = sum_error(num_directions_);
  const float per_square_ = static_cast<float>(0.5 * sum_ * (1 + 0x1p-16));
  const float* const group_error_ = Kernel::kCoarse ? work_.pruning.coarse_error : work_.pruning.group_error;

  const TileMemory<Kernel> tile_;
  const Scratch word_memory_, coarse_memory_, row_memory_, highest_memory_, number_memory_;
  float* const words_ = static_cast<float*>(word_memory_.data());
  float* const coarse_ = static_cast<float*>(coarse_memory_.data());
  PruningRow* const rows_ = static_cast<PruningRow*>(row_memory_.data());
  float* const highest_ = static_cast<float*>(highest_memory_.data());

  int64_t num_rows_ = 0, num_padded_ = 0;
  alignas(64) OfRows radius_ = {};     // R
  alignas(64) OfRows threshold_ = {};  // T
  PruningWindow code_window_, group_window_;
  const char* ahead_ = nullptr;
  int64_t bytes_ahead_ = 0, lines_per_tile_ = 0;
};

template <class Kernel>
LookupCounts screen_pruning(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  DefaultFloatEnvironment environment;
  LookupCounts counts;
  const ExactCopies copies(args, 1);
  const PruningWork work{args, screened, *screened.pruning, copies};
  const auto panel = std::make_unique<PruningPanel<Kernel>>(work);
  constexpr int64_t kTrialRows = kTrialTiles * Kernel::kRows;
  UndecidedRows undecided(args, begin, end);
  int64_t rows[kGroupRows], most_rows = kTrialRows;  // of the first panel
  while (const int64_t num_rows = undecided.take(most_rows, kTrialRows, rows)) {
    panel->screen(rows, num_rows, undecided.next(), end);
    counts.undecided += undecided.skip(panel->finish(counts));
    most_rows = kGroupRows;
  }
  return counts;
}

template <class Kernel>
constexpr PruningPass pruning_pass() {
  return {Kernel::kPass,         Kernel::kCodes,        Kernel::kCoarse,
          Kernel::kSifts,        project_codes<Kernel>, pack_pruning_groups<Kernel>,
          screen_pruning<Kernel>};
}

}  // namespace
}  // namespace soho
