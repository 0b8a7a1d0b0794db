// The masking of group_mask.h on a GPU (cuda.cu). All pointers are to the device's memory; work is queued on `stream`,
// nothing is waited for, and a CUDA graph can capture it. `workspace` holds workspace_bytes, aligned to 16, and stays
// until the work is done; it may be null where that is 0.
#pragma once

#include <cstddef>

#include "../../common/cuda_status.h"
#include "group_mask.h"

namespace soho {

CudaStatus group_mask_cuda(const GroupMaskArgs& args, CudaStream stream);
size_t sample_group_workspace_bytes_cuda(const SampleGroupArgs& args);
CudaStatus sample_group_cuda(const SampleGroupArgs& args, void* workspace, CudaStream stream);

}  // namespace soho
