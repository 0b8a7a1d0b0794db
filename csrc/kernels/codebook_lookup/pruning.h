// Low-dimensional pruning: screening in the few directions that tell the codes apart, in front of the passes of
// passes.h.
//
// The bound. Let W be any matrix (C, D) of spectral norm at most 1, p = W'a, q = W'b, r(z)^2 = |z|^2 - |W'z|^2.
// Complete W by a Z with WW' + ZZ' = I: then |Z'z| = r(z), and
//   a.b - |b|^2/2 = p.q + (Z'a).(Z'b) - |b|^2/2 <= U = p.q + r(a) r(b) - |b|^2/2.
// So U is at least the score of passes.h, in D multiplications instead of C. A code survives where U reaches the true
// score of a code that is known, T = (|a|^2 - s^2 |x - d|^2)/2 with the distance of that code; survivors are compared,
// the highest U first, which raises T. Any W is right: it decides how many survive, nothing else.
//
// What is certified. The subspace as it was rounded is multiplied by c, at most 1 over a bound of its spectral norm
// (pruning_codes.cpp). Of a row or code, with p~ as computed from a^ and p^ as it is screened:
//   |p - p~| <= |a - a^| + 1.07 (C + 16) 2^-24 sqrt(D) |a^| + 2^-22 |p~|  (rounding; a chain of C additions; c)
//   r <= R = sqrt(|a|^2 (1 + 1.02 (C/8 + 32) 2^-24) - (|p~| - |p - p~|)^2), rounded up: |a|^2 is summed in lanes
//   e = |p - p~| + |p~ - p^|
//   w = max(|a|, sqrt(|p^|^2 + R^2)): what is certified is longer than what it is of
// so that U <= p^.q^ + R_a R_b - |b|^2/2 + e_a |q| + |p^| e_b, where the sum as computed errs by at most
// 1.07 (D + 32) 2^-24 (w_a w_b + |b|^2/2). The bound of a code is that of its group: the largest w_b and e_b. T is
// lowered by the relative error of a float32 distance (drop_far.h), which also holds that of the float64 distances the
// result is defined by. Where survivors are many and channels too, a pass sifts them by all channels in int8, each code
// by its own unit: with a^, b^ the rounded ones, their score is at most
//   a^.b^ - |b|^2/2 + |a - a^| |b| + |a^| |b - b^| + 2^-21 (|a^| |b| + |b|^2/2).
// With VNNI the highest U of a group is found in int8, by one unit for a row's directions and one for those of a group:
// the same bound with other p^, q^ and e. Only the codes of groups that reach T are looked at as above.
// 2^-50 and 2^-48 stand for all that underflows: the largest element of b is at least 1/2.
#pragma once

#include "kernels/codebook_lookup/passes.h"

namespace soho {

constexpr int64_t kMostDirections = 128;
constexpr int64_t kDirectionMultiple = 16;  // whole vectors, and chains of four steps
constexpr int64_t kFewestPruningRows = 32;  // below, trying it costs more than it can gain

// A code in int8, unit times its numbers, to sift survivors by; numbers of a row are multiplied with 128 added.
struct SiftedCode {
  float unit;
  float length;   // at least |b|
  float error;    // at least |b - b^|
  int32_t start;  // -128 times the sum of its numbers
};

// A codebook as the pruning pass reads it, with centre and scale of ScreenedCodes. Its codes are the distinct ones in
// an order of its own, in which those of a group lie close together: what survives for a row then lies in few groups.
struct PruningCodes {
  bool usable;
  int64_t num_directions;     // a multiple of kDirectionMultiple, zeros behind the last direction
  float factor;               // c
  const void* subspace;       // (num_directions / width rounded up, steps of channels, width) words
  const void* panel;          // (num_groups, steps of directions, width) words: q^
  const float* negated_half;  // (num_groups, width): -|b|^2/2, and -inf at padding
  const float* radius;        // (num_groups, width): R_b, 0 at padding
  const float* group_length;  // (num_groups,): the largest w_b
  const float* group_error;   // (num_groups,): the largest e_b
  const float* coarse_panel;  // (num_groups, coarse_steps, width) words of int8: starts of sums, then q^
  const float* coarse_unit;   // (num_groups,): of its numbers
  const float* coarse_error;  // (num_groups,): the largest e_b in int8
  const int32_t* order;       // (num_distinct,): the position in ScreenedCodes::codes of each code here
  const int32_t* place;       // (num_codes,): where a code of the codebook lies here, -1 where it does not
  const SiftedCode* sifted;   // (num_distinct,), of a pass that sifts
  const int8_t* numbers;      // (num_distinct, sifted_channels)
};

struct PruningPass {
  ScreeningType type;  // float32 or bfloat16
  int32_t width;
  bool coarse;  // looks for groups in int8, the directions of a row and of a group by units of their own
  bool sifts;   // its survivors by all channels in int8
  // Of the codes at positions [begin, end): p~/c, num_directions each, and the lengths of b.
  void (*project)(const float* codebook, int64_t num_channels, const ScreenedCodes& screened,
                  const PruningCodes& pruning, int64_t begin, int64_t end, float* directions, RowLengths* lengths);
  // Writes groups [begin, end) from what `project` has given of all codes.
  void (*pack_groups)(const float* codebook, int64_t num_channels, const ScreenedCodes& screened,
                      const PruningCodes& pruning, const float* directions, const RowLengths* lengths, int64_t begin,
                      int64_t end);
  RunPass* run;  // with screened.pruning
};

static inline int64_t pruning_steps(ScreeningType type, int64_t num_channels) {
  return type == ScreeningType::kBFloat16 ? (num_channels + 1) / 2 : num_channels;
}

// Of words of four numbers in int8, behind one that says how to start or what a product means.
static inline int64_t coarse_steps(int64_t num_directions) { return 1 + num_directions / 4; }

// Numbers of a row or code in int8: whole vectors, zeros behind the last channel.
static inline int64_t sifted_channels(int64_t num_channels) { return (num_channels + 63) / 64 * 64; }

extern const PruningPass kPruningAvx2, kPruningAvx512, kPruningAvx512Vnni, kPruningAvx512Int8, kPruningAvx512Bf16;

// In one relocatable block, as packed_codebook.h; `screened` is the same codebook packed for a pass of the same width.
size_t pruning_codes_bytes(const PruningPass& pass, int64_t num_codes, int64_t num_channels, int64_t num_directions);
// First the directions, then the codes, where they are usable.
void pack_directions(const PruningPass& pass, int64_t num_codes, int64_t num_channels, const float* subspace,
                     int64_t num_directions, const ScreenedCodes& screened, void* block);
void pack_pruning_codes(const PruningPass& pass, const float* codebook, int64_t num_channels,
                        const ScreenedCodes& screened, const PruningCodes& pruning, const ParallelFor& parallel_for);
PruningCodes pruning_codes(const PruningPass& pass, int64_t num_codes, int64_t num_channels, int64_t num_directions,
                           const void* block);

}  // namespace soho
