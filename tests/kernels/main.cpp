// kernel_tests: the kernels without torch and Python; built with
// -DSOHO_FAST_BUILD_TESTS=ON, also under the sanitizers.
#include <stdexcept>

#include "check.h"
#include "common/cpu_level.h"

namespace {

void test_levels() {
  using namespace soho;
  CHECK(cpu_level_available(CpuLevel::kScalar));
  set_cpu_level("scalar");
  CHECK(active_cpu_level() == CpuLevel::kScalar);
  set_cpu_level("");
  CHECK(active_cpu_level() >= CpuLevel::kScalar);
  for (const char* name : {"sse9", "amx"}) {
    bool refused = false;
    try {
      set_cpu_level(name);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused || cpu_level_available(CpuLevel::kAmx));
    set_cpu_level("");
  }
}

}  // namespace

int main() {
  test_levels();
  test_codebook_lookup();
  test_codebook_update();
  test_encoder();
  test_group_mask();
  test_residual_lookup();
  std::printf("%d failures\n", num_failures());
  return num_failures() == 0 ? 0 : 1;
}
