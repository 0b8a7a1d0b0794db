#include "torch/tensors.h"

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

Tensor empty_cpu(const std::vector<int64_t>& shape, ScalarType type, const Tensor& like) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, type);
}

Rows as_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const int64_t num_channels = tensor.size(last);
  bool flat = tensor.stride(last) == 1 || num_channels <= 1;
  int64_t num_rows = 1, stride = 0, expected = -1;
  for (int64_t d = last - 1; d >= 0; --d) {
    const int64_t size = tensor.size(d);
    num_rows *= size;
    if (size == 1) continue;
    if (expected < 0) stride = tensor.stride(d);
    flat = flat && (expected < 0 || tensor.stride(d) == expected);
    expected = tensor.stride(d) * size;
  }
  if (flat) return {tensor, tensor.const_data_ptr(), num_rows, num_channels, stride};
  const Tensor dense = torch::stable::contiguous(tensor);
  return {dense, dense.const_data_ptr(), num_rows, num_channels, num_channels};
}

Tensor as_float32(const Tensor& tensor) {
  const Tensor dense = torch::stable::contiguous(tensor);
  return dense.scalar_type() == ScalarType::Float ? dense : torch::stable::to(dense, ScalarType::Float);
}

std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
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
