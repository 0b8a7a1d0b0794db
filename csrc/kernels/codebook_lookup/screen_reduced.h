// The frame of the reduced pass (reduced.h): rows to few directions, the highest U of each group of codes for a panel
// of rows, then a second look at the groups that reach a row's threshold.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. A Kernel provides, beside kRows,
// kCodes and convert_row of screen.h,
//   kPass                                                        its ReducedPass::type
//   static RowLengths round_directions(p, factor, num, words)    factor p as words; |factor p|^2 and of the rounding
//   static void multiply(rows, row_length, codes, num_steps, out, out_length)   products of one tile, float32
//   static void highest(rows, row_length, radius, codes, negated_half, code_radius, num_steps, out)   U, per row
//   kSifts, and where it is true sift_row, sift_code and sift   all channels in int8, see cpu_avx512_reduced.cpp
//   static void look(row, radius, codes, negated_half, code_radius, num_steps, out)   U of one row, per code
#pragma once

#include <cmath>

#include "kernels/codebook_lookup/group_maxima.h"
#include "kernels/codebook_lookup/reduced.h"
#include "kernels/codebook_lookup/screen.h"

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

constexpr int32_t kMostSurvivors = 1024;
constexpr int32_t kMostKnown = 144;       // distances of a row
constexpr int32_t kFewSurvivors = 3;      // are not worth a sift
constexpr int32_t kMostKnownBefore = 16;  // distances of a row before its survivors are compared

// What is certified of one row or code; see reduced.h.
struct Projection {
  double low_square;  // at most |a|^2
  double whole;       // at least |a| and the length of (p^, R)
  double length;      // at least |p^|
  double error;       // at least |p - p^|
  double radius;      // R
};

// `lengths` are those of a^, `directions` those of p~ and its rounding.
inline Projection certify(const RowLengths& lengths, const RowLengths& directions, int64_t num_channels,
                          int64_t num_directions) {
  const double lanes = 1.02 * (static_cast<double>(num_channels) / 8 + 32) * 0x1p-24, square = lengths.square;
  const double high_square = square * (1 + lanes) + 0x1p-100, whole = std::sqrt(high_square);
  const double lost = std::sqrt(static_cast<double>(lengths.rounding_square)) * (1 + 0x1p-8);
  const double relative = (static_cast<double>(num_directions) / 8 + 32) * 0x1p-24;
  const double low = std::sqrt(static_cast<double>(directions.square)) * (1 - relative);
  const double high = std::sqrt(static_cast<double>(directions.square)) * (1 + relative);
  const double chain = 1.07 * static_cast<double>(num_channels + 16) * 0x1p-24 * std::sqrt(num_directions);
  const double error = 1.01 * 0x1p-24 * whole + lost + chain * (whole + lost) + 0x1p-22 * high + 0x1p-50;
  const double held = low > error ? low - error : 0.0;
  const double rest = high_square > held * held ? high_square - held * held : 0.0;
  const double rounding = std::sqrt(static_cast<double>(directions.rounding_square)) * (1 + 0x1p-8);
  const double length = high + rounding, radius = std::sqrt(rest) * (1 + 0x1p-20) + 0x1p-50;
  const double certified = std::sqrt(length * length + radius * radius) * (1 + 0x1p-20);
  return {square * (1 - lanes), certified > whole ? certified : whole, length, (error + rounding) * (1 + 0x1p-20),
          radius};
}

// Of a sum of num_directions products and what is added to them, relative to |a| |b| and |b|^2/2.
inline double sum_error(int64_t num_directions) { return 1.07 * static_cast<double>(num_directions + 32) * 0x1p-24; }

// Memory of one thread for the channels of a tile.
template <class Kernel>
struct TileMemory {
  explicit TileMemory(int64_t num_channels)
      : steps(reduced_steps(Kernel::kPass, num_channels)),
        row_length(panel_row_length(steps)),
        memory(sizeof(float) * Kernel::kRows * row_length),
        words(static_cast<float*>(memory.data())) {
    std::memset(words, 0, sizeof(float) * Kernel::kRows * row_length);
  }

  const int64_t steps, row_length;
  const Scratch memory;
  float* const words;
};

