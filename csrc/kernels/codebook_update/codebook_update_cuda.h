// The update of codebook_update.h on a GPU, with the same bits (cuda.cu). All pointers are to the device's memory; work
// is queued on `stream`, nothing is waited for, and a CUDA graph can capture it. `workspace` holds workspace_bytes,
// aligned to 16, and stays until the work is done. A counted index of num_codes or more is not counted. Rows and codes
// are fewer than 2^32 - 1.
#pragma once

#include <cstddef>

#include "../../common/cuda_status.h"
#include "codebook_update.h"

namespace soho {

size_t update_codebook_workspace_bytes_cuda(const CodebookUpdateArgs& args);
CudaStatus update_codebook_cuda(const CodebookUpdateArgs& args, void* workspace, CudaStream stream);
CudaStatus codebook_ema_cuda(const CodebookEmaArgs& args, int64_t num_codes, CudaStream stream);

}  // namespace soho
