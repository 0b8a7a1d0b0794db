// Exact float work needs subnormals: torch.set_flush_denormal(True) must not change an index.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace soho {
namespace {

// Default rounding, subnormals kept, for the lifetime of the object; the caller's mode comes back after it.
class DefaultFloatEnvironment {
 public:
#if defined(__x86_64__)
  DefaultFloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  DefaultFloatEnvironment() {}
  ~DefaultFloatEnvironment() {}
#endif
};

}  // namespace
}  // namespace soho