// Projects up to kRows rows: p~/c and the lengths of each, zeros and NaN for a row that is not finite or absent.
template <class Kernel, class RowAt>
void project_tile(const ScreenedCodes& screened, const ReducedCodes& reduced, int64_t num_channels, int64_t num_rows,
                  Element type, RowAt row_of, const TileMemory<Kernel>& tile, float (*directions)[kMostDirections],
                  RowLengths* lengths) {
  constexpr int64_t kRows = Kernel::kRows, kWidth = Kernel::kCodes;
  for (int64_t r = 0; r < kRows; ++r) {
    float* target = tile.words + r * tile.row_length;
    if (r < num_rows) {
      lengths[r] = Kernel::convert_row(row_of(r), type, screened, num_channels, target);
      if (is_finite(lengths[r].square) && is_finite(lengths[r].rounding_square)) continue;
    }
    lengths[r] = {std::numeric_limits<float>::quiet_NaN(), 0.0f};
    std::memset(target, 0, sizeof(float) * tile.steps);
  }
  for (int64_t k = 0; k < reduced.num_directions; k += kWidth) {
    const float* panel = static_cast<const float*>(reduced.basis) + k * tile.steps;
    Kernel::multiply(tile.words, tile.row_length, panel, tile.steps, directions[0] + k, kMostDirections);
  }
}

template <class Kernel>
void project_codes(const float* codebook, int64_t num_channels, const ScreenedCodes& screened,
                   const ReducedCodes& reduced, int64_t begin, int64_t end, float* directions, RowLengths* lengths) {
  DefaultFloatEnvironment environment;
  constexpr int64_t kRows = Kernel::kRows;
  const TileMemory<Kernel> tile(num_channels);
  alignas(64) float of_tile[kRows][kMostDirections];
  RowLengths lengths_of_tile[kRows];
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t num_rows = end - first < kRows ? end - first : kRows;
    const auto code_at = [&](int64_t r) { return codebook + screened.codes[first + r] * num_channels; };
    project_tile<Kernel>(screened, reduced, num_channels, num_rows, Element::kFloat32, code_at, tile, of_tile,
                         lengths_of_tile);
    for (int64_t r = 0; r < num_rows; ++r) {
      float* target = directions + (first - begin + r) * reduced.num_directions;
      std::memcpy(target, of_tile[r], sizeof(float) * reduced.num_directions);
      lengths[first - begin + r] = lengths_of_tile[r];
    }
  }
}

template <class Kernel>
void pack_reduced_groups(const float* codebook, int64_t num_channels, const ScreenedCodes& screened,
                         const ReducedCodes& reduced, const float* directions, const RowLengths* lengths, int64_t begin,
                         int64_t end) {
  DefaultFloatEnvironment environment;
  constexpr int64_t kWidth = Kernel::kCodes;
  const int64_t num_directions = reduced.num_directions, steps = reduced_steps(Kernel::kPass, num_directions);
  alignas(64) float words[kMostDirections];
  float* panel = static_cast<float*>(const_cast<void*>(reduced.panel));
  for (int64_t group = begin; group < end; ++group) {
    double length = 0.0, error = 0.0;
    for (int64_t k = 0; k < kWidth; ++k) {
      const int64_t n = group * kWidth + k;
      float& negated_half = const_cast<float*>(reduced.negated_half)[n];
      negated_half = -kInfinity;
      if (n >= screened.num_distinct) continue;
      const int64_t position = reduced.order[n];
      const RowLengths of_directions =
          Kernel::round_directions(directions + position * num_directions, reduced.factor, num_directions, words);
      const Projection code = certify(lengths[position], of_directions, num_channels, num_directions);
      for (int64_t step = 0; step < steps; ++step)
        std::memcpy(panel + (group * steps + step) * kWidth + k, words + step, sizeof(float));
      negated_half = screened.negated_half[position];
      const_cast<float*>(reduced.radius)[n] = static_cast<float>(code.radius * (1 + 0x1p-22));
      length = code.whole > length ? code.whole : length;
      error = code.error > error ? code.error : error;
      if constexpr (Kernel::kSifts) {
        int8_t* numbers = const_cast<int8_t*>(reduced.numbers) + n * sifted_channels(num_channels);
        const_cast<SiftedCode*>(reduced.sifted)[n] =
            Kernel::sift_code(codebook + screened.codes[position] * num_channels, screened, num_channels, numbers);
      }
    }
    const_cast<float*>(reduced.group_length)[group] = static_cast<float>(length * (1 + 0x1p-22));
    const_cast<float*>(reduced.group_error)[group] = static_cast<float>(error * (1 + 0x1p-22));
  }
}

struct SiftedRow {
  float unit;
  RowLengths lengths;
};

struct Survivor {
  int32_t code;   // as ReducedCodes has them
  float highest;  // at least its score
};

// One row of a panel.
struct ReducedRow {
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
struct Reduction {
  const CodebookLookupArgs& args;
  const ScreenedCodes& screened;
  const ReducedCodes& reduced;
  const ExactCopies& copies;  // of one row

