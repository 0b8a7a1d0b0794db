// What the levels of the codebook update have in common: the members of codes, and one function per instruction set.
#pragma once

#include "kernels/codebook_update/codebook_update.h"

namespace soho {

// How many more rows can be read behind those of any code.
constexpr int64_t kMaxMembersAhead = 64;

// Some channels of some codes and the members they have in one block of rows.
struct Members {
  const void* features;  // first row of the block
  Element features_type;
  int64_t row_stride;
  const uint32_t* rows;    // of the block, by code; kMaxMembersAhead more can be read behind any of them
  const uint32_t* starts;  // (num_codes + 1,): code k has rows[starts[k]] up to rows[starts[k + 1]]
  int64_t num_codes;
  int64_t first_channel, num_channels;
  bool from_zero;  // the first block: the sums are overwritten
  float* rounded;  // the last block: where the sums go, rounded; else null
  int64_t rounded_stride;
};

// Per level: adds the members of code k to sums + k * sum_stride, or writes their sum to rounded + k * rounded_stride.
void add_members_scalar(const Members& members, double* sums, int64_t sum_stride);
void add_members_avx2(const Members& members, double* sums, int64_t sum_stride);
void add_members_avx512(const Members& members, double* sums, int64_t sum_stride);
void move_code_scalar(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);
void move_code_avx2(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);
void move_code_avx512(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);

}  // namespace soho
