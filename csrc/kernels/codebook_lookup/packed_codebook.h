// A codebook packed for the format of a pass, in one relocatable block of memory. Shared by all threads.
#pragma once

#include "kernels/codebook_lookup/passes.h"

namespace soho {

// Room for any codebook of this size.
size_t packed_codebook_bytes(const ScreeningFormat& format, int64_t num_codes, int64_t num_channels);

// Packs the codebook into the block `packed`: aligned to a cache line, of packed_codebook_bytes().
void pack_codebook(const ScreeningFormat& format, const float* codebook, int64_t num_codes, int64_t num_channels,
                   void* packed, const ParallelFor& parallel_for);

// How many directions were packed behind the block for the reduced pass; 0 for none.
int64_t packed_directions(const void* packed);
void set_packed_directions(void* packed, int64_t num_directions);

bool packed_codebook_fits(const void* packed, const ScreeningFormat& format, int64_t num_codes, int64_t num_channels);

// A view of the block.
ScreenedCodes screened_codes(const void* packed);

}  // namespace soho
