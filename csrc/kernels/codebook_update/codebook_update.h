// Codebook update: members and sums per code, and the moving average d_j <- g d_j + (1 - g) sums_j / counts_j (SOHO eq.
// 4).
//
// Determinism. Members are added in ascending row order, in float32, starting from zero. The work is cut into parts, a
// range of codes times a slice of channels each; a part goes through all rows in order and adds its slice of those that
// belong to its codes. So every sum is made by one thread in one order, and the result has the same bits at any thread
// count and level, while the features are read once. The average is rounded to float32 after each operation; a code
// without members keeps its bits.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace soho {

enum class CpuLevel;

struct CodebookUpdateArgs {
  const void* features;  // num_rows rows of num_channels adjacent elements
  Element features_type;
  int64_t row_stride;    // in elements
  const int64_t* index;  // (num_rows,); negative entries are not counted
  const bool* valid;     // (num_rows,) or null
  int64_t num_rows;
  int64_t num_codes;
  int64_t num_channels;
  bool moves_codebook;  // false: counts and sums are written; true: codebook is moved by decay
  float* counts;        // (num_codes,)
  float* sums;          // (num_codes, num_channels)
  float* codebook;      // (num_codes, num_channels)
  double decay;
};

// The first counted row of [begin, end) whose index is num_codes or more, or -1.
int64_t find_bad_index(const CodebookUpdateArgs& args, int64_t begin, int64_t end);

struct UpdateParts {
  int64_t slice_channels, num_slices;
  int64_t range_codes, num_ranges;
  int64_t num_parts() const { return num_slices * num_ranges; }
};

// One part for each of `num_threads`, or a few more; no cache line of the features belongs to two slices.
UpdateParts update_parts(const CodebookUpdateArgs& args, int64_t num_threads);

// Parts [begin, end): writes counts and sums, or moves the codebook. Disjoint ranges may run at the same time. No
// counted index may be num_codes or more.
void update_codebook(CpuLevel level, const CodebookUpdateArgs& args, const UpdateParts& parts, int64_t begin,
                     int64_t end);

struct CodebookEmaArgs {
  float* codebook;      // (num_codes, num_channels), rows of adjacent elements
  const float* counts;  // (num_codes,), contiguous
  const float* sums;    // (num_codes, num_channels), contiguous
  int64_t codebook_row_stride;
  int64_t num_channels;
  double decay;
};

// Codes [begin, end).
void codebook_ema(CpuLevel level, const CodebookEmaArgs& args, int64_t begin, int64_t end);

// Some members of some codes, per level: adds a slice of the channels of rows[m] to sums + codes[m] * sum_stride.
struct Members {
  const void* features;
  Element features_type;
  int64_t row_stride;
  const int64_t* rows;
  const int64_t* codes;
  int64_t num_members;
  int64_t first_channel, num_channels;  // of the slice
};
void add_members_scalar(const Members& members, float* sums, int64_t sum_stride);
void add_members_avx2(const Members& members, float* sums, int64_t sum_stride);
void add_members_avx512(const Members& members, float* sums, int64_t sum_stride);
void move_code_scalar(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);
void move_code_avx2(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);
void move_code_avx512(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);

}  // namespace soho
