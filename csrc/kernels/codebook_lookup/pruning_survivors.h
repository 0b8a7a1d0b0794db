// The codes that low-dimensional pruning (pruning.h) leaves of a row: sifted, compared the highest first, and the
// nearest found.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. On what a Kernel provides see
// screen_pruning.h.
#pragma once

#include <cmath>

#include "kernels/codebook_lookup/pruning_projection.h"

namespace soho {
namespace {

constexpr int32_t kMostSurvivors = 1024;
constexpr int32_t kMostKnown = 144;       // distances of a row
constexpr int32_t kFewSurvivors = 3;      // are not worth a sift
constexpr int32_t kMostKnownBefore = 16;  // distances of a row before its survivors are compared

struct SiftedRow {
  float unit;
  RowLengths lengths;
};

struct Survivor {
  int32_t code;   // as PruningCodes has them
  float highest;  // at least its score
};

// One row of a panel.
struct PruningRow {
  int64_t row;
  double low_square;
  int32_t num_survivors, num_known;
  bool left;
  int32_t known[kMostKnown];  // codes whose distance was computed
  float distance[kMostKnown];
  float nearest;         // the smallest of them
  double high_distance;  // at least the smallest one
  Survivor survivors[kMostSurvivors];
};

// What the rows of a thread share.
struct PruningWork {
  const CodebookLookupArgs& args;
  const ScreenedCodes& screened;
  const PruningCodes& pruning;
  const ExactCopies& copies;  // of one row

  const float* code(int32_t n) const { return args.codebook + screened.codes[pruning.order[n]] * args.num_channels; }

  // Rounded down: no code whose score is below it is as near as the nearest known one.
  float threshold(const PruningRow& row) const {
    return score_at_distance(row.low_square, screened, row.high_distance);
  }

