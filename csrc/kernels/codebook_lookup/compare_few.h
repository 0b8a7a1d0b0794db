// Few rows: their float32 distances to every code of a codebook that is not packed, which would cost more than they do;
// and the nearest of what threads have found for a row among codes that they share.
//
// A float32 distance has a small relative error (drop_far.h), unless squares overflow or vanish: a code farther than
// far_from() of the smallest, and than 2^-78, is not the nearest. What is left is compared in float64; a row to which
// no code is near, or more than a list holds, is left undecided, and one whose distances are all infinite: it, or what
// is listed, need not be finite.
//
// Included by each vector level and compiled with its flags; see exact_distance.h.
#pragma once

#include "common/float_environment.h"
#include "kernels/codebook_lookup/drop_far.h"
#include "kernels/codebook_lookup/exact_distance.h"

namespace soho {
namespace {

constexpr int64_t kCachedNumbers = 1 << 20;  // of a thread's codes: 4 MiB

inline void keep_near(FewCodes& row, int64_t num_channels) {
  const float limit = float_limit(row.smallest, num_channels);
  while (row.count > 0 && row.distance[row.count - 1] > limit) --row.count;
}

inline void add_near(FewCodes& row, int32_t code, float distance, int64_t num_channels) {
  if (!(distance <= float_limit(row.smallest, num_channels))) return;
  const int32_t most = kFewCodes + row.wanted - 1;
  if (row.count == most) keep_near(row, num_channels);
  // What comes last may still be driven out by a nearer one, but is then to be compared as well.
  row.overflows |= row.count == most;
  int32_t n = row.count < most ? row.count++ : most - 1;
  for (; n > 0 && distance < row.distance[n - 1]; --n) {
    row.code[n] = row.code[n - 1];
    row.distance[n] = row.distance[n - 1];
  }
  row.code[n] = code;
  row.distance[n] = distance;
  if (row.count >= row.wanted) row.smallest = row.distance[row.wanted - 1];
}

// Codes [begin, end) with the rows of whole tiles, then with the others. No code beyond its row's limit is near it.
inline void scan_few(const float* rows, int64_t num_rows, const float* codebook, int64_t num_channels, int64_t begin,
                     int64_t end, FewCodes* near) {
  DefaultFloatEnvironment environment;
  constexpr int64_t kMostRows = 128;
  if (num_rows > kMostRows) {
    scan_few(rows + kMostRows * num_channels, num_rows - kMostRows, codebook, num_channels, begin, end,
             near + kMostRows);
    num_rows = kMostRows;
  }
  // A tile reads codes side by side: where a core's caches do not hold its share of them, that waits for memory.
  const bool ahead =
      num_rows >= kFloatRows && num_channels >= kLongCode && (end - begin) * num_channels > kCachedNumbers;
  float limit[kMostRows * kFloatCodes];
  for (int64_t n = 0; n < num_rows * kFloatCodes; ++n)
    limit[n] = float_limit(near[n / kFloatCodes].smallest, num_channels);
  for (int64_t code = begin; code < end; code += kFloatCodes) {
    const float* codes[kFloatCodes];
    for (int64_t k = 0; k < kFloatCodes; ++k) codes[k] = codebook + (code + k < end ? code + k : code) * num_channels;
    const auto add = [&](int64_t r, const float* distance) {
      for (int64_t k = 0; k < kFloatCodes && code + k < end; ++k)
        add_near(near[r], static_cast<int32_t>(code + k), distance[k], num_channels);
      for (int64_t k = 0; k < kFloatCodes; ++k)
        limit[r * kFloatCodes + k] = float_limit(near[r].smallest, num_channels);
    };
    if (ahead) {
      for (int64_t k = 0; k < kFloatCodes; ++k)
        for (int64_t c = 0; c < num_channels; c += kFloatLanes) __builtin_prefetch(codes[k] + c);
    }
    int64_t r = 0;
    float distance[kFloatLanes];
    for (; r + kFloatRows <= num_rows; r += kFloatRows) {
      const FloatLanes distances = tile_distances(rows + r * num_channels, codes, num_channels);
      const uint32_t hits = lanes_within(distances, limit + r * kFloatCodes);
      if (hits == 0) continue;
      store_floats(distance, distances);
      for (int64_t n = 0; n < kFloatRows; ++n) {
        if ((hits >> (n * kFloatCodes) & ((1u << kFloatCodes) - 1)) != 0) add(r + n, distance + n * kFloatCodes);
      }
    }
    for (; r < num_rows; ++r) {
      adjacent_distances(rows + r * num_channels, codes, num_channels, distance);
      bool hit = false;
      for (int64_t k = 0; k < kFloatCodes; ++k) hit |= distance[k] <= limit[r * kFloatCodes];
      if (hit) add(r, distance);
    }
  }
}

// Adds what another range of codes has found.
inline void merge_few(FewCodes& row, const FewCodes& other, int64_t num_channels) {
  row.overflows |= other.overflows;
  for (int32_t n = 0; n < other.count; ++n) add_near(row, other.code[n], other.distance[n], num_channels);
}

// Orders the codes of row i by float64, equal ones by their index.
inline void rank_few(const ExactCopies& copies, int64_t i, FewCodes& row) {
  double distance[kFewRanked];
  copies.load_row(0, i);
  for (int32_t k = 0; k < row.count; ++k) {
    const int32_t code = row.code[k];
    copies.load_code(0, code);
    __m256d sums[1];
    pair_sums(copies, 0, sums);
    const double own = _mm256_cvtsd_f64(sums[0]);
    int32_t n = k;
    for (; n > 0 && (own < distance[n - 1] || (own == distance[n - 1] && code < row.code[n - 1])); --n) {
      row.code[n] = row.code[n - 1];
      distance[n] = distance[n - 1];
    }
    row.code[n] = code;
    distance[n] = own;
  }
}

inline LookupCounts decide_few(const CodebookLookupArgs& args, const int64_t* rows, int64_t num_rows, FewCodes* near) {
  DefaultFloatEnvironment environment;
  const ExactCopies copies(args, 1);
  LookupCounts counts;
  for (int64_t n = 0; n < num_rows; ++n) {
    const int64_t i = rows[n];
    FewCodes& row = near[n];
    keep_near(row, args.num_channels);
    if (row.overflows || !(row.smallest < std::numeric_limits<float>::infinity())) {
      args.index[i] = kUndecided;
      ++counts.undecided;
      continue;
    }
    if (args.topk > 1 || row.count > 1) {
      rank_few(copies, i, row);
      ++counts.compared;
    }
    if (args.distance != nullptr) copies.load_row(0, i);
    if (args.topk == 1) write_row(args, copies, 0, i, row.code[0]);
    if (args.topk > 1) write_codes(args, copies, 0, i, row.code);
  }
  return counts;
}

}  // namespace
}  // namespace soho
