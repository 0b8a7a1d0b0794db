#include "check.h"
#include "common/cpu_level.h"
#include "kernels/codebook_update/codebook_update.h"

namespace {

using namespace soho;

struct Problem {
  int64_t num_rows, num_codes, num_channels;
  std::vector<float> features;
  std::vector<int64_t> index;
};

Problem make(int64_t num_rows, int64_t num_codes, int64_t num_channels) {
  Problem problem{num_rows, num_codes, num_channels, normal(num_rows * num_channels, 1), {}};
  std::mt19937 engine(1);
  // Half of the rows share code 0, so that one code is cut between threads; the
  // last code has no member.
  for (int64_t i = 0; i < num_rows; ++i)
    problem.index.push_back(i % 2 ? 0 : static_cast<int64_t>(engine() % (num_codes - 1)));
  if (num_rows > 2) problem.index[2] = -1;
  return problem;
}

void run(const Problem& problem, CpuLevel level, int num_threads) {
  const auto& [num_rows, num_codes, num_channels, features, index] = problem;
  std::vector<float> counts(num_codes + 2, -7.0f), sums(num_codes * num_channels + 2, -7.0f);
  CodebookUpdateArgs args{};
  args.features = features.data();
  args.features_type = Element::kFloat32;
  args.row_stride = num_channels;
  args.index = index.data();
  args.num_rows = num_rows;
  args.num_codes = num_codes;
  args.num_channels = num_channels;
  args.counts = counts.data() + 1;
  args.sums = sums.data() + 1;
  CHECK(update_codebook(level, args, num_threads, parts(num_threads)) == -1);
  CHECK(counts.front() == -7.0f && counts.back() == -7.0f && sums.front() == -7.0f && sums.back() == -7.0f);

  std::vector<double> expected(num_codes * num_channels, 0.0);
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int64_t c = 0; c < num_channels && index[i] >= 0; ++c)
      expected[index[i] * num_channels + c] += features[i * num_channels + c];
  }
  CHECK(std::vector<float>(sums.begin() + 1, sums.end() - 1) == std::vector<float>(expected.begin(), expected.end()));

  std::vector<double> wide_counts(num_codes), wide_sums(num_codes * num_channels);
  CodebookUpdateArgs wide = args;
  wide.wide = true;
  wide.counts = wide_counts.data();
  wide.sums = wide_sums.data();
  CHECK(update_codebook(level, wide, num_threads, parts(num_threads)) == -1);
  CHECK(wide_sums == expected);
  CHECK(std::equal(wide_counts.begin(), wide_counts.end(), counts.begin() + 1));

  std::vector<float> fused(num_codes * num_channels, 2.0f), stepwise = fused;
  args.moves_codebook = true;
  args.codebook = fused.data();
  args.decay = 0.9;
  CHECK(update_codebook(level, args, num_threads, parts(num_threads)) == -1);
  const CodebookEmaArgs ema{stepwise.data(), counts.data() + 1, sums.data() + 1, num_channels, num_channels, 0.9};
  in_parts(num_codes, num_threads, [&](int64_t begin, int64_t end) { codebook_ema(level, ema, begin, end); });
  CHECK(fused == stepwise);
}

}  // namespace

void test_codebook_update() {
  for (CpuLevel level : available_cpu_levels()) {
    for (int num_threads : {1, 2, 7}) {
      for (int64_t num_channels : {0, 1, 8, 13, 64, 65, 200}) {
        for (int64_t num_rows : {0, 1, 3, 300}) run(make(num_rows, 11, num_channels), level, num_threads);
      }
    }
  }
  // Several blocks of rows, and several pieces of sums for one thread.
  run(make(40000, 3000, 17), CpuLevel::kScalar, 2);
  run(make(40000, 3000, 17), active_cpu_level(), 3);

  Problem problem = make(5, 3, 2);
  problem.index = {0, 1, 3, 0, 0};
  std::vector<float> counts(3, -7.0f), sums(6, -7.0f);
  CodebookUpdateArgs args{};
  args.features = problem.features.data();
  args.row_stride = args.num_channels = 2;
  args.index = problem.index.data();
  args.num_rows = 5;
  args.num_codes = 3;
  args.counts = counts.data();
  args.sums = sums.data();
  CHECK(update_codebook(CpuLevel::kScalar, args, 2, parts(2)) == 2);
  CHECK(counts[0] == -7.0f && sums[0] == -7.0f);
  const bool valid[5] = {true, true, false, true, true};
  args.valid = valid;
  CHECK(update_codebook(CpuLevel::kScalar, args, 2, parts(2)) == -1);
  CHECK(counts[0] == 3.0f && counts[1] == 1.0f && counts[2] == 0.0f);
}
