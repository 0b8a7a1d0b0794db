// How few rows are looked up, and how the rows of a pass are shared out among threads. No result depends on either.
#pragma once

#include "kernels/codebook_lookup/passes.h"

namespace soho {

constexpr int64_t kRowsPerTask = 56;     // four register tiles of the AVX-512 levels
constexpr int64_t kFewRowsPerTask = 14;  // one, where two threads would not have four each

inline int64_t rows_per_task(int64_t num_rows) { return num_rows < 2 * kRowsPerTask ? kFewRowsPerTask : kRowsPerTask; }

// Null where the level, the metric or topk have none.
const FewRows* few_rows_of(CpuLevel level, const CodebookLookupArgs& args);

// Up to which comparing unpacked codes is faster than packing them.
int64_t most_few_rows(int64_t num_channels);
// The same where a pass has left them: float32 codes, which come next, take longer to pack.
inline int64_t most_left_rows(int64_t num_channels) { return 2 * most_few_rows(num_channels); }

// The rows whose index is below zero.
std::vector<int64_t> undecided_rows(const CodebookLookupArgs& args);

// Compares these rows, started anew, with all codes of args.codebook, each thread with some of them.
LookupCounts compare_few(const FewRows& few, const CodebookLookupArgs& args, const std::vector<int64_t>& rows,
                         const ParallelFor& parallel_for);

// Runs a pass on the undecided rows: as many for each thread, or, of few rows, as many codes. `few` may be null.
LookupCounts run_shared(const LookupPass& pass, const FewRows* few, const CodebookLookupArgs& args,
                        const ScreenedCodes& screened, const ParallelFor& parallel_for);

}  // namespace soho
