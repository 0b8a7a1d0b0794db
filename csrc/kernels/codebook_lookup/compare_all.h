// Squared distances in float64, in the order of codebook_lookup.h, with eight channels side by side.
//
// Comparing all codes takes two steps as well. The distance with fused multiply-adds costs less and differs from the
// defined one only by the rounding of sums of C/8 + 3 positive terms and of each term (relative 2^-53 each, at most
// 1.01 (C/8 + 6) 2^-53 for either one up to C = 2^40), so a code whose fused distance exceeds another's by more than
// (C/8 + 8) 2^-50 of it is not the nearest; the others are compared by the defined distance. Where many codes are as
// near, the defined distance is computed at once; with fused multiply-adds again where no square is rounded, as with
// small integers.
//
// Included by each vector level and compiled with its flags: everything here is in an unnamed namespace, and no
// standard container or algorithm is used, so that the linker cannot share it between levels.
#pragma once

#include <immintrin.h>

#include <cstring>
#include <limits>

#include "common/memory.h"
#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {
namespace {

constexpr int64_t kNumLanes = 8;
constexpr double kFar = std::numeric_limits<double>::infinity();

// Float64 channels side by side: all eight partial sums, or one half of them after the other.
#ifdef __AVX512F__
constexpr int kWidth = 8;
constexpr int kTileRows = 6, kTileCodes = 4;  // 24 sums, 4 codes, 1, a row: 30 of 32 registers
using Lanes = __m512d;
inline Lanes no_lanes() { return _mm512_setzero_pd(); }
inline Lanes ones() { return _mm512_set1_pd(1.0); }
inline Lanes load_lanes(const double* row) { return _mm512_loadu_pd(row); }
inline void store_lanes(double* target, Lanes lanes) { _mm512_storeu_pd(target, lanes); }
inline Lanes load_lanes(const float* code) { return _mm512_cvtps_pd(_mm256_loadu_ps(code)); }
inline Lanes plus(Lanes a, Lanes b) { return _mm512_add_pd(a, b); }
inline Lanes minus(Lanes a, Lanes b) { return _mm512_sub_pd(a, b); }
inline Lanes times(Lanes a, Lanes b) { return _mm512_mul_pd(a, b); }
inline Lanes times_plus(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_pd(a, b, c); }
inline Lanes times_minus(Lanes a, Lanes b, Lanes c) { return _mm512_fmsub_pd(a, b, c); }
inline __m256d low_plus_high(Lanes sum) {
  return _mm256_add_pd(_mm512_castpd512_pd256(sum), _mm512_extractf64x4_pd(sum, 1));
}
#else
constexpr int kWidth = 4;
constexpr int kTileRows = 2, kTileCodes = 4;  // 8 sums, 4 codes, 1, a row: 14 of 16 registers
using Lanes = __m256d;
inline Lanes no_lanes() { return _mm256_setzero_pd(); }
inline Lanes ones() { return _mm256_set1_pd(1.0); }
inline Lanes load_lanes(const double* row) { return _mm256_loadu_pd(row); }
inline void store_lanes(double* target, Lanes lanes) { _mm256_storeu_pd(target, lanes); }
inline Lanes load_lanes(const float* code) { return _mm256_cvtps_pd(_mm_loadu_ps(code)); }
inline Lanes plus(Lanes a, Lanes b) { return _mm256_add_pd(a, b); }
inline Lanes minus(Lanes a, Lanes b) { return _mm256_sub_pd(a, b); }
inline Lanes times(Lanes a, Lanes b) { return _mm256_mul_pd(a, b); }
inline Lanes times_plus(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_pd(a, b, c); }
inline Lanes times_minus(Lanes a, Lanes b, Lanes c) { return _mm256_fmsub_pd(a, b, c); }
#endif

inline int64_t exact_row_length(int64_t num_channels) { return (num_channels + kNumLanes - 1) / kNumLanes * kNumLanes; }

// Adds the squares of kWidth channels of num_rows x kTileCodes pairs. Every other defined difference is x * 1 - d, which
// has the same bits: processors that add and multiply in different units have work for both then.
template <bool fused, int num_rows>
inline void add_channels(const double* rows, int64_t row_length, const Lanes (&codes)[kTileCodes],
                         Lanes (&sum)[num_rows][kTileCodes]) {
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
    const Lanes x = load_lanes(rows + r * row_length);
#pragma GCC unroll 8
    for (int k = 0; k < kTileCodes; ++k) {
      const Lanes difference = !fused && (r + k) % 2 == 1 ? times_minus(x, ones(), codes[k]) : minus(x, codes[k]);
      sum[r][k] = fused ? times_plus(difference, difference, sum[r][k])
                        : plus(sum[r][k], times(difference, difference));
    }
  }
}

