// How the CPU levels look up: passes over the rows, from cheap to exact.
//
// Certified screening. With a = s(x - m), b = s(d - m), m the mean of the codes and s a power of two, the score
// a.b - |b|^2/2 is maximal where the distance is minimal. It is computed from a^ and b^, which are a and b rounded to
// float32, to bfloat16 or to int8, with float32 or exact integer sums; every code whose score lies within twice the
// error bound of the row's best is a candidate, many candidates are sifted in float32 (drop_far.h), and what is left is
// compared in float64 as defined:
//   |score~ - score| <= 1.25 (C + 16) 2^-24 (|a| max|b| + max|b|^2/2) + (C + 16) 2^-52 (|a| + max|b|)^2
//                       + (1 + 2^-8) (|a - a^| max|b| + |a^| max|b - b^|)
// The first term holds the rounding of a and b to float32 (relative 2^-24 each: a subtraction and an exact scaling), of
// |b|^2/2, of a chain of C additions (C u / (1 - C u), at most 1.07 C u up to C = 2^18; a product of two bfloat16 is
// exact), of |a| itself and of the threshold; the second the rounding of the float64 distances the result is defined
// by; the third, 0 for float32, the rounding to bfloat16 or int8, whose length is measured for each row. The largest
// element of b lies in [1/2, 1), so that what underflows (subnormals count as 0 in bfloat16 dot products) is far below
// the first term. Copies of a code are screened once.
//
// Where some codes are much larger than most, m is the mean of the others, and codes lie in order of |b|, in tiers with
// a bound and, in int8, a unit of their own: with E_t the bound of tier t, a code of it is a candidate if its score is
// at least L - E_t, L the largest score less the bound of its tier. A tier's |b| counts as 2^-40 at least, far above
// what underflows. Codes then do not ascend: ties are told by their numbers.
//
// |(a - a^).b| is at most |a - a^| |b|, by Cauchy and Schwarz some 11 times what it is in noise of 768 channels. So the
// distance of one candidate is worth its time where many are left: its score by its distance,
// T = (|a|^2 - s^2 |x - d|^2)/2 less the error of T (pruning.h), has no error of screening, and a code whose score lies
// below T by more than once the bound is not the nearest.
//
// Of the metrics kDot and kCosine the score is a.b with a = x and b = s(e - m), e = d or d/|d|; it is maximal where x.e
// is. Rows are neither centred nor scaled:
//   |score~ - score| <= 1.25 (C + 16) 2^-24 |a| max|b| + ((C + 16) 2^-52 + r) |a| max|s e|
//                       + (1 + 2^-8) (|a - a^| max|b| + |a^| max|b - b^|)
// r, 0 for kDot and 2^-23 for kCosine, is the rounding of d/|d| to float32, once a channel (relative 2^-24 and what
// float64 adds); the term beside it holds the float64 sums of products and of squares, a root and a division. Rows may
// be so small that squares vanish: |a| and |a - a^| count as 2^-64 more. What underflows in the squares of 2^18
// channels is below that, and what underflows in products below the first term of such a row.
//
// A level is a list of passes, the cheapest first. A pass takes the rows that are still undecided, each from the code
// where the one before has left it, and leaves a row where its candidates become so many that comparing them one by one
// would cost more than the next pass; where it has left nearly all of some rows, it skips most of those that follow.
// The last one compares all codes in float64 and leaves none.
#pragma once

#include <limits>
#include <vector>

#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {

// What a 32-bit word of screened channels holds: one float32, two bfloat16 or four int8 channels. The first word of
// int8 is none: it is the scale of a row and the start of a code's sums.
enum class ScreeningType { kFloat32, kBFloat16, kInt8 };
constexpr int64_t kMaxInt8Channels = 65536;  // whose sums fit 32 bits

struct PruningCodes;

// How a pass wants its codes: groups of `width` codes, of each step one word per code; steps are padded with zeros to a
// multiple of `step_multiple`.
struct ScreeningFormat {
  ScreeningType type;
  int32_t width;  // 0: the pass screens nothing
  int32_t step_multiple;
  Metric metric = Metric::kEuclidean;
  bool operator==(const ScreeningFormat&) const = default;
};

// Groups of codes that share a bound, the larger codes in later tiers.
struct CodeTier {
  int64_t end_group;  // behind the last one
  double unit;        // of int8, as a share of ScreenedCodes::unit: a power of two
  // Of all codes up to its last one:
  double largest_norm;      // max |b|, at least 2^-40
  double largest_rounding;  // max |b - b^|; 0 for float32
  double largest_code;      // max |s e| of kDot and kCosine
};
constexpr int64_t kMostTiers = 8;

