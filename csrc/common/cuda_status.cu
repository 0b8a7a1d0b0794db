#include "common/cuda_device.cuh"

namespace soho {

const char* cuda_status_text(CudaStatus status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace soho
