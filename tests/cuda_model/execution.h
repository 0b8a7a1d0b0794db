// Blocks, warps and threads as fibers: who runs, who waits for whom, and what
// is said when nobody can go on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace soho_model {

constexpr unsigned kWarpSize = 32;
using Site = std::source_location;

// Everything that hardware leaves open follows from the seed: the order of
// threads and of blocks, when copies land, what fresh shared memory holds, how
// sums are rounded.
void set_seed(uint64_t seed);
uint64_t random_bits();
inline bool coin() { return random_bits() & 1; }

// Runs `thread` once for each thread of the grid. Throws std::runtime_error
// for what the kernel may not do.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// Inside a thread.
[[noreturn]] void fail(const std::string& text);
unsigned char* block_memory();
bool in_thread();
unsigned thread_rank();  // in its block
void pass_turn();        // lets other threads run first, now and then

// Waits until every lane of `mask` has come to the same call. The last one to
// come calls finish with what each of them brought, by lane.
using Finish = void (*)(uint32_t mask, void* const* brought);
void meet_in_warp(const char* call, uint32_t mask, void* brought, Finish finish, const Site& site);

// Waits until every thread of the block has come to __syncthreads.
void meet_in_block(const Site& site);

}  // namespace soho_model
