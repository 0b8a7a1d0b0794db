// The frame of a screening pass: panels of converted rows against groups of codes, a list of survivors per row.
//
// Included by each vector level and compiled with its flags; see compare_all.h. A Kernel provides
//   kRows, kFormat                  rows and codes of one tile
//   static void begin(), end()      around the work of one thread
//   static RowLengths convert_row(row, type, screened, num_channels, words)   writes a^, num_steps words
//   static void screen_tile(words, row_length, screened, group, threshold, lists)
// where screen_tile offers to the list of each row the scores that reach the row's threshold, ascending by code.
#pragma once

#include <cmath>

#include "common/float_environment.h"
#include "kernels/codebook_lookup/compare_all.h"
#include "kernels/codebook_lookup/drop_far.h"

namespace soho {
namespace {

constexpr int32_t kListLength = 128;  // survivors kept per row
constexpr int32_t kFewSurvivors = 2;  // which float64 decides between at once
constexpr int32_t kListSlack = 16;    // lists are written by whole vectors
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPanelBytes =
    256 * 1024;  // of converted rows: half of a 512 KiB L2 cache, the rest streams the codes
constexpr int64_t kMaxPanelRows = 192;

// Survivors of one row so far, in ascending order of code.
struct Survivors {
  float best;    // highest score seen
  float window;  // twice the error bound
  int32_t count;
  int32_t state;
  int32_t position[kListLength + kListSlack];  // in ScreenedCodes::codes
  float score[kListLength + kListSlack];
};
enum : int32_t { kListed, kOverflown, kNotFinite };

inline void keep_above(Survivors& list, float threshold) {
  int32_t kept = 0;
  for (int32_t i = 0; i < list.count; ++i) {
    list.position[kept] = list.position[i];
    list.score[kept] = list.score[i];
    kept += list.score[i] >= threshold;
  }
  list.count = kept;
}

// Room for `wanted` more survivors; without it the row is given up and nothing reaches its threshold any more.
inline bool make_room(Survivors& list, float& threshold, int32_t wanted) {
  if (list.count + wanted <= kListLength) return true;
  keep_above(list, threshold);
  if (list.count + wanted <= kListLength) return true;
  list.state = kOverflown;
  threshold = kInfinity;
  return false;
}

struct RowLengths {
  float square;           // |a|^2
  float rounding_square;  // |a - a^|^2 beyond the rounding to float32
};

inline double score_bound(const RowLengths& row, const ScreenedCodes& screened, int64_t num_channels) {
  const double norm = std::sqrt(static_cast<double>(row.square)), largest = screened.largest_norm;
  const double lost = std::sqrt(static_cast<double>(row.rounding_square));
  const double unit = static_cast<double>(num_channels + 16);
  return 1.25 * unit * 0x1p-24 * (norm * largest + 0.5 * largest * largest) +
         unit * 0x1p-52 * (norm + largest) * (norm + largest) +
         (1 + 0x1p-8) * (lost * largest + (norm + lost) * screened.largest_rounding);
}

inline bool row_is_finite(const void* row, Element type, int64_t num_channels) {
  bool finite = true;
  for (int64_t c = 0; c < num_channels; ++c) finite &= is_finite(load_element(row, c, type));
  return finite;
}

// Converts one row and prepares its list; a row that cannot be screened gets an unreachable threshold.
template <class Kernel>
void begin_row(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t i, float* words, float& threshold,
               Survivors& list) {
  const void* row = row_at(args.features, i, args.row_stride, args.features_type);
  list.count = 0;
  list.best = threshold = -kInfinity;
  list.state = kListed;
  const RowLengths lengths = Kernel::convert_row(row, args.features_type, screened, args.num_channels, words);
  if (is_finite(lengths.square) && is_finite(lengths.rounding_square)) {
    list.window = static_cast<float>(2.0 * score_bound(lengths, screened, args.num_channels) * (1 + 0x1p-20));
    return;
  }
  list.state = row_is_finite(row, args.features_type, args.num_channels) ? kOverflown : kNotFinite;
  threshold = kInfinity;
  std::memset(words, 0, sizeof(float) * screened.num_steps);
}

// Decides between the survivors of one row in float64.
inline void finish_row(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t i, float threshold,
                Survivors& list, double* exact_row, LookupCounts& counts) {
  if (list.state == kListed) {
    keep_above(list, threshold);
    if (list.count > kFewSurvivors) {
      float* row = reinterpret_cast<float*>(exact_row);
      for (int64_t c = 0; c < args.num_channels; ++c)
        row[c] = load_element(row_at(args.features, i, args.row_stride, args.features_type), c, args.features_type);
      list.count = drop_far(row, args.num_channels, list.count, list.position, list.score, [&](int32_t position) {
        return args.codebook + screened.codes[position] * args.num_channels;
      });
    }
  }
  if (list.state == kOverflown) {
    ++counts.undecided;
    return;
  }
  const auto code_at = [&](int64_t n) { return screened.codes[list.position[n]]; };
  const bool compares = list.state == kListed && list.count > 1;
  if (compares || args.distance != nullptr) load_exact_row(args, i, exact_row);
  counts.compared += compares;
  const int64_t nearest = list.state == kNotFinite ? 0
                          : compares               ? nearest_code(args, exact_row, list.count, code_at)
                                                   : code_at(0);
  write_row(args, i, nearest, exact_row);
}

// Rows begin off the 4 KiB stride that maps all of them to one cache set.
inline int64_t panel_row_length(int64_t num_steps) { return (num_steps + 15) / 16 * 16 + 16; }

template <class Kernel>
LookupCounts screen_rows(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kRows = Kernel::kRows;
  LookupCounts counts;
  if (!screened.screenable) {
    for (int64_t i = begin; i < end; ++i) counts.undecided += args.index[i] == kUndecided;
    return counts;
  }
  DefaultFloatEnvironment environment;
  const int64_t row_length = panel_row_length(screened.num_steps);
  int64_t panel_rows = kPanelBytes / static_cast<int64_t>(sizeof(float) * row_length);
  panel_rows = (panel_rows > kMaxPanelRows ? kMaxPanelRows : panel_rows) / kRows * kRows;
  panel_rows = panel_rows < kRows ? kRows : panel_rows;
  const Scratch row_memory(sizeof(float) * panel_rows * row_length), list_memory(sizeof(Survivors) * panel_rows),
      exact_memory(sizeof(double) * exact_row_length(args.num_channels));
  float* rows = static_cast<float*>(row_memory.data());
  Survivors* lists = static_cast<Survivors*>(list_memory.data());
  float threshold[kMaxPanelRows + kListSlack];
  int64_t row_id[kMaxPanelRows];

  Kernel::begin();
  for (int64_t i = begin; i < end;) {
    int64_t num_rows = 0;
    for (; i < end && num_rows < panel_rows; ++i) {
      if (args.index[i] != kUndecided) continue;
      begin_row<Kernel>(args, screened, i, rows + num_rows * row_length, threshold[num_rows], lists[num_rows]);
      row_id[num_rows++] = i;
    }
    int64_t num_padded = num_rows;
    for (; num_padded % kRows != 0; ++num_padded) {
      std::memset(rows + num_padded * row_length, 0, sizeof(float) * screened.num_steps);
      threshold[num_padded] = kInfinity;
    }
    for (int64_t group = 0; group < screened.num_groups; ++group) {
      for (int64_t r = 0; r < num_padded; r += kRows)
        Kernel::screen_tile(rows + r * row_length, row_length, screened, group, threshold + r, lists + r);
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      finish_row(args, screened, row_id[r], threshold[r], lists[r],
                             static_cast<double*>(exact_memory.data()), counts);
    }
  }
  Kernel::end();
  return counts;
}

}  // namespace
}  // namespace soho
