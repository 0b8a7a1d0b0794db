// soho_fast._C: introspection and small lookups, with its types in soho_fast/_C.pyi. Loading it registers the CPU ops
// (see the other files of this folder). pybind11 is the one that torch has among its headers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/cpu_level.h"
#include "kernels/codebook_lookup/codebook_lookup.h"
#include "torch/build_info.h"
#include "torch/lookup_totals.h"
#include "torch/small_lookup.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  module.doc() = "Introspection of the compiled soho_fast kernels, and small lookups by them.";
  module.def("build_info", &soho::build_info, "What was built, and which levels run here.");
  module.def(
      "lookup_totals",
      [] {
        const soho::LookupTotals totals = soho::lookup_totals();
        return std::map<std::string, int64_t>{
            {"rows", totals.rows}, {"pruning", totals.pruning}, {"compared", totals.compared}, {"left", totals.left}};
      },
      "Rows of all lookups so far; of them, those that low-dimensional pruning decided, those compared in float64 "
      "and those that the first full pass left.");
  module.def(
      "lookup_level",
      [](int64_t num_codes, int64_t num_channels) {
        return soho::cpu_level_name(soho::lookup_level(num_codes, num_channels));
      },
      py::arg("num_codes"), py::arg("num_channels"), "The level of lookups in a codebook of this size.");
  soho::prepare_small_lookup();
  module.def("small_lookup", &soho::small_lookup, py::arg("features"), py::arg("codebook"), py::arg("packed"),
             py::arg("metric"), py::arg("topk"), py::arg("return_distance"),
             "What the op codebook_lookup_cpu finds, past torch's dispatcher; None for what is not small and plain.");
  module.def("set_cpu_level", &soho::set_cpu_level, py::arg("level"),
             "Forces a level by its name; \"\" goes back to the best one.");
}
