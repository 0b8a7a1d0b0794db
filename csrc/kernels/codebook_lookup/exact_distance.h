// Squared distances in float64, in the order of codebook_lookup.h, with eight channels side by side.
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
using LanesInMemory = __m512d_u;
inline Lanes load_lanes(const float* code) { return _mm512_cvtps_pd(_mm256_loadu_ps(code)); }
inline Lanes times_plus(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_pd(a, b, c); }
inline __m256d low_plus_high(Lanes sum) {
  return _mm256_add_pd(_mm512_castpd512_pd256(sum), _mm512_extractf64x4_pd(sum, 1));
}
#else
constexpr int kWidth = 4;
constexpr int kTileRows = 3, kTileCodes = 4;  // 12 sums, 1, a row, a difference: 15 of 16 registers, codes from memory
using Lanes = __m256d;
using LanesInMemory = __m256d_u;
inline Lanes load_lanes(const float* code) { return _mm256_cvtps_pd(_mm_loadu_ps(code)); }
inline Lanes times_plus(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_pd(a, b, c); }
#endif
inline Lanes all_lanes(double value) { return Lanes{} + value; }
inline Lanes load_lanes(const double* row) { return *reinterpret_cast<const LanesInMemory*>(row); }
inline void store_lanes(double* target, Lanes lanes) { *reinterpret_cast<LanesInMemory*>(target) = lanes; }

inline int64_t padded_channels(int64_t num_channels) { return (num_channels + kNumLanes - 1) / kNumLanes * kNumLanes; }

template <int num_rows>
using Sums = Lanes[num_rows][kTileCodes];

// Adds the squares of kWidth channels, from c on, of num_rows x kTileCodes pairs. Every other defined sum is square*1 +
// sum, which has the same bits: processors that add and multiply in different units have work for both then.
template <bool fused, bool reload, int num_rows, class Value>
inline void add_channels(const double* rows, int64_t row_length, const Value* const (&codes)[kTileCodes], int64_t c,
                         Sums<num_rows>& sum) {
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
    const Lanes x = load_lanes(rows + r * row_length);
#pragma GCC unroll 8
    for (int k = 0; k < kTileCodes; ++k) {
      const Lanes difference = x - load_lanes(codes[k] + c);
      if (fused) {
        sum[r][k] = times_plus(difference, difference, sum[r][k]);
        continue;
      }
      const Lanes square = difference * difference;
      sum[r][k] = (r + k) % 2 == 0 ? sum[r][k] + square : times_plus(square, all_lanes(1.0), sum[r][k]);
    }
#ifndef __AVX512F__
    if (reload) asm volatile("" ::: "memory");  // the next row takes the codes from memory: no register is left
#endif
  }
}

// All channels, or some of them: what a tile has summed up so far is kept in `sums`, kNumLanes numbers for each pair,
// where they are not the first or the last.
struct AllChannels {
  int64_t num_channels;
  static constexpr bool kAll = true, is_first = true, is_last = true;
  static constexpr double* sums = nullptr;
};
struct SomeChannels {
  static constexpr bool kAll = false;
  int64_t num_channels;
  bool is_first, is_last;
  double* sums;
};

// Sums of the channels first, first + 8, ... and the kWidth - 1 that follow each. A row holds float64 and zeros up to a
// multiple of eight channels; so does a code of float64.
template <int num_rows, bool fused, class Value, class Channels>
inline void sum_lanes(const double* rows, int64_t row_length, const Value* const* codes, const Channels& channels,
                      int64_t first, Sums<num_rows>& sum) {
  constexpr bool padded = sizeof(Value) == sizeof(double), reload = !fused || !Channels::kAll;
  const int64_t num_padded = padded ? padded_channels(channels.num_channels) : channels.num_channels;
  const auto kept = [&](int r, int k) { return channels.sums + (r * kTileCodes + k) * kNumLanes + first; };
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < kTileCodes; ++k) sum[r][k] = channels.is_first ? Lanes{} : load_lanes(kept(r, k));
  }
  const Value* code[kTileCodes] = {codes[0], codes[1], codes[2], codes[3]};
  int64_t c = first;
  for (; c + kWidth <= num_padded; c += kNumLanes)
    add_channels<fused, reload, num_rows>(rows + c, row_length, code, c, sum);
  if (!padded && c < num_padded) {
    Value last[kTileCodes][kWidth] = {};
    for (int k = 0; k < kTileCodes; ++k) std::memcpy(last[k], codes[k] + c, sizeof(Value) * (num_padded - c));
    const Value* last_code[kTileCodes] = {last[0], last[1], last[2], last[3]};
    add_channels<fused, reload, num_rows>(rows + c, row_length, last_code, 0, sum);
  }
  if (channels.is_last) return;
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < kTileCodes; ++k) store_lanes(kept(r, k), sum[r][k]);
  }
}

