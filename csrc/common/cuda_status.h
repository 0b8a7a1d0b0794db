// What the callers of CUDA kernels need to know of CUDA, without its headers.
#pragma once

struct CUstream_st;

namespace soho {

using CudaStream = CUstream_st*;  // a cudaStream_t
using CudaStatus = int;           // a cudaError_t; 0 is success

const char* cuda_status_text(CudaStatus status);

}  // namespace soho
