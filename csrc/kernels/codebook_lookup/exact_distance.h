// Squared distances and similarities in float64, in the order of codebook_lookup.h, with eight channels side by side.
//
// Included by each vector level and compiled with its flags: everything here is in an unnamed namespace, and no
// standard container or algorithm is used, so that the linker cannot share it between levels.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "common/memory.h"
#include "common/vectors.h"
#include "kernels/codebook_lookup/passes.h"

namespace soho {
namespace {

constexpr int64_t kNumLanes = 8;
constexpr double kFar = std::numeric_limits<double>::infinity();

// Float64 channels side by side: all eight partial sums, or one half of them after the other.
#ifdef __AVX512F__
constexpr int kWidth = 8;
constexpr int kTileRows = 6, kTileCodes = 4;  // 24 sums, 4 codes, 1, a row: 30 of 32 registers
using Lanes = __m512d;
inline Lanes all_lanes(double value) { return _mm512_set1_pd(value); }
inline Lanes load_lanes(const double* values) { return _mm512_loadu_pd(values); }
inline void store_lanes(double* target, Lanes lanes) { _mm512_storeu_pd(target, lanes); }
inline Lanes load_lanes(const float* values) { return _mm512_cvtps_pd(_mm256_loadu_ps(values)); }
inline Lanes times_plus(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_pd(a, b, c); }
#else
constexpr int kWidth = 4;
constexpr int kTileRows = 3, kTileCodes = 4;  // 12 sums, 1, a row, a difference: 15 of 16 registers, codes from memory
using Lanes = __m256d;
inline Lanes all_lanes(double value) { return _mm256_set1_pd(value); }
inline Lanes load_lanes(const double* values) { return _mm256_loadu_pd(values); }
inline void store_lanes(double* target, Lanes lanes) { _mm256_storeu_pd(target, lanes); }
inline Lanes load_lanes(const float* values) { return _mm256_cvtps_pd(_mm_loadu_ps(values)); }
inline Lanes times_plus(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_pd(a, b, c); }
#endif

inline bool row_is_finite(const CodebookLookupArgs& args, int64_t i) {
  const void* row = row_at(args.features, i, args.row_stride, args.features_type);
  bool finite = true;
  for (int64_t c = 0; c < args.num_channels; ++c) finite &= is_finite(load_element(row, c, args.features_type));
  return finite;
}

// Float64 copies of rows and of kTileCodes codes, zeros behind the last channel up to a multiple of eight.
class ExactCopies {
 public:
  ExactCopies(const CodebookLookupArgs& args, int64_t num_rows)
      : args_(args),
        row_length_((args.num_channels + kNumLanes - 1) / kNumLanes * kNumLanes + kNumLanes),
        memory_(sizeof(double) * (num_rows + kTileCodes) * row_length_),
        copies_(static_cast<double*>(memory_.data())) {
    std::memset(copies_, 0, sizeof(double) * (num_rows + kTileCodes) * row_length_);
  }

  Metric metric() const { return args_.metric; }
  int64_t row_length() const { return row_length_; }
  double* code(int64_t k) const { return copies_ + k * row_length_; }
  double* row(int64_t r) const { return code(kTileCodes + r); }

  void load_code(int64_t k, int64_t code_id) const {
    load(args_.codebook + code_id * args_.num_channels, Element::kFloat32, code(k));
  }
  void load_row(int64_t r, int64_t i) const {
    load(row_at(args_.features, i, args_.row_stride, args_.features_type), args_.features_type, row(r));
  }
  // Row i in float32; unless it is that it takes the place of row 0.
  const float* float_row(int64_t i) const {
    const void* features = row_at(args_.features, i, args_.row_stride, args_.features_type);
    if (args_.features_type == Element::kFloat32) return static_cast<const float*>(features);
    float* converted = reinterpret_cast<float*>(row(0));
    int64_t c = 0;
#ifdef __F16C__
    const __m128i* halves = static_cast<const __m128i*>(features);
    for (; args_.features_type == Element::kFloat16 && c + 8 <= args_.num_channels; c += 8)
      _mm256_storeu_ps(converted + c, _mm256_cvtph_ps(_mm_loadu_si128(halves + c / 8)));
#endif
    for (; c < args_.num_channels; ++c) converted[c] = load_element(features, c, args_.features_type);
    return converted;
  }

