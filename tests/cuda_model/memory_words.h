// Loads, stores, atomics, barriers of the block, asynchronous copies, and the launch.
#pragma once

#include <cstring>
#include <tuple>

#include "common/cuda_status.h"
#include "copies.h"
#include "device_words.h"
#include "execution.h"
#include "races.h"

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
inline void __threadfence() { soho_model::pass_fence(); }
inline void __threadfence_block() {}

namespace soho_model {

// Threads take turns in no particular order at an atomic.
template <class T, class Change>
__attribute__((no_sanitize("thread"))) T change(T* p, Change next) {
  pass_turn();
  report(thread_rank(), p, sizeof(T), Access::kAtomic);
  const T before = *p;
  *p = next(before);
  return before;
}

template <class T>
using Operand = std::type_identity_t<T>;

}  // namespace soho_model

template <class T>
T atomicAdd(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicSub(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return static_cast<T>(old - v); });
}
template <class T>
T atomicMin(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return std::min(old, v); });
}
template <class T>
T atomicMax(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return std::max(old, v); });
}
template <class T>
T atomicOr(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return static_cast<T>(old | v); });
}
template <class T>
T atomicAnd(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return static_cast<T>(old & v); });
}
template <class T>
T atomicExch(T* p, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, soho_model::Operand<T> expected, soho_model::Operand<T> v) {
  return soho_model::change(p, [=](T old) { return old == expected ? v : old; });
}

inline void __syncthreads(soho_model::Site site = soho_model::Site::current()) {
  soho_model::meet_in_block("__syncthreads", nullptr, [](size_t, void* const*) {}, site);
}

inline int __syncthreads_count(int predicate, soho_model::Site site = soho_model::Site::current()) {
  struct Vote {
    bool yes;
    int count;
  } vote{predicate != 0, 0};
  soho_model::meet_in_block(
      "__syncthreads_count", &vote,
      [](size_t num_threads, void* const* brought) {
        int count = 0;
        for (size_t t = 0; t < num_threads; ++t) count += static_cast<Vote*>(brought[t])->yes;
        for (size_t t = 0; t < num_threads; ++t) static_cast<Vote*>(brought[t])->count = count;
      },
      site);
  return vote.count;
}
inline int __syncthreads_or(int predicate, soho_model::Site site = soho_model::Site::current()) {
  return __syncthreads_count(predicate, site) > 0;
}
inline int __syncthreads_and(int predicate, soho_model::Site site = soho_model::Site::current()) {
  return __syncthreads_count(!predicate, site) == 0;
}

namespace soho {

inline unsigned char* dynamic_shared() { return soho_model::block_memory(); }

inline void copy_async_16(void* shared, const void* global, int num_bytes = 16) {
  soho_model::start_copy(shared, global, 16, num_bytes);
}
inline void copy_async_4(void* shared, const void* global, int num_bytes = 4) {
  soho_model::start_copy(shared, global, 4, num_bytes);
}
inline void copy_async_commit() { soho_model::commit_copies(); }
template <int pending>
void copy_async_wait() {
  soho_model::wait_for_copies(pending);
}

template <class... Parameters, class... Args>
CudaStatus launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, CudaStream, Args... args) {
  const std::tuple<Parameters...> parameters(static_cast<Parameters>(args)...);
  soho_model::run_grid(grid, block, shared_bytes, [&] { std::apply(kernel, parameters); });
  return 0;
}

inline CudaStatus clear(void* memory, int byte, size_t num_bytes, CudaStream) {
  if (num_bytes > 0) std::memset(memory, byte, num_bytes);
  return 0;
}

inline int num_multiprocessors() { return 3; }

}  // namespace soho
