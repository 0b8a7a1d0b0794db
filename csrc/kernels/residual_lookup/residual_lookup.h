// Residual quantiser: the nearest code of each row at the first level, that of what is left of the row at the next, and
// so on.
//
// Level l: index = codebook_lookup(residual, codebook l); residual -= code; quantized += code. Both are float32, round
// once an addition and start from the row as given and from zero: the bits of the loop over whole matrices. A row with
// NaN or Inf keeps it, and index 0, to the end.
#pragma once

#include "../codebook_lookup/codebook_lookup.h"

namespace soho {

struct ResidualLookupArgs {
  const void* features;  // num_rows rows of num_channels adjacent elements
  Element features_type;
  int64_t row_stride;      // in elements; 0 for an expanded row
  const float* codebooks;  // of each level (num_codes, num_channels), contiguous
  int64_t level_stride;    // in elements; 0 for one codebook at all levels
  int64_t num_rows;
  int64_t num_levels;
  int64_t num_codes;  // at least 1, below 2^31
  int64_t num_channels;
  int64_t* index;    // (num_rows, num_levels)
  float* quantized;  // (num_rows, num_channels), contiguous
  float* residual;   // the same, or null
};

// `packed` is null, or a block of packed_bytes for each codebook, as pack_codebook() packed it for this CPU level, one
// after the other; those of another level, or of another size, are packed anew.
void residual_lookup(CpuLevel cpu_level, const ResidualLookupArgs& args, const void* packed, int64_t packed_bytes,
                     const ParallelFor& parallel_for);

}  // namespace soho
