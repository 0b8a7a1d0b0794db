// Squared distances in float64, in the order of codebook_lookup.h, with eight channels side by side.
//
// Included by each vector level and compiled with its flags: everything here is in an unnamed namespace, and no
// standard container or algorithm is used, so that the linker cannot share it between levels.
#pragma once

#include <cstring>
#include <limits>

#include "common/memory.h"
#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {
namespace {

typedef double Lanes __attribute__((vector_size(64), aligned(8), may_alias));  // one, two or four registers
typedef float FloatLanes __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int64_t kNumLanes = 8;
constexpr double kFar = std::numeric_limits<double>::infinity();

inline double fold(const Lanes& sum) {
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// Distances of num_rows x num_codes pairs. A row holds float64 and zeros up to a multiple of eight channels.
template <int num_rows, int num_codes>
inline void squared_distances(const double* rows, int64_t row_length, const float* const* codes, int64_t num_channels,
                              double (*distance)[num_codes]) {
  Lanes sum[num_rows][num_codes] = {};
  const auto add = [&](int64_t c, const FloatLanes* code) {
#pragma GCC unroll 8
    for (int k = 0; k < num_codes; ++k) {
      const Lanes wide = __builtin_convertvector(code[k], Lanes);
#pragma GCC unroll 8
      for (int r = 0; r < num_rows; ++r) {
        const Lanes difference = *reinterpret_cast<const Lanes*>(rows + r * row_length + c) - wide;
        sum[r][k] += difference * difference;
      }
    }
  };
  int64_t c = 0;
  FloatLanes code[num_codes];
  for (; c + kNumLanes <= num_channels; c += kNumLanes) {
    for (int k = 0; k < num_codes; ++k) std::memcpy(&code[k], codes[k] + c, sizeof(FloatLanes));
    add(c, code);
  }
  if (c < num_channels) {
    for (int k = 0; k < num_codes; ++k) {
      code[k] = FloatLanes{};
      std::memcpy(&code[k], codes[k] + c, sizeof(float) * (num_channels - c));
    }
    add(c, code);
  }
  for (int r = 0; r < num_rows; ++r) {
    for (int k = 0; k < num_codes; ++k) distance[r][k] = fold(sum[r][k]);
  }
}

inline int64_t exact_row_length(int64_t num_channels) { return (num_channels + kNumLanes - 1) / kNumLanes * kNumLanes; }

inline void load_exact_row(const CodebookLookupArgs& args, int64_t i, double* target) {
  const void* row = row_at(args.features, i, args.row_stride, args.features_type);
  int64_t c = 0;
  for (; c < args.num_channels; ++c) target[c] = load_element(row, c, args.features_type);
  for (; c < exact_row_length(args.num_channels); ++c) target[c] = 0.0;
}

// Nearest of some codes to one row, ascending; code_at(n) is the n-th.
template <int tile_codes, class CodeAt>
inline int64_t nearest_code(const CodebookLookupArgs& args, const double* row, int64_t num_codes, CodeAt code_at) {
  double smallest = kFar, distance[1][tile_codes];
  int64_t nearest = 0;
  for (int64_t first = 0; first < num_codes; first += tile_codes) {
    const float* codes[tile_codes];
    const int64_t left = num_codes - first < tile_codes ? num_codes - first : tile_codes;
    for (int64_t k = 0; k < tile_codes; ++k)
      codes[k] = args.codebook + code_at(first + (k < left ? k : left - 1)) * args.num_channels;
    squared_distances<1, tile_codes>(row, 0, codes, args.num_channels, distance);
    for (int64_t k = 0; k < left; ++k) {
      if (!(distance[0][k] < smallest)) continue;
      smallest = distance[0][k];
      nearest = code_at(first + k);
    }
  }
  return nearest;
}

inline void write_row(const CodebookLookupArgs& args, int64_t i, int64_t nearest, const double* exact_row) {
  args.index[i] = nearest;
  if (args.distance == nullptr) return;
  const float* code = args.codebook + nearest * args.num_channels;
  double distance[1][1];
  squared_distances<1, 1>(exact_row, 0, &code, args.num_channels, distance);
  args.distance[i] = static_cast<float>(distance[0][0]);
}

// The undecided rows of [begin, end) against every distinct code; tile_rows x tile_codes sums stay in registers.
template <int tile_rows, int tile_codes>
LookupCounts compare_all(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kBlockRows = 16 * tile_rows;
  const int64_t row_length = exact_row_length(args.num_channels);
  const Scratch memory(sizeof(double) * kBlockRows * row_length);
  double* rows = static_cast<double*>(memory.data());
  double smallest[kBlockRows];
  int64_t row_id[kBlockRows], nearest[kBlockRows];
  LookupCounts counts;
  for (int64_t i = begin; i < end;) {
    int64_t num_rows = 0;
    for (; i < end && num_rows < kBlockRows; ++i) {
      if (args.index[i] != kUndecided) continue;
      load_exact_row(args, i, rows + num_rows * row_length);
      smallest[num_rows] = kFar;
      nearest[num_rows] = 0;
      row_id[num_rows++] = i;
    }
    const int64_t num_loaded = num_rows;
    for (; num_rows % tile_rows != 0; ++num_rows) {
      std::memset(rows + num_rows * row_length, 0, sizeof(double) * row_length);
      smallest[num_rows] = kFar;
    }
    for (int64_t first = 0; first < screened.num_distinct; first += tile_codes) {
      const float* codes[tile_codes];
      int64_t position[tile_codes];
      for (int64_t k = 0; k < tile_codes; ++k) {
        position[k] = screened.codes[first + k < screened.num_distinct ? first + k : screened.num_distinct - 1];
        codes[k] = args.codebook + position[k] * args.num_channels;
      }
      for (int64_t r = 0; r < num_rows; r += tile_rows) {
        double distance[tile_rows][tile_codes];
        squared_distances<tile_rows, tile_codes>(rows + r * row_length, row_length, codes, args.num_channels, distance);
        for (int64_t row = 0; row < tile_rows; ++row) {
          for (int64_t k = 0; k < tile_codes; ++k) {
            if (!(distance[row][k] < smallest[r + row])) continue;  // copies at the end are not smaller
            smallest[r + row] = distance[row][k];
            nearest[r + row] = position[k];
          }
        }
      }
    }
    for (int64_t r = 0; r < num_loaded; ++r) write_row(args, row_id[r], nearest[r], rows + r * row_length);
    counts.compared += num_loaded;
  }
  return counts;
}

}  // namespace
}  // namespace soho
