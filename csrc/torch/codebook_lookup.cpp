#include <algorithm>
#include <atomic>
#include <tuple>

#include "common/cpu_level.h"
#include "kernels/codebook_lookup/packed_codebook.h"
#include "torch/tensors.h"

namespace soho {
namespace {

constexpr int64_t kGatherRowsPerTask = 64;

void intra_op_threads(int64_t total, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, total, grain, body);
}

// Rows `index` of the contiguous `codes` (K, C) or (..., K, C), shaped (index's shape, C).
Tensor gather(const Tensor& codes, const Tensor& index) {
  std::vector<int64_t> shape = shape_of(index);
  shape.push_back(codes.size(codes.dim() - 1));
  const Tensor positions = torch::stable::contiguous(index);
  const Tensor output = empty_cpu(shape, codes.scalar_type(), codes);
  const int64_t num_rows = positions.numel(), num_codes = codes.size(codes.dim() - 2);
  const int64_t row_bytes = shape.back() * element_size(element_of(codes));
  const int64_t rows_per_batch = codes.dim() == 2 ? num_rows : index.size(index.dim() - 1);
  std::atomic<int64_t> bad_row{-1};
  for (int64_t b = 0; b * rows_per_batch < num_rows; ++b) {
    const GatherCodesArgs args{static_cast<const char*>(codes.const_data_ptr()) + b * num_codes * row_bytes,
                               positions.const_data_ptr<int64_t>() + b * rows_per_batch,
                               static_cast<char*>(output.mutable_data_ptr()) + b * rows_per_batch * row_bytes,
                               num_codes, row_bytes};
    torch::stable::parallel_for(0, rows_per_batch, kGatherRowsPerTask, [&](int64_t begin, int64_t end) {
      const int64_t bad = gather_codes(args, begin, end);
      if (bad >= 0) bad_row.store(b * rows_per_batch + bad);
    });
  }
  if (bad_row.load() >= 0) {
    throw std::invalid_argument("index: expected values below " + std::to_string(num_codes) + " (codes), got " +
                                std::to_string(positions.const_data_ptr<int64_t>()[bad_row.load()]));
  }
  return output;
}

std::tuple<Tensor, Tensor, Tensor> codebook_lookup_cpu(const Tensor& features, const Tensor& codebook,
                                                       bool return_distance, bool return_codes) {
  std::vector<int64_t> shape = shape_of(features);
  shape.pop_back();
  const Tensor index = empty_cpu(shape, ScalarType::Long, features);
  const Tensor distance = empty_cpu(return_distance ? shape : std::vector<int64_t>{0}, ScalarType::Float, features);
  const Tensor codes = as_float32(codebook);
  const int64_t num_codes = codes.size(codes.dim() - 2), num_channels = codes.size(codes.dim() - 1);
  if (num_codes >= int64_t{1} << 31) throw std::invalid_argument("codebook: expected fewer than 2^31 codes");

  const Rows rows = as_rows(features);
  const int64_t rows_per_batch = codebook.dim() == 2 ? rows.num_rows : features.size(features.dim() - 2);
  const std::vector<LookupPass> passes = codebook_lookup_passes(active_cpu_level());
  for (int64_t b = 0; b * rows_per_batch < rows.num_rows; ++b) {
    CodebookLookupArgs args{};
    args.features_type = element_of(features);
    args.features = row_at(rows.data, b * rows_per_batch, rows.stride, args.features_type);
    args.row_stride = rows.stride;
    args.codebook = codes.const_data_ptr<float>() + b * num_codes * num_channels;
    args.num_rows = rows_per_batch;
    args.num_codes = num_codes;
    args.num_channels = num_channels;
    args.index = index.mutable_data_ptr<int64_t>() + b * rows_per_batch;
    args.distance = return_distance ? distance.mutable_data_ptr<float>() + b * rows_per_batch : nullptr;

    codebook_lookup(passes, args, nullptr, intra_op_threads);
  }
  const Tensor chosen = return_codes ? gather(torch::stable::contiguous(codebook), index)
                                     : empty_cpu({0}, codebook.scalar_type(), codebook);
  return {distance, index, chosen};
}

Tensor straight_through_cpu(const Tensor& features, const Tensor& codebook, const Tensor& index) {
  const bool same_type = codebook.scalar_type() == features.scalar_type();
  return gather(torch::stable::contiguous(same_type ? codebook : torch::stable::to(codebook, features.scalar_type())),
                index);
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CPU, library) {
  library.impl("codebook_lookup_cpu", TORCH_BOX(&codebook_lookup_cpu));
  library.impl("straight_through_cpu", TORCH_BOX(&straight_through_cpu));
}

}  // namespace
}  // namespace soho
