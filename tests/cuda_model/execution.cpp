#include "execution.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "copies.h"
#include "races.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace soho_model {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kPageBytes = 4096;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr unsigned kMaxThreads = 1024;

// One stack of execution. The main one belongs to run_grid.
struct Fiber {
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
};

#ifdef __x86_64__
extern "C" void soho_model_switch(void** saved, void* next);
asm(R"(
.text
.globl soho_model_switch
.type soho_model_switch, @function
soho_model_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size soho_model_switch, .-soho_model_switch
)");
#endif

enum class State { kReady, kWaits, kEnded };

struct Thread {
  Fiber fiber;
  State state = State::kEnded;
  uint3 index;
  CopyQueue copies;
  // What it waits for.
  const char* call;
  Site site;
};

struct Meeting {
  const char* call;
  Site site;
  uint32_t mask, present;
  void* brought[kWarpSize];
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<unsigned> ready;
  std::vector<std::vector<Meeting>> meetings;  // by warp
  std::vector<std::unique_ptr<Thread>> spare;  // with their stacks
  size_t num_at_barrier, num_ended;
  unsigned char* memory;
  std::string failure;
};

Fiber main_fiber;
Block block;
unsigned current = 0;  // the thread that runs
const std::function<void()>* thread_body = nullptr;
bool runs_thread = false;
uint64_t random_state = 1;

void switch_fiber(Fiber& from, Fiber& to, bool ends = false) {
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake_stack, to.stack_bottom, to.stack_bytes);
#endif
#ifdef __x86_64__
  soho_model_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  (void)ends;
}

void enter_thread() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  main_fiber.stack_bottom = bottom;
  main_fiber.stack_bytes = bytes;
#endif
  (*thread_body)();
  block.threads[current]->state = State::kEnded;
  ++block.num_ended;
  switch_fiber(block.threads[current]->fiber, main_fiber, true);
}

// The stacks lie one behind the other, a page that nobody may touch below each.
constexpr size_t kStackStride = kStackBytes + kPageBytes;
char* stacks = nullptr;
unsigned num_stacks = 0;

char* new_stack() {
  if (stacks == nullptr) {
    void* memory = mmap(nullptr, kMaxThreads * kStackStride, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks = static_cast<char*>(memory);
  }
  char* guard = stacks + num_stacks++ * kStackStride;
  if (mprotect(guard, kPageBytes, PROT_NONE) != 0) throw std::bad_alloc();
  return guard + kPageBytes;
}

// `was_left`: the last thread on it did not end, so all its frames are still guarded.
void prepare(Fiber& fiber, [[maybe_unused]] bool was_left) {
  if (fiber.stack == nullptr) {
    fiber.stack = new_stack();
    fiber.stack_bottom = fiber.stack;
    fiber.stack_bytes = kStackBytes;
  }
#ifdef __SANITIZE_ADDRESS__
  const size_t guarded = was_left ? kStackBytes : 1024;  // enter_thread itself never returns
  __asan_unpoison_memory_region(fiber.stack + kStackBytes - guarded, guarded);
#endif
#ifdef __x86_64__
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // where enter_thread would return to
  *--top = reinterpret_cast<void*>(&enter_thread);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &enter_thread, 0);
#endif
}

std::string name_of(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && same_text(a.file_name(), b.file_name());
}