// Partial sums l + l+4 of num_rows x kTileCodes pairs, over zeros. A row holds float64 and zeros up to a multiple of eight channels;
// so does a code of float64.
template <int num_rows, bool fused, class Value>
inline void four_sums(const double* rows, int64_t row_length, const Value* const* codes, int64_t num_channels,
                      __m256d (&four)[num_rows][kTileCodes]) {
  constexpr bool padded = sizeof(Value) == sizeof(double);
  const int64_t num_padded = padded ? exact_row_length(num_channels) : num_channels;
  for (int64_t part = 0; part < kNumLanes; part += kWidth) {
    Lanes sum[num_rows][kTileCodes];
#pragma GCC unroll 8
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
      for (int k = 0; k < kTileCodes; ++k) sum[r][k] = no_lanes();
    }
    int64_t c = part;
    for (; c + kWidth <= num_padded; c += kNumLanes) {
      Lanes code[kTileCodes];
#pragma GCC unroll 8
      for (int k = 0; k < kTileCodes; ++k) code[k] = load_lanes(codes[k] + c);
      add_channels<fused>(rows + c, row_length, code, sum);
    }
    if (!padded && c < num_padded) {
      Lanes code[kTileCodes];  // apart from those above, which stay in registers
      for (int k = 0; k < kTileCodes; ++k) {
        Value last[kWidth] = {};
        std::memcpy(last, codes[k] + c, sizeof(Value) * (num_channels - c));
        code[k] = load_lanes(last);
      }
      add_channels<fused>(rows + c, row_length, code, sum);
    }
#pragma GCC unroll 8
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
      for (int k = 0; k < kTileCodes; ++k) {
#ifdef __AVX512F__
        four[r][k] = low_plus_high(sum[r][k]);
#else
        four[r][k] = plus(four[r][k], sum[r][k]);  // 0 + a sum of squares is that sum
#endif
      }
    }
  }
}

// Distances of num_rows x kTileCodes pairs, those of one row side by side.
template <int num_rows, bool fused = false, class Value>
inline void squared_distances(const double* rows, int64_t row_length, const Value* const* codes, int64_t num_channels,
                              __m256d (&distance)[num_rows]) {
  __m256d four[num_rows][kTileCodes] = {};
  four_sums<num_rows, fused>(rows, row_length, codes, num_channels, four);
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
    __m256d two[2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const __m256d a = four[r][k], b = four[r][k + 2];
      two[k] = _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
    }
    distance[r] = _mm256_add_pd(_mm256_unpacklo_pd(two[0], two[1]), _mm256_unpackhi_pd(two[0], two[1]));
  }
}

inline bool any_below(__m256d distance, double limit) {
  return _mm256_movemask_pd(_mm256_cmp_pd(distance, _mm256_set1_pd(limit), _CMP_LT_OQ)) != 0;
}

inline void load_exact(const void* values, Element type, int64_t num_channels, double* target) {
  int64_t c = 0;
  if (type == Element::kFloat32) {
    const float* floats = static_cast<const float*>(values);
    for (; c + kWidth <= num_channels; c += kWidth) store_lanes(target + c, load_lanes(floats + c));
  }
  for (; c < num_channels; ++c) target[c] = load_element(values, c, type);
  for (; c < exact_row_length(num_channels); ++c) target[c] = 0.0;
}

inline void load_exact_row(const CodebookLookupArgs& args, int64_t i, double* target) {
  load_exact(row_at(args.features, i, args.row_stride, args.features_type), args.features_type, args.num_channels,
             target);
}

