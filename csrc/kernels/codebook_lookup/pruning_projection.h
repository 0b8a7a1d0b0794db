// Rows and codes in few directions, with what low-dimensional pruning certifies of them (pruning.h), and its panels of
// codes.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. On what a Kernel provides see
// screen_pruning.h.
#pragma once

#include <cmath>

#include "kernels/codebook_lookup/pruning.h"
#include "kernels/codebook_lookup/screen.h"

namespace soho {
namespace {

// What is certified of one row or code; see pruning.h.
struct Projection {
  double low_square;  // at most |a|^2
  double whole;       // at least |a| and the length of (p^, R)
  double length;      // at least |p^|
  double error;       // at least |p - p^|
  double radius;      // R
};

// Of several, for vector instructions.
template <int64_t num>
struct Projections {
  double low_square[num], whole[num], length[num], error[num], radius[num];
  Projection operator[](int64_t n) const { return {low_square[n], whole[n], length[n], error[n], radius[n]}; }
};

template <int64_t num>
struct SeveralLengths {
  float square[num] = {}, rounding_square[num] = {};
  void set(int64_t n, const RowLengths& lengths) {
    square[n] = lengths.square;
    rounding_square[n] = lengths.rounding_square;
  }
};

// `lengths` are those of a^, `directions` those of p~ and its rounding.
template <int64_t num>
inline Projections<num> certify(const SeveralLengths<num>& lengths, const SeveralLengths<num>& directions,
                                int64_t num_channels, int64_t num_directions) {
  const double lanes = sum_of_squares_error(num_channels);
  const double relative = (static_cast<double>(num_directions) / 8 + 32) * 0x1p-24;
  const double chain = 1.07 * static_cast<double>(num_channels + 16) * 0x1p-24 * std::sqrt(num_directions);
  Projections<num> projections;
  for (int64_t n = 0; n < num; ++n) {
    const double square = lengths.square[n], lost_square = lengths.rounding_square[n];
    const double near_square = directions.square[n], rounding_square = directions.rounding_square[n];
    const double high_square = square * (1 + lanes) + 0x1p-100, whole = std::sqrt(high_square);
    const double lost = std::sqrt(lost_square) * (1 + 0x1p-8), near = std::sqrt(near_square);
    const double low = near * (1 - relative), high = near * (1 + relative);
    const double error = 1.01 * 0x1p-24 * whole + lost + chain * (whole + lost) + 0x1p-22 * high + 0x1p-50;
    const double inside = low - error, held = inside > 0.0 ? inside : 0.0;
    const double outside = high_square - held * held, rest = outside > 0.0 ? outside : 0.0;
    const double rounding = std::sqrt(rounding_square) * (1 + 0x1p-8);
    const double length = high + rounding, radius = std::sqrt(rest) * (1 + 0x1p-20) + 0x1p-50;
    const double certified = std::sqrt(length * length + radius * radius) * (1 + 0x1p-20);
    projections.low_square[n] = square * (1 - lanes);
    projections.whole[n] = certified > whole ? certified : whole;
    projections.length[n] = length;
    projections.error[n] = (error + rounding) * (1 + 0x1p-20);
    projections.radius[n] = radius;
  }
  return projections;
}

inline Projection certify(const RowLengths& lengths, const RowLengths& directions, int64_t num_channels,
                          int64_t num_directions) {
  SeveralLengths<1> of_row, of_directions;
  of_row.set(0, lengths);
  of_directions.set(0, directions);
  return certify(of_row, of_directions, num_channels, num_directions)[0];
}

// Of a sum of num_directions products and what is added to them, relative to |a| |b| and |b|^2/2.
inline double sum_error(int64_t num_directions) { return 1.07 * static_cast<double>(num_directions + 32) * 0x1p-24; }

// Memory of one thread for the channels of a tile.
template <class Kernel>
struct TileMemory {
  explicit TileMemory(int64_t num_channels)
      : steps(pruning_steps(Kernel::kPass, num_channels)),
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
void project_tile(const ScreenedCodes& screened, const PruningCodes& pruning, int64_t num_channels, int64_t num_rows,
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
  for (int64_t k = 0; k < pruning.num_directions; k += kWidth) {
    const float* panel = static_cast<const float*>(pruning.subspace) + k * tile.steps;
    // Behind an odd number of kDirectionMultiple the rest of a panel are zeros.
    static_assert(kWidth == kDirectionMultiple || kWidth == 2 * kDirectionMultiple);
    const bool whole = pruning.num_directions - k >= kWidth;
    const auto multiply = whole ? Kernel::template multiply<kWidth> : Kernel::template multiply<kDirectionMultiple>;
    multiply(tile.words, tile.row_length, panel, tile.steps, directions[0] + k, kMostDirections);
  }
}

template <class Kernel>
void project_codes(const float* codebook, int64_t num_channels, const ScreenedCodes& screened,
                   const PruningCodes& pruning, int64_t begin, int64_t end, float* directions, RowLengths* lengths) {
  DefaultFloatEnvironment environment;
  constexpr int64_t kRows = Kernel::kRows;
  const TileMemory<Kernel> tile(num_channels);
  alignas(64) float of_tile[kRows][kMostDirections];
  RowLengths lengths_of_tile[kRows];
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t num_rows = end - first < kRows ? end - first : kRows;
    const auto code_at = [&](int64_t r) { return codebook + screened.codes[first + r] * num_channels; };
    project_tile<Kernel>(screened, pruning, num_channels, num_rows, Element::kFloat32, code_at, tile, of_tile,
                         lengths_of_tile);
    for (int64_t r = 0; r < num_rows; ++r) {
      float* target = directions + (first - begin + r) * pruning.num_directions;
      std::memcpy(target, of_tile[r], sizeof(float) * pruning.num_directions);
      lengths[first - begin + r] = lengths_of_tile[r];
    }
  }
}

template <class Kernel>
void pack_pruning_groups(const float* codebook, int64_t num_channels, const ScreenedCodes& screened,
                         const PruningCodes& pruning, const float* directions, const RowLengths* lengths, int64_t begin,
                         int64_t end) {
  DefaultFloatEnvironment environment;
  constexpr int64_t kWidth = Kernel::kCodes;
  const int64_t num_directions = pruning.num_directions, steps = pruning_steps(Kernel::kPass, num_directions);
  alignas(64) float words[kMostDirections];
  float* panel = static_cast<float*>(const_cast<void*>(pruning.panel));
  for (int64_t group = begin; group < end; ++group) {
    double length = 0.0, error = 0.0, coarse_error = 0.0;
    float largest = 0.0f;  // direction
    if constexpr (Kernel::kCoarse) {
      for (int64_t n = group * kWidth; n < group * kWidth + kWidth && n < screened.num_distinct; ++n) {
        const float* of_code = directions + pruning.order[n] * num_directions;
        const float of_largest = Kernel::largest_direction(of_code, pruning.factor, num_directions);
        largest = of_largest > largest ? of_largest : largest;
      }
    }
    for (int64_t k = 0; k < kWidth; ++k) {
      const int64_t n = group * kWidth + k;
      float& negated_half = const_cast<float*>(pruning.negated_half)[n];
      negated_half = -kInfinity;
      if (n >= screened.num_distinct) continue;
      const int64_t position = pruning.order[n];
      const RowLengths of_directions =
          Kernel::round_directions(directions + position * num_directions, pruning.factor, num_directions, words);
      const Projection code = certify(lengths[position], of_directions, num_channels, num_directions);
      for (int64_t step = 0; step < steps; ++step)
        std::memcpy(panel + (group * steps + step) * kWidth + k, words + step, sizeof(float));
      negated_half = screened.negated_half[position];
      const_cast<float*>(pruning.radius)[n] = static_cast<float>(code.radius * (1 + 0x1p-22));
      length = code.whole > length ? code.whole : length;
      error = code.error > error ? code.error : error;
      if constexpr (Kernel::kCoarse) {
        alignas(64) int8_t numbers[kMostDirections];
        const RowLengths rounded = Kernel::round_coarse(directions + position * num_directions, pruning.factor,
                                                        num_directions, largest, 0, numbers);
        const Projection coarse = certify(lengths[position], rounded, num_channels, num_directions);
        length = coarse.whole > length ? coarse.whole : length;
        coarse_error = coarse.error > coarse_error ? coarse.error : coarse_error;
        int32_t sum = 0;
        for (int64_t d = 0; d < num_directions; ++d) sum += numbers[d];
        const int32_t start = -128 * sum;
        float* target = const_cast<float*>(pruning.coarse_panel) + group * coarse_steps(num_directions) * kWidth + k;
        std::memcpy(target, &start, sizeof(start));
        for (int64_t d = 0; d < num_directions; d += 4) std::memcpy(target + (1 + d / 4) * kWidth, numbers + d, 4);
      }
      if constexpr (Kernel::kSifts) {
        int8_t* numbers = const_cast<int8_t*>(pruning.numbers) + n * sifted_channels(num_channels);
        const_cast<SiftedCode*>(pruning.sifted)[n] =
            Kernel::sift_code(codebook + screened.codes[position] * num_channels, screened, num_channels, numbers);
      }
    }
    const_cast<float*>(pruning.group_length)[group] = static_cast<float>(length * (1 + 0x1p-22));
    const_cast<float*>(pruning.group_error)[group] = static_cast<float>(error * (1 + 0x1p-22));
    if constexpr (Kernel::kCoarse) {
      const_cast<float*>(pruning.coarse_unit)[group] = largest / 127.0f;
      const_cast<float*>(pruning.coarse_error)[group] = static_cast<float>(coarse_error * (1 + 0x1p-22));
    }
  }
}

}  // namespace
}  // namespace soho
