// A lookup as one plan of rows x codes x passes. It decides how long a lookup takes, never its result.
//
// Passes take turns, each with the rows that are undecided then. Threads share either the rows of a pass, in blocks
// that meet all codes, or, where rows are few, its codes, in groups that meet all rows as if there were no other codes;
// what the groups have found for a row is then compared in float64.
#pragma once

#include <list>
#include <mutex>

#include "common/memory.h"
#include "kernels/codebook_lookup/passes.h"

namespace soho {

constexpr int64_t kRowsPerTask = 56;     // four register tiles of the AVX-512 levels
constexpr int64_t kFewRowsPerTask = 14;  // one, where two threads would not have four each
inline int64_t rows_per_task(int64_t num_rows) { return num_rows < 2 * kRowsPerTask ? kFewRowsPerTask : kRowsPerTask; }

struct PlannedPass {
  enum { kCodebookAsItIs, kDirections, kPackedCodebook } reads;
  LookupPass pass;             // of kCodebookAsItIs none: LookupPlan::few
  int64_t fewest_rows;         // with fewer undecided rows it is left out,
  int64_t most_rows;           // and with more of LookupPlan::num_rows rows
  int64_t rows_sharing_codes;  // up to so many undecided rows stay together, and threads share the codes
};

struct LookupPlan {
  int64_t num_rows;  // that share a packed codebook; a lookup by this plan may be of some of them
  std::vector<PlannedPass> passes;
  const PruningPass* pruning;
  const FewRows* few;
};

// `pruning` takes its turn before `passes`, where there are directions. `few` does where a codebook would have to be
// packed for few rows: before the first pass, or, where it is packed or rows are more, for what one has left. Either
// may be null; without `few` threads share no codes.
LookupPlan make_plan(const std::vector<LookupPass>& passes, const PruningPass* pruning, const FewRows* few,
                     int64_t num_rows, int64_t num_channels, bool is_packed);

// That of a level for args.num_rows rows; `packed` is null, or the codebook packed for the level's first pass.
LookupPlan plan_of(CpuLevel level, const CodebookLookupArgs& args, const void* packed);

// One codebook, packed for a pass when that asks for it. Threads may share it.
class PackedCodebook {
 public:
  // `packed` is null, or the codebook packed for the first pass, perhaps with directions behind it.
  PackedCodebook(const CodebookLookupArgs& args, const void* packed)
      : codebook_(args.codebook), num_codes_(args.num_codes), num_channels_(args.num_channels), packed_(packed) {}

  ScreenedCodes screened(const ScreeningFormat& format, const ParallelFor& parallel_for);
  const void* packed() const { return packed_; }

 private:
  const float* const codebook_;
  const int64_t num_codes_, num_channels_;
  const void* const packed_;
  std::mutex packing_;
  std::list<Scratch> memory_;
};

// Looks up the rows whose index is below zero.
LookupCounts run_plan(const LookupPlan& plan, const CodebookLookupArgs& args, PackedCodebook& codebook,
                      const ParallelFor& parallel_for);

}  // namespace soho
