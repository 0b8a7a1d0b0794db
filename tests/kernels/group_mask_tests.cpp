#include "check.h"
#include "kernels/group_mask/group_mask.h"

namespace {

using namespace soho;

void run(bool inplace, int64_t channel_stride, int num_parts) {
  constexpr int64_t kImages = 3, kTokens = 5, kChannels = 4;
  const int64_t token_stride = kChannels * channel_stride, image_stride = kTokens * token_stride;
  std::vector<float> features(kImages * image_stride, 1.0f), masked(kImages * image_stride, 7.0f);
  const std::vector<int64_t> index = {0, 1, 2, 1, 1, 4, 4, 4, 4, 4, -1, -1, 0, 0, 0}, target = {1, 4, -1};
  const bool valid[15] = {true, true, true, true, false, true, true, true, true, true, true, true, true, true, true};
  const std::vector<float> mask_token(kChannels, 9.0f);
  std::vector<int64_t> labels(index.size() + 2, -7);
  std::vector<float>& target_memory = inplace ? features : masked;
  const GroupMaskArgs args{inplace ? nullptr : features.data(),
                           {image_stride, token_stride, channel_stride},
                           target_memory.data(),
                           {image_stride, token_stride, channel_stride},
                           index.data(),
                           valid,
                           target.data(),
                           mask_token.data(),
                           labels.data() + 1,
                           kImages,
                           kTokens,
                           kChannels,
                           sizeof(float)};
  in_parts(kImages * kTokens, num_parts, [&](int64_t begin, int64_t end) { group_mask(args, begin, end); });
  CHECK(labels.front() == -7 && labels.back() == -7);
  for (int64_t p = 0; p < kImages * kTokens; ++p) {
    const int64_t wanted = target[p / kTokens];
    const bool hit = wanted >= 0 && index[p] == wanted && valid[p];
    CHECK(labels[p + 1] == (hit ? wanted : kIgnoredLabel));
    for (int64_t c = 0; c < kChannels; ++c)
      CHECK(target_memory[p * token_stride + c * channel_stride] == (hit ? 9.0f : 1.0f));
    if (channel_stride == 2 && !inplace) CHECK(target_memory[p * token_stride + 1] == 7.0f);
  }
}

}  // namespace

void test_group_mask() {
  for (int num_parts : {1, 2, 4}) {
    for (int64_t channel_stride : {1, 2}) {
      run(false, channel_stride, num_parts);
      run(true, channel_stride, num_parts);
    }
  }
  const std::vector<int64_t> index = {5, 3, 5, -1, 8, 8, 8, 8};
  const double uniform[2] = {0.5, 0.999};
  int64_t target[2] = {};
  const SampleGroupArgs args{index.data(), nullptr, uniform, target, 2, 4};
  sample_group(args, 0, 2);
  CHECK(target[0] == 5 && target[1] == 8);
}