// Which of some codes, ascending, is the nearest to one row; code_at(n) is the n-th.
template <class CodeAt>
inline int64_t nearest_of(const CodebookLookupArgs& args, const double* row, int64_t num_codes, CodeAt code_at) {
  double smallest = kFar;
  int64_t nearest = 0;
  for (int64_t first = 0; first < num_codes; first += kTileCodes) {
    const float* codes[kTileCodes];
    const int64_t left = num_codes - first < kTileCodes ? num_codes - first : kTileCodes;
    for (int64_t k = 0; k < kTileCodes; ++k)
      codes[k] = args.codebook + code_at(first + (k < left ? k : left - 1)) * args.num_channels;
    __m256d distances[1];
    squared_distances<1>(row, 0, codes, args.num_channels, distances);
    if (!any_below(distances[0], smallest)) continue;
    double distance[kTileCodes];
    _mm256_storeu_pd(distance, distances[0]);
    for (int64_t k = 0; k < left; ++k) {
      if (!(distance[k] < smallest)) continue;
      smallest = distance[k];
      nearest = first + k;
    }
  }
  return nearest;
}

inline double squared_distance(const CodebookLookupArgs& args, const double* row, int64_t code) {
  const float* values = args.codebook + code * args.num_channels;
  const float* codes[kTileCodes] = {values, values, values, values};
  __m256d distances[1];
  squared_distances<1>(row, 0, codes, args.num_channels, distances);
  return _mm256_cvtsd_f64(distances[0]);
}

inline void write_row(const CodebookLookupArgs& args, int64_t i, int64_t nearest, const double* exact_row) {
  args.index[i] = nearest;
  if (args.distance != nullptr) args.distance[i] = static_cast<float>(squared_distance(args, exact_row, nearest));
}

// Exponents of the highest and the lowest bit of float32 values.
struct BitRange {
  int high = -2048, low = 2048;

  void add(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if ((bits << 1) == 0) return;
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
    const int lowest = exponent - 52 + __builtin_ctzll(bits | uint64_t{1} << 52);
    high = exponent > high ? exponent : high;
    low = lowest < low ? lowest : low;
  }
};

// Whether all differences of such values have at most 26 bits, so that their squares are float64 numbers.
inline bool squares_are_exact(const BitRange& a, const BitRange& b) {
  return (a.high > b.high ? a.high : b.high) + 2 - (a.low < b.low ? a.low : b.low) <= 26;
}

inline BitRange bits_of_codes(const CodebookLookupArgs& args, const ScreenedCodes& screened) {
  BitRange bits;
  for (int64_t position = 0; position < screened.num_distinct; ++position) {
    const float* code = args.codebook + screened.codes[position] * args.num_channels;
    for (int64_t c = 0; c < args.num_channels; ++c) bits.add(code[c]);
  }
  return bits;
}

enum class Comparing { kByLooks, kDefined, kDefinedFused };

// Nearest code so far of one row.
struct Nearest {
  double smallest;  // defined distance
  double limit;     // only fused distances below it need a look
  int64_t code;
};

