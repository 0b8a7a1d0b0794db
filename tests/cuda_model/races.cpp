// Every load and store of what is compiled with -fsanitize=thread arrives at the functions __tsan_*; they are these and
// not the thread sanitizer's, since the threads are fibers.
#include "races.h"

#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <string>
#include <unordered_map>
#include <vector>

#include "execution.h"

namespace soho_model {
namespace {

struct Stamp {
  uint64_t block = 0;  // its number in the launch, from 1; 0: no access
  uint64_t block_time, warp_time;
  unsigned thread;
  Access access;
};

// The last store and the last reads of one byte, of two threads where there are two.
struct Cell {
  Stamp stored, read[2];
};

constexpr size_t kLine = 64;
std::unordered_map<uintptr_t, std::array<Cell, kLine>> lines;

struct Warp {
  uint64_t time;
  uint64_t met[kWarpSize][kWarpSize];  // when two lanes last came to the same __syncwarp
};
std::vector<Warp> warps;
uint64_t block_number = 0, block_time = 0;

bool is_ordered(const Stamp& before, const Stamp& now) {
  if (before.block == 0 || (before.block == now.block && before.thread == now.thread)) return true;
  if (before.block != now.block) return false;
  if (before.block_time != now.block_time) return true;
  const unsigned warp = now.thread / kWarpSize;
  return before.thread / kWarpSize == warp &&
         before.warp_time < warps[warp].met[before.thread % kWarpSize][now.thread % kWarpSize];
}

const char* name_of(Access access) {
  return access == Access::kRead ? "reads" : access == Access::kWrite ? "writes" : "changes by an atomic";
}

void refuse(const Stamp& before, const Stamp& now, const void* memory, const void* code) {
  Dl_info info{};
  char place[32] = "?";
  if (code != nullptr && dladdr(code, &info) != 0)
    std::snprintf(place, sizeof(place), "0x%zx",
                  static_cast<size_t>(static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase)));
  char address[32];
  std::snprintf(address, sizeof(address), "%p", memory);
  fail("data race at " + std::string(address) + ": thread " + std::to_string(now.thread) + " of the block " +
       name_of(now.access) + " what thread " + std::to_string(before.thread) +
       (before.block == now.block ? "" : " of another block") + " " + name_of(before.access) +
       " with no barrier between (code " + place + ", see addr2line)");
}

void record(unsigned thread, const void* memory, size_t bytes, Access access, const void* code) {
  const Stamp now{block_number, block_time, warps[thread / kWarpSize].time, thread, access};
  std::array<Cell, kLine>* line = nullptr;
  for (size_t b = 0; b < bytes; ++b) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory) + b;
    if (line == nullptr || address % kLine == 0) line = &lines[address / kLine];
    Cell& cell = (*line)[address % kLine];
    if (!(access == Access::kAtomic && cell.stored.access == Access::kAtomic) && !is_ordered(cell.stored, now))
      refuse(cell.stored, now, memory, code);
    if (access == Access::kRead) {
      if (cell.read[0].block == 0 || cell.read[0].thread == thread)
        cell.read[0] = now;
      else
        cell.read[1] = now;
      continue;
    }
    for (const Stamp& read : cell.read) {
      if (!is_ordered(read, now)) refuse(read, now, memory, code);
    }
    cell.stored = now;
    cell.read[0].block = cell.read[1].block = 0;
  }
}

}  // namespace

void start_launch() {
  lines.clear();
  block_number = 0;
}

void start_block(size_t num_threads) {
  ++block_number;
  block_time = 0;
  warps.assign((num_threads + kWarpSize - 1) / kWarpSize, {});
}

void forget(const void* memory, size_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  for (uintptr_t line = begin / kLine; line * kLine < begin + bytes; ++line) lines.erase(line);
}

void pass_block_barrier() { ++block_time; }

void pass_warp_barrier(unsigned warp, uint32_t mask) {
  Warp& w = warps[warp];
  ++w.time;
  for (unsigned a = 0; a < kWarpSize; ++a) {
    for (unsigned b = 0; b < kWarpSize; ++b) {
      if ((mask >> a & 1) && (mask >> b & 1)) w.met[a][b] = w.time;
    }
  }
}

void report(unsigned thread, const void* memory, size_t bytes, Access access) {
  record(thread, memory, bytes, access, nullptr);
}

}  // namespace soho_model

namespace {

void see(const void* memory, size_t bytes, soho_model::Access access, const void* code) {
  // What lies on the stack of a thread is its own, or brought to a warp function.
  if (soho_model::in_thread() && !soho_model::is_on_a_stack(memory))
    soho_model::record(soho_model::thread_rank(), memory, bytes, access, code);
}

}  // namespace

#define SOHO_MODEL_ACCESS(name, bytes, access)                                   \
  extern "C" void __tsan_##name##bytes(void* memory) {                           \
    see(memory, bytes, soho_model::Access::access, __builtin_return_address(0)); \
  }
#define SOHO_MODEL_ACCESSES(bytes)                \
  SOHO_MODEL_ACCESS(read, bytes, kRead)           \
  SOHO_MODEL_ACCESS(write, bytes, kWrite)         \
  SOHO_MODEL_ACCESS(unaligned_read, bytes, kRead) \
  SOHO_MODEL_ACCESS(unaligned_write, bytes, kWrite)
SOHO_MODEL_ACCESSES(1)
SOHO_MODEL_ACCESSES(2)
SOHO_MODEL_ACCESSES(4)
SOHO_MODEL_ACCESSES(8)
SOHO_MODEL_ACCESSES(16)

extern "C" {
void __tsan_read_range(void* memory, size_t bytes) {
  see(memory, bytes, soho_model::Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* memory, size_t bytes) {
  see(memory, bytes, soho_model::Access::kWrite, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
}
