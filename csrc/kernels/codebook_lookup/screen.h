// The frame of a screening pass: panels of converted rows against groups of codes, a list of candidates per row.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. A Kernel provides
//   kRows, kCodes                   rows and codes of one tile
//   static void begin(), end()      around the work of one thread
//   static RowLengths convert_row(row, type, screened, num_channels, words)   writes a^, num_steps words
//   static void screen_tile(words, row_length, screened, group, threshold, lists)
// where screen_tile adds to the list of each row the scores that reach the row's threshold, ascending by code, and,
// where a tile of one row takes as long as a whole one, the same of one row as
//   static void screen_row(words, screened, group, threshold, list)
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
// From so many channels and more than so many candidates on, the distance of one of them is worth what it drops.
constexpr int64_t kChannelsMeasured = 256;
constexpr int32_t kFewToMeasure = 8;
constexpr int32_t kNone = -1;  // candidates may come
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPanelBytes =
    256 * 1024;  // of converted rows: half of a 512 KiB L2 cache, the rest streams the codes
constexpr int64_t kMaxPanelRows = 192;
constexpr int64_t kMostSkipped = 1 << 14;  // rows
constexpr int64_t kRowsOneByOne = 2;       // of a panel: a tile takes 2 to 3 times as long as one of them
constexpr int64_t kTrialTiles = 2;         // of a panel behind skipped rows, where a whole panel has as many

// The error bound of passes.h: constant + per_length |a| + per_square |a|^2 + per_loss |a - a^|.
struct ScoreBound {
  double constant, per_length, per_square, per_loss;

  ScoreBound() {}
  ScoreBound(const ScreenedCodes& screened, const CodeTier& tier, int64_t num_channels) {
    const double unit = static_cast<double>(num_channels + 16), largest = tier.largest_norm;
    const double rounding = 1.25 * unit * 0x1p-24, exact = unit * 0x1p-52;
    per_loss = (1 + 0x1p-8) * (largest + tier.largest_rounding);
    per_length = rounding * largest + (1 + 0x1p-8) * tier.largest_rounding;
    if (screened.metric == Metric::kEuclidean) {
      per_length += 2 * exact * largest;
      constant = (0.5 * rounding + exact) * largest * largest;
      per_square = exact;
    } else {
      per_length += (exact + (screened.metric == Metric::kCosine ? 0x1p-23 : 0.0)) * tier.largest_code;
      constant = 0x1p-64 * (per_length + per_loss);  // |a| and |a - a^| count as 2^-64 more
      per_square = 0.0;
    }
  }

  // Twice the bound.
  float window(const RowLengths& row) const {
    const double square = row.square, lost = row.rounding_square;
    const double bound = constant + per_length * std::sqrt(square) + per_square * square + per_loss * std::sqrt(lost);
    return static_cast<float>(2.0 * bound * (1 + 0x1p-20));
  }
};

// What the lists of a thread share.
struct Comparison {
  Comparison(const CodebookLookupArgs& lookup, const ScreenedCodes& codes, const ExactCopies& one_row)
      : args(lookup), screened(codes), copies(one_row) {
    for (int64_t t = 0; t < codes.num_tiers; ++t) bounds[t] = ScoreBound(codes, codes.tiers[t], lookup.num_channels);
  }

  const CodebookLookupArgs& args;
  const ScreenedCodes& screened;
  const ExactCopies& copies;  // of one row
  ScoreBound bounds[kMostTiers];
};

// Candidates of one row so far, in ascending order of position; where codes were compared, their nearest comes first.
struct Candidates {
  const Comparison* comparison;
  int64_t row;
  int64_t first;  // position from which codes are listed, those before were compared
  bool has_nearest;
  bool may_look_again, looked_again;  // at the codes from `first` on
  float best;                         // highest score seen; of topk the last of `highest`
  float window;                       // twice the error bound of a tier, by which all scores here are measured
  float measured;                     // `best` when a distance was last computed; infinite where none shall be
  double low_square;                  // at most |a|^2, where distances are computed
  int32_t most;                       // candidates that may come before the list is looked through
  int32_t count;
  int32_t state;
  int32_t position[kListLength + kListSlack];  // in ScreenedCodes::codes
  float score[kListLength + kListSlack];
  float highest[kMostNearest];  // of topk: as many scores, the highest seen
};
enum : int32_t { kListed, kHighest, kLeft, kNotFinite };  // kHighest: only the highest score is looked for

