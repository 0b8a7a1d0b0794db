#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/group_mask/group_mask.h"

namespace soho {
namespace {

void copy_row(const char* source, int64_t source_stride, char* target, int64_t target_stride, int64_t num_channels,
              int64_t element_size) {
  if (source_stride == 1 && target_stride == 1) {
    std::memcpy(target, source, num_channels * element_size);
    return;
  }
  for (int64_t c = 0; c < num_channels; ++c) {
    std::memcpy(target + c * target_stride * element_size, source + c * source_stride * element_size, element_size);
  }
}

}  // namespace

void group_mask(const GroupMaskArgs& args, int64_t begin, int64_t end) {
  const char* mask_token = static_cast<const char*>(args.mask_token);
  const int64_t row_bytes = args.num_channels * args.element_size;
  const auto is_row_dense = [&](const int64_t* strides) { return strides[2] == 1 && strides[1] == args.num_channels; };
  const bool dense = is_row_dense(args.feature_strides) && is_row_dense(args.masked_strides);
  for (int64_t position = begin; position < end;) {
    const int64_t image = position / args.num_tokens, token = position % args.num_tokens;
    const int64_t image_end = std::min(end, (image + 1) * args.num_tokens);
    const int64_t target = args.target[image];
    const auto hit = [&](int64_t p) {
      return args.index[p] == target && target >= 0 && (args.valid == nullptr || args.valid[p]);
    };
    char* masked = static_cast<char*>(args.masked) +
                   (image * args.masked_strides[0] + token * args.masked_strides[1]) * args.element_size;
    if (hit(position)) {
      copy_row(mask_token, 1, masked, args.masked_strides[2], args.num_channels, args.element_size);
      args.labels[position++] = target;
      continue;
    }
    int64_t run = 0;  // tokens up to the next hit move together
    for (; position < image_end && !hit(position); ++position, ++run) args.labels[position] = kIgnoredLabel;
    if (args.features == nullptr) continue;
    const char* features = static_cast<const char*>(args.features) +
                           (image * args.feature_strides[0] + token * args.feature_strides[1]) * args.element_size;
    if (dense) {
      std::memcpy(masked, features, run * row_bytes);
      continue;
    }
    for (int64_t r = 0; r < run; ++r) {
      copy_row(features + r * args.feature_strides[1] * args.element_size, args.feature_strides[2],
               masked + r * args.masked_strides[1] * args.element_size, args.masked_strides[2], args.num_channels,
               args.element_size);
    }
  }
}

void sample_group(const SampleGroupArgs& args, int64_t begin, int64_t end) {
  std::vector<int64_t> labels;
  labels.reserve(args.num_tokens);
  for (int64_t image = begin; image < end; ++image) {
    labels.clear();
    for (int64_t p = image * args.num_tokens; p < (image + 1) * args.num_tokens; ++p) {
      if (args.index[p] >= 0 && (args.valid == nullptr || args.valid[p])) labels.push_back(args.index[p]);
    }
    std::sort(labels.begin(), labels.end());
    const int64_t num_labels = std::unique(labels.begin(), labels.end()) - labels.begin();
    if (num_labels == 0) {
      args.target[image] = -1;
      continue;
    }
    const auto rank = static_cast<int64_t>(std::floor(args.uniform[image] * static_cast<double>(num_labels)));
    args.target[image] = labels[std::clamp<int64_t>(rank, 0, num_labels - 1)];
  }
}

}  // namespace soho
