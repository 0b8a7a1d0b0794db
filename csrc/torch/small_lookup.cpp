#include "torch/small_lookup.h"

// Plain C, by which torch gives Tensor.__dlpack_c_exchange_api__; of torch's own ABI this file takes nothing.
#undef TORCH_TARGET_VERSION
#include <ATen/dlpack.h>

#include <optional>
#include <utility>
#include <vector>

#include "kernels/codebook_lookup/codebook_lookup.h"
#include "torch/lookup_totals.h"
#include "torch/row_layout.h"

namespace py = pybind11;

namespace soho {
namespace {

constexpr int64_t kMostProducts = 1 << 19;         // beyond, the dispatcher takes a tenth of the time or less
constexpr int64_t kMostProductsHolding = 1 << 14;  // the interpreter's lock: others wait for a microsecond

void in_this_thread(int64_t total, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  if (total > 0) body(0, total);
}

// What is taken from torch's Python module once.
struct Torch {
  const DLPackExchangeAPI* exchange = nullptr;  // null where this torch has another
  py::object empty_int64, empty_float32;        // new_empty of a tensor of the type: half of the time of empty(dtype=)

  Torch() {
    const py::module_ torch = py::module_::import("torch");
    const auto new_empty_of = [&](const char* type) -> py::object {
      return torch.attr("empty")(0, py::arg("dtype") = torch.attr(type), py::arg("device") = "cpu").attr("new_empty");
    };
    empty_int64 = new_empty_of("int64");
    empty_float32 = new_empty_of("float32");
    const py::object capsule = py::getattr(torch.attr("Tensor"), "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return;
    const auto* found =
        static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (found->header.version.major == DLPACK_MAJOR_VERSION) exchange = found;
  }

  bool can_view() const { return exchange != nullptr && exchange->dltensor_from_py_object_no_sync != nullptr; }

  DLTensor view(const py::object& tensor) const {
    DLTensor of_tensor;
    if (exchange->dltensor_from_py_object_no_sync(tensor.ptr(), &of_tensor) != 0) throw py::error_already_set();
    return of_tensor;
  }
};

const Torch& torch_module() {
  static const Torch* const torch = new Torch;  // outlives the interpreter's end
  return *torch;
}

py::object called(const py::object& function, const py::tuple& arguments) {
  PyObject* const result = PyObject_Call(function.ptr(), arguments.ptr(), nullptr);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

void* data_of(const DLTensor& tensor) { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

std::optional<Element> element_of(const DLTensor& tensor) {
  if (tensor.device.device_type != kDLCPU || tensor.dtype.lanes != 1) return std::nullopt;
  if (tensor.dtype.code == kDLFloat && tensor.dtype.bits == 32) return Element::kFloat32;
  if (tensor.dtype.code == kDLFloat && tensor.dtype.bits == 16) return Element::kFloat16;
  if (tensor.dtype.code == kDLBfloat && tensor.dtype.bits == 16) return Element::kBFloat16;
  return std::nullopt;
}

// The first dimensions, and `topk` of several.
py::tuple shape_of_index(const DLTensor& features, int64_t topk) {
  py::tuple shape(features.ndim - (topk == 1));
  for (int32_t d = 0; d + 1 < features.ndim; ++d) shape[d] = py::int_(features.shape[d]);
  if (topk > 1) shape[features.ndim - 1] = py::int_(topk);
  return shape;
}

}  // namespace

void prepare_small_lookup() { torch_module(); }

py::object small_lookup(py::object features, py::object codebook, py::object packed, int64_t metric, int64_t topk,
                        bool return_distance) {
  const Torch& torch = torch_module();
  if (!torch.can_view()) return py::none();
  const DLTensor x = torch.view(features), d = torch.view(codebook);
  const std::optional<Element> type = element_of(x);
  if (!type || x.ndim < 2 || element_of(d) != Element::kFloat32 || d.ndim != 2) return py::none();
  const int64_t num_codes = d.shape[0], num_channels = d.shape[1];
  if (num_channels < 1 || x.shape[x.ndim - 1] != num_channels || num_codes < topk || num_codes > kMostProducts ||
      num_channels > kMostProducts / num_codes || d.strides[1] != 1 || d.strides[0] != num_channels)
    return py::none();
  const RowLayout rows = row_layout(x.ndim, x.shape, x.strides);
  if (!rows.stride || rows.num_rows > kMostProducts / (num_codes * num_channels)) return py::none();

  CodebookLookupArgs args{};
  args.features = data_of(x);
  args.features_type = *type;
  args.row_stride = *rows.stride;
  args.codebook = static_cast<const float*>(data_of(d));
  args.num_rows = rows.num_rows;
  args.num_codes = num_codes;
  args.num_channels = num_channels;
  args.metric = static_cast<Metric>(metric);
  args.topk = topk;
  const CpuLevel level = lookup_level(num_codes, num_channels);
  const void* block = nullptr;
  if (!packed.is_none()) {
    const DLTensor bytes = torch.view(packed);
    const bool fits = packed_codebook_is(level, num_codes, num_channels, args.metric, data_of(bytes), bytes.shape[1]);
    block = fits ? data_of(bytes) : nullptr;
  }
  const py::tuple shape = shape_of_index(x, topk);
  const py::object index = called(torch.empty_int64, shape);
  args.index = static_cast<int64_t*>(data_of(torch.view(index)));
  std::vector<int64_t> first;
  if (topk > 1) {
    first.resize(args.num_rows);
    args.top_index = std::exchange(args.index, first.data());
  }
  py::object distance;
  if (return_distance) {
    distance = called(torch.empty_float32, shape);
    args.distance = static_cast<float*>(data_of(torch.view(distance)));
  }
  std::optional<py::gil_scoped_release> release;
  if (args.num_rows * num_codes * num_channels > kMostProductsHolding) release.emplace();
  count_lookup(args.num_rows, codebook_lookup(level, args, block, in_this_thread));
  release.reset();
  return return_distance ? py::make_tuple(index, distance) : index;
}

}  // namespace soho
