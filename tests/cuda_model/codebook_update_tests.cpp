// codebook_stats, codebook_ema_ and their fusion on the model, bit by bit against the scalar level.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "../kernels/check.h"
#include "common/cpu_level.h"
#include "cuda_model_tests.h"
#include "kernels/codebook_update/cuda.cu"

namespace {

using namespace soho;

// Exactly as large as asked for, so that the address sanitizer sees the first byte behind it.
struct Memory {
  explicit Memory(size_t bytes) : bytes(bytes), data(new (std::align_val_t{64}) char[bytes]) {
    std::memset(data.get(), 0x5a, bytes);
  }
  struct Free {
    void operator()(char* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data.get());
  }
  bool operator==(const Memory& other) const {
    return bytes == other.bytes && std::memcmp(data.get(), other.data.get(), bytes) == 0;
  }
  size_t bytes;
  std::unique_ptr<char, Free> data;
};

struct Case {
  int64_t num_rows, num_codes, num_channels;
  Element type = Element::kFloat32;
  int64_t row_stride = -1;  // -1: dense
  int64_t skipped = 0;      // elements before the first row
  bool masked = false;
  int popular = 0;                    // one row in `popular` does not belong to code 0
  bool beyond = false;                // some indices are too large
  std::vector<int64_t> members = {};  // how many rows each of the first codes has, scattered; the others have none
};

struct Problem {
  Problem(const Case& c, uint32_t seed)
      : stride(c.row_stride < 0 ? c.num_channels : c.row_stride),
        engine(seed),
        features((c.skipped + (c.num_rows > 0 ? (c.num_rows - 1) * stride + c.num_channels : 0)) *
                 element_size(c.type)),
        index(sizeof(int64_t) * c.num_rows),
        valid(c.num_rows) {
    const int64_t num_elements = static_cast<int64_t>(features.bytes) / element_size(c.type);
    for (int64_t e = 0; e < num_elements; ++e) {
      const float value = std::normal_distribution<float>()(engine) * (engine() % 5 == 0 ? 1e4f : 1.0f);
      if (c.type == Element::kFloat32)
        features.as<float>()[e] = value;
      else
        features.as<uint16_t>()[e] = c.type == Element::kBFloat16 ? round_bfloat16(value) : round_float16(value);
    }
    for (int64_t i = 0; i < c.num_rows; ++i) {
      const bool is_popular = c.popular > 0 && engine() % c.popular != 0;
      index.as<int64_t>()[i] = is_popular ? 0 : static_cast<int64_t>(engine() % (c.num_codes + 1)) - 1;
      valid.as<bool>()[i] = engine() % 5 != 0;
      if (c.beyond && engine() % 4 == 0)
        index.as<int64_t>()[i] = c.num_codes + static_cast<int64_t>(engine() % 3) * 1000000007;
    }
    if (!c.members.empty()) {
      int64_t *next = index.as<int64_t>(), *end = next + c.num_rows;
      for (size_t code = 0; code < c.members.size(); ++code)
        next = std::fill_n(next, c.members[code], static_cast<int64_t>(code));
      std::fill(next, end, -1);
      std::shuffle(index.as<int64_t>(), end, engine);
    }
    args.features = features.as<char>() + c.skipped * element_size(c.type);
    args.features_type = c.type;
    args.row_stride = stride;
    args.index = index.as<int64_t>();
    args.valid = c.masked ? valid.as<bool>() : nullptr;
    args.num_rows = c.num_rows;
    args.num_codes = c.num_codes;
    args.num_channels = c.num_channels;
    args.decay = 0.9;
  }

