#include "kernels/codebook_lookup/packed_codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/float_environment.h"

namespace soho {
namespace {

constexpr int64_t kMaxChannels = int64_t{1} << 18;  // of the error bound in codebook_lookup.h
constexpr int kMaxExponent = 120;                   // the scale and its products stay normal float32 numbers

// Hash of a code by value (-0 equals +0), and whether all its channels are finite.
uint64_t hash_code(const float* code, int64_t num_channels, bool& finite) {
  uint64_t hash[4] = {1, 2, 3, 4};  // independent chains hide the latency of the multiplications
  uint32_t not_finite = 0;
  int64_t c = 0;
  const auto word_at = [&](int64_t position) {
    uint32_t bits;
    std::memcpy(&bits, code + position, sizeof(bits));
    not_finite |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
    return bits == 0x80000000u ? 0u : bits;
  };
  for (; c + 4 <= num_channels; c += 4) {
    for (int lane = 0; lane < 4; ++lane) hash[lane] = (hash[lane] ^ word_at(c + lane)) * 0x9e3779b97f4a7c15ull;
  }
  for (; c < num_channels; ++c) hash[0] = (hash[0] ^ word_at(c)) * 0x9e3779b97f4a7c15ull;
  finite = not_finite == 0;
  uint64_t mixed = 0;
  for (uint64_t lane : hash) mixed = (mixed ^ (lane >> 29) ^ lane) * 0xbf58476d1ce4e5b9ull;
  return mixed ^ (mixed >> 32);
}

std::vector<int64_t> distinct_finite_codes(const float* codebook, int64_t num_codes, int64_t num_channels) {
  size_t capacity = 16;
  while (capacity < 2 * static_cast<size_t>(num_codes)) capacity *= 2;
  std::vector<int32_t> table(capacity, -1);  // position in `codes`, open addressing
  std::vector<int64_t> codes;
  std::vector<uint64_t> hashes;
  for (int64_t j = 0; j < num_codes; ++j) {
    const float* code = codebook + j * num_channels;
    bool finite;
    const uint64_t hash = hash_code(code, num_channels, finite);
    if (!finite) continue;
    size_t slot = hash & (capacity - 1);
    bool copy = false;
    for (; table[slot] >= 0 && !copy; slot = copy ? slot : (slot + 1) & (capacity - 1)) {
      const float* other = codebook + codes[table[slot]] * num_channels;
      copy = hashes[table[slot]] == hash && std::equal(code, code + num_channels, other);
    }
    if (copy) continue;
    table[slot] = static_cast<int32_t>(codes.size());
    codes.push_back(j);
    hashes.push_back(hash);
  }
  return codes;
}

}  // namespace

PackedCodebook::PackedCodebook(const float* codebook, int64_t num_codes, int64_t num_channels, int64_t width)
    : codebook_(codebook), num_channels_(num_channels), width_(width) {
  DefaultFloatEnvironment environment;
  codes_ = distinct_finite_codes(codebook, num_codes, num_channels);
  if (width == 0 || codes_.size() < 2 || num_channels > kMaxChannels) return;

  std::vector<double> mean(num_channels, 0.0);
  for (int64_t j : codes_) {
    const float* code = codebook + j * num_channels;
    for (int64_t c = 0; c < num_channels; ++c) mean[c] += code[c];
  }
  centre_.resize(num_channels);
  for (int64_t c = 0; c < num_channels; ++c) {
    centre_[c] = static_cast<float>(mean[c] / static_cast<double>(codes_.size()));
    mean[c] = centre_[c];
  }
  double largest = 0.0, largest_square = 0.0;
  for (int64_t j : codes_) {
    const float* code = codebook + j * num_channels;
    double square = 0.0;
    for (int64_t c = 0; c < num_channels; ++c) {
      const double b = code[c] - mean[c];
      largest = std::max(largest, std::fabs(b));
      square += b * b;
    }
    largest_square = std::max(largest_square, square);
  }
  int exponent;
  std::frexp(largest, &exponent);
  if (largest == 0.0 || std::abs(exponent) > kMaxExponent) return;
  scale_ = static_cast<float>(std::ldexp(1.0, -exponent));
  largest_norm_ = std::sqrt(largest_square) * scale_ * (1 + 0x1p-20);
  num_groups_ = (static_cast<int64_t>(codes_.size()) + width - 1) / width;
  panel_ = std::make_unique<Scratch>(sizeof(float) * num_groups_ * num_channels * width);
  negated_half_ = std::make_unique<Scratch>(sizeof(float) * num_groups_ * width);
}

void PackedCodebook::pack(int64_t begin, int64_t end) {
  if (begin >= end) return;
  DefaultFloatEnvironment environment;
  float* negated_half = static_cast<float*>(negated_half_->data());
  for (int64_t group = begin; group < end; ++group) {
    float* target = static_cast<float*>(panel_->data()) + group * num_channels_ * width_;
    const int64_t filled = std::min(width_, static_cast<int64_t>(codes_.size()) - group * width_);
    for (int64_t k = 0; k < width_; ++k) {
      if (k >= filled) {
        for (int64_t c = 0; c < num_channels_; ++c) target[c * width_ + k] = 0.0f;
        negated_half[group * width_ + k] = -std::numeric_limits<float>::infinity();
        continue;
      }
      const float* code = codebook_ + codes_[group * width_ + k] * num_channels_;
      double square = 0.0;
      for (int64_t c = 0; c < num_channels_; ++c) {
        const double b = (static_cast<double>(code[c]) - centre_[c]) * scale_;
        square += b * b;
        target[c * width_ + k] = static_cast<float>(b);
      }
      negated_half[group * width_ + k] = static_cast<float>(-0.5 * square);
    }
  }
}

ScreenedCodes PackedCodebook::screened() const {
  ScreenedCodes view{};
  view.codes = codes_.data();
  view.num_distinct = static_cast<int64_t>(codes_.size());
  view.screenable = num_groups_ > 0;
  view.centre = centre_.data();
  view.scale = scale_;
  view.largest_norm = largest_norm_;
  view.num_groups = num_groups_;
  view.panel = panel_ ? static_cast<const float*>(panel_->data()) : nullptr;
  view.negated_half = negated_half_ ? static_cast<const float*>(negated_half_->data()) : nullptr;
  return view;
}

}  // namespace soho
