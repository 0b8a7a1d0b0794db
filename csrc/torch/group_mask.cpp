#include "kernels/group_mask/group_mask.h"

#include <algorithm>
#include <tuple>

#include "torch/tensors.h"

namespace soho {
namespace {

constexpr int64_t kBytesPerTask = 128 * 1024;
constexpr int64_t kTokensPerTask = 4096;  // in place little more than the index is read
constexpr int64_t kImagesPerTask = 16;

Tensor mask(const Tensor& features, const Tensor& masked, bool inplace, const Tensor& index, const Tensor& mask_token,
            const Tensor& target, const std::optional<Tensor>& valid) {
  const Tensor labels = empty_cpu(shape_of(index), ScalarType::Long);
  const Tensor positions = as_dense(index), token = as_dense(mask_token), targets = as_dense(target);
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
  const int64_t row_bytes = std::max<int64_t>(1, args.num_channels * args.element_size);
  const int64_t grain = inplace ? kTokensPerTask : std::max<int64_t>(1, kBytesPerTask / row_bytes);
  torch::stable::parallel_for(0, args.num_images * args.num_tokens, grain,
                              [&](int64_t begin, int64_t end) { group_mask(args, begin, end); });
  return labels;
}

std::tuple<Tensor, Tensor> group_mask_cpu(const Tensor& features, const Tensor& index, const Tensor& mask_token,
                                          const Tensor& target, const std::optional<Tensor>& valid) {
  const Tensor masked = empty_cpu(shape_of(features), features.scalar_type());
  return {masked, mask(features, masked, false, index, mask_token, target, valid)};
}

Tensor group_mask_inplace_cpu(const Tensor& features, const Tensor& index, const Tensor& mask_token,
                              const Tensor& target, const std::optional<Tensor>& valid) {
  return mask(features, features, true, index, mask_token, target, valid);
}

Tensor sample_group_cpu(const Tensor& index, const std::optional<Tensor>& valid, const Tensor& uniform) {
  const Tensor positions = as_dense(index), draws = as_dense(uniform);
  const std::optional<Tensor> kept = as_contiguous(valid);
  const Tensor target = empty_cpu({index.size(0)}, ScalarType::Long);
  const SampleGroupArgs args{positions.const_data_ptr<int64_t>(), bool_data(kept), draws.const_data_ptr<double>(),
                             target.mutable_data_ptr<int64_t>(),  index.size(0),   index.size(1)};
  torch::stable::parallel_for(0, args.num_images, kImagesPerTask,
                              [&](int64_t begin, int64_t end) { sample_group(args, begin, end); });
  return target;
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CPU, library) {
  library.impl("group_mask_cpu", TORCH_BOX(&group_mask_cpu));
  library.impl("group_mask__cpu", TORCH_BOX(&group_mask_inplace_cpu));
  library.impl("sample_group_cpu", TORCH_BOX(&sample_group_cpu));
}

}  // namespace
}  // namespace soho
