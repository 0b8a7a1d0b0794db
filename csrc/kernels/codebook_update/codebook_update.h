// Codebook update: members and sums per code, and the moving average d_j <- g d_j + (1 - g) sums_j / counts_j (SOHO eq.
// 4).
//
// Determinism. Members are listed per code in ascending row order and added in that order, in float32, starting from
// zero; threads share the work by (code, slice of channels), so the result has the same bits at any thread count and
// level. The average is rounded to float32 after each operation; a code without members keeps its bits.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace soho {

enum class CpuLevel;

// Rows of each code: rows[offsets[j] .. offsets[j + 1]) ascending.
struct MemberLists {
  int64_t* offsets;  // (num_codes + 1,)
  int64_t* rows;     // (num_rows,)
};

struct CodebookUpdateArgs {
  const void* features;  // num_rows rows of num_channels adjacent elements
  Element features_type;
  int64_t row_stride;    // in elements
  const int64_t* index;  // (num_rows,); negative entries are not counted
  const bool* valid;     // (num_rows,) or null
  int64_t num_rows;
  int64_t num_codes;
  int64_t num_channels;
  MemberLists members;
  bool moves_codebook;  // false: counts and sums are written; true: codebook is moved by decay
  float* counts;        // (num_codes,)
  float* sums;          // (num_codes, num_channels)
  float* codebook;      // (num_codes, num_channels)
  double decay;
};

// Fills args.members by a stable counting sort. Returns the first counted row whose index is num_codes or more, or -1.
int64_t list_members(const CodebookUpdateArgs& args);

// Size of the work that update_members shares between threads.
int64_t update_work(const CodebookUpdateArgs& args);

// The part [begin, end) of the work: writes counts and sums, or moves the codebook.
// Disjoint parts may run at the same time.
void update_members(CpuLevel level, const CodebookUpdateArgs& args, int64_t begin, int64_t end);

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

// One code's slice of channels, per level.
struct MemberSlice {
  const void* features;
  Element features_type;
  int64_t row_stride;
  const int64_t* rows;  // the code's members
  int64_t num_members;
  int64_t begin, end;  // channels
};
void sum_slice_scalar(const MemberSlice& slice, float* sums);
void sum_slice_avx2(const MemberSlice& slice, float* sums);
void move_code_scalar(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);
void move_code_avx2(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels);

}  // namespace soho
