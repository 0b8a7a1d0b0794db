#include "kernels/group_mask/group_mask_cuda.h"

#include <tuple>

#include "torch/cuda_call.h"

namespace soho {
namespace {

Tensor mask(const CudaCall& call, const Tensor& features, const Tensor& masked, bool inplace, const Tensor& index,
            const Tensor& mask_token, const Tensor& target, const std::optional<Tensor>& valid) {
  const Tensor labels = call.empty(shape_of(index), ScalarType::Long);
  const Tensor positions = torch::stable::contiguous(index), token = torch::stable::contiguous(mask_token),
               targets = torch::stable::contiguous(target);
  const std::optional<Tensor> kept = as_contiguous(valid);
  GroupMaskArgs args{};
  args.features = inplace ? nullptr : features.const_data_ptr();
  args.masked = masked.mutable_data_ptr();
  for (int64_t d = 0; d < 3; ++d) {
    args.feature_strides[d] = features.stride(d);
    args.masked_strides[d] = masked.stride(d);
  }
  args.index = positions.const_data_ptr<int64_t>();
  args.valid = bool_data(kept);
  args.target = targets.const_data_ptr<int64_t>();
  args.mask_token = token.const_data_ptr();
  args.labels = labels.mutable_data_ptr<int64_t>();
  args.num_images = features.size(0);
  args.num_tokens = features.size(1);
  args.num_channels = features.size(2);
  args.element_size = element_size(element_of(features));
  CudaCall::check(group_mask_cuda(args, call.stream()), "group_mask");
  return labels;
}

std::tuple<Tensor, Tensor> mask_copy(const Tensor& features, const Tensor& index, const Tensor& mask_token,
                                     const Tensor& target, const std::optional<Tensor>& valid) {
  const CudaCall call(features);
  const Tensor masked = call.empty(shape_of(features), features.scalar_type());
  return {masked, mask(call, features, masked, false, index, mask_token, target, valid)};
}

Tensor mask_in_place(const Tensor& features, const Tensor& index, const Tensor& mask_token, const Tensor& target,
                     const std::optional<Tensor>& valid) {
  return mask(CudaCall(features), features, features, true, index, mask_token, target, valid);
}

Tensor sample(const Tensor& index, const std::optional<Tensor>& valid, const Tensor& uniform) {
  const CudaCall call(index);
  const Tensor positions = torch::stable::contiguous(index), draws = torch::stable::contiguous(uniform);
  const std::optional<Tensor> kept = as_contiguous(valid);
  const Tensor target = call.empty({index.size(0)}, ScalarType::Long);
  const SampleGroupArgs args{positions.const_data_ptr<int64_t>(), bool_data(kept), draws.const_data_ptr<double>(),
                             target.mutable_data_ptr<int64_t>(),  index.size(0),   index.size(1)};
  const Tensor scratch = call.scratch(sample_group_workspace_bytes_cuda(args));
  CudaCall::check(sample_group_cuda(args, scratch.mutable_data_ptr(), call.stream()), "sample_group");
  return target;
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CUDA, library) {
  library.impl("group_mask_cuda", TORCH_BOX(&mask_copy));
  library.impl("group_mask__cuda", TORCH_BOX(&mask_in_place));
  library.impl("sample_group_cuda", TORCH_BOX(&sample));
}

}  // namespace
}  // namespace soho
