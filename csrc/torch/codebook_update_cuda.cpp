#include "kernels/codebook_update/codebook_update_cuda.h"

#include <tuple>

#include "torch/cuda_call.h"

namespace soho {
namespace {

void run(const CudaCall& call, CodebookUpdateArgs args, const Tensor& features, const Tensor& index,
         const std::optional<Tensor>& valid, const char* op) {
  const Rows rows = as_rows(features);
  const Tensor positions = torch::stable::contiguous(index);
  const std::optional<Tensor> kept = as_contiguous(valid);
  args.features = rows.data;
  args.features_type = element_of(features);
  args.row_stride = rows.stride;
  args.index = positions.const_data_ptr<int64_t>();
  args.valid = bool_data(kept);
  args.num_rows = rows.num_rows;
  args.num_channels = rows.num_channels;
  const Tensor scratch = call.scratch(update_codebook_workspace_bytes_cuda(args));
  CudaCall::check(update_codebook_cuda(args, scratch.mutable_data_ptr(), call.stream()), op);
}

std::tuple<Tensor, Tensor> codebook_stats(const Tensor& features, const Tensor& index, int64_t num_codes,
                                          const std::optional<Tensor>& valid, bool wide) {
  const CudaCall call(features);
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  const Tensor counts = call.empty({num_codes}, type);
  const Tensor sums = call.empty({num_codes, features.size(features.dim() - 1)}, type);
  CodebookUpdateArgs args{};
  args.num_codes = num_codes;
  args.wide = wide;
  args.counts = counts.mutable_data_ptr();
  args.sums = sums.mutable_data_ptr();
  run(call, args, features, index, valid, "codebook_stats");
  return {counts, sums};
}

void write_back(const Tensor& codebook, const Tensor& moved) {
  if (codebook.is_contiguous()) return;
  Tensor target = codebook;
  torch::stable::copy_(target, moved);
}

void move_by_stats(const Tensor& codebook, const Tensor& counts, const Tensor& sums, double decay) {
  const CudaCall call(codebook);
  Tensor moved = torch::stable::contiguous(codebook);
  const Tensor dense_counts = torch::stable::contiguous(counts), dense_sums = torch::stable::contiguous(sums);
  const CodebookEmaArgs args{moved.mutable_data_ptr<float>(),
                             dense_counts.const_data_ptr<float>(),
                             dense_sums.const_data_ptr<float>(),
                             codebook.size(1),
                             codebook.size(1),
                             decay};
  CudaCall::check(codebook_ema_cuda(args, codebook.size(0), call.stream()), "codebook_ema_");
  write_back(codebook, moved);
}

void scatter_mean_ema(const Tensor& codebook, const Tensor& features, const Tensor& index, double decay,
                      const std::optional<Tensor>& valid) {
  const CudaCall call(codebook);
  Tensor moved = torch::stable::contiguous(codebook);
  CodebookUpdateArgs args{};
  args.num_codes = codebook.size(0);
  args.moves_codebook = true;
  args.codebook = moved.mutable_data_ptr<float>();
  args.decay = decay;
  run(call, args, features, index, valid, "scatter_mean_ema_");
  write_back(codebook, moved);
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CUDA, library) {
  library.impl("codebook_stats_cuda", TORCH_BOX(&codebook_stats));
  library.impl("codebook_ema__cuda", TORCH_BOX(&move_by_stats));
  library.impl("scatter_mean_ema__cuda", TORCH_BOX(&scatter_mean_ema));
}

}  // namespace
}  // namespace soho
