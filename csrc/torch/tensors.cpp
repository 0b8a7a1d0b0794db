#include "torch/tensors.h"

#include <algorithm>

#include "torch/row_layout.h"

namespace soho {

Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    default:
      throw std::invalid_argument("expected a float32, bfloat16 or float16 tensor");
  }
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < tensor.dim(); ++d) shape.push_back(tensor.size(d));
  return shape;
}

Tensor empty_cpu(const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t d = shape.size(); d > 1; --d) strides[d - 2] = strides[d - 1] * std::max<int64_t>(1, shape[d - 1]);
  const int32_t number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle tensor = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                         strides.data(), number, aoti_torch_device_type_cpu(), 0,
                                                         &tensor));
  return Tensor(tensor);
}

Tensor as_dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

Rows as_rows(const Tensor& tensor) {
  const int64_t num_channels = tensor.size(tensor.dim() - 1);
  const RowLayout layout = row_layout(tensor.dim(), tensor.sizes().data(), tensor.strides().data());
  if (layout.stride) return {tensor, tensor.const_data_ptr(), layout.num_rows, num_channels, *layout.stride};
  const Tensor dense = torch::stable::contiguous(tensor);
  return {dense, dense.const_data_ptr(), layout.num_rows, num_channels, num_channels};
}

Tensor as_float32(const Tensor& tensor) {
  const Tensor dense = as_dense(tensor);
  return dense.scalar_type() == ScalarType::Float ? dense : torch::stable::to(dense, ScalarType::Float);
}

std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(as_dense(*tensor)) : std::nullopt;
}

const bool* bool_data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const bool*>(tensor->const_data_ptr()) : nullptr;
}

Codebooks as_codebooks(const Tensor& codebook) {
  Codebooks books{as_float32(codebook), 1, codebook.size(codebook.dim() - 2), codebook.size(codebook.dim() - 1)};
  for (int64_t d = 0; d < codebook.dim() - 2; ++d) books.num_codebooks *= codebook.size(d);
  if (books.num_codes >= int64_t{1} << 31) throw std::invalid_argument("codebook: expected fewer than 2^31 codes");
  return books;
}

}  // namespace soho
