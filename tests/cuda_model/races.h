// The race check: in cuda_race_tests every load and store of a kernel is reported here (races.cpp), and two accesses of
// one byte, of which one is a plain store or an atomic meets a plain access, must have a barrier between them. In
// cuda_model_tests nothing is reported.
#pragma once

#include <cstddef>
#include <cstdint>

namespace soho_model {

enum class Access { kRead, kWrite, kAtomic };

#ifdef SOHO_CUDA_RACES
void start_launch();
void start_block(size_t num_threads);
void forget(const void* memory, size_t bytes);  // shared memory of a new block
void pass_block_barrier();
void pass_warp_barrier(unsigned warp, uint32_t mask);
void report(unsigned thread, const void* memory, size_t bytes, Access access);
bool is_on_a_stack(const void* memory);
#else
inline void start_launch() {}
inline void start_block(size_t) {}
inline void forget(const void*, size_t) {}
inline void pass_block_barrier() {}
inline void pass_warp_barrier(unsigned, uint32_t) {}
inline void report(unsigned, const void*, size_t, Access) {}
#endif

}  // namespace soho_model
