// Defined float work needs subnormals: torch.set_flush_denormal(True), which sets the mode of the calling thread and
// not that of torch's others, must change no index and no sum.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace soho {
namespace {

// Default rounding, subnormals kept, in this thread for the lifetime of the object; its mode comes back after it.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() : saved_(mode()) { set_mode(kDefault); }
  ~DefaultFloatEnvironment() { set_mode(saved_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint32_t kDefault = 0x1f80;  // MXCSR: all exceptions masked
  static uint32_t mode() { return _mm_getcsr(); }
  static void set_mode(uint32_t mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  static constexpr uint64_t kDefault = 0;  // FPCR
  static uint64_t mode() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  static constexpr uint32_t kDefault = 0;
  static uint32_t mode() { return 0; }
  static void set_mode(uint32_t) {}
#endif
  const decltype(kDefault) saved_;
};

}  // namespace
}  // namespace soho
