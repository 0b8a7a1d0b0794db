// What all lookups of this process took, for tests and benchmarks.
#pragma once

#include <cstdint>

#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {

struct LookupTotals {
  int64_t rows;
  int64_t pruning;   // rows decided by low-dimensional pruning
  int64_t compared;  // rows decided by a comparison in float64, of a few candidates or of all codes
  int64_t left;      // rows that the first pass left to a more exact one
};

LookupTotals lookup_totals();
void count_lookup(int64_t num_rows, const LookupCounts& counts);

}  // namespace soho