// Distances of num_rows x kTileCodes pairs, those of one row side by side; none before the last channels.
template <int num_rows, bool fused = false, class Value, class Channels>
inline void squared_distances(const double* rows, int64_t row_length, const Value* const* codes,
                              const Channels& channels, __m256d (&distance)[num_rows]) {
  Sums<num_rows> sum;
  sum_lanes<num_rows, fused>(rows, row_length, codes, channels, 0, sum);
  __m256d four[num_rows][kTileCodes];  // partial sums l + l+4
#ifdef __AVX512F__
  if (!channels.is_last) return;
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < kTileCodes; ++k) four[r][k] = low_plus_high(sum[r][k]);
  }
#else
  std::memcpy(four, sum, sizeof(sum));
  asm volatile("" : "+m"(four));  // leaves the registers to the other half
  sum_lanes<num_rows, fused>(rows, row_length, codes, channels, kWidth, sum);
  if (!channels.is_last) return;
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
    for (int k = 0; k < kTileCodes; ++k) four[r][k] += sum[r][k];
  }
#endif
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
    __m256d two[2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {  // of one code in the lower half, of the other in the upper one
      const __m256d a = four[r][k], b = four[r][k + 2];
      two[k] = _mm256_add_pd(_mm256_blend_pd(a, b, 0b1100), _mm256_permute2f128_pd(a, b, 0x21));
    }
    distance[r] = _mm256_add_pd(_mm256_blend_pd(two[0], two[1], 0b1010), _mm256_shuffle_pd(two[0], two[1], 0b0101));
  }
}

// Distances of one row, of float64, to kTileCodes codes.
inline __m256d squared_distances(const CodebookLookupArgs& args, const double* row, const float* const* codes) {
  __m256d distances[1];
  squared_distances<1>(row, 0, codes, AllChannels{args.num_channels}, distances);
  return distances[0];
}

// Whether a distance of a row is below the row's limit.
template <int num_rows>
inline bool any_below(const __m256d (&distance)[num_rows], const double* limit) {
  __m256d below = _mm256_cmp_pd(distance[0], _mm256_set1_pd(limit[0]), _CMP_LT_OQ);
#pragma GCC unroll 8
  for (int r = 1; r < num_rows; ++r)
    below = _mm256_or_pd(below, _mm256_cmp_pd(distance[r], _mm256_set1_pd(limit[r]), _CMP_LT_OQ));
  return _mm256_movemask_pd(below) != 0;
}

inline void load_exact(const void* values, Element type, int64_t num_channels, double* target) {
  int64_t c = 0;
  if (type == Element::kFloat32) {
    const float* floats = static_cast<const float*>(values);
    for (; c + kWidth <= num_channels; c += kWidth) store_lanes(target + c, load_lanes(floats + c));
  }
  for (; c < num_channels; ++c) target[c] = load_element(values, c, type);
  for (; c < padded_channels(num_channels); ++c) target[c] = 0.0;
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
    const __m256d distances = squared_distances(args, row, codes);
    if (!any_below<1>({distances}, &smallest)) continue;
    double distance[kTileCodes];
    _mm256_storeu_pd(distance, distances);
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
  return _mm256_cvtsd_f64(squared_distances(args, row, codes));
}

inline void write_row(const CodebookLookupArgs& args, int64_t i, int64_t nearest, const double* exact_row) {
  args.index[i] = nearest;
  if (args.distance != nullptr) args.distance[i] = static_cast<float>(squared_distance(args, exact_row, nearest));
}

}  // namespace
}  // namespace soho
