#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "common/memory.h"
#include "kernels/residual_lookup/residual_lookup.h"

namespace {

using namespace soho;

struct Problem {
  std::vector<float> features, codebooks;
  int64_t num_rows, num_levels, num_codes, num_channels;
  bool shared;
};

struct Result {
  std::vector<int64_t> index;
  std::vector<float> quantized, residual;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), sizeof(float) * a.size()) == 0);
}

// Level by level over all rows, by the scalar lookup.
Result loop(const Problem& problem) {
  const auto [features, codebooks, num_rows, num_levels, num_codes, num_channels, shared] = problem;
  Result result{std::vector<int64_t>(num_rows * num_levels), std::vector<float>(features.size(), 0.0f), features};
  std::vector<int64_t> index(num_rows);
  for (int64_t l = 0; l < num_levels; ++l) {
    CodebookLookupArgs args{};
    args.features = result.residual.data();
    args.row_stride = args.num_channels = num_channels;
    args.codebook = codebooks.data() + (shared ? 0 : l * num_codes * num_channels);
    args.num_rows = num_rows;
    args.num_codes = num_codes;
    args.index = index.data();
    codebook_lookup(CpuLevel::kScalar, args, nullptr, parts(1));
    for (int64_t i = 0; i < num_rows; ++i) {
      result.index[i * num_levels + l] = index[i];
      for (int64_t c = 0; c < num_channels; ++c) {
        const float code = args.codebook[index[i] * num_channels + c];
        result.residual[i * num_channels + c] -= code;
        result.quantized[i * num_channels + c] += code;
      }
    }
  }
  return result;
}

void compare(const Problem& problem) {
  const auto [features, codebooks, num_rows, num_levels, num_codes, num_channels, shared] = problem;
  const Result expected = loop(problem);
  for (CpuLevel level : available_cpu_levels()) {
    const int64_t num_directions = num_channels >= 8 ? 4 : 0;
    const std::vector<float> subspace = normal(num_channels * num_directions, 7);  // any will do
    const int64_t bytes = packed_codebook_bytes(level, num_codes, num_channels, num_directions);
    const int64_t num_codebooks = shared ? 1 : num_levels;
    const Scratch packed(bytes * num_codebooks);
    for (int64_t l = 0; l < num_codebooks; ++l) {
      pack_codebook(level, codebooks.data() + l * num_codes * num_channels, num_codes, num_channels, subspace.data(),
                    num_directions, static_cast<char*>(packed.data()) + l * bytes, parts(1));
    }
    for (int num_parts : {1, 3}) {
      for (const bool prepared : {false, true}) {
        for (const bool with_residual : {false, true}) {
          Result got{std::vector<int64_t>(num_rows * num_levels, -7), std::vector<float>(features.size(), -7.0f),
                     std::vector<float>(features.size(), -7.0f)};
          ResidualLookupArgs args{};
          args.features = features.data();
          args.row_stride = args.num_channels = num_channels;
          args.codebooks = codebooks.data();
          args.level_stride = shared ? 0 : num_codes * num_channels;
          args.num_rows = num_rows;
          args.num_levels = num_levels;
          args.num_codes = num_codes;
          args.index = got.index.data();
          args.quantized = got.quantized.data();
          args.residual = with_residual ? got.residual.data() : nullptr;
          residual_lookup(level, args, prepared ? packed.data() : nullptr, bytes, parts(num_parts));
          CHECK(got.index == expected.index);
          CHECK(same_bits(got.quantized, expected.quantized));
          CHECK(!with_residual || same_bits(got.residual, expected.residual));
        }
      }
    }
  }
}

}  // namespace

void test_residual_lookup() {
  for (const bool shared : {false, true}) {
    for (int64_t num_rows : {0, 1, 57, 500}) {
      for (int64_t num_levels : {1, 3}) {
        for (int64_t num_channels : {1, 8, 33}) {
          const int64_t num_codes = 41, num_codebooks = shared ? 1 : num_levels;
          compare({normal(num_rows * num_channels, 1), normal(num_codebooks * num_codes * num_channels, 2), num_rows,
                   num_levels, num_codes, num_channels, shared});
        }
      }
    }
  }
  // More rows than a block, and codes as near as each other, which the first pass leaves to all others.
  Problem problem{normal(900 * 700, 3), normal(2 * 20 * 700, 4), 900, 2, 20, 700, false};
  compare(problem);
  problem = {normal(300 * 12, 5), normal(2 * 600 * 12, 6), 300, 2, 600, 12, false};
  for (float& value : problem.codebooks) value = 1.0f + value * 0x1p-22f;
  compare(problem);
  for (float& value : problem.codebooks) value = std::copysign(1.0f, value - 1.0f);
  for (float& value : problem.features) value = std::round(value);
  compare(problem);
  problem.features[40] = std::numeric_limits<float>::infinity();
  problem.codebooks[700] = std::numeric_limits<float>::infinity();
  compare(problem);
}
