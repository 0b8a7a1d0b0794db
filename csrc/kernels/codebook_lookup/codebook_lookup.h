// Codebook lookup: index_i = argmin_j |x_i - d_j|^2 (SOHO eq. 2), and the gather of the chosen codes (eq. 5).
//
// Exactness. The distance is evaluated in float64 on the inputs as given, in one order of summation at every level:
// eight partial sums, partial l adds the channels l, l+8, l+16, ... in that order without fused multiply-add, then
// partial l adds partial l+4, l+2, l+1. The lowest distance wins, exact ties go to the lowest index. A distance that is
// not finite counts as infinite: a row with NaN or Inf gets index 0, a code with NaN or Inf is never chosen while
// another is left. Level, threads and packing decide how long it takes, never the result.
//
// The other metrics look for the largest similarity, summed in the same order; one that is not finite counts as minus
// infinity. kDot is x.d, whose products are exact in float64; kCosine (x.d / |d|) / |x|. A norm is the root of a sum of
// squares in the same order, and 1 where it is 0: a zero vector has cosine 0 with every other. Codes are compared by
// x.d / |d|: |x| is the same for all and rounds none.
//
// With topk = k the k nearest codes of a row come in ascending order of distance, or descending order of similarity, by
// the same rule; codes whose distance counts as infinite come last.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../common/cpu_level.h"
#include "../../common/element.h"
#include "../../common/parallel_for.h"

namespace soho {

constexpr int64_t kMostNearest = 16;

enum class Metric : int32_t { kEuclidean, kCosine, kDot };

struct CodebookLookupArgs {
  const void* features;  // num_rows rows of num_channels adjacent elements
  Element features_type;
  int64_t row_stride;     // in elements; 0 for an expanded row
  const float* codebook;  // (num_codes, num_channels), contiguous
  int64_t num_rows;
  int64_t num_codes;  // at least 1, below 2^31
  int64_t num_channels;
  int64_t* index;   // (num_rows,)
  float* distance;  // (num_rows,) or null: the squared distance or the similarity, float64 rounded to float32
  Metric metric = Metric::kEuclidean;
  // Hints, which decide how long it takes: directions in which the codes differ most, one a column, and for each row a
  // code that may be the nearest (below 0 or not below num_codes: none). Null where there are none.
  const float* subspace;  // (num_channels, num_directions), contiguous
  int64_t num_directions;
  const int64_t* warm_start;  // (num_rows,)
  // Above 1, at most kMostNearest and num_codes: top_index (num_rows, topk) is written, index holds its first column,
  // and distance is (num_rows, topk). Hints are not used then.
  int64_t topk = 1;
  int64_t* top_index = nullptr;
};

// What a lookup took.
struct LookupCounts {
  int64_t pruning = 0;    // rows decided by low-dimensional pruning
  int64_t compared = 0;   // rows decided by a comparison in float64, of a few candidates or of all codes
  int64_t undecided = 0;  // rows that the cheapest pass left to a more exact one
  // Of one pass:
  int64_t candidates = 0;    // codes that it compared, in rows with several
  int64_t looked_again = 0;  // rows that it decided at a second look
};

// The level in use for a codebook of this size: the forced one, or the fastest. With few codes or channels those that
// multiply the most at once have little to multiply.
CpuLevel lookup_level(int64_t num_codes, int64_t num_channels);

// Looks up all rows. `packed` is null, or args.codebook packed for this level; one packed for another level, or of
// another size, is packed anew. With directions it was packed with, args.subspace is not read.
LookupCounts codebook_lookup(CpuLevel level, const CodebookLookupArgs& args, const void* packed,
                             const ParallelFor& parallel_for);

// For many lookups in one codebook: packs it into the block `packed` of packed_codebook_bytes(), aligned to a cache
// line. The block may be copied; threads may share it.
// `subspace` (num_channels, num_directions) may be null with no directions.
size_t packed_codebook_bytes(CpuLevel level, int64_t num_codes, int64_t num_channels, int64_t num_directions,
                             Metric metric = Metric::kEuclidean);
void pack_codebook(CpuLevel level, const float* codebook, int64_t num_codes, int64_t num_channels,
                   const float* subspace, int64_t num_directions, void* packed, const ParallelFor& parallel_for,
                   Metric metric = Metric::kEuclidean);

// Whether a block of this many bytes is what pack_codebook made for this level, metric and size of codebook.
bool packed_codebook_is(CpuLevel level, int64_t num_codes, int64_t num_channels, Metric metric, const void* packed,
                        size_t bytes);

struct GatherCodesArgs {
  const void* codebook;  // (num_codes, num_channels), contiguous, of the output's type
  const int64_t* index;  // (num_rows,); a negative index gives a row of zeros
  void* output;          // (num_rows, num_channels), contiguous
  int64_t num_codes;
  int64_t row_bytes;
};

// Rows [begin, end). Returns the first row whose index is num_codes or more, or -1; such a row is not written.
int64_t gather_codes(const GatherCodesArgs& args, int64_t begin, int64_t end);

}  // namespace soho
