// torch's own threads, for kernels that take a ParallelFor. LibTorch stable ABI only.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "common/parallel_for.h"

namespace soho {

inline void intra_op_threads(int64_t total, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, total, grain, body);
}

}  // namespace soho