  // Computes the distance of up to kFloatCodes codes.
  void know(PruningRow& row, const int32_t* numbers, int32_t count) const {
    const float* values = copies.float_row(row.row);
    float distance[kFloatCodes];
    if (count == kFloatCodes) {
      const float* codes[kFloatCodes];
      for (int32_t k = 0; k < kFloatCodes; ++k) codes[k] = code(numbers[k]);
      float_distances(values, codes, args.num_channels, distance);
    } else {
      for (int32_t k = 0; k < count; ++k) distance[k] = float_distance(values, code(numbers[k]), args.num_channels);
    }
    for (int32_t k = 0; k < count; ++k) {
      row.known[row.num_known] = numbers[k];
      row.distance[row.num_known++] = distance[k];
      if (row.num_known > 1 && !(distance[k] < row.nearest)) continue;
      row.nearest = distance[k];
      double high = far_from(distance[k], args.num_channels);
      if (!distance_is_relative(distance[k])) {  // a float32 distance says nothing here
        copies.load_row(0, row.row);
        high = cost_of(copies, screened, 0, pruning.order[numbers[k]]);
      }
      row.high_distance = high * (1 + 0x1p-20) < row.high_distance ? high * (1 + 0x1p-20) : row.high_distance;
    }
  }
};

inline bool is_known(const PruningRow& row, int32_t code) {
  for (int32_t n = 0; n < row.num_known; ++n) {
    if (row.known[n] == code) return true;
  }
  return false;
}

// A heap of survivors: none is above the one at (n - 1) / 2.
inline void push_survivor(PruningRow& row, Survivor survivor) {
  int32_t n = row.num_survivors++;
  for (; n > 0 && survivor.highest > row.survivors[(n - 1) / 2].highest; n = (n - 1) / 2)
    row.survivors[n] = row.survivors[(n - 1) / 2];
  row.survivors[n] = survivor;
}

inline int32_t pop_survivor(PruningRow& row) {
  const int32_t code = row.survivors[0].code, count = --row.num_survivors;
  const Survivor last = row.survivors[count];
  int32_t n = 0;
  for (int32_t child = 1; child < count; child = 2 * n + 1) {
    child += child + 1 < count && row.survivors[child + 1].highest > row.survivors[child].highest;
    if (!(row.survivors[child].highest > last.highest)) break;
    row.survivors[n] = row.survivors[child];
    n = child;
  }
  row.survivors[n] = last;
  return code;
}

// Drops survivors whose score in int8, with its error, is below the threshold.
template <class Kernel>
void sift_survivors(const PruningWork& work, PruningRow& row, float threshold, int8_t* numbers) {
  const auto& [args, screened, pruning, copies] = work;
  const void* features = row_at(args.features, row.row, args.row_stride, args.features_type);
  const auto [unit, lengths] = Kernel::sift_row(features, args.features_type, screened, args.num_channels, numbers);
  const Projection a = certify(lengths, {0.0f, 0.0f}, args.num_channels, 1);
  const double lost = std::sqrt(static_cast<double>(lengths.rounding_square)) * (1 + 0x1p-8) + 0x1p-23 * a.whole;
  const float row_error = static_cast<float>((lost + 0x1p-50) * (1 + 0x1p-16));
  const float whole = static_cast<float>((a.whole + lost) * (1 + 0x1p-16));
  const int32_t count = row.num_survivors;
  const int64_t num_numbers = sifted_channels(args.num_channels);
  row.num_survivors = 0;
  for (int32_t first = 0; first < count; first += 4) {
    Survivor four[4];
    const int8_t* codes[4];
    int32_t sums[4];
    for (int32_t k = 0; k < 4; ++k) {
      four[k] = row.survivors[first + k < count ? first + k : first];
      codes[k] = pruning.numbers + four[k].code * num_numbers;
    }
    Kernel::sift(numbers, codes, num_numbers, sums);
    for (int32_t k = 0; k < 4 && first + k < count; ++k) {
      const SiftedCode& code = pruning.sifted[four[k].code];
      const float score =
          static_cast<float>(sums[k] + code.start) * (unit * code.unit) + pruning.negated_half[four[k].code];
      const float reach = row_error * code.length + whole * code.error +
                          0x1p-21f * (whole * (code.length + code.error) + code.length * code.length);
      const float highest = score + reach < four[k].highest ? score + reach : four[k].highest;
      if (highest >= threshold) row.survivors[row.num_survivors++] = {four[k].code, highest};
    }
  }
}

// Compares the survivors of a row, the highest first, and writes its index. Returns how many distances it took.
inline int32_t finish_pruning(const PruningWork& work, PruningRow& row, float threshold, LookupCounts& counts) {
  const auto& [args, screened, pruning, copies] = work;
  const int32_t num_survivors = row.num_survivors;
  row.num_survivors = 0;
  for (int32_t n = 0; n < num_survivors; ++n) {
    const Survivor survivor = row.survivors[n];
    if (survivor.highest >= threshold) push_survivor(row, survivor);
  }
  while (row.num_survivors > 0 && row.survivors[0].highest >= threshold) {
    if (row.num_known + kFloatCodes > kMostKnown) {
      row.left = true;
      return row.num_known;
    }
    int32_t next[kFloatCodes], count = 0;
    while (count < kFloatCodes && row.num_survivors > 0 && row.survivors[0].highest >= threshold)
      next[count++] = pop_survivor(row);
    work.know(row, next, count);
    threshold = work.threshold(row);
  }
  const int32_t num_compared = row.num_known;
  // The positions of the known codes that may be the nearest, ascending.
  const float limit = float_limit(row.nearest, args.num_channels);
  int32_t count = 0;
  for (int32_t n = 0; n < row.num_known; ++n) {
    if (!(row.distance[n] <= limit)) continue;
    const int32_t position = pruning.order[row.known[n]];
    int32_t place = count++;
    for (; place > 0 && row.known[place - 1] > position; --place) row.known[place] = row.known[place - 1];
    row.known[place] = position;
  }
  int32_t nearest = row.known[0];
  if (count > 1) {
    copies.load_row(0, row.row);
    Nearest found;
    find_nearest<1>(copies, screened, 1, count, [&](int64_t n) { return row.known[n]; }, &found);
    nearest = static_cast<int32_t>(found.position);
  }
  counts.compared += count > 1;
  ++counts.pruning;
  if (args.distance != nullptr) copies.load_row(0, row.row);
  write_row(args, copies, 0, row.row, screened.codes[nearest]);
  return num_compared;
}

}  // namespace
}  // namespace soho
