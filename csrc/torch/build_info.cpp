#include "torch/build_info.h"

#include "common/cpu_level.h"

namespace soho {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GNU " __VERSION__;
#endif
}

std::string architecture() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "other";
#endif
}

// The oldest libtorch that this loads into.
std::string stable_abi() {
  const unsigned long long version = TORCH_TARGET_VERSION;
  return std::to_string(version >> 56) + "." + std::to_string(version >> 48 & 255);
}

}  // namespace

BuildInfo build_info() {
  std::vector<std::string> built, available;
  for (CpuLevel level : built_cpu_levels()) {
    built.push_back(cpu_level_name(level));
    if (cpu_level_available(level)) available.push_back(cpu_level_name(level));
  }
  BuildInfo info{{"compiler", compiler()},
                 {"architecture", architecture()},
                 {"stable_abi", stable_abi()},
                 {"cpu_levels_built", built},
                 {"cpu_levels_available", available},
                 {"cpu_level", cpu_level_name(active_cpu_level())}};
#ifdef SOHO_CUDA_ARCHITECTURES
  info["cuda_architectures"] = SOHO_CUDA_ARCHITECTURES;
#endif
  return info;
}

}  // namespace soho
