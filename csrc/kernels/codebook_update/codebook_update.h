// Codebook update: members and sums per code, and the moving average d_j <- g d_j + (1 - g) sums_j / counts_j (SOHO eq.
// 4).
//
// Determinism. Members are added in ascending row order, in float64, starting from zero; a float32 sum is rounded once.
// The rows are sorted by code first, then every thread adds the members of its own codes, or its own channels of a code
// that has too many members for one thread. So every sum is made by one thread in one order, and the result has the
// same bits at any thread count and level; the features are read once, each sum is written once for every block of
// rows. The average takes float32 sums and is rounded to float32 after each operation; a code without members keeps its
// bits.
#pragma once

#include <cstdint>

#include "../../common/cpu_level.h"
#include "../../common/element.h"
#include "../../common/parallel_for.h"

namespace soho {

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
  bool wide;            // counts and sums are float64, not float32
  void* counts;         // (num_codes,)
  void* sums;           // (num_codes, num_channels)
  float* codebook;      // (num_codes, num_channels)
  double decay;
};

// Writes counts and sums, or moves the codebook. Returns -1, or a counted row whose index is num_codes or more; then
// nothing is written. `num_threads`: how many parts the work is cut into.
int64_t update_codebook(CpuLevel level, const CodebookUpdateArgs& args, int64_t num_threads,
                        const ParallelFor& parallel_for);

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

}  // namespace soho
