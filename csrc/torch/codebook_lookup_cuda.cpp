#include "kernels/codebook_lookup/codebook_lookup_cuda.h"

#include <algorithm>
#include <tuple>

#include "torch/cuda_call.h"

namespace soho {
namespace {

// (num_codebooks, bytes) uint8: each codebook packed.
Tensor pack(const CudaCall& call, const Codebooks& books) {
  const int64_t bytes = static_cast<int64_t>(packed_codebook_bytes_cuda(books.num_codes, books.num_channels));
  const Tensor packed = call.empty({books.num_codebooks, bytes}, ScalarType::Byte);
  const Tensor scratch =
      call.scratch(pack_codebook_workspace_bytes_cuda(books.num_codebooks, books.num_codes, books.num_channels));
  CudaCall::check(pack_codebook_cuda(books.at(0), books.num_codebooks, books.num_codes, books.num_channels,
                                     packed.mutable_data_ptr(), scratch.mutable_data_ptr(), call.stream()),
                  "pack_codebook");
  return packed;
}

void refuse_other_metrics(int64_t metric) {
  if (metric != 0) throw std::invalid_argument("metric: the CUDA kernels serve 0 (euclidean) alone");
}

Tensor pack_codebook(const Tensor& codebook, const std::optional<Tensor>& /*subspace*/, int64_t metric) {
  refuse_other_metrics(metric);
  return pack(CudaCall(codebook), as_codebooks(codebook));
}

bool packed_fits(const std::optional<Tensor>& packed, const Codebooks& books) {
  return packed.has_value() && packed->scalar_type() == ScalarType::Byte && packed->dim() == 2 &&
         packed->size(0) == books.num_codebooks && packed->is_contiguous() &&
         packed->size(1) == static_cast<int64_t>(packed_codebook_bytes_cuda(books.num_codes, books.num_channels));
}

// Rows `index` of the contiguous `codes` (K, C) or (..., K, C), shaped (index's shape, C).
Tensor gather(const CudaCall& call, const Tensor& codes, const Tensor& index) {
  std::vector<int64_t> shape = shape_of(index);
  shape.push_back(codes.size(codes.dim() - 1));
  const Tensor positions = torch::stable::contiguous(index);
  const Tensor output = call.empty(shape, codes.scalar_type());
  const int64_t num_rows = positions.numel(), num_codes = codes.size(codes.dim() - 2);
  const int64_t row_bytes = shape.back() * element_size(element_of(codes));
  if (num_rows == 0) return output;
  const int64_t rows_of_codebook = codes.dim() == 2 ? num_rows : index.size(index.dim() - 1);
  const GatherCodesArgs args{codes.const_data_ptr(), positions.const_data_ptr<int64_t>(), output.mutable_data_ptr(),
                             num_codes, row_bytes};
  CudaCall::check(gather_codes_cuda(args, num_rows, rows_of_codebook, call.stream()), "straight_through");
  return output;
}

std::tuple<Tensor, Tensor, Tensor> codebook_lookup(const Tensor& features, const Tensor& codebook, bool return_distance,
                                                   bool return_codes, const std::optional<Tensor>& packed,
                                                   const std::optional<Tensor>& /*subspace*/,
                                                   const std::optional<Tensor>& /*warm_start*/, int64_t metric,
                                                   int64_t topk) {
  refuse_other_metrics(metric);
  if (topk != 1) throw std::invalid_argument("topk: the CUDA kernels serve 1 alone");
  const CudaCall call(features);
  std::vector<int64_t> shape = shape_of(features);
  shape.pop_back();
  const Tensor index = call.empty(shape, ScalarType::Long);
  const Tensor distance = call.empty(return_distance ? shape : std::vector<int64_t>{0}, ScalarType::Float);
  const Codebooks books = as_codebooks(codebook);
  const Rows rows = as_rows(features);
  if (rows.num_rows > 0) {
    const Tensor blocks = packed_fits(packed, books) ? *packed : pack(call, books);
    CodebookLookupArgs args{};
    args.features = rows.data;
    args.features_type = element_of(features);
    args.row_stride = rows.stride;
    args.codebook = books.at(0);
    args.num_rows = rows.num_rows / books.num_codebooks;
    args.num_codes = books.num_codes;
    args.num_channels = books.num_channels;
    args.index = index.mutable_data_ptr<int64_t>();
    args.distance = return_distance ? distance.mutable_data_ptr<float>() : nullptr;
    const Tensor scratch = call.scratch(codebook_lookup_workspace_bytes_cuda(args, books.num_codebooks));
    CudaCall::check(codebook_lookup_cuda(args, books.num_codebooks, blocks.const_data_ptr(), scratch.mutable_data_ptr(),
                                         nullptr, call.stream()),
                    "codebook_lookup");
  }
  const Tensor chosen =
      return_codes ? gather(call, torch::stable::contiguous(codebook), index) : call.empty({0}, codebook.scalar_type());
  return {distance, index, chosen};
}

Tensor straight_through(const Tensor& features, const Tensor& codebook, const Tensor& index) {
  const CudaCall call(features);
  const bool same_type = codebook.scalar_type() == features.scalar_type();
  const Tensor codes = same_type ? codebook : torch::stable::to(codebook, features.scalar_type());
  return gather(call, torch::stable::contiguous(codes), index);
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CUDA, library) {
  library.impl("codebook_lookup_cuda", TORCH_BOX(&codebook_lookup));
  library.impl("pack_codebook_cuda", TORCH_BOX(&pack_codebook));
  library.impl("straight_through_cuda", TORCH_BOX(&straight_through));
}

}  // namespace
}  // namespace soho
