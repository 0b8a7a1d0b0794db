#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/group_mask/group_mask.h"

namespace soho {
namespace {

// What memcpy does for large blocks, the processor's string instruction or stores past the caches, is slower here.
void copy_bytes(const char* source, char* target, int64_t bytes) {
  int64_t done = 0;
#ifdef __SSE2__
  constexpr int kVectors = 4, kBytes = sizeof(__m128i);
  for (; done + kVectors * kBytes <= bytes; done += kVectors * kBytes) {
    __m128i values[kVectors];
    for (int v = 0; v < kVectors; ++v)
      values[v] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + done + v * kBytes));
    for (int v = 0; v < kVectors; ++v)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(target + done + v * kBytes), values[v]);
  }
#endif
  std::memcpy(target + done, source + done, bytes - done);
}

void copy_channels(const char* source, int64_t source_stride, char* target, int64_t target_stride, int64_t num_channels,
                   int64_t element_size) {
  if (source_stride == 1 && target_stride == 1) {
    copy_bytes(source, target, num_channels * element_size);
    return;
  }
  for (int64_t c = 0; c < num_channels; ++c) {
    std::memcpy(target + c * target_stride * element_size, source + c * source_stride * element_size, element_size);
  }
}

}  // namespace

void group_mask(const GroupMaskArgs& args, int64_t begin, int64_t end) {
  const char* mask_token = static_cast<const char*>(args.mask_token);
  const char* features = static_cast<const char*>(args.features);
  const auto is_dense = [&](const int64_t* strides) { return strides[2] == 1 && strides[1] == args.num_channels; };
  const int64_t longest_run = is_dense(args.feature_strides) && is_dense(args.masked_strides) ? args.num_tokens : 1;
  int64_t run;  // tokens of one image that are masked or copied together
  for (int64_t position = begin; position < end; position += run) {
    const int64_t image = position / args.num_tokens, token = position % args.num_tokens;
    const int64_t target = args.target[image], run_end = std::min(end, position - token + args.num_tokens);
    const auto is_hit = [&](int64_t p) {
      return args.index[p] == target && target >= 0 && (args.valid == nullptr || args.valid[p]);
    };
    const bool hit = is_hit(position);
    args.labels[position] = hit ? target : kIgnoredLabel;
    for (run = 1; !hit && run < longest_run && position + run < run_end && !is_hit(position + run); ++run)
      args.labels[position + run] = kIgnoredLabel;
    if (!hit && features == nullptr) continue;
    const int64_t feature = image * args.feature_strides[0] + token * args.feature_strides[1];
    const int64_t masked = image * args.masked_strides[0] + token * args.masked_strides[1];
    copy_channels(hit ? mask_token : features + feature * args.element_size, hit ? 1 : args.feature_strides[2],
                  static_cast<char*>(args.masked) + masked * args.element_size, args.masked_strides[2],
                  run * args.num_channels, args.element_size);
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
