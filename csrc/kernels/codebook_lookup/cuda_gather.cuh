// Gather of codes on a GPU: one warp copies one row, 16 bytes per lane where the rows allow it. The first `book_rows`
// rows are of the first codebook, the next of the one behind it, and so on.
#pragma once

#include "kernels/codebook_lookup/cuda_codes.cuh"

namespace soho {
namespace {

template <class Unit>
__global__ void __launch_bounds__(kBlockThreads)
    gather_rows(GatherCodesArgs args, int64_t num_rows, int64_t book_rows) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp;
  if (i >= num_rows) return;
  const int64_t code = args.index[i], units = args.row_bytes / static_cast<int64_t>(sizeof(Unit));
  Unit* target = static_cast<Unit*>(args.output) + i * units;
  const bool present = code >= 0 && code < args.num_codes;
  const int64_t position = i / book_rows * args.num_codes + (present ? code : 0);
  const Unit* source = static_cast<const Unit*>(args.codebook) + position * units;
  for (int64_t u = threadIdx.x % kWarp; u < units; u += kWarp) target[u] = present ? source[u] : Unit{};
}

}  // namespace
}  // namespace soho