 private:
  void load(const void* values, Element type, double* target) const {
    int64_t c = 0;
    if (type == Element::kFloat32) {
      const float* floats = static_cast<const float*>(values);
      for (; c + kWidth <= args_.num_channels; c += kWidth) store_lanes(target + c, load_lanes(floats + c));
    }
    for (; c < args_.num_channels; ++c) target[c] = load_element(values, c, type);
  }

  const CodebookLookupArgs& args_;
  const int64_t row_length_;  // off the strides that share a cache set
  const Scratch memory_;
  double* const copies_;
};

// The square of the difference of a distance, the product of a dot product. Every other sum is square*1 + sum, which
// has the same bits: processors that add and multiply in different units have work for both then. A product of two
// float32 is exact, so that it may be fused.
template <bool euclidean>
inline Lanes add_channel(Lanes x, Lanes code, Lanes sum, bool fused) {
  if constexpr (!euclidean) return times_plus(x, code, sum);
  const Lanes difference = x - code, square = difference * difference;
  return fused ? times_plus(square, all_lanes(1.0), sum) : sum + square;
}

// The eight partial sums of num_rows rows and the kTileCodes codes.
template <bool euclidean, int num_rows>
inline void add_channels(const ExactCopies& copies, int64_t first_row,
                         double (&sums)[num_rows][kTileCodes][kNumLanes]) {
  const int64_t row_length = copies.row_length(), end = row_length - kNumLanes;
  for (int64_t first = 0; first < kNumLanes; first += kWidth) {
    const double *rows = copies.row(first_row) + first, *codes = copies.code(0) + first;
    Lanes sum[num_rows][kTileCodes];
#pragma GCC unroll 8
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
      for (int k = 0; k < kTileCodes; ++k) sum[r][k] = Lanes{};
    }
    for (int64_t c = 0; c < end; c += kNumLanes) {
      Lanes code[kTileCodes];
#pragma GCC unroll 8
      for (int k = 0; k < kTileCodes; ++k) code[k] = load_lanes(codes + k * row_length + c);
#pragma GCC unroll 8
      for (int r = 0; r < num_rows; ++r) {
        const Lanes x = load_lanes(rows + r * row_length + c);
#pragma GCC unroll 8
        for (int k = 0; k < kTileCodes; ++k) sum[r][k] = add_channel<euclidean>(x, code[k], sum[r][k], (r + k) % 2);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 8
      for (int k = 0; k < kTileCodes; ++k) store_lanes(sums[r][k] + first, sum[r][k]);
    }
  }
}

// Squared distances of num_rows rows to the kTileCodes codes, or dot products with them; those of a row side by side.
template <int num_rows>
inline void pair_sums(const ExactCopies& copies, int64_t first_row, __m256d (&result)[num_rows]) {
  double sums[num_rows][kTileCodes][kNumLanes];
  if (copies.metric() == Metric::kEuclidean) {
    add_channels<true>(copies, first_row, sums);
  } else {
    add_channels<false>(copies, first_row, sums);
  }
#pragma GCC unroll 8
  for (int r = 0; r < num_rows; ++r) {
    __m256d four[kTileCodes], two[2];
#pragma GCC unroll 8
    for (int k = 0; k < kTileCodes; ++k)
      four[k] = _mm256_add_pd(_mm256_loadu_pd(sums[r][k]), _mm256_loadu_pd(sums[r][k] + 4));
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {  // of one code in the lower half, of the other in the upper one
      const __m256d a = four[k], b = four[k + 2];
      two[k] = _mm256_add_pd(_mm256_blend_pd(a, b, 0b1100), _mm256_permute2f128_pd(a, b, 0x21));
    }
    result[r] = _mm256_add_pd(_mm256_blend_pd(two[0], two[1], 0b1010), _mm256_shuffle_pd(two[0], two[1], 0b0101));
  }
}

// In the order of codebook_lookup.h.
inline double norm_of(const double* values, int64_t row_length) {
  double sum[kNumLanes] = {};
  for (int64_t c = 0; c < row_length - kNumLanes; c += kNumLanes) {
    for (int64_t lane = 0; lane < kNumLanes; ++lane) sum[lane] += values[c + lane] * values[c + lane];
  }
  for (int64_t width = kNumLanes / 2; width >= 1; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  }
  return std::sqrt(sum[0]);
}

inline double one_for_zero(double norm) { return norm == 0.0 ? 1.0 : norm; }

// What find_nearest divides a similarity with the code at `position` by.
inline double divisor_of(const ScreenedCodes& screened, int64_t position) {
  return screened.metric == Metric::kCosine ? one_for_zero(screened.norms[position]) : 1.0;
}

// How far codes are, to be compared with each other: squared distances, or the negated similarities but for |x|.
inline __m256d costs_of(Metric metric, __m256d sums, __m256d divisors) {
  if (metric == Metric::kEuclidean) return sums;
  return _mm256_xor_pd(_mm256_div_pd(sums, divisors), _mm256_set1_pd(-0.0));
}

inline double cost_of(const ExactCopies& copies, const ScreenedCodes& screened, int64_t row, int64_t position) {
  copies.load_code(0, screened.codes[position]);
  __m256d sums[1];
  pair_sums(copies, row, sums);
  return _mm256_cvtsd_f64(costs_of(screened.metric, sums[0], _mm256_set1_pd(divisor_of(screened, position))));
}

// The nearest code of a row so far, of equally near ones that of the lowest number; its position in
// ScreenedCodes::codes, -1 for none.
struct Nearest {
  double cost = kFar;
  int64_t position = -1;

