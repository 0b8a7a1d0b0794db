// Squared distances in float64, in the order of codebook_lookup.h, with eight channels side by side.
//
// Comparing all codes takes two steps as well. The distance with fused multiply-adds costs less and differs from the
// defined one only by the rounding of sums of C/8 + 3 positive terms and of each term (relative 2^-53 each, at most
// 1.01 (C/8 + 6) 2^-53 for either one up to C = 2^40), so a code whose fused distance exceeds another's by more than
// (C/8 + 8) 2^-50 of it is not the nearest; the others are compared by the defined distance. Where nearly all codes are
// as near, the defined distance is computed at once.
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

// Eight float64 channels.
#ifdef __AVX512F__
struct Lanes {
  __m512d all;
};
inline Lanes no_lanes() { return {_mm512_setzero_pd()}; }
inline Lanes load_lanes(const double* row) { return {_mm512_loadu_pd(row)}; }
inline Lanes load_lanes(const float* code) { return {_mm512_cvtps_pd(_mm256_loadu_ps(code))}; }
template <bool fused, bool by_fma>
inline void add_square_of_difference(const Lanes& x, const Lanes& d, Lanes& sum) {
  const __m512d difference =
      by_fma ? _mm512_fmsub_pd(x.all, _mm512_set1_pd(1.0), d.all) : _mm512_sub_pd(x.all, d.all);
  sum.all = fused ? _mm512_fmadd_pd(difference, difference, sum.all)
                  : _mm512_add_pd(sum.all, _mm512_mul_pd(difference, difference));
}
inline __m256d low_plus_high(const Lanes& sum) {
  return _mm256_add_pd(_mm512_castpd512_pd256(sum.all), _mm512_extractf64x4_pd(sum.all, 1));
}
#else
struct Lanes {
  __m256d low, high;
};
inline Lanes no_lanes() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
inline Lanes load_lanes(const double* row) { return {_mm256_loadu_pd(row), _mm256_loadu_pd(row + 4)}; }
inline Lanes load_lanes(const float* code) {
  return {_mm256_cvtps_pd(_mm_loadu_ps(code)), _mm256_cvtps_pd(_mm_loadu_ps(code + 4))};
}
template <bool fused>
inline __m256d plus_square(__m256d sum, __m256d difference) {
  return fused ? _mm256_fmadd_pd(difference, difference, sum)
               : _mm256_add_pd(sum, _mm256_mul_pd(difference, difference));
}
template <bool by_fma>
inline __m256d minus(__m256d x, __m256d d) {
  return by_fma ? _mm256_fmsub_pd(x, _mm256_set1_pd(1.0), d) : _mm256_sub_pd(x, d);
}
template <bool fused, bool by_fma>
inline void add_square_of_difference(const Lanes& x, const Lanes& d, Lanes& sum) {
  sum.low = plus_square<fused>(sum.low, minus<by_fma>(x.low, d.low));
  sum.high = plus_square<fused>(sum.high, minus<by_fma>(x.high, d.high));
}
inline __m256d low_plus_high(const Lanes& sum) { return _mm256_add_pd(sum.low, sum.high); }
#endif

inline double fold(const Lanes& sum) {
  const __m256d four = low_plus_high(sum);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// Of the sums of one row.
template <int num_codes>
inline void fold_all(const Lanes (&sum)[num_codes], double (&distance)[num_codes]) {
#ifdef __AVX512F__
  if constexpr (num_codes == 4) {  // the same additions, side by side
    __m512d half[2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const __m512d a = sum[2 * k].all, b = sum[2 * k + 1].all;
      half[k] = _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xee));
    }
    const __m512d two = _mm512_add_pd(_mm512_shuffle_f64x2(half[0], half[1], 0x88),
                                      _mm512_shuffle_f64x2(half[0], half[1], 0xdd));
    const __m512d one = _mm512_add_pd(two, _mm512_permute_pd(two, 0x55));
    _mm256_storeu_pd(distance, _mm512_castpd512_pd256(_mm512_maskz_compress_pd(0x55, one)));
    return;
  }
#endif
#pragma GCC unroll 8
  for (int k = 0; k < num_codes; ++k) distance[k] = fold(sum[k]);
}

inline int64_t exact_row_length(int64_t num_channels) { return (num_channels + kNumLanes - 1) / kNumLanes * kNumLanes; }

// Adds eight channels of num_rows x num_codes pairs. Every other defined difference is x * 1 - d, which has the same
// bits: processors that add and multiply in different units have work for both then.
template <bool fused, int num_rows, int num_codes>
inline void add_channels(const double* rows, int64_t row_length, const Lanes (&codes)[num_codes],
                         Lanes (&sum)[num_rows][num_codes]) {
#pragma GCC unroll 8
  for (int k = 0; k < num_codes; ++k) {
#pragma GCC unroll 8
    for (int r = 0; r < num_rows; ++r) {
      const Lanes x = load_lanes(rows + r * row_length);
      if (!fused && (r + k) % 2 == 1) {
        add_square_of_difference<fused, true>(x, codes[k], sum[r][k]);
      } else {
        add_square_of_difference<fused, false>(x, codes[k], sum[r][k]);
      }
    }
  }
}