inline void keep_above(Candidates& list, float threshold) {
  int32_t kept = 0;
  for (int32_t i = 0; i < list.count; ++i) {
    list.position[kept] = list.position[i];
    list.score[kept] = list.score[i];
    kept += list.score[i] >= threshold;
  }
  list.count = kept;
}

// At most the score of a code that is no farther than this, see pruning.h.
inline float score_at_distance(double low_square, const ScreenedCodes& screened, double distance) {
  const double scale = screened.scale, score = 0.5 * (low_square - scale * scale * distance);
  return static_cast<float>(score - 0x1p-22 * std::abs(score) - 0x1p-48);
}

// Raises the threshold by the distance of the code with the highest score: of the two errors of a window (passes.h)
// only that of the other code is left. Drops what is below.
inline void measure_best(Candidates& list, float& threshold) {
  const auto& [args, screened, copies, bounds] = *list.comparison;
  if (!(list.best > list.measured)) return;
  int32_t highest = list.has_nearest;
  for (int32_t n = highest + 1; n < list.count; ++n) highest = list.score[n] > list.score[highest] ? n : highest;
  if (!(list.score[highest] > list.measured)) return;  // in a second look the best may be still to come
  list.measured = list.score[highest];
  const float* code = args.codebook + screened.codes[list.position[highest]] * args.num_channels;
  const float distance = float_distance(copies.float_row(list.row), code, args.num_channels);
  if (!distance_is_relative(distance)) return;
  const double high = far_from(distance, args.num_channels) * (1 + 0x1p-20);
  const float limit = score_at_distance(list.low_square, screened, high) - 0.5f * list.window;
  if (!(limit > threshold)) return;
  threshold = limit;
  keep_above(list, threshold);
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
  threshold = list.state == kHighest ? list.best : list.best - list.window;
}

// Rounds down what several roundings have brought about, or up.
inline float lowered(float value) { return std::abs(value) < kInfinity ? value - 0x1p-22f * std::abs(value) : value; }
inline float raised(float value) { return -lowered(-value); }

// Measures a row by the bound of another tier: its scores less that bound are as high as they were less the one before,
// and candidates' scores with it.
[[gnu::noinline]] inline void enter_tier(Candidates& list, float& threshold, const RowLengths& lengths, int64_t tier) {
  const float window = list.comparison->bounds[tier].window(lengths);
  if (!(threshold < kInfinity) || window == list.window) return;
  const float wider = 0.5f * (window - list.window);
  for (int32_t n = 0; n < list.count; ++n) list.score[n] = raised(list.score[n] - wider);
  for (int64_t n = 0; n < list.comparison->args.topk; ++n) list.highest[n] = lowered(list.highest[n] + wider);
  list.best = lowered(list.best + wider);
  threshold = list.state == kHighest ? list.best : lowered(threshold - wider);
  list.window = window;
}

// Whether the candidates among the codes from `first` to `end` are too many to be compared one by one.
inline bool is_dense(const Candidates& list, int64_t end) {
  return list.count > kAlwaysCompared + list.comparison->args.topk - 1 &&
         list.count * kCodesPerCandidate > end - list.first;
}

// Drops what float32 says is none of the topk nearest.
inline void sift(Candidates& list) {
  const auto& [args, screened, copies, bounds] = *list.comparison;
  if (list.count < args.topk + kFewCandidates || screened.metric != Metric::kEuclidean) return;
  const auto code_of = [&](int32_t position) { return args.codebook + screened.codes[position] * args.num_channels; };
  list.count = drop_far(copies.float_row(list.row), args.num_channels, args.topk, list.count, list.position, list.score,
                        code_of);
}

