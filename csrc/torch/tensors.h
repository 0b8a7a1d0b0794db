// How tensors become the plain pointers and strides that kernels take. LibTorch stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/element.h"

namespace soho {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows of adjacent elements, `stride` elements apart. `tensor` keeps the memory alive.
struct Rows {
  Tensor tensor;
  const void* data;
  int64_t num_rows, num_channels, stride;
};

Element element_of(const Tensor& tensor);

// The leading dimensions flattened to rows, without a copy where the layout allows it.
Rows as_rows(const Tensor& tensor);

// Contiguous. Where it already is, torch is not asked: a call of its dispatcher takes as long as the lookup of a row.
Tensor as_dense(const Tensor& tensor);

// Contiguous float32, exact for bfloat16 and float16; no copy where it already is.
Tensor as_float32(const Tensor& tensor);

// A codebook as the kernels take it; `num_codebooks` of them, one after the other.
struct Codebooks {
  Tensor codes;
  int64_t num_codebooks, num_codes, num_channels;
  const float* at(int64_t b) const { return codes.const_data_ptr<float>() + b * num_codes * num_channels; }
};

// Throws where there are too many codes for the kernels.
Codebooks as_codebooks(const Tensor& codebook);

// Of an argument that may be absent.
std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor);
const bool* bool_data(const std::optional<Tensor>& tensor);  // null where absent

std::vector<int64_t> shape_of(const Tensor& tensor);

// A new contiguous CPU tensor.
Tensor empty_cpu(const std::vector<int64_t>& shape, ScalarType type);

}  // namespace soho
