// A codebook packed for the format of a pass, in one relocatable block of memory. Shared by all threads.
#pragma once

#include "kernels/codebook_lookup/passes.h"

namespace soho {

// Room for any codebook of this size.
size_t packed_codebook_bytes(const ScreeningFormat& format, int64_t num_codes, int64_t num_channels);

// Packs the codebook into the block `packed`: aligned to a cache line, of packed_codebook_bytes().
void pack_codebook(const ScreeningFormat& format, const float* codebook, int64_t num_codes, int64_t num_channels,
                   void* packed, const ParallelFor& parallel_for);

// How many directions were packed behind the block for the pruning pass; 0 for none.
int64_t packed_directions(const void* packed);
void set_packed_directions(void* packed, int64_t num_directions);

bool packed_codebook_fits(const void* packed, const ScreeningFormat& format, int64_t num_codes, int64_t num_channels);

// A view of the block.
ScreenedCodes screened_codes(const void* packed);

// The loops over channels that packing takes, of one instruction set each (pack_group.h).
// How the codes of one codebook are centred, scaled and rounded.
struct CodePacking {
  ScreeningFormat format;
  int64_t num_channels, num_steps;
  const float* centre;
  double scale;
  float unit;  // of int8
};
static inline int64_t packing_row_bytes(const CodePacking& packing) { return 4 * packing.num_steps + 64; }

// The largest |b|^2 and |b - b^|^2 of some codes.
struct CodeLengths {
  double square, rounding_square;
};

// How far a code is from the centre: in the channel where it is farthest, and squared in all.
struct CodeSpread {
  double largest, square;
};

struct PackingLoops {
  CodeSpread (*spread)(const float* code, const float* centre, int64_t num_channels);
  // Packs up to format.width codes to a panel (num_steps, width), zeros where there are fewer, and writes -|b|^2/2 of
  // each code, -inf where there is none. `words` is room for width rows of packing_row_bytes().
  CodeLengths (*pack_group)(const CodePacking& packing, const float* const* codes, int64_t num_codes, void* words,
                            uint32_t* panel, float* negated_half);
};

extern const PackingLoops kPackingLoopsAvx2, kPackingLoopsAvx512;

}  // namespace soho