// The distinct finite codes of one codebook, and, where they can be screened, their centred, scaled and rounded copies.
struct ScreenedCodes {
  const int64_t* codes;  // (num_distinct,) distinct finite codes: ascending, or by |b| and then ascending
  int64_t num_distinct;
  bool ascending;
  const int32_t* next_copy;  // (num_codes,) of a finite code the next higher one that is equal, or -1
  Metric metric;
  const double* norms;  // (num_distinct,) |d| of kDot and kCosine
  bool screenable;      // false: nothing to screen or beyond the bound's reach, every code is compared in float64
  const float* centre;  // (num_channels,) of rows
  float scale;          // of rows, a power of two
  float unit;           // of int8: a channel is its number times this and the tier's
  int64_t num_tiers;
  CodeTier tiers[kMostTiers];
  int64_t num_groups, num_steps;
  const void* panel;            // (num_groups, num_steps, width) words: b^, and 0 at padding
  const float* negated_half;    // (num_groups, width): -|b|^2/2 or, of kDot and kCosine, 0; -inf at padding
  const PruningCodes* pruning;  // what the pruning pass reads (pruning.h), or null

  // Whether groups differ in their bound, or in int8 the unit is another than that of the rows.
  bool has_tiers() const { return num_tiers > 1 || tiers[0].unit != 1.0; }
};

// An index below zero: the row is undecided. Of the distinct codes before `position`, and perhaps some behind, the
// nearest is the one at `nearest`, a position too, or -1 where no code was compared yet.
struct Undecided {
  int64_t position, nearest;
};
constexpr int64_t kUndecided = -1;  // position 0, nearest -1
static inline int64_t undecided_index(const Undecided& row) { return -1 - (row.position << 31 | (row.nearest + 1)); }
static inline Undecided undecided_at(int64_t index) { return {(-1 - index) >> 31, ((-1 - index) & 0x7fffffff) - 1}; }

// Looks up the rows [begin, end) whose index is below zero; disjoint ranges may run at the same time.
using RunPass = LookupCounts(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end);

struct LookupPass {
  ScreeningFormat format;
  RunPass* run;
};

std::vector<LookupPass> passes_of(CpuLevel level, Metric metric = Metric::kEuclidean);

struct RowLengths {
  float square;           // |a|^2
  float rounding_square;  // |a - a^|^2 beyond the rounding to float32
};

// What few rows take (compare_few.h).
constexpr int32_t kFewCodes = 12;
constexpr int32_t kFewRanked = kFewCodes + kMostNearest - 1;  // room for the nearest and as many others
// Codes that may be among the `wanted` nearest of a row.
struct FewCodes {
  int32_t wanted = 1, count = 0;
  float smallest = std::numeric_limits<float>::infinity();  // no smaller than the distance of the last wanted one
  bool overflows = false;
  int32_t code[kFewRanked];  // the nearest first
  float distance[kFewRanked];

  explicit FewCodes(int64_t topk) : wanted(static_cast<int32_t>(topk)) {}
};
struct FewRows {
  // Adds codes [begin, end) of a codebook that is not packed to those of each row; rows are float32.
  void (*scan)(const float* rows, int64_t num_rows, const float* codebook, int64_t num_channels, int64_t begin,
               int64_t end, FewCodes* near);
  void (*merge)(FewCodes& row, const FewCodes& other, int64_t num_channels);
  // Writes the index of each of these rows, of which all near codes are known, in any order, or leaves it undecided.
  LookupCounts (*decide)(const CodebookLookupArgs& args, const int64_t* rows, int64_t num_rows, FewCodes* near);
};
extern const FewRows kFewRowsAvx2, kFewRowsAvx512;
// Null where the level or the metric has none.
const FewRows* few_rows_of(CpuLevel level, Metric metric = Metric::kEuclidean);

struct PruningPass;
// The pass in front of them where there is a subspace (pruning.h); null where level or metric have none.
const PruningPass* pruning_pass_of(CpuLevel level, int64_t num_channels, Metric metric = Metric::kEuclidean);

constexpr ScreeningFormat kNothingScreened{ScreeningType::kFloat32, 0, 1};
constexpr ScreeningFormat kFormatAvx2{ScreeningType::kFloat32, 16, 1};
constexpr ScreeningFormat kFormatAvx512{ScreeningType::kFloat32, 32, 1};
constexpr ScreeningFormat kFormatAvx512Bf16{ScreeningType::kBFloat16, 32, 1};
constexpr ScreeningFormat kFormatAvx512Vnni{ScreeningType::kInt8, 32, 1};
constexpr ScreeningFormat kFormatAmx{ScreeningType::kBFloat16, 32, 16};

// Passes, one translation unit per instruction set. compare_all: every distinct code in float64.
RunPass screen_avx2, screen_avx512, screen_avx512_bf16, screen_avx512_vnni, screen_amx;
RunPass compare_all_scalar, compare_all_avx2, compare_all_avx512;

}  // namespace soho
