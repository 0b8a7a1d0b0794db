// Codebook lookup: index_i = argmin_j |x_i - d_j|^2 (SOHO eq. 2), and the gather of the chosen codes (eq. 5).
//
// Exactness. The distance is evaluated in float64 on the inputs as given, in one order of summation at every level:
// eight partial sums, partial l adds the channels l, l+8, l+16, ... in that order without fused multiply-add, then
// partial l adds partial l+4, l+2, l+1. The lowest distance wins, exact ties go to the lowest index. A distance that is
// not finite counts as infinite: a row with NaN or Inf gets index 0, a code with NaN or Inf is never chosen while
// another is left.
//
// Certified screening (vector levels). With a = s(x - m), b = s(d - m), m the mean of the codes and s a power of two,
// the score a.b - |b|^2/2 is maximal where the distance is minimal. It is computed in float32; every code whose score
// lies within twice the error bound of the row's best survives, and survivors are compared in float64 as above:
//   |score~ - score| <= 1.25 (C + 16) 2^-24 (|a| max|b| + max|b|^2/2) + (C + 16) 2^-52 (|a| + max|b|)^2
// The first term holds the rounding of a and b (relative 2^-24 each: a subtraction and an exact scaling), of |b|^2/2,
// of a chain of C fused multiply-adds (C u / (1 - C u), at most 1.07 C u up to C = 2^18), of |a| itself and of the
// threshold; the second the rounding of the float64 distances the result is defined by. Copies of a code are screened
// once.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace soho {

enum class CpuLevel;

struct CodebookLookupArgs {
  const void* features;  // num_rows rows of num_channels adjacent elements
  Element features_type;
  int64_t row_stride;     // in elements; 0 for an expanded row
  const float* codebook;  // (num_codes, num_channels), contiguous
  int64_t num_rows;
  int64_t num_codes;  // at least 1, below 2^31
  int64_t num_channels;
  int64_t* index;   // (num_rows,)
  float* distance;  // (num_rows,) or null: the squared distance, float64 rounded to float32
};

// What the screening of one codebook needs: its distinct finite codes, centred, scaled and laid out in groups of
// `width`.
struct ScreenedCodes {
  const int64_t* codes;  // (num_distinct,) distinct finite codes, ascending
  int64_t num_distinct;
  bool screenable;      // false: nothing to screen or beyond the bound's reach, every code is compared in float64
  const float* centre;  // (num_channels,)
  float scale;          // a power of two
  double largest_norm;  // max |b|
  int64_t num_groups;
  const float* panel;         // (num_groups, num_channels, width): b, and 0 at padding
  const float* negated_half;  // (num_groups, width): -|b|^2/2, and -inf at padding
};

// Codes per group of a level; 0 where the level screens nothing.
int64_t codebook_lookup_width(CpuLevel level);

// Rows [begin, end) at the given level; disjoint ranges may run at the same time.
void codebook_lookup(CpuLevel level, const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                     int64_t end);

void codebook_lookup_scalar(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end);
constexpr int64_t kCodebookLookupWidthAvx2 = 16;
void codebook_lookup_avx2(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end);

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
