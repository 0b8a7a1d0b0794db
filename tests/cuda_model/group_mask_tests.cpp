// group_mask and sample_group on the model, against the CPU's.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <random>

#include "../kernels/check.h"
#include "cuda_model_tests.h"
#include "kernels/group_mask/cuda.cu"

namespace {

using namespace soho;

struct Layout {
  int64_t image_stride, token_stride, channel_stride, first;
  int64_t extent(int64_t images, int64_t tokens, int64_t channels) const {
    if (images * tokens * channels == 0) return first;
    return first + (images - 1) * image_stride + (tokens - 1) * token_stride + (channels - 1) * channel_stride + 1;
  }
};

template <class Word>
void run(int64_t images, int64_t tokens, int64_t channels, const Layout& from, const Layout& to, bool inplace,
         uint64_t seed) {
  std::mt19937 engine(static_cast<uint32_t>(seed));
  std::vector<Word> features(from.extent(images, tokens, channels)), masked(to.extent(images, tokens, channels), 7);
  for (Word& word : features) word = static_cast<Word>(engine());
  std::vector<Word> mask_token(channels, 9);
  std::vector<int64_t> index(images * tokens), target(images), labels(images * tokens, -7), labels_cpu(labels);
  for (int64_t& i : index) i = static_cast<int64_t>(engine() % 5) - 1;
  for (int64_t& t : target) t = static_cast<int64_t>(engine() % 5) - 1;
  const std::unique_ptr<bool[]> valid(new bool[images * tokens]);
  for (int64_t p = 0; p < images * tokens; ++p) valid[p] = engine() % 4 != 0;
  std::vector<Word> features_cpu = features, masked_cpu = masked;
  GroupMaskArgs args{};
  args.features = inplace ? nullptr : features.data() + from.first;
  args.masked = inplace ? features.data() + from.first : masked.data() + to.first;
  const Layout& written = inplace ? from : to;
  const int64_t source[3] = {from.image_stride, from.token_stride, from.channel_stride};
  const int64_t sink[3] = {written.image_stride, written.token_stride, written.channel_stride};
  std::copy(source, source + 3, args.feature_strides);
  std::copy(sink, sink + 3, args.masked_strides);
  args.index = index.data();
  args.valid = seed % 2 ? valid.get() : nullptr;
  args.target = target.data();
  args.mask_token = mask_token.data();
  args.labels = labels.data();
  args.num_images = images;
  args.num_tokens = tokens;
  args.num_channels = channels;
  args.element_size = sizeof(Word);
  soho_model::set_seed(seed);
  CHECK(group_mask_cuda(args, nullptr) == 0);
  args.features = inplace ? nullptr : features_cpu.data() + from.first;
  args.masked = inplace ? features_cpu.data() + from.first : masked_cpu.data() + to.first;
  args.labels = labels_cpu.data();
  group_mask(args, 0, images * tokens);
  CHECK(labels == labels_cpu && features == features_cpu && masked == masked_cpu);
}

template <class Word>
void run_layouts(int64_t images, int64_t tokens, int64_t channels, uint64_t seed) {
  const Layout dense{tokens * channels, channels, 1, 0}, permuted{channels, images * channels, 1, 0},
      apart{tokens * channels * 2, channels * 2, 2, 0}, shifted{tokens * channels, channels, 1, 1},
      expanded{0, channels, 1, 0};
  for (const bool inplace : {false, true}) {
    for (const Layout& layout : {dense, permuted, apart, shifted})
      run<Word>(images, tokens, channels, layout, dense, inplace, seed);
  }
  run<Word>(images, tokens, channels, expanded, dense, false, seed);
  run<Word>(images, tokens, channels, dense, shifted, false, seed);
}

void run_sample(int64_t images, int64_t tokens, int64_t num_labels, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<int64_t> index(images * tokens), target(images, -7), target_cpu(target);
  for (int64_t& label : index) label = static_cast<int64_t>(engine() % (num_labels + 1)) - 1;
  if (tokens > 1 && images > 1) {
    std::fill(index.begin() + tokens, index.begin() + 2 * tokens, -1);  // nothing to draw
    index[0] = 0x7ffffffffffffffe;
  }
  std::vector<double> uniform(images);
  for (double& u : uniform) u = static_cast<double>(engine() >> 11) * 0x1p-53;
  if (images > 2) uniform[2] = 1.0 - 0x1p-53, uniform[0] = 0.0;
  const std::unique_ptr<bool[]> valid(new bool[images * tokens]);
  for (int64_t p = 0; p < images * tokens; ++p) valid[p] = engine() % 4 != 0;
  SampleGroupArgs args{index.data(), seed % 2 ? valid.get() : nullptr, uniform.data(), target.data(), images, tokens};
  std::vector<int64_t> workspace(sample_group_workspace_bytes_cuda(args) / sizeof(int64_t));
  soho_model::set_seed(seed);
  CHECK(sample_group_cuda(args, workspace.empty() ? nullptr : workspace.data(), nullptr) == 0);
  args.target = target_cpu.data();
  sample_group(args, 0, images);
  CHECK(target == target_cpu);
}

// Each of three labels is drawn about as often, however often it is present.
void test_draws_are_uniform() {
  constexpr int64_t kImages = 300, kTokens = 6;
  std::vector<int64_t> index, target(kImages);
  std::vector<double> uniform;
  for (int64_t image = 0; image < kImages; ++image) {
    index.insert(index.end(), {4, 1, 4, 9, 4, 4});
    uniform.push_back((image + 0.5) / kImages);
  }
  const SampleGroupArgs args{index.data(), nullptr, uniform.data(), target.data(), kImages, kTokens};
  CHECK(sample_group_cuda(args, nullptr, nullptr) == 0);
  for (const int64_t label : {1, 4, 9}) CHECK(std::count(target.begin(), target.end(), label) == kImages / 3);
}

}  // namespace

void test_group_mask_cuda() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (const auto& [images, tokens, channels] : std::vector<std::array<int64_t, 3>>{{0, 5, 4},
                                                                                      {2, 0, 4},
                                                                                      {2, 3, 0},
                                                                                      {1, 1, 1},
                                                                                      {3, 5, 4},
                                                                                      {2, 33, 7},
                                                                                      {3, 7, 72},
                                                                                      {2, 40, 160},
                                                                                      {1, 9, 600}}) {
      run_layouts<uint32_t>(images, tokens, channels, seed);
      run_layouts<uint16_t>(images, tokens, channels, seed);
    }
    for (const auto& [images, tokens, num_labels] : std::vector<std::array<int64_t, 3>>{
             {0, 4, 3}, {3, 0, 3}, {3, 1, 1}, {5, 7, 3}, {4, 160, 40}, {3, 300, 2000}, {3, 600, 1}})
      run_sample(images, tokens, num_labels, seed);
  }
  run_sample(2, 4097, 500, 5);  // sorted in the workspace
  test_draws_are_uniform();
}