  double limit() const { return cost; }
  void add(double other, int64_t at, const int64_t* codes) {
    if (other > cost) return;  // most are
    if (other < cost || (other == cost && position >= 0 && codes[at] < codes[position])) *this = {other, at};
  }
};

// The `size` nearest codes of a row so far, the nearest first.
struct Ranking {
  int64_t size = 0, count = 0;
  double cost[kMostNearest] = {};
  int64_t position[kMostNearest] = {};

  double limit() const { return count < size ? kFar : cost[size - 1]; }
  void add(double other, int64_t at, const int64_t* codes) {
    const auto before = [&](int64_t n) {
      return other < cost[n] || (other == cost[n] && codes[at] < codes[position[n]]);
    };
    if (!(other < kFar) || (count == size && !before(size - 1))) return;
    count += count < size;
    int64_t n = count - 1;
    for (; n > 0 && before(n - 1); --n) {
      cost[n] = cost[n - 1];
      position[n] = position[n - 1];
    }
    cost[n] = other;
    position[n] = at;
  }
};

// Compares num_tiles tiles of num_rows rows with some codes; position_at(n) is that of the n-th, and ascends.
template <int num_rows, class PositionAt, class Found>
inline void find_nearest(const ExactCopies& copies, const ScreenedCodes& screened, int64_t num_tiles, int64_t num_codes,
                         PositionAt position_at, Found* nearest) {
  // Of codes that do not ascend one that is as near counts as well.
  const auto limit_of = [&](double limit) {
    return screened.ascending ? limit : limit + 0x1p-52 * std::abs(limit) + std::numeric_limits<double>::min();
  };
  for (int64_t first = 0; first < num_codes; first += kTileCodes) {
    const int64_t num_loaded = num_codes - first < kTileCodes ? num_codes - first : kTileCodes;
    int64_t position[kTileCodes];
    double divisor[kTileCodes] = {1.0, 1.0, 1.0, 1.0};
    for (int64_t k = 0; k < num_loaded; ++k) {
      position[k] = position_at(first + k);
      copies.load_code(k, screened.codes[position[k]]);
      divisor[k] = divisor_of(screened, position[k]);
    }
    const __m256d divisors = _mm256_loadu_pd(divisor);
    for (int64_t row = 0; row < num_tiles * num_rows; row += num_rows) {
      __m256d costs[num_rows], nearer = _mm256_setzero_pd();
      pair_sums(copies, row, costs);
#pragma GCC unroll 8
      for (int r = 0; r < num_rows; ++r) {
        costs[r] = costs_of(screened.metric, costs[r], divisors);
        const __m256d limit = _mm256_set1_pd(limit_of(nearest[row + r].limit()));
        nearer = _mm256_or_pd(nearer, _mm256_cmp_pd(costs[r], limit, _CMP_LT_OQ));
      }
      if (_mm256_movemask_pd(nearer) == 0) continue;
      for (int r = 0; r < num_rows; ++r) {
        double cost[kTileCodes];
        _mm256_storeu_pd(cost, costs[r]);
        for (int64_t k = 0; k < num_loaded; ++k) nearest[row + r].add(cost[k], position[k], screened.codes);
      }
    }
  }
}

// The squared distance or similarity of a code, for the caller.
inline float value_of(const CodebookLookupArgs& args, const ExactCopies& copies, int64_t row, int64_t code) {
  copies.load_code(0, code);
  __m256d sums[1];
  pair_sums(copies, row, sums);
  double value = _mm256_cvtsd_f64(sums[0]);
  if (args.metric == Metric::kCosine) {
    value /= one_for_zero(norm_of(copies.code(0), copies.row_length()));
    value /= one_for_zero(norm_of(copies.row(row), copies.row_length()));
  }
  return static_cast<float>(value);
}

// `row` holds row i, which is only read where its value is asked for.
inline void write_row(const CodebookLookupArgs& args, const ExactCopies& copies, int64_t row, int64_t i,
                      int64_t nearest) {
  args.index[i] = nearest;
  if (args.distance != nullptr) args.distance[i] = value_of(args, copies, row, nearest);
}

// The same of the topk nearest codes.
template <class Code>
inline void write_codes(const CodebookLookupArgs& args, const ExactCopies& copies, int64_t row, int64_t i,
                        const Code* codes) {
  args.index[i] = codes[0];
  for (int64_t n = 0; n < args.topk; ++n) args.top_index[i * args.topk + n] = codes[n];
  if (args.distance == nullptr) return;
  for (int64_t n = 0; n < args.topk; ++n) args.distance[i * args.topk + n] = value_of(args, copies, row, codes[n]);
}

// Writes the topk nearest codes: the ranked ones and their copies, then those that count as infinitely far.
inline void write_ranking(const CodebookLookupArgs& args, const ScreenedCodes& screened, const ExactCopies& copies,
                          int64_t row, int64_t i, const Ranking& ranking) {
  int64_t codes[kMostNearest];
  double cost[kMostNearest];
  int64_t count = 0;
  for (int64_t m = 0; m < ranking.count; ++m) {
    for (int64_t j = screened.codes[ranking.position[m]]; j >= 0; j = screened.next_copy[j]) {
      const auto before = [&](int64_t n) {
        return ranking.cost[m] < cost[n] || (ranking.cost[m] == cost[n] && j < codes[n]);
      };
      if (count == args.topk && !before(count - 1)) break;
      count += count < args.topk;
      int64_t n = count - 1;
      for (; n > 0 && before(n - 1); --n) {
        codes[n] = codes[n - 1];
        cost[n] = cost[n - 1];
      }
      codes[n] = j;
      cost[n] = ranking.cost[m];
    }
  }
  for (int64_t j = 0; count < args.topk; ++j) {
    bool there = false;
    for (int64_t n = 0; n < count; ++n) there |= codes[n] == j;
    if (!there) codes[count++] = j;
  }
  write_codes(args, copies, row, i, codes);
}

}  // namespace
}  // namespace soho
