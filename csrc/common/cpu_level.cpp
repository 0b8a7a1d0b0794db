#include "common/cpu_level.h"

#include <array>
#include <atomic>
#include <iterator>
#include <stdexcept>

#ifdef SOHO_X86_LEVELS
#include <cpuid.h>
#endif
#ifdef SOHO_AMX_LEVEL
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace soho {
namespace {

constexpr CpuLevel kAllLevels[] = {CpuLevel::kScalar,     CpuLevel::kAvx2,       CpuLevel::kAvx512,
                                   CpuLevel::kAvx512Bf16, CpuLevel::kAvx512Vnni, CpuLevel::kAmx};
constexpr int kNotForced = -1;
std::atomic<int> forced_level{kNotForced};

bool built(CpuLevel level) {
#ifdef SOHO_AMX_LEVEL
  if (level == CpuLevel::kAmx) return true;
#endif
#ifdef SOHO_X86_LEVELS
  return level != CpuLevel::kAmx;
#elif defined(SOHO_VECTOR_LEVELS)
  return level <= CpuLevel::kAvx2;
#else
  return level == CpuLevel::kScalar;
#endif
}

#ifdef SOHO_X86_LEVELS
// Compilers disagree on the names of these features.
bool has_half_conversions() {
  unsigned eax, ebx, ecx = 0, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & 1u << 29) != 0;
}

bool has_bf16_dot_products() {
  unsigned eax = 0, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 5) != 0;
}
#endif

// The processor has bfloat16 tiles, and the system lets this process keep tile data.
[[maybe_unused]] bool tiles_permitted() {
#ifdef SOHO_AMX_LEVEL
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // CPUID.(7,0):EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;   // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}

bool probe(CpuLevel level) {
#ifdef SOHO_X86_LEVELS
  switch (level) {
    case CpuLevel::kScalar:
      return true;
    case CpuLevel::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_half_conversions();
    case CpuLevel::kAvx512:
      return probe(CpuLevel::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case CpuLevel::kAvx512Bf16:
      return probe(CpuLevel::kAvx512) && has_bf16_dot_products();
    case CpuLevel::kAvx512Vnni:
      return probe(CpuLevel::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case CpuLevel::kAmx:
      return probe(CpuLevel::kAvx512Bf16) && tiles_permitted();
  }
  return false;
#else
  return built(level);
#endif
}

}  // namespace

const char* cpu_level_name(CpuLevel level) {
#ifdef __aarch64__
  constexpr const char* kOfVectors = "neon";
#else
  constexpr const char* kOfVectors = "avx2";
#endif
  constexpr const char* kNames[] = {"scalar", kOfVectors, "avx512", "avx512_bf16", "avx512_vnni", "amx"};
  return kNames[static_cast<int>(level)];
}

std::vector<CpuLevel> built_cpu_levels() {
  std::vector<CpuLevel> levels;
  for (CpuLevel level : kAllLevels) {
    if (built(level)) levels.push_back(level);
  }
  return levels;
}

// Each lookup asks, so it is probed once: in a virtual machine CPUID takes as long as the lookup of a row.
bool cpu_level_available(CpuLevel level) {
  static const auto available = [] {
    std::array<bool, std::size(kAllLevels)> each{};
    for (CpuLevel one : kAllLevels) each[static_cast<size_t>(one)] = built(one) && probe(one);
    return each;
  }();
  return available[static_cast<size_t>(level)];
}

CpuLevel active_cpu_level() {
  const int forced = forced_level.load(std::memory_order_relaxed);
  if (forced != kNotForced) return static_cast<CpuLevel>(forced);
  static const CpuLevel best = [] {
    CpuLevel highest = CpuLevel::kScalar;
    for (CpuLevel level : kAllLevels) {
      if (cpu_level_available(level)) highest = level;
    }
    return highest;
  }();
  return best;
}

bool cpu_level_forced() { return forced_level.load(std::memory_order_relaxed) != kNotForced; }

void set_cpu_level(const std::string& name) {
  if (name.empty()) {
    forced_level.store(kNotForced);
    return;
  }
  for (CpuLevel level : kAllLevels) {
    if (name != cpu_level_name(level)) continue;
    if (!built(level)) throw std::invalid_argument("level: this build has no '" + name + "' kernels");
    if (!cpu_level_available(level)) throw std::invalid_argument("level: this machine cannot run '" + name + "'");
    forced_level.store(static_cast<int>(level));
    return;
  }
  if (name == "neon" || name == "avx2")  // that of the other kind of processor
    throw std::invalid_argument("level: this build has no '" + name + "' kernels");
  throw std::invalid_argument("level: expected scalar, neon, avx2, avx512, avx512_bf16, avx512_vnni or amx, got '" +
                              name + "'");
}

}  // namespace soho
