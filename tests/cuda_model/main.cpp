// cuda_model_tests and cuda_race_tests: the CUDA kernels on the CPU, under the sanitizers and under the race check.
// Names of groups choose some.
#include <cstring>

#include "../kernels/check.h"
#include "cuda_model_tests.h"

// Threads that an error leaves behind never free what they own; a fake stack for each thread costs a system call.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "detect_leaks=0:detect_stack_use_after_return=0";
}

int main(int num_words, char** words) {
  const struct {
    const char* name;
    void (*run)();
  } groups[] = {
#ifdef SOHO_CUDA_RACES
      {"races", test_races},
#else
      {"model", test_model},
#endif
      {"codebook_lookup", test_codebook_lookup_cuda},
      {"codebook_update", test_codebook_update_cuda},
      {"group_mask", test_group_mask_cuda}};
  int num_run = 0;
  for (const auto& group : groups) {
    bool chosen = num_words == 1;
    for (int w = 1; w < num_words; ++w) chosen = chosen || std::strcmp(words[w], group.name) == 0;
    if (chosen) {
      group.run();
      ++num_run;
    }
  }
  CHECK(num_words == 1 || num_run == num_words - 1);  // every name is one of a group
  std::printf("%d failures\n", num_failures());
  return num_failures() == 0 ? 0 : 1;
}