std::string name_of(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

// "3 threads (the first is 5) wait at __syncthreads cuda.cu:12; ..."
std::string who_waits_where() {
  std::map<std::string, std::pair<int, unsigned>> groups;
  for (unsigned t = 0; t < block.threads.size(); ++t) {
    const Thread& thread = *block.threads[t];
    const std::string place =
        thread.state == State::kEnded ? "ended" : std::string("wait at ") + thread.call + " " + name_of(thread.site);
    auto [group, is_new] = groups.try_emplace(place, 0, t);
    ++group->second.first;
  }
  std::string text;
  for (const auto& [place, group] : groups) {
    text += (text.empty() ? "" : "; ") + std::to_string(group.first) + " threads (the first is " +
            std::to_string(group.second) + ") " + place;
  }
  return text;
}

void wait(const char* call, const Site& site) {
  Thread& thread = *block.threads[current];
  thread.state = State::kWaits;
  thread.call = call;
  thread.site = site;
  switch_fiber(thread.fiber, main_fiber);
}

void wake(unsigned t) {
  block.threads[t]->state = State::kReady;
  block.ready.push_back(t);
}

// Shared memory holds something, but nothing useful: NaN and -1, or huge numbers.
void fill_with_garbage(char* begin, size_t bytes) {
  std::memset(begin, coin() ? 0xff : 0x7b, bytes);
  forget(begin, bytes);
}

// Static __shared__ variables are the only thread-local ones of the program.
void fill_static_shared() {
  const auto fill = [](dl_phdr_info* program, size_t, void*) {
    for (int h = 0; h < program->dlpi_phnum; ++h) {
      if (program->dlpi_phdr[h].p_type == PT_TLS && program->dlpi_tls_data != nullptr)
        fill_with_garbage(static_cast<char*>(program->dlpi_tls_data), program->dlpi_phdr[h].p_memsz);
    }
    return 1;  // the first is the program, the others are libraries
  };
  dl_iterate_phdr(fill, nullptr);
}

// Exact, so that the address sanitizer sees the first byte behind it.
class DynamicShared {
 public:
  explicit DynamicShared(size_t bytes) : memory_(static_cast<char*>(::operator new(bytes, kAlignment))) {
    fill_with_garbage(memory_, bytes);
    block.memory = reinterpret_cast<unsigned char*>(memory_);
  }
  ~DynamicShared() {
    ::operator delete(memory_, kAlignment);
    block.memory = nullptr;
  }
  DynamicShared(const DynamicShared&) = delete;

 private:
  static constexpr std::align_val_t kAlignment{128};
  char* memory_;
};

[[noreturn]] void give_up(const std::string& text) {
  throw std::runtime_error("block " + name_of(blockIdx) + ": " + text);
}

// Everybody has come to the barrier, or nobody can go on.
void open_barrier() {
  const size_t num_threads = block.threads.size();
  const Thread& first = *block.threads[0];
  bool complete = block.num_at_barrier == num_threads;
  for (const auto& thread : block.threads) complete = complete && same_site(thread->site, first.site);
  if (!complete) give_up("no thread can go on: " + who_waits_where());
  block.num_at_barrier = 0;
  pass_block_barrier();
  for (unsigned t = 0; t < num_threads; ++t) wake(t);
}

void run_block(dim3 shape, size_t shared_bytes) {
  const DynamicShared memory(shared_bytes);
  fill_static_shared();
  const unsigned num_threads = shape.x * shape.y * shape.z;
  while (block.threads.size() < num_threads) {
    if (block.spare.empty()) block.spare.push_back(std::make_unique<Thread>());
    block.threads.push_back(std::move(block.spare.back()));
    block.spare.pop_back();
  }
  for (; block.threads.size() > num_threads; block.threads.pop_back())
    block.spare.push_back(std::move(block.threads.back()));
  block.ready.clear();
  block.meetings.assign((num_threads + kWarpSize - 1) / kWarpSize, {});
  block.num_at_barrier = block.num_ended = 0;
  block.failure.clear();
  start_block(num_threads);
  for (unsigned t = 0; t < num_threads; ++t) {
    Thread& thread = *block.threads[t];
    prepare(thread.fiber, thread.state != State::kEnded);
    thread.index = {t % shape.x, t / shape.x % shape.y, t / shape.x / shape.y};
    thread.copies = {};
    thread.site = {};
    wake(t);
  }
  while (block.num_ended < num_threads) {
    if (block.ready.empty()) open_barrier();
    const size_t position = random_bits() % block.ready.size();
    current = block.ready[position];
    block.ready[position] = block.ready.back();
    block.ready.pop_back();
    threadIdx = block.threads[current]->index;
    runs_thread = true;
    switch_fiber(main_fiber, block.threads[current]->fiber);
    runs_thread = false;
    if (!block.failure.empty()) give_up(block.failure);
  }
}

}  // namespace

