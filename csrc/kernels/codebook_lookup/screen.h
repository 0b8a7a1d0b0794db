// The frame of a screening pass: panels of converted rows against groups of codes, a list of candidates per row.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. A Kernel provides
//   kRows, kCodes                   rows and codes of one tile
//   static void begin(), end()      around the work of one thread
//   static RowLengths convert_row(row, type, screened, num_channels, words)   writes a^, num_steps words
//   static void screen_tile(words, row_length, screened, group, threshold, lists)
// where screen_tile adds to the list of each row the scores that reach the row's threshold, ascending by code.
#pragma once

#include <cmath>

#include "common/float_environment.h"
#include "kernels/codebook_lookup/drop_far.h"
#include "kernels/codebook_lookup/exact_distance.h"

namespace soho {
namespace {

constexpr int32_t kListLength = 64;    // candidates kept per row
constexpr int32_t kFewCandidates = 2;  // which float64 decides between at once
// A candidate costs as much as this many codes of a float32 pass; so a row with more of them is left to the next pass.
constexpr int64_t kCodesPerCandidate = 6;
constexpr int32_t kAlwaysCompared = 8;  // candidates that are worth no other pass
constexpr int32_t kListSlack = 16;      // lists are written by whole vectors
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPanelBytes =
    256 * 1024;  // of converted rows: half of a 512 KiB L2 cache, the rest streams the codes
constexpr int64_t kMaxPanelRows = 192;
constexpr int64_t kMostSkipped = 1 << 14;  // rows
constexpr int64_t kTrialTiles = 2;         // of a panel behind skipped rows, where a whole panel has as many

// What the lists of a thread share.
struct Comparison {
  const CodebookLookupArgs& args;
  const ScreenedCodes& screened;
  const ExactCopies& copies;  // of one row
};

// Candidates of one row so far, in ascending order of code; where codes were compared, their nearest comes first.
struct Candidates {
  const Comparison* comparison;
  int64_t row;
  int64_t first;  // position from which codes are listed, those before were compared
  bool has_nearest;
  float best;    // highest score seen; of topk the last of `highest`
  float window;  // twice the error bound
  int32_t count;
  int32_t state;
  int32_t position[kListLength + kListSlack];  // in ScreenedCodes::codes
  float score[kListLength + kListSlack];
  float highest[kMostNearest];  // of topk: as many scores, the highest seen
};
enum : int32_t { kListed, kLeft, kNotFinite };

inline void keep_above(Candidates& list, float threshold) {
  int32_t kept = 0;
  for (int32_t i = 0; i < list.count; ++i) {
    list.position[kept] = list.position[i];
    list.score[kept] = list.score[i];
    kept += list.score[i] >= threshold;
  }
  list.count = kept;
}

// Takes scores above the topk-th highest into account.
inline void raise_threshold(Candidates& list, float& threshold, const float* scores, int32_t count) {
  const int64_t topk = list.comparison->args.topk;
  for (int32_t n = 0; n < count; ++n) {
    if (!(scores[n] > list.best)) continue;
    int64_t place = topk - 1;
    for (; place > 0 && list.highest[place - 1] < scores[n]; --place) list.highest[place] = list.highest[place - 1];
    list.highest[place] = scores[n];
    list.best = list.highest[topk - 1];
  }
  threshold = list.best - list.window;
}

// Whether the candidates among the codes from `first` to `end` are too many to be compared one by one.
inline bool is_dense(const Candidates& list, int64_t end) {
  return list.count > kAlwaysCompared + list.comparison->args.topk - 1 &&
         list.count * kCodesPerCandidate > end - list.first;
}

// Drops what float32 says is none of the topk nearest.
inline void sift(Candidates& list) {
  const auto& [args, screened, copies] = *list.comparison;
  if (list.count < args.topk + kFewCandidates || screened.metric != Metric::kEuclidean) return;
  const void* features = row_at(args.features, list.row, args.row_stride, args.features_type);
  const float* row = static_cast<const float*>(features);
  if (args.features_type != Element::kFloat32) {
    float* converted = reinterpret_cast<float*>(copies.row(0));
    for (int64_t c = 0; c < args.num_channels; ++c) converted[c] = load_element(features, c, args.features_type);
    row = converted;
  }
  list.count = drop_far(row, args.num_channels, args.topk, list.count, list.position, list.score,
                        [&](int32_t position) { return args.codebook + screened.codes[position] * args.num_channels; });
}

// The topk nearest candidates.
inline Ranking ranked(Candidates& list) {
  const auto& [args, screened, copies] = *list.comparison;
  sift(list);
  copies.load_row(0, list.row);
  Ranking ranking;
  ranking.size = args.topk;
  find_nearest<1>(copies, screened, 1, list.count, [&](int64_t n) { return list.position[n]; }, &ranking);
  return ranking;
}

// Keeps them alone, in ascending order of code.
inline void keep_ranked(Candidates& list) {
  const Ranking ranking = ranked(list);
  list.count = 0;
  for (int64_t m = 0; m < ranking.count; ++m) {
    const int32_t position = static_cast<int32_t>(ranking.position[m]);
    int32_t n = list.count++;
    for (; n > 0 && position < list.position[n - 1]; --n) list.position[n] = list.position[n - 1];
    list.position[n] = position;
    list.score[m] = kInfinity;
  }
}

// Keeps the nearest candidate; returns whether float64 had to compare any.
inline bool keep_nearest(Candidates& list) {
  const auto& [args, screened, copies] = *list.comparison;
  sift(list);
  const bool several = list.count > 1;
  if (several) {
    copies.load_row(0, list.row);
    Nearest nearest;
    find_nearest<1>(copies, screened, 1, list.count, [&](int64_t n) { return list.position[n]; }, &nearest);
    list.position[0] = static_cast<int32_t>(nearest.position);
  }
  list.score[0] = kInfinity;
  list.count = 1;
  return several;
}

// Room for `wanted` more candidates from position `next` on; without it the row is left and nothing reaches its
// threshold any more.
inline bool make_room(Candidates& list, float& threshold, int32_t wanted, int64_t next) {
  if (list.count + wanted <= kListLength) return true;
  keep_above(list, threshold);
  if (list.count + wanted <= kListLength) return true;
  if (is_dense(list, next)) {
    list.state = kLeft;
    threshold = kInfinity;
    return false;
  }
  if (list.comparison->args.topk > 1) {
    keep_ranked(list);
  } else {
    keep_nearest(list);
  }
  list.has_nearest = true;
  list.first = next;
  return true;
}

inline double score_bound(const RowLengths& row, const ScreenedCodes& screened, int64_t num_channels) {
  double norm = std::sqrt(static_cast<double>(row.square)), lost = std::sqrt(static_cast<double>(row.rounding_square));
  const double unit = static_cast<double>(num_channels + 16), largest = screened.largest_norm;
  if (screened.metric != Metric::kEuclidean) {
    norm += 0x1p-64;
    lost += 0x1p-64;
    const double rounded = screened.metric == Metric::kCosine ? 0x1p-23 : 0.0;
    return 1.25 * unit * 0x1p-24 * norm * largest + (unit * 0x1p-52 + rounded) * norm * screened.largest_code +
           (1 + 0x1p-8) * (lost * largest + (norm + lost) * screened.largest_rounding);
  }
  return 1.25 * unit * 0x1p-24 * (norm * largest + 0.5 * largest * largest) +
         unit * 0x1p-52 * (norm + largest) * (norm + largest) +
         (1 + 0x1p-8) * (lost * largest + (norm + lost) * screened.largest_rounding);
}

// Converts one row and prepares its list; a row that cannot be screened gets an unreachable threshold.
template <class Kernel>
void begin_row(const Comparison& comparison, int64_t i, float* words, float& threshold, Candidates& list) {
  const auto& [args, screened, copies] = comparison;
  const void* row = row_at(args.features, i, args.row_stride, args.features_type);
  const Undecided undecided = undecided_at(args.index[i]);
  list.comparison = &comparison;
  list.row = i;
  list.first = undecided.position;
  list.has_nearest = undecided.nearest >= 0;
  list.count = list.has_nearest;
  list.position[0] = static_cast<int32_t>(undecided.nearest);
  list.score[0] = kInfinity;
  list.best = threshold = -kInfinity;
  for (float& score : list.highest) score = -kInfinity;
  list.state = kListed;
  const RowLengths lengths = Kernel::convert_row(row, args.features_type, screened, args.num_channels, words);
  if (is_finite(lengths.square) && is_finite(lengths.rounding_square)) {
    list.window = static_cast<float>(2.0 * score_bound(lengths, screened, args.num_channels) * (1 + 0x1p-20));
    return;
  }
  list.state = row_is_finite(args, i) ? kLeft : kNotFinite;
  threshold = kInfinity;
  std::memset(words, 0, sizeof(float) * screened.num_steps);
}

// Decides between the candidates of one row in float64, or leaves it. Returns how many codes it leaves.
inline int64_t finish_row(float threshold, Candidates& list, LookupCounts& counts) {
  const auto& [args, screened, copies] = *list.comparison;
  if (list.state == kListed) {
    keep_above(list, threshold);
    if (is_dense(list, screened.num_distinct)) list.state = kLeft;
  }
  if (list.state == kLeft && args.topk > 1) {  // with no more than where it began
    args.index[list.row] = kUndecided;
    ++counts.undecided;
    return screened.num_distinct;
  }
  if (list.state == kLeft) {
    args.index[list.row] = undecided_index({list.first, list.has_nearest ? list.position[0] : -1});
    ++counts.undecided;
    return screened.num_distinct - list.first;
  }
  if (args.topk > 1) {
    Ranking ranking;
    if (list.state == kListed) {
      ranking = ranked(list);
      ++counts.compared;
    } else {
      copies.load_row(0, list.row);
    }
    write_ranking(args, screened, copies, 0, list.row, ranking);
    return 0;
  }
  int64_t nearest = 0;
  if (list.state == kListed) {
    counts.compared += keep_nearest(list) || list.has_nearest;
    nearest = screened.codes[list.position[0]];
  }
  if (args.distance != nullptr) copies.load_row(0, list.row);
  write_row(args, copies, 0, list.row, nearest);
  return 0;
}

// How many rows to skip after a panel of which the next pass has to compare `share`: the neighbours of hopeless
// rows are as hopeless as a rule, so only a few rows in many are still tried, and fewer the longer it lasts.
inline int64_t next_skipped(int64_t skipped, int64_t num_rows, double share) {
  if (share < 0.75) return 0;
  const int64_t more = 4 * skipped + 8 * num_rows;
  return more < kMostSkipped ? more : kMostSkipped;
}

// Rows begin off the 4 KiB stride that maps all of them to one cache set.
inline int64_t panel_row_length(int64_t num_steps) { return (num_steps + 15) / 16 * 16 + 16; }

template <class Kernel>
LookupCounts screen_rows(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kRows = Kernel::kRows;
  LookupCounts counts;
  if (!screened.screenable) {
    for (int64_t i = begin; i < end; ++i) counts.undecided += args.index[i] < 0;
    return counts;
  }
  DefaultFloatEnvironment environment;
  const int64_t row_length = panel_row_length(screened.num_steps);
  int64_t panel_rows = kPanelBytes / static_cast<int64_t>(sizeof(float) * row_length);
  panel_rows = (panel_rows > kMaxPanelRows ? kMaxPanelRows : panel_rows) / kRows * kRows;
  panel_rows = panel_rows < kRows ? kRows : panel_rows;
  const int64_t trial_rows = panel_rows < kTrialTiles * kRows ? panel_rows : kTrialTiles * kRows;
  const Scratch row_memory(sizeof(float) * panel_rows * row_length), list_memory(sizeof(Candidates) * panel_rows);
  const ExactCopies copies(args, 1);
  float* rows = static_cast<float*>(row_memory.data());
  Candidates* lists = static_cast<Candidates*>(list_memory.data());
  float threshold[kMaxPanelRows + kListSlack];
  int64_t first_group[kMaxPanelRows];  // of each tile
  const Comparison comparison{args, screened, copies};

  Kernel::begin();
  int64_t skipped = 0;
  for (int64_t i = begin; i < end;) {
    int64_t num_rows = 0;
    const int64_t most_rows = skipped > 0 ? trial_rows : panel_rows;
    for (; i < end && num_rows < most_rows; ++i) {
      if (args.index[i] >= 0) continue;
      begin_row<Kernel>(comparison, i, rows + num_rows * row_length, threshold[num_rows], lists[num_rows]);
      ++num_rows;
    }
    int64_t num_padded = num_rows;
    for (; num_padded % kRows != 0; ++num_padded) {
      std::memset(rows + num_padded * row_length, 0, sizeof(float) * screened.num_steps);
      threshold[num_padded] = kInfinity;
    }
    int64_t group = screened.num_groups;
    for (int64_t r = 0; r < num_rows; r += kRows) {
      int64_t first = lists[r].first;
      const int64_t tile_end = r + kRows < num_rows ? r + kRows : num_rows;
      for (int64_t n = r; n < tile_end; ++n) first = lists[n].first < first ? lists[n].first : first;
      for (int64_t n = r; n < tile_end; ++n) lists[n].first = first;
      first_group[r / kRows] = first / Kernel::kCodes;
      group = first_group[r / kRows] < group ? first_group[r / kRows] : group;
    }
    for (; group < screened.num_groups; ++group) {
      for (int64_t r = 0; r < num_padded; r += kRows) {
        if (group < first_group[r / kRows]) continue;
        Kernel::screen_tile(rows + r * row_length, row_length, screened, group, threshold + r, lists + r);
      }
    }
    int64_t num_left = 0;  // pairs
    for (int64_t r = 0; r < num_rows; ++r) num_left += finish_row(threshold[r], lists[r], counts);
    skipped = next_skipped(skipped, num_rows, static_cast<double>(num_left) / (num_rows * screened.num_distinct));
    for (int64_t left = skipped; i < end && left > 0; ++i) {
      counts.undecided += args.index[i] < 0;
      left -= args.index[i] < 0;
    }
  }
  Kernel::end();
  return counts;
}

}  // namespace
}  // namespace soho
