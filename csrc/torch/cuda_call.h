// What every op on a GPU does around its kernels: the tensors' device, torch's current stream, scratch memory.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/cuda_status.h"
#include "torch/tensors.h"

namespace soho {

// For the lifetime of the object the device of `tensor` is the current one. Memory comes from torch's allocator, in the
// order of the stream, so that nothing waits for the device and a CUDA graph can capture the call.
class CudaCall {
 public:
  explicit CudaCall(const Tensor& tensor) : tensor_(tensor), guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<CudaStream>(stream);
  }

  CudaStream stream() const { return stream_; }

  Tensor empty(const std::vector<int64_t>& shape, ScalarType type) const {
    return torch::stable::new_empty(tensor_, {shape.data(), shape.size()}, type);
  }
  Tensor scratch(size_t num_bytes) const { return empty({static_cast<int64_t>(num_bytes)}, ScalarType::Byte); }

  // Throws where a launch failed; what fails later is seen at the next wait for the device, as everywhere in CUDA.
  static void check(CudaStatus status, const char* op) {
    if (status != 0) throw std::runtime_error(std::string(op) + " on cuda: " + cuda_status_text(status));
  }

 private:
  Tensor tensor_;
  torch::stable::accelerator::DeviceGuard guard_;
  CudaStream stream_;
};

}  // namespace soho