void set_seed(uint64_t seed) { random_state = seed * 0x9e3779b97f4a7c15u + 1; }

uint64_t random_bits() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void run_grid(dim3 grid, dim3 shape, size_t shared_bytes, const std::function<void()>& thread) {
  const size_t num_threads = size_t{shape.x} * shape.y * shape.z;
  if (num_threads == 0 || num_threads > kMaxThreads)
    throw std::runtime_error("a block has 1 to 1024 threads, got " + std::to_string(num_threads));
  if (shared_bytes > kMaxSharedBytes)
    throw std::runtime_error("a block has up to 232448 bytes of shared memory, got " + std::to_string(shared_bytes));
  if (grid.y > 65535 || grid.z > 65535) throw std::runtime_error("a grid has up to 65535 blocks along y and z");
  std::vector<uint64_t> order(size_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
  thread_body = &thread;
  start_launch();
  gridDim = grid;
  blockDim = shape;
  for (const uint64_t b : order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(shape, shared_bytes);
  }
}

void fail(const std::string& text) {
  block.failure = "thread " + name_of(threadIdx) + ": " + text;
  switch_fiber(block.threads[current]->fiber, main_fiber);
  std::abort();  // it is not resumed
}

unsigned char* block_memory() { return block.memory; }
bool in_thread() { return runs_thread; }
unsigned thread_rank() { return current; }

#ifdef SOHO_CUDA_RACES
bool is_on_a_stack(const void* memory) { return memory >= stacks && memory < stacks + kMaxThreads * kStackStride; }
#endif
CopyQueue& copies_of_thread() { return block.threads[current]->copies; }

void pass_turn() {
  if (random_bits() % 4 != 0) return;
  wake(current);
  switch_fiber(block.threads[current]->fiber, main_fiber);
}

void meet_in_warp(const char* call, uint32_t mask, void* brought, Finish finish, const Site& site) {
  const unsigned warp = current / kWarpSize, lane = current % kWarpSize;
  const unsigned first = warp * kWarpSize;
  const size_t num_lanes = std::min<size_t>(kWarpSize, block.threads.size() - first);
  const uint32_t existing = num_lanes == kWarpSize ? ~0u : (1u << num_lanes) - 1;
  if (!(mask >> lane & 1)) fail(std::string(call) + " " + name_of(site) + ": the mask leaves out the calling lane");
  mask &= existing;
  std::vector<Meeting>& meetings = block.meetings[warp];
  size_t m = 0;
  while (m < meetings.size() && !(meetings[m].mask & mask)) ++m;
  if (m == meetings.size()) meetings.push_back({call, site, mask, 0, {}});
  Meeting& meeting = meetings[m];
  if (meeting.mask != mask || !same_text(meeting.call, call) || !same_site(meeting.site, site))
    fail(std::string("lanes of a warp disagree: ") + call + " " + name_of(site) + " while others wait at " +
         meeting.call + " " + name_of(meeting.site));
  meeting.brought[lane] = brought;
  meeting.present |= 1u << lane;
  if (meeting.present != mask) return wait(call, site);
  const Meeting complete = meeting;
  meetings.erase(meetings.begin() + m);
  if (finish != nullptr)
    finish(mask, complete.brought);
  else
    pass_warp_barrier(warp, mask);  // other warp functions order no memory
  for (unsigned other = 0; other < kWarpSize; ++other) {
    if (other != lane && (mask >> other & 1)) wake(first + other);
  }
  pass_turn();
}

void meet_in_block(const Site& site) {
  ++block.num_at_barrier;
  wait("__syncthreads", site);
}

}  // namespace soho_model