  const float* code(int32_t n) const { return args.codebook + screened.codes[reduced.order[n]] * args.num_channels; }

  // The row as float32; valid until the next call.
  const float* row(int64_t i) const {
    const void* features = row_at(args.features, i, args.row_stride, args.features_type);
    if (args.features_type == Element::kFloat32) return static_cast<const float*>(features);
    float* converted = reinterpret_cast<float*>(copies.row(0));
    for (int64_t c = 0; c < args.num_channels; ++c) converted[c] = load_element(features, c, args.features_type);
    return converted;
  }

  // Rounded down: no code whose score is below it is as near as the nearest known one.
  float threshold(const ReducedRow& row) const {
    const double scale = screened.scale, t = 0.5 * (row.low_square - scale * scale * row.high_distance);
    return static_cast<float>(t - 0x1p-22 * std::abs(t) - 0x1p-48);
  }

  // Computes the distance of up to kFloatCodes codes.
  void know(ReducedRow& row, const int32_t* numbers, int32_t count) const {
    const float* values = this->row(row.row);
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
        high = cost_of(copies, screened, 0, reduced.order[numbers[k]]);
      }
      row.high_distance = high * (1 + 0x1p-20) < row.high_distance ? high * (1 + 0x1p-20) : row.high_distance;
    }
  }
};

inline bool is_known(const ReducedRow& row, int32_t code) {
  for (int32_t n = 0; n < row.num_known; ++n) {
    if (row.known[n] == code) return true;
  }
  return false;
}

// Where the reduced pass has a code of the codebook, or -1.
inline int32_t code_of_guess(const ScreenedCodes& screened, const ReducedCodes& reduced, int64_t code) {
  int64_t low = 0, high = screened.num_distinct;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    screened.codes[middle] < code ? low = middle + 1 : high = middle;
  }
  return low < screened.num_distinct && screened.codes[low] == code ? reduced.place[low] : -1;
}

// A heap of survivors: none is above the one at (n - 1) / 2.
inline void push_survivor(ReducedRow& row, Survivor survivor) {
  int32_t n = row.num_survivors++;
  for (; n > 0 && survivor.highest > row.survivors[(n - 1) / 2].highest; n = (n - 1) / 2)
    row.survivors[n] = row.survivors[(n - 1) / 2];
  row.survivors[n] = survivor;
}

inline int32_t pop_survivor(ReducedRow& row) {
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
void sift_survivors(const Reduction& work, ReducedRow& row, float threshold, int8_t* numbers) {
  const auto& [args, screened, reduced, copies] = work;
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
      codes[k] = reduced.numbers + four[k].code * num_numbers;
    }
    Kernel::sift(numbers, codes, num_numbers, sums);
    for (int32_t k = 0; k < 4 && first + k < count; ++k) {
      const SiftedCode& code = reduced.sifted[four[k].code];
      const float score =
          static_cast<float>(sums[k] + code.start) * (unit * code.unit) + reduced.negated_half[four[k].code];
      const float reach = row_error * code.length + whole * code.error +
                          0x1p-21f * (whole * (code.length + code.error) + code.length * code.length);
      const float highest = score + reach < four[k].highest ? score + reach : four[k].highest;
      if (highest >= threshold) row.survivors[row.num_survivors++] = {four[k].code, highest};
    }
  }
}

// Compares the survivors of a row, the highest first, and writes its index. Returns how many distances it took.
inline int32_t finish_reduced(const Reduction& work, ReducedRow& row, float threshold, LookupCounts& counts) {
  const auto& [args, screened, reduced, copies] = work;
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
    const int32_t position = reduced.order[row.known[n]];
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
  ++counts.reduced;
  if (args.distance != nullptr) copies.load_row(0, row.row);
  write_row(args, copies, 0, row.row, screened.codes[nearest]);
  return num_compared;
}