// Distances of num_rows x num_codes pairs. A row holds float64 and zeros up to a multiple of eight channels; so does a
// code of float64.
template <int num_rows, int num_codes, bool fused = false, class Value>
inline void squared_distances(const double* rows, int64_t row_length, const Value* const* codes, int64_t num_channels,
                              double (*distance)[num_codes]) {
  Lanes sum[num_rows][num_codes], code[num_codes];
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < num_codes; ++k) sum[r][k] = no_lanes();
  }
  const int64_t num_padded = sizeof(Value) == sizeof(double) ? exact_row_length(num_channels) : num_channels;
  int64_t c = 0;
  for (; c + kNumLanes <= num_padded; c += kNumLanes) {
#pragma GCC unroll 8
    for (int k = 0; k < num_codes; ++k) code[k] = load_lanes(codes[k] + c);
    add_channels<fused>(rows + c, row_length, code, sum);
  }
  if (c < num_padded) {
    for (int k = 0; k < num_codes; ++k) {
      Value last[kNumLanes] = {};
      std::memcpy(last, codes[k] + c, sizeof(Value) * (num_channels - c));
      code[k] = load_lanes(last);
    }
    add_channels<fused>(rows + c, row_length, code, sum);
  }
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) fold_all(sum[r], distance[r]);
}

inline void load_exact(const void* values, Element type, int64_t num_channels, double* target) {
  int64_t c = 0;
  for (; c < num_channels; ++c) target[c] = load_element(values, c, type);
  for (; c < exact_row_length(num_channels); ++c) target[c] = 0.0;
}

inline void load_exact_row(const CodebookLookupArgs& args, int64_t i, double* target) {
  load_exact(row_at(args.features, i, args.row_stride, args.features_type), args.features_type, args.num_channels,
             target);
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

// Nearest code so far of one row.
struct Nearest {
  double smallest;  // defined distance
  double limit;     // fused distances above it need no look
  int64_t code;
};

// The undecided rows of [begin, end) against every distinct code; tile_rows x tile_codes sums stay in registers.
template <int tile_rows, int tile_codes>
LookupCounts compare_all(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kBlockTiles = 16, kBlockRows = kBlockTiles * tile_rows;
  constexpr int64_t kMostLooks = 24 * tile_rows;  // at single codes of a tile of rows, before all are computed at once
  const int64_t num_channels = args.num_channels, row_length = exact_row_length(num_channels);
  const double tolerance = 1 + (static_cast<double>(num_channels) / 8 + 8) * 0x1p-50;
  const Scratch memory(sizeof(double) * (kBlockRows + tile_codes) * row_length);
  double* rows = static_cast<double*>(memory.data());
  double* exact_codes = rows + kBlockRows * row_length;
  Nearest nearest[kBlockRows];
  int64_t row_id[kBlockRows], num_looks[kBlockTiles];
  LookupCounts counts;
  for (int64_t i = begin; i < end;) {
    int64_t num_rows = 0;
    for (; i < end && num_rows < kBlockRows; ++i) {
      if (args.index[i] != kUndecided) continue;
      load_exact_row(args, i, rows + num_rows * row_length);
      row_id[num_rows++] = i;
    }
    const int64_t num_tiles = (num_rows + tile_rows - 1) / tile_rows;
    std::memset(rows + num_rows * row_length, 0, sizeof(double) * row_length * (num_tiles * tile_rows - num_rows));
    for (Nearest& row : nearest) row = {kFar, kFar, 0};
    for (int64_t& looks : num_looks) looks = 0;
    for (int64_t first = 0; first < screened.num_distinct; first += tile_codes) {
      const double* codes[tile_codes];
      int64_t position[tile_codes];
      for (int64_t k = 0; k < tile_codes; ++k) {  // the last one is repeated: a copy is not nearer
        position[k] = screened.codes[first + k < screened.num_distinct ? first + k : screened.num_distinct - 1];
        load_exact(args.codebook + position[k] * num_channels, Element::kFloat32, num_channels,
                   exact_codes + k * row_length);
        codes[k] = exact_codes + k * row_length;
      }
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const double* tile_row = rows + tile * tile_rows * row_length;
        const bool fused = num_looks[tile] < kMostLooks;
        double distance[tile_rows][tile_codes];
        if (fused) {
          squared_distances<tile_rows, tile_codes, true>(tile_row, row_length, codes, num_channels, distance);
        } else {
          squared_distances<tile_rows, tile_codes>(tile_row, row_length, codes, num_channels, distance);
        }
        for (int64_t r = 0; r < tile_rows; ++r) {
          Nearest& row = nearest[tile * tile_rows + r];
          bool reached = false;
          for (int64_t k = 0; k < tile_codes; ++k)
            reached |= fused ? distance[r][k] <= row.limit : distance[r][k] < row.smallest;
          if (!reached) continue;
          for (int64_t k = 0; k < tile_codes; ++k) {
            double exact[1][1] = {{distance[r][k]}};
            if (fused) {
              if (!(distance[r][k] <= row.limit)) continue;
              ++num_looks[tile];
              const double limit = distance[r][k] * tolerance;
              row.limit = limit < row.limit ? limit : row.limit;
              squared_distances<1, 1>(tile_row + r * row_length, 0, codes + k, num_channels, exact);
            }
            if (!(exact[0][0] < row.smallest)) continue;
            row.smallest = exact[0][0];
            row.code = position[k];
          }
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
