// Instruction-set levels: what was built, what this machine runs, and which one is in use.
#pragma once

#include <string>
#include <vector>

namespace soho {

// Ascending. On ARM kAvx2 is called neon: the same code, see vectors.h.
enum class CpuLevel { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAvx512Vnni, kAmx };

const char* cpu_level_name(CpuLevel level);

// Levels this build has, lowest first.
std::vector<CpuLevel> built_cpu_levels();

// True when the build has the level and the processor and the system run it.
bool cpu_level_available(CpuLevel level);

// The forced level, or the best available one.
CpuLevel active_cpu_level();

bool cpu_level_forced();

// Forces a level by name; "" goes back to the best one. Throws std::invalid_argument for an unknown or unavailable
// level.
void set_cpu_level(const std::string& name);

}  // namespace soho