// The topk nearest candidates.
inline Ranking ranked(Candidates& list) {
  const auto& [args, screened, copies, bounds] = *list.comparison;
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
  const auto& [args, screened, copies, bounds] = *list.comparison;
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

// A row that has too many candidates before its best is known: only its highest score is looked for, until one is so
// high that all before are out of its reach. Out of line, since listing takes 7 % more time where this is inlined.
[[gnu::noinline, gnu::cold]] inline void seek_highest(Candidates& list, float& threshold) {
  list.state = kHighest;
  list.most = kNone;
  threshold = list.best;
}

// Lists anew what reaches the threshold of the best score.
[[gnu::noinline, gnu::cold]] inline void list_anew(Candidates& list, float& threshold) {
  list.state = kListed;
  list.most = kFewToMeasure;
  list.count = list.has_nearest;
  threshold = list.best - list.window;
  if (list.measured < kInfinity) list.measured = -kInfinity;
}

// Takes a score above the best into account.
inline void raise_best(Candidates& list, float& threshold, float best) {
  const float before = list.best;
  list.best = best;
  if (list.state == kHighest) {
    threshold = best;
    if (best - list.window > before) list_anew(list, threshold);
    return;
  }
  threshold = best - list.window > threshold ? best - list.window : threshold;
}

// The second look at the same codes, by the threshold of the highest score.
inline void look_again(Candidates& list, float& threshold) {
  list_anew(list, threshold);
  list.may_look_again = false;
  list.looked_again = true;
  if (list.comparison->args.topk > 1) list.best = kInfinity;  // or scores would be counted twice
}

// Room for `wanted` more candidates from position `next` on; without it only the highest score is looked for or, in a
// second look, the row is left and nothing reaches its threshold any more.
inline bool make_room(Candidates& list, float& threshold, int32_t wanted, int64_t next) {
  if (list.count + wanted <= list.most) return true;
  if (list.state == kHighest) return false;
  keep_above(list, threshold);
  if (list.count > kFewToMeasure) measure_best(list, threshold);
  list.most = list.count + wanted + kFewToMeasure < kListLength ? list.count + wanted + kFewToMeasure : kListLength;
  if (list.count + wanted <= kListLength) return true;
  if (is_dense(list, next)) {
    if (list.may_look_again) {
      seek_highest(list, threshold);
    } else {
      list.state = kLeft;
      threshold = kInfinity;
    }
    return false;
  }
  if (list.comparison->args.topk > 1) {
    keep_ranked(list);
  } else {
    keep_nearest(list);
  }
  list.has_nearest = true;
  list.may_look_again = false;  // at codes that were compared
  list.first = next;
  return true;
}

// Of a sum of squares in lanes, relative.
inline double sum_of_squares_error(int64_t num_channels) {
  return 1.02 * (static_cast<double>(num_channels) / 8 + 32) * 0x1p-24;
}

template <class Kernel>
RowLengths convert_row(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t i, float* words) {
  const void* row = row_at(args.features, i, args.row_stride, args.features_type);
  return Kernel::convert_row(row, args.features_type, screened, args.num_channels, words);
}

// Prepares the list of a converted row; one that cannot be screened gets an unreachable threshold.
[[gnu::always_inline]] inline void begin_row(const Comparison& comparison, int64_t i, const RowLengths& lengths,
                                             float* words, float& threshold, Candidates& list) {
  const auto& [args, screened, copies, bounds] = comparison;
  const Undecided undecided = undecided_at(args.index[i]);
  list.comparison = &comparison;
  list.row = i;
  list.first = undecided.position;
  list.has_nearest = undecided.nearest >= 0;
  list.count = list.has_nearest;
  list.position[0] = static_cast<int32_t>(undecided.nearest);
  list.score[0] = kInfinity;
  list.best = threshold = -kInfinity;
  list.measured = kInfinity;
  list.most = kListLength;
  list.may_look_again = list.looked_again = false;
  for (float& score : list.highest) score = -kInfinity;
  list.state = kListed;
  if (is_finite(lengths.square) && is_finite(lengths.rounding_square)) {
    list.window = bounds[0].window(lengths);
    const bool rounds = lengths.rounding_square > 0.0f || screened.tiers[0].largest_rounding > 0.0;
    if (rounds && args.num_channels >= kChannelsMeasured && args.topk == 1 && screened.metric == Metric::kEuclidean) {
      list.measured = -kInfinity;
      list.most = kFewToMeasure;
      list.low_square = lengths.square * (1 - sum_of_squares_error(args.num_channels));
    }
    return;
  }
  list.state = row_is_finite(args, i) ? kLeft : kNotFinite;
  threshold = kInfinity;
  std::memset(words, 0, sizeof(float) * screened.num_steps);
}

// Decides between the candidates of one row in float64, or leaves it. Returns how many codes it leaves.
inline int64_t finish_row(float threshold, Candidates& list, LookupCounts& counts) {
  const auto& [args, screened, copies, bounds] = *list.comparison;
  if (list.state == kListed) {
    keep_above(list, threshold);
    if (list.count > kFewToMeasure) measure_best(list, threshold);
    if (is_dense(list, screened.num_distinct)) list.state = kLeft;
    if (list.state == kListed && list.count > 1) counts.candidates += list.count;
    if (list.state == kListed) counts.looked_again += list.looked_again;
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

// The undecided rows of [begin, end), a panel at a time. The neighbours of hopeless rows are as hopeless as a rule:
// behind a panel most of which is left to the next pass, rows are skipped and only a few in many still tried, fewer the
// longer it lasts.
class UndecidedRows {
 public:
  UndecidedRows(const CodebookLookupArgs& args, int64_t begin, int64_t end)
      : index_(args.index), next_(begin), end_(end) {}

  // Takes the next rows: up to `whole`, or `trial` behind skipped ones. Returns how many.
  int64_t take(int64_t whole, int64_t trial, int64_t* rows) {
    const int64_t most = skipped_ > 0 ? trial : whole;
    for (num_taken_ = 0; next_ < end_ && num_taken_ < most; ++next_) {
      if (index_[next_] < 0) rows[num_taken_++] = next_;
    }
    return num_taken_;
  }

  // Behind rows taken, of which the next pass has to compare `share`. Returns how many rows it skips.
  int64_t skip(double share) {
    const int64_t more = 4 * skipped_ + 8 * num_taken_;
    skipped_ = share < 0.75 ? 0 : more < kMostSkipped ? more : kMostSkipped;
    return pass_over(skipped_);
  }

  int64_t skip_all() { return pass_over(end_ - next_); }
  int64_t next() const { return next_; }

 private:
  int64_t pass_over(int64_t most) {
    int64_t num_rows = 0;
    for (; next_ < end_ && num_rows < most; ++next_) num_rows += index_[next_] < 0;
    return num_rows;
  }

  const int64_t* const index_;
  int64_t next_;
  const int64_t end_;
  int64_t num_taken_ = 0, skipped_ = 0;
};

// Rows begin off the 4 KiB stride that maps all of them to one cache set.
inline int64_t panel_row_length(int64_t num_steps) { return (num_steps + 15) / 16 * 16 + 16; }

// Rows that are screened together, those of whole tiles; behind the last row are zeros that reach nothing.
struct Panel {
  Panel(int64_t num_steps, int64_t most_rows)
      : row_length(panel_row_length(num_steps)),
        row_memory(sizeof(float) * most_rows * row_length),
        list_memory(sizeof(Candidates) * most_rows),
        words(static_cast<float*>(row_memory.data())),
        lists(static_cast<Candidates*>(list_memory.data())) {}

  float* row(int64_t r) const { return words + r * row_length; }

  void keep(int64_t r, const RowLengths& of_row) {
    lengths[r] = of_row;
    first_word[r] = *row(r);
  }

  // Puts the rows in the unit of a tier's codes.
  void set_unit(const ScreenedCodes& screened, int64_t tier) {
    if (screened.tiers[0].unit == 1.0) return;
    for (int64_t r = 0; r < num_rows; ++r) *row(r) = first_word[r] * static_cast<float>(screened.tiers[tier].unit);
  }

  // Measures the rows by its bound.
  void enter(const ScreenedCodes& screened, int64_t tier) {
    if (!screened.has_tiers()) return;
    set_unit(screened, tier);
    for (int64_t r = 0; r < num_rows; ++r) enter_tier(lists[r], threshold[r], lengths[r], tier);
  }

  const int64_t row_length;
  const Scratch row_memory, list_memory;
  float* const words;
  Candidates* const lists;
  int64_t num_rows = 0, num_padded = 0;
  alignas(64) float threshold[kMaxPanelRows + kListSlack] = {};
  // For codes in tiers:
  RowLengths lengths[kMaxPanelRows];
  float first_word[kMaxPanelRows];  // of int8 rows: their own unit times that of the codebook
};

// Whether rows of the panel look again. Nothing reaches the others meanwhile; `threshold` keeps theirs.
[[gnu::noinline]] inline bool begin_second_look(Panel& panel, float* threshold) {
  bool any = false;
  for (int64_t r = 0; r < panel.num_rows; ++r) any = any || panel.lists[r].state == kHighest;
  for (int64_t r = 0; any && r < panel.num_rows; ++r) {
    threshold[r] = panel.threshold[r];
    panel.threshold[r] = kInfinity;
    if (panel.lists[r].state == kHighest) look_again(panel.lists[r], panel.threshold[r]);
  }
  return any;
}

// Screens in panels of most_rows, each by screen(panel), and decides between the candidates of each row.
template <class Kernel, class Screen>
LookupCounts screen_panels(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end,
                           int64_t most_rows, Screen screen) {
  LookupCounts counts;
  UndecidedRows undecided(args, begin, end);
  if (!screened.screenable) return {0, 0, undecided.skip_all()};
  DefaultFloatEnvironment environment;
  Panel panel(screened.num_steps, most_rows);
  const ExactCopies copies(args, 1);
  const Comparison comparison(args, screened, copies);
  const int64_t trial_rows = most_rows < kTrialTiles * Kernel::kRows ? most_rows : kTrialTiles * Kernel::kRows;
  int64_t row_id[kMaxPanelRows];
  Kernel::begin();
  while ((panel.num_rows = undecided.take(most_rows, trial_rows, row_id)) > 0) {
    for (int64_t r = 0; r < panel.num_rows; ++r) {
      const RowLengths lengths = convert_row<Kernel>(args, screened, row_id[r], panel.row(r));
      begin_row(comparison, row_id[r], lengths, panel.row(r), panel.threshold[r], panel.lists[r]);
      if (screened.has_tiers()) panel.keep(r, lengths);
    }
    for (panel.num_padded = panel.num_rows; panel.num_padded % Kernel::kRows != 0; ++panel.num_padded) {
      std::memset(panel.row(panel.num_padded), 0, sizeof(float) * screened.num_steps);
      panel.threshold[panel.num_padded] = kInfinity;
    }
    screen(panel);
    int64_t num_left = 0;  // pairs
    for (int64_t r = 0; r < panel.num_rows; ++r) num_left += finish_row(panel.threshold[r], panel.lists[r], counts);
    counts.undecided += undecided.skip(static_cast<double>(num_left) / (panel.num_rows * screened.num_distinct));
  }
  Kernel::end();
  return counts;
}

template <class Kernel>
LookupCounts screen_rows(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kRows = Kernel::kRows;
  int64_t most_rows = kPanelBytes / static_cast<int64_t>(sizeof(float) * panel_row_length(screened.num_steps));
  most_rows = (most_rows > kMaxPanelRows ? kMaxPanelRows : most_rows) / kRows * kRows;
  most_rows = most_rows < kRows ? kRows : most_rows;
  return screen_panels<Kernel>(args, screened, begin, end, most_rows, [&](Panel& panel) {
    int64_t first_group[kMaxPanelRows], group = screened.num_groups;  // of each tile, and of all
    for (int64_t r = 0; r < panel.num_rows; r += kRows) {
      int64_t first = panel.lists[r].first;
      const int64_t tile_end = r + kRows < panel.num_rows ? r + kRows : panel.num_rows;
      for (int64_t n = r; n < tile_end; ++n) first = panel.lists[n].first < first ? panel.lists[n].first : first;
      for (int64_t n = r; n < tile_end; ++n) {
        panel.lists[n].first = first;
        panel.lists[n].may_look_again = true;
      }
      first_group[r / kRows] = first / Kernel::kCodes;
      group = first_group[r / kRows] < group ? first_group[r / kRows] : group;
    }
    float threshold[kMaxPanelRows];
    int looks = 0;
    do {
      int64_t g = group;
      for (int64_t tier = 0; tier < screened.num_tiers; ++tier) {
        const int64_t end_group = screened.tiers[tier].end_group;
        if (g >= end_group) continue;
        panel.enter(screened, tier);
        if constexpr (requires { &Kernel::screen_row; }) {
          for (; panel.num_rows <= kRowsOneByOne && g < end_group; ++g) {
            for (int64_t r = 0; r < panel.num_rows; ++r)
              Kernel::screen_row(panel.row(r), screened, g, panel.threshold[r], panel.lists[r]);
          }
        }
        for (; g < end_group; ++g) {
          for (int64_t r = 0; r < panel.num_padded; r += kRows) {
            if (g < first_group[r / kRows]) continue;
            Kernel::screen_tile(panel.row(r), panel.row_length, screened, g, panel.threshold + r, panel.lists + r);
          }
        }
      }
    } while (++looks == 1 && begin_second_look(panel, threshold));
    for (int64_t r = 0; looks == 2 && r < panel.num_rows; ++r)
      panel.threshold[r] = panel.lists[r].looked_again ? panel.threshold[r] : threshold[r];
  });
}

}  // namespace
}  // namespace soho