  int64_t stride;
  std::mt19937 engine;
  Memory features, index, valid;
  CodebookUpdateArgs args{};
};

void update_on_cpu(const CodebookUpdateArgs& args) {
  const ParallelFor in_one_part = [](int64_t total, int64_t, const auto& body) { body(0, total); };
  CHECK(update_codebook(CpuLevel::kScalar, args, 1, in_one_part) == -1);
}

void run(const Case& c, uint64_t seed) {
  Problem problem(c, static_cast<uint32_t>(seed) + 1);
  Memory within(problem.index.bytes);  // what the CPU may be given: it refuses what a GPU does not count
  for (int64_t i = 0; i < c.num_rows; ++i) {
    const int64_t code = problem.args.index[i];
    within.as<int64_t>()[i] = code < c.num_codes ? code : -1;
  }
  const size_t sum_bytes = sizeof(float) * c.num_codes * c.num_channels, count_bytes = sizeof(float) * c.num_codes;
  const Memory workspace(update_codebook_workspace_bytes_cuda(problem.args));
  soho_model::set_seed(seed);
  CodebookUpdateArgs gpu = problem.args, cpu = problem.args;
  cpu.index = within.as<int64_t>();
  const Memory counts(count_bytes), sums(sum_bytes), counts_cpu(count_bytes), sums_cpu(sum_bytes);
  gpu.counts = counts.as<float>();
  gpu.sums = sums.as<float>();
  cpu.counts = counts_cpu.as<float>();
  cpu.sums = sums_cpu.as<float>();
  CHECK(update_codebook_cuda(gpu, workspace.as<void>(), nullptr) == 0);
  update_on_cpu(cpu);
  CHECK(counts == counts_cpu && sums == sums_cpu);
  const Memory wide_counts(2 * count_bytes), wide_sums(2 * sum_bytes), wide_counts_cpu(2 * count_bytes);
  const Memory wide_sums_cpu(2 * sum_bytes);
  gpu.wide = cpu.wide = true;
  gpu.counts = wide_counts.as<double>();
  gpu.sums = wide_sums.as<double>();
  cpu.counts = wide_counts_cpu.as<double>();
  cpu.sums = wide_sums_cpu.as<double>();
  CHECK(update_codebook_cuda(gpu, workspace.as<void>(), nullptr) == 0);
  update_on_cpu(cpu);
  CHECK(wide_counts == wide_counts_cpu && wide_sums == wide_sums_cpu);
  gpu.wide = cpu.wide = false;

  const Memory fused(sum_bytes), stepwise(sum_bytes), fused_cpu(sum_bytes);
  for (int64_t e = 0; e < c.num_codes * c.num_channels; ++e)
    fused.as<float>()[e] = stepwise.as<float>()[e] = fused_cpu.as<float>()[e] =
        std::normal_distribution<float>()(problem.engine);
  gpu.moves_codebook = cpu.moves_codebook = true;
  gpu.counts = cpu.counts = gpu.sums = cpu.sums = nullptr;
  gpu.codebook = fused.as<float>();
  cpu.codebook = fused_cpu.as<float>();
  CHECK(update_codebook_cuda(gpu, workspace.as<void>(), nullptr) == 0);
  update_on_cpu(cpu);
  CHECK(fused == fused_cpu);
  const CodebookEmaArgs ema{stepwise.as<float>(), counts.as<float>(), sums.as<float>(),
                            c.num_channels,       c.num_channels,     0.9};
  CHECK(codebook_ema_cuda(ema, c.num_codes, nullptr) == 0);
  CHECK(stepwise == fused);
}

// Codes without members keep every bit; rows of the codebook may lie apart.
void test_ema_keeps_bits() {
  for (const int64_t stride : {5, 8, 9}) {
    const int64_t num_channels = stride == 9 ? 8 : stride;
    std::vector<float> codebook(3 * stride, std::numeric_limits<float>::quiet_NaN()), sums(3 * num_channels, 6.0f);
    codebook[1] = -0.0f;
    for (int64_t e = 2 * stride; e < 2 * stride + num_channels; ++e) codebook[e] = 1.0f;
    const std::vector<float> before = codebook, counts{0.0f, -1.0f, 2.0f};
    const CodebookEmaArgs args{codebook.data(), counts.data(), sums.data(), stride, num_channels, 0.5};
    CHECK(codebook_ema_cuda(args, 3, nullptr) == 0);
    CHECK(std::memcmp(codebook.data(), before.data(), sizeof(float) * 2 * stride) == 0);
    for (int64_t e = 0; e < stride; ++e)
      CHECK(e < num_channels ? codebook[2 * stride + e] == 2.0f : std::isnan(codebook[2 * stride + e]));
  }
}

// NaN at rows that are not counted reaches no sum.
void test_padding_is_not_read() {
  Problem problem({4, 2, 4}, 1);
  const int64_t index[4] = {0, 0, -1, 1};
  const bool valid[4] = {true, false, true, true};
  for (int e = 0; e < 16; ++e)
    problem.features.as<float>()[e] = e / 4 == 1 || e / 4 == 2 ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
  std::vector<float> counts(2), sums(8);
  problem.args.index = index;
  problem.args.valid = valid;
  problem.args.counts = counts.data();
  problem.args.sums = sums.data();
  const Memory workspace(update_codebook_workspace_bytes_cuda(problem.args));
  CHECK(update_codebook_cuda(problem.args, workspace.as<void>(), nullptr) == 0);
  CHECK(counts == std::vector<float>(2, 1.0f) && sums == std::vector<float>(8, 1.0f));
}

}  // namespace

void test_codebook_update_cuda() {
  const std::vector<Case> sizes = {{0, 3, 4},     {4, 3, 0},     {1, 1, 1},     {5, 3, 7},    {64, 9, 8},    {65, 9, 9},
                                   {500, 17, 63}, {500, 17, 64}, {300, 1, 132}, {40, 200, 3}, {257, 33, 136}};
  for (uint64_t seed = 0; seed < 3; ++seed) {
    for (Case c : sizes) {
      for (const Element type : {Element::kFloat32, Element::kBFloat16, Element::kFloat16}) {
        c.type = type;
        c.masked = seed == 1;
        c.beyond = seed == 2;
        run(c, seed);
      }
    }
  }
  for (const Element type : {Element::kFloat32, Element::kBFloat16}) {
    for (const int64_t stride : {0, 24, 27, 32}) {  // one row for all; too narrow for 16 bytes; apart
      Case c{100, 5, 24, type, stride};
      if (stride != 27) run(c, 7);
      c.row_stride = stride == 0 ? 0 : std::max<int64_t>(stride, 24);
      c.skipped = 1;  // not aligned to 16 bytes
      run(c, 8);
    }
  }
  Case crowded{5000, 6, 20};
  crowded.popular = 7;
  run(crowded, 9);
  run({10000, 3, 1}, 10);   // more tiles than warps of a scan
  run({300, 8200, 2}, 11);  // counters too many for shared memory
  // Popular codes, from 512 members on, beside others.
  const std::vector<int64_t> counts = {3, 511, 512, 513, 0, 1100, 1};
  for (const int64_t num_channels : {40, 33}) {  // more than a slice; not in pieces of 16 bytes
    for (const Element type : {Element::kFloat32, Element::kBFloat16, Element::kFloat16})
      run({2700, 8, num_channels, type, -1, 0, false, 0, false, counts}, 12);
  }
  run({2700, 8, 8, Element::kFloat32, -1, 0, true, 0, false, counts}, 13);
  run({1024, 2, 1, Element::kFloat32, -1, 0, false, 0, true, {512, 512}}, 14);
  run({512, 1, 4, Element::kBFloat16, -1, 0, false, 0, false, {512}}, 15);
  test_ema_keeps_bits();
  test_padding_is_not_read();
}
