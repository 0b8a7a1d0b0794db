// k-means with the kernels and nothing else: exact assignment, deterministic
// means, threads of one's own.
#include <soho_fast/kernels/codebook_lookup/codebook_lookup.h>
#include <soho_fast/kernels/codebook_update/codebook_update.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kRows = 4000, kCodes = 5, kChannels = 12;
constexpr int64_t kThreads = 2;

void on_threads(int64_t total, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t size = std::max(grain, (total + kThreads - 1) / kThreads);
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < total; begin += size)
    threads.emplace_back([&body, begin, end = std::min(total, begin + size)] { body(begin, end); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  std::mt19937 engine(0);
  std::normal_distribution<float> normal;
  std::vector<float> centres(kCodes * kChannels), features(kRows * kChannels);
  for (float& value : centres) value = 10.0f * normal(engine);
  for (int64_t i = 0; i < kRows * kChannels; ++i)
    features[i] = centres[i / kChannels % kCodes * kChannels + i % kChannels] + normal(engine);
  std::vector<float> codebook(features.begin(),
                              features.begin() + kCodes * kChannels);  // one row of each cluster

  const soho::CpuLevel level = soho::active_cpu_level();
  std::vector<int64_t> index(kRows);
  std::vector<float> distance(kRows);
  soho::CodebookLookupArgs lookup{};
  lookup.features = features.data();
  lookup.row_stride = lookup.num_channels = kChannels;
  lookup.codebook = codebook.data();
  lookup.num_rows = kRows;
  lookup.num_codes = kCodes;
  lookup.index = index.data();
  lookup.distance = distance.data();

  soho::CodebookUpdateArgs update{};
  update.features = features.data();
  update.row_stride = update.num_channels = kChannels;
  update.index = index.data();
  update.num_rows = kRows;
  update.num_codes = kCodes;
  update.moves_codebook = true;
  update.codebook = codebook.data();
  update.decay = 0.0;  // the code becomes the mean of its members

  for (int step = 0; step < 5; ++step) {
    soho::codebook_lookup(level, lookup, nullptr, on_threads);
    double sum = 0.0;
    for (float value : distance) sum += value;
    std::printf("step %d: mean squared distance %.4f\n", step, sum / kRows);
    soho::update_codebook(level, update, kThreads, on_threads);
  }
  double largest = 0.0;
  for (int64_t i = 0; i < kCodes * kChannels; ++i)
    largest = std::fmax(largest, std::fabs(static_cast<double>(codebook[i]) - centres[i]));
  std::printf("level %s: codes are within %.3f of the true centres\n", soho::cpu_level_name(level), largest);
}