template <class Kernel>
LookupCounts screen_reduced(const CodebookLookupArgs& args, const ScreenedCodes& screened, const ReducedCodes& reduced,
                            int64_t begin, int64_t end) {
  constexpr int64_t kRows = Kernel::kRows, kWidth = Kernel::kCodes, kPanel = kGroupRows;
  static_assert(kPanel % kRows == 0);
  DefaultFloatEnvironment environment;
  LookupCounts counts;
  const int64_t num_directions = reduced.num_directions, steps = reduced_steps(Kernel::kPass, num_directions);
  const int64_t row_length = panel_row_length(steps);
  // In codes of the next pass: a row, each of its survivors in float32, and each that is sifted.
  const int64_t next_steps = screened.num_steps, survivor_cost = 1 + 4 * args.num_channels / next_steps;
  const int64_t sifted_cost = 1 + args.num_channels / next_steps / 4;
  const int64_t row_cost =
      (screened.num_distinct * steps + num_directions * reduced_steps(Kernel::kPass, args.num_channels)) / next_steps;
  const int64_t most_groups = screened.num_groups < kGroupsPerChunk ? screened.num_groups : kGroupsPerChunk;
  const TileMemory<Kernel> tile(args.num_channels);
  const Scratch word_memory(sizeof(float) * kPanel * row_length), row_memory(sizeof(ReducedRow) * kPanel);
  const Scratch highest_memory(sizeof(float) * (most_groups * kPanel + kListSlack));
  const Scratch number_memory(Kernel::kSifts ? sifted_channels(args.num_channels) : 0);
  const ExactCopies copies(args, 1);
  const Reduction work{args, screened, reduced, copies};
  float* words = static_cast<float*>(word_memory.data());
  ReducedRow* rows = static_cast<ReducedRow*>(row_memory.data());
  float* highest = static_cast<float*>(highest_memory.data());
  // Of each row: R, T, and the factors of a group's |b| and e_b in the window.
  alignas(64) float radius[kPanel + kListSlack] = {}, threshold[kPanel + kListSlack] = {};
  alignas(64) float per_length[kPanel + kListSlack] = {}, per_error[kPanel + kListSlack] = {};
  const double sum = sum_error(num_directions);
  const float per_square = static_cast<float>(0.5 * sum * (1 + 0x1p-16));
  const auto panel_of = [&](int64_t group) {
    return static_cast<const float*>(reduced.panel) + group * steps * kWidth;
  };

  int64_t skipped = 0;
  bool first_panel = true;
  for (int64_t i = begin; i < end; first_panel = false) {
    const int64_t most_rows = skipped > 0 || first_panel ? kTrialTiles * kRows : kPanel;
    int64_t num_rows = 0;
    for (; i < end && num_rows < most_rows; ++i) {
      if (args.index[i] < 0) rows[num_rows++].row = i;
    }
    const int64_t num_padded = (num_rows + kRows - 1) / kRows * kRows;
    for (int64_t r = 0; r < num_padded; r += kRows) {
      alignas(64) float directions[kRows][kMostDirections];
      RowLengths lengths[kRows];
      const auto row_of = [&](int64_t n) {
        return row_at(args.features, rows[r + n].row, args.row_stride, args.features_type);
      };
      const int64_t present = num_rows - r < kRows ? num_rows - r : kRows;
      project_tile<Kernel>(screened, reduced, args.num_channels, present, args.features_type, row_of, tile, directions,
                           lengths);
      for (int64_t n = 0; n < kRows; ++n) {
        const RowLengths of_directions =
            Kernel::round_directions(directions[n], reduced.factor, num_directions, words + (r + n) * row_length);
        const Projection a = certify(lengths[n], of_directions, args.num_channels, num_directions);
        const bool finite = std::isfinite(a.low_square + a.length + a.error + a.radius);
        radius[r + n] = finite ? static_cast<float>(a.radius * (1 + 0x1p-22)) : 0.0f;
        per_length[r + n] = static_cast<float>((a.error + sum * a.whole) * (1 + 0x1p-16));
        per_error[r + n] = static_cast<float>(a.length * (1 + 0x1p-16));
        threshold[r + n] = finite ? -kInfinity : kInfinity;
        if (n >= present) continue;
        ReducedRow& row = rows[r + n];
        row.low_square = a.low_square;
        row.num_survivors = row.num_known = 0;
        row.nearest = kInfinity;
        row.high_distance = kFar;
        row.left = !finite;
      }
    }
    const auto window = [&](int64_t r, int64_t group) {
      const float length = reduced.group_length[group];
      return per_length[r] * length + per_error[r] * reduced.group_error[group] + per_square * length * length;
    };
    if (args.guess != nullptr) {
      for (int64_t r = 0; r < num_rows; ++r) {
        const int32_t code = rows[r].left ? -1 : code_of_guess(screened, reduced, args.guess[rows[r].row]);
        if (code < 0) continue;
        work.know(rows[r], &code, 1);
        threshold[r] = work.threshold(rows[r]);
      }
    }

    for (int64_t chunk = 0; chunk < screened.num_groups; chunk += most_groups) {
      const int64_t num_groups = screened.num_groups - chunk < most_groups ? screened.num_groups - chunk : most_groups;
      for (int64_t g = 0; g < num_groups; ++g) {
        const int64_t group = chunk + g;
        for (int64_t r = 0; r < num_padded; r += kRows) {
          Kernel::highest(words + r * row_length, row_length, radius + r, panel_of(group),
                          reduced.negated_half + group * kWidth, reduced.radius + group * kWidth, steps,
                          highest + g * kPanel + r);
        }
      }
      alignas(64) float scores[kWidth];
      const auto look = [&](int64_t r, int64_t group) {
        Kernel::look(words + r * row_length, radius[r], panel_of(group), reduced.negated_half + group * kWidth,
                     reduced.radius + group * kWidth, steps, scores);
      };
      // The code with the highest U is the nearest one as a rule: the first threshold of a row is its score.
      alignas(64) float best[kPanel], place[kPanel];
      for (int64_t r = 0; r < num_padded; ++r) best[r] = -kInfinity, place[r] = 0.0f;
      for (int64_t g = 0; g < num_groups; ++g) {
        const float* of_group = highest + g * kPanel;
        for (int64_t r = 0; r < num_padded; ++r) {
          const bool higher = of_group[r] > best[r];
          best[r] = higher ? of_group[r] : best[r];
          place[r] = higher ? static_cast<float>(g) : place[r];
        }
      }
      for (int64_t r = 0; r < num_rows; ++r) {
        const int64_t group = chunk + static_cast<int64_t>(place[r]);
        if (rows[r].left || rows[r].num_known == kMostKnownBefore) continue;
        if (!(best[r] + window(r, group) >= threshold[r])) continue;
        look(r, group);
        int32_t highest_of_group = 0;
        for (int32_t k = 1; k < kWidth; ++k)
          highest_of_group = scores[k] > scores[highest_of_group] ? k : highest_of_group;
        const int32_t code = static_cast<int32_t>(group * kWidth) + highest_of_group;
        if (code >= screened.num_distinct || is_known(rows[r], code)) continue;
        work.know(rows[r], &code, 1);
        threshold[r] = work.threshold(rows[r]);
      }
      for (int64_t g = 0; g < num_groups; ++g) {
        const int64_t group = chunk + g;
        const float length = reduced.group_length[group], error = reduced.group_error[group];
        const float square = per_square * length * length;
        const float* of_group = highest + g * kPanel;
        for (int64_t first = 0; first < num_padded; first += kFloatLanes) {
          uint32_t hits = reaching(of_group + first, threshold + first, per_length + first, per_error + first, length,
                                   error, square);
          for (; hits != 0; hits &= hits - 1) {
            const int64_t r = first + __builtin_ctz(hits);
            if (r >= num_rows) break;
            ReducedRow& row = rows[r];
            if (row.left) continue;
            look(r, group);
            const float reach = window(r, group);
            uint32_t codes = at_least<kWidth>(scores, threshold[r] - reach);
            for (; codes != 0 && !row.left; codes &= codes - 1) {
              const int32_t k = __builtin_ctz(codes), code = static_cast<int32_t>(group * kWidth) + k;
              if (code >= screened.num_distinct || is_known(row, code)) continue;
              if (row.num_survivors < kMostSurvivors) {
                row.survivors[row.num_survivors++] = {code, scores[k] + reach};
              } else {
                row.left = true;
                threshold[r] = kInfinity;
              }
            }
          }
        }
      }
    }
    int64_t cost = num_rows * row_cost;
    for (int64_t r = 0; r < num_rows; ++r) {
      ReducedRow& row = rows[r];
      const int64_t first_cost = row.num_survivors * (Kernel::kSifts ? sifted_cost : survivor_cost);
      row.left |= row.num_survivors > kAlwaysCompared && first_cost > screened.num_distinct;
      if (!row.left) {
        if constexpr (Kernel::kSifts) {
          if (row.num_survivors > kFewSurvivors) {
            cost += first_cost;
            sift_survivors<Kernel>(work, row, threshold[r], static_cast<int8_t*>(number_memory.data()));
          }
        }
        cost += finish_reduced(work, row, threshold[r], counts) * survivor_cost;
      }
      if (!row.left) continue;
      args.index[row.row] = kUndecided;
      ++counts.undecided;
      cost += screened.num_distinct;
    }
    skipped = next_skipped(skipped, num_rows, static_cast<double>(cost) / (num_rows * screened.num_distinct));
    for (int64_t left = skipped; i < end && left > 0; ++i) {
      counts.undecided += args.index[i] < 0;
      left -= args.index[i] < 0;
    }
  }
  return counts;
}

}  // namespace
}  // namespace soho
