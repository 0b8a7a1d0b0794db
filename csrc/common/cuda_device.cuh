// The instructions that CUDA C++ has no word for, and the launch of a kernel. Every .cu file includes this and nothing
// else of CUDA: the tests replace it by a model of the machine that runs on a CPU (tests/cuda_model).
//
// Fragments are those of the PTX manual, `mma.m16n8k16`; the lane has group g = lane / 4 and position t = lane % 4:
//   A (16 x 16)  a[0], a[2]: row g, columns 2t, 2t+1 and 2t+8, 2t+9; a[1], a[3]: the same of row g + 8
//   B (16 x 8)   b[0], b[1]: column g, rows 2t, 2t+1 and 2t+8, 2t+9
//   C (16 x 8)   c[0], c[1]: row g, columns 2t, 2t+1; c[2], c[3]: the same of row g + 8
#pragma once

#include <cstdint>

#include "common/cuda_status.h"

#ifdef SOHO_CUDA_MODEL
#include "cuda_model.h"
#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace soho {

// The dynamic shared memory of the block, aligned to 128 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char soho_dynamic_shared[];
  return soho_dynamic_shared;
}

// c += A B in float32, the products exact. All lanes of a warp take part.
__device__ __forceinline__ void mma_float16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 8 x 8 matrices of 16-bit elements. Lane 8 m + r gives the address of row r of matrix m, 16 bytes in shared memory;
// out[m] holds columns 2t, 2t+1 of row g.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared_row)))
               : "memory");
}

// Starts to copy 16 bytes to shared memory; both addresses are multiples of 16. The first `num_bytes` are read, the
// rest becomes 0.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int num_bytes = 16) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(num_bytes)
      : "memory");
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's latest groups are under way; a barrier shows them to other threads.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 16-bit floating point as bits.
__device__ __forceinline__ float widen_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
__device__ __forceinline__ float widen_float16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ uint16_t round_float16(float value) { return __half_as_ushort(__float2half_rn(value)); }

// Starts kernel(args...) on `stream` and asks nothing of the device; nothing is started on an empty grid.
template <class... Parameters, class... Args>
CudaStatus launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, CudaStream stream,
                  Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  if (shared_bytes > kAlwaysAllowed) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
    // Else the driver may leave the kernel less shared memory than as many blocks need as fit a multiprocessor.
    cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(args)...);
}

// cudaMemsetAsync.
inline CudaStatus clear(void* memory, int byte, size_t num_bytes, CudaStream stream) {
  return num_bytes == 0 ? cudaSuccess : cudaMemsetAsync(memory, byte, num_bytes, stream);
}

// Multiprocessors of the current device; 1 where it cannot be asked.
inline int num_multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

// Shared memory of one of them, 1 KiB of which each block takes for the system; 0 where it cannot be asked.
inline int shared_bytes_of_multiprocessor() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  return bytes;
}

}  // namespace soho
#endif
