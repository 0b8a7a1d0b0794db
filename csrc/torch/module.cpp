// soho_fast._C: introspection only. Loading it registers the CPU ops (see the other files of this folder).
#include <pybind11/pybind11.h>

#include "common/cpu_level.h"
#include "torch/lookup_totals.h"

namespace {

pybind11::dict build_info() {
  pybind11::list built, available;
  for (soho::CpuLevel level : soho::built_cpu_levels()) {
    built.append(soho::cpu_level_name(level));
    if (soho::cpu_level_available(level)) available.append(soho::cpu_level_name(level));
  }
  pybind11::dict info;
  info["compiler"] = SOHO_COMPILER;
  info["architecture"] = SOHO_ARCHITECTURE;
  info["stable_abi"] = SOHO_STABLE_ABI;
#ifdef SOHO_CUDA_ARCHITECTURES
  info["cuda_architectures"] = SOHO_CUDA_ARCHITECTURES;
#endif
  info["cpu_levels_built"] = built;
  info["cpu_levels_available"] = available;
  info["cpu_level"] = soho::cpu_level_name(soho::active_cpu_level());
  return info;
}

pybind11::dict lookup_totals() {
  const soho::LookupTotals totals = soho::lookup_totals();
  pybind11::dict info;
  info["rows"] = totals.rows;
  info["reduced"] = totals.reduced;
  info["compared"] = totals.compared;
  info["left"] = totals.left;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Introspection of the compiled soho_fast kernels.";
  module.def("build_info", &build_info);
  module.def(
      "lookup_totals", &lookup_totals,
      "Rows of all lookups so far; of them, those that the reduced pass decided, those compared in float64 and those "
      "that the first full pass left.");
  module.def("set_cpu_level", &soho::set_cpu_level, pybind11::arg("level"));
}