// The undecided rows of [begin, end) against every distinct code that is left to them.
inline LookupCounts compare_all(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kBlockTiles = 32, kBlockRows = kBlockTiles * kTileRows;
  constexpr int64_t kMostLooks = 16 * kTileRows;  // of a tile of rows, before the defined distance is computed at once
  constexpr int64_t kVainLooks = 8;               // what a look counts that finds no nearer code
  const int64_t num_channels = args.num_channels, row_length = exact_row_length(num_channels);
  const double tolerance = 1 + (static_cast<double>(num_channels) / 8 + 8) * 0x1p-50;
  const Scratch memory(sizeof(double) * (kBlockRows + kTileCodes) * row_length);
  double* rows = static_cast<double*>(memory.data());
  double* exact_codes = rows + kBlockRows * row_length;
  Nearest nearest[kBlockRows];
  Comparing comparing[kBlockTiles];
  BitRange code_bits;
  bool has_code_bits = false;
  int64_t row_id[kBlockRows], num_looks[kBlockTiles], first_code[kBlockTiles];
  LookupCounts counts;
  for (int64_t i = begin; i < end;) {
    int64_t num_rows = 0;
    int64_t first = screened.num_distinct;
    for (; i < end && num_rows < kBlockRows; ++i) {
      if (args.index[i] >= 0) continue;
      double* row = rows + num_rows * row_length;
      load_exact_row(args, i, row);
      const Undecided undecided = undecided_at(args.index[i]);
      const int64_t tile = num_rows / kTileRows, position = undecided.position / kTileCodes * kTileCodes;
      if (num_rows % kTileRows == 0 || position < first_code[tile]) first_code[tile] = position;
      first = position < first ? position : first;
      nearest[num_rows] = {kFar, kFar, 0};
      if (undecided.nearest >= 0) {
        const int64_t code = screened.codes[undecided.nearest];
        const double smallest = squared_distance(args, row, code);
        nearest[num_rows] = {smallest, smallest * tolerance, code};
      }
      row_id[num_rows++] = i;
    }
    const int64_t num_tiles = (num_rows + kTileRows - 1) / kTileRows;
    std::memset(rows + num_rows * row_length, 0, sizeof(double) * row_length * (num_tiles * kTileRows - num_rows));
    for (int64_t r = num_rows; r < num_tiles * kTileRows; ++r) nearest[r] = {kFar, kFar, 0};
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      num_looks[tile] = 0;
      comparing[tile] = Comparing::kByLooks;
    }
    for (; first < screened.num_distinct; first += kTileCodes) {
      const double* codes[kTileCodes];
      int64_t position[kTileCodes];
      for (int64_t k = 0; k < kTileCodes; ++k) {  // the last one is repeated: a copy is not nearer
        position[k] = screened.codes[first + k < screened.num_distinct ? first + k : screened.num_distinct - 1];
        load_exact(args.codebook + position[k] * num_channels, Element::kFloat32, num_channels,
                   exact_codes + k * row_length);
        codes[k] = exact_codes + k * row_length;
      }
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        if (first < first_code[tile]) continue;
        const double* tile_row = rows + tile * kTileRows * row_length;
        if (comparing[tile] == Comparing::kByLooks && num_looks[tile] >= kMostLooks) {
          if (!has_code_bits) code_bits = bits_of_codes(args, screened);
          has_code_bits = true;
          BitRange row_bits;
          for (int64_t n = 0; n < kTileRows * row_length; ++n) row_bits.add(tile_row[n]);
          comparing[tile] = squares_are_exact(row_bits, code_bits) ? Comparing::kDefinedFused : Comparing::kDefined;
        }
        const bool by_looks = comparing[tile] == Comparing::kByLooks;
        __m256d distances[kTileRows];
        if (comparing[tile] != Comparing::kDefined) {
          squared_distances<kTileRows, true>(tile_row, row_length, codes, num_channels, distances);
        } else {
          squared_distances<kTileRows>(tile_row, row_length, codes, num_channels, distances);
        }
        for (int64_t r = 0; r < kTileRows; ++r) {
          Nearest& row = nearest[tile * kTileRows + r];
          if (!any_below(distances[r], by_looks ? row.limit : row.smallest)) continue;
          double distance[kTileCodes];
          _mm256_storeu_pd(distance, distances[r]);
          if (by_looks) {
            for (int64_t k = 0; k < kTileCodes; ++k) {
              const double limit = distance[k] * tolerance;
              row.limit = limit < row.limit ? limit : row.limit;
            }
            __m256d defined[1];
            squared_distances<1>(tile_row + r * row_length, 0, codes, num_channels, defined);
            _mm256_storeu_pd(distance, defined[0]);
          }
          bool nearer = false;
          for (int64_t k = 0; k < kTileCodes; ++k) {
            if (!(distance[k] < row.smallest)) continue;
            row = {distance[k], row.limit, position[k]};
            nearer = true;
          }
          if (by_looks) num_looks[tile] += nearer ? 1 : kVainLooks;
        }
      }
    }
    for (int64_t r = 0; r < num_rows; ++r) write_row(args, row_id[r], nearest[r].code, rows + r * row_length);
    counts.compared += num_rows;
  }
  return counts;
}

}  // namespace
}  // namespace soho
