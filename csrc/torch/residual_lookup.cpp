#include "kernels/residual_lookup/residual_lookup.h"

#include <tuple>

#include "torch/tensors.h"
#include "torch/threads.h"

namespace soho {
namespace {

std::tuple<Tensor, Tensor, Tensor> residual_lookup_cpu(const Tensor& features, const Tensor& codebooks,
                                                       int64_t num_levels, bool return_residual,
                                                       const std::optional<Tensor>& packed) {
  const Rows rows = as_rows(features);
  const Codebooks books = as_codebooks(codebooks);
  const CpuLevel level = lookup_level(books.num_codes, books.num_channels);
  std::vector<int64_t> shape = shape_of(features);
  const Tensor quantized = empty_cpu(shape, ScalarType::Float);
  const Tensor residual = empty_cpu(return_residual ? shape : std::vector<int64_t>{0}, ScalarType::Float);
  shape.back() = num_levels;
  const Tensor index = empty_cpu(shape, ScalarType::Long);

  ResidualLookupArgs args{};
  args.features = rows.data;
  args.features_type = element_of(features);
  args.row_stride = rows.stride;
  args.codebooks = books.at(0);
  args.level_stride = codebooks.dim() == 2 ? 0 : books.num_codes * books.num_channels;
  args.num_rows = rows.num_rows;
  args.num_levels = num_levels;
  args.num_codes = books.num_codes;
  args.num_channels = books.num_channels;
  args.index = index.mutable_data_ptr<int64_t>();
  args.quantized = quantized.mutable_data_ptr<float>();
  args.residual = return_residual ? residual.mutable_data_ptr<float>() : nullptr;

  const void* blocks = nullptr;
  int64_t stride = 0;
  if (packed.has_value() && packed->numel() > 0) {
    if (packed->scalar_type() != ScalarType::Byte || packed->dim() != 2 || packed->size(0) != books.num_codebooks)
      throw std::invalid_argument("packed: expected what pack_codebook returned for these codebooks");
    stride = packed->size(1);
    if (packed->is_contiguous()) blocks = packed->const_data_ptr();
  }
  residual_lookup(level, args, blocks, stride, intra_op_threads);
  const ScalarType type = features.scalar_type();
  return {type == ScalarType::Float ? quantized : torch::stable::to(quantized, type), index, residual};
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CPU, library) {
  library.impl("residual_lookup_cpu", TORCH_BOX(&residual_lookup_cpu));
}

}  // namespace
}  // namespace soho
