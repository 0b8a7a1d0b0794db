// The CUDA lookup on the model of the machine, against the scalar level: the
// kernels' own source, every buffer of its exact size.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../kernels/check.h"
#include "common/cpu_level.h"
#include "cuda_model_tests.h"
#include "kernels/codebook_lookup/cuda.cu"

namespace {

using namespace soho;

constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Counters of one lookup on the model.
struct Took {
  unsigned long long compared, all_codes;
};

struct Problem {
  std::vector<float> features, codebook;
  int64_t num_rows, num_codes, num_channels, num_books = 1;  // of each codebook
};

Problem random_problem(int64_t rows, int64_t codes, int64_t channels, unsigned seed = 1) {
  return {normal(rows * channels, seed), normal(codes * channels, seed + 100), rows, codes, channels};
}

// Memory from new, aligned as torch's allocator aligns it, so that the address
// sanitizer guards its ends.
struct Block {
  explicit Block(size_t bytes) : data(::operator new(bytes, std::align_val_t{256})) { std::memset(data, 0x5a, bytes); }
  ~Block() { ::operator delete(data, std::align_val_t{256}); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data;
};

Took look_up(const CodebookLookupArgs& args, int64_t num_books = 1, bool packs_twice = false) {
  const Block packed(num_books * packed_codebook_bytes_cuda(args.num_codes, args.num_channels));
  const Block packing(pack_codebook_workspace_bytes_cuda(num_books, args.num_codes, args.num_channels));
  const Block workspace(codebook_lookup_workspace_bytes_cuda(args, num_books));
  for (int n = 0; n < (packs_twice ? 2 : 1); ++n) {
    CHECK(pack_codebook_cuda(args.codebook, num_books, args.num_codes, args.num_channels, packed.data, packing.data,
                             nullptr) == 0);
  }
  unsigned long long counts[2] = {};
  CHECK(codebook_lookup_cuda(args, num_books, packed.data, workspace.data, counts, nullptr) == 0);
  return {counts[0], counts[1]};
}

std::vector<char> encoded(const std::vector<float>& values, Element type) {
  std::vector<char> bytes(values.size() * element_size(type));
  for (size_t n = 0; n < values.size(); ++n) {
    const uint16_t half = type == Element::kBFloat16 ? round_bfloat16(values[n]) : round_float16(values[n]);
    if (type == Element::kFloat32)
      std::memcpy(bytes.data() + 4 * n, &values[n], 4);
    else
      std::memcpy(bytes.data() + 2 * n, &half, 2);
  }
  return bytes;
}

void scalar_lookup(const CodebookLookupArgs& args) {
  codebook_lookup(CpuLevel::kScalar, args, nullptr, [](int64_t total, int64_t, const auto& body) { body(0, total); });
}

// The index and the distance of each row are those of the scalar level.
Took compare(const Problem& problem, Element type = Element::kFloat32, int64_t row_stride = -1) {
  const int64_t stride = row_stride < 0 ? problem.num_channels : row_stride;
  const std::vector<char> rows = encoded(problem.features, type);
  const int64_t all_rows = problem.num_books * problem.num_rows;
  std::vector<int64_t> index(all_rows), expected(all_rows);
  std::vector<float> distance(all_rows), exact(all_rows);
  CodebookLookupArgs args{};
  args.features_type = type;
  args.row_stride = stride;
  args.num_rows = problem.num_rows;
  args.num_codes = problem.num_codes;
  args.num_channels = problem.num_channels;
  for (int64_t book = 0; book < problem.num_books; ++book) {
    const int64_t first = book * problem.num_rows;
    args.features = rows.data() + first * stride * element_size(type);
    args.codebook = problem.codebook.data() + book * problem.num_codes * problem.num_channels;
    args.index = expected.data() + first;
    args.distance = exact.data() + first;
    scalar_lookup(args);
  }
  args.features = rows.data();
  args.codebook = problem.codebook.data();
  args.index = index.data();
  args.distance = nullptr;
  const Took took = look_up(args, problem.num_books);
  CHECK(index == expected);
  std::fill(index.begin(), index.end(), -7);
  args.distance = distance.data();
  look_up(args, problem.num_books, true);
  CHECK(index == expected);
  for (int64_t i = 0; i < all_rows; ++i)
    CHECK(distance[i] == exact[i] || (std::isnan(distance[i]) && std::isnan(exact[i])));
  return took;
}

void test_sizes() {
  // Each two of these sizes meet.
  const int64_t rows[] = {0, 1, 7, 128, 129}, codes[] = {1, 2, 127, 130}, channels[] = {1, 9, 33};
  for (int r = 0; r < 5; ++r) {
    for (int k = 0; k < 4; ++k) compare(random_problem(rows[r], codes[k], channels[(r + k) % 3]));
  }
  compare(random_problem(3, 4, 0));
  compare(random_problem(40, 700, 70));
}

void test_types_and_layouts() {
  for (Element type : {Element::kFloat32, Element::kBFloat16, Element::kFloat16}) {
    compare(random_problem(70, 90, 20), type);  // four elements at a time
    compare(random_problem(70, 90, 19), type);
    Problem strided = random_problem(60, 90, 24);
    strided.num_rows = 20;
    strided.features.resize(19 * 72 + 24);
    compare(strided, type, 72);
    strided.features.resize(24);
    compare(strided, type, 0);  // one row, expanded
  }
}

// Random numbers are certified in low precision: few rows need float64, and
// none all codes.
void test_screening_decides() {
  const Took took = compare(random_problem(256, 300, 64));
  CHECK(took.compared < 64 && took.all_codes == 0);
}

void test_copies() {
  Problem problem = random_problem(50, 12, 20);
  std::vector<float> codes(300 * 20, 0.0f);
  for (int n = 0; n < 41; ++n) codes.insert(codes.end(), problem.codebook.begin(), problem.codebook.end());
  codes.resize(codes.size() + 200 * 20, -0.0f);
  problem.num_codes = static_cast<int64_t>(codes.size()) / 20;
  problem.codebook = codes;
  CHECK(compare(problem).all_codes == 0);
  compare({normal(5 * 8, 3), std::vector<float>(300 * 8, 0.0f), 5, 300, 8});
}

void test_near_ties() {
  Problem problem = random_problem(60, 4, 24);
  std::vector<float> codes;
  for (int n = 0; n < 20; ++n) codes.insert(codes.end(), problem.codebook.begin(), problem.codebook.end());
  for (int j = 0; j < 80; ++j) codes[j * 24 + j / 4] = std::nextafter(codes[j * 24 + j / 4], kInfinite);
  codes.insert(codes.end(), problem.codebook.begin(), problem.codebook.end());
  problem.features.insert(problem.features.end(), problem.codebook.begin(), problem.codebook.end());
  problem.codebook = codes;
  problem.num_rows = 64;
  problem.num_codes = 84;
  CHECK(compare(problem).all_codes > 0);  // more candidates than a list holds

  Problem cluster{normal(20 * 16, 5), normal(300 * 16, 6, 0x1p-22f, 1.0f), 20, 300, 16};
  compare(cluster);

  Problem nearer{std::vector<float>(9 * 10, 0.0f), {}, 9, 400, 10};
  for (int j = 0; j < 400; ++j) nearer.codebook.insert(nearer.codebook.end(), 10, 5.0f - 0.01f * j);
  compare(nearer);

  Problem ties = random_problem(200, 60, 4);
  for (auto* values : {&ties.features, &ties.codebook}) {
    for (float& value : *values) value = std::round(value);
  }
  compare(ties);

  Problem line{std::vector<float>(30, 0.5f), {}, 30, 40, 1};
  for (int j = 0; j < 40; ++j) line.codebook.push_back(static_cast<float>(j));
  compare(line);
}

// Of rows whose candidates do not fit a list, float32 leaves a quarter of the codes or less to float64.
void test_float32_compares_first() {
  Problem problem{normal(24 * 20, 21, 0x1p-6f, 1.0f), normal(900 * 20, 22, 0x1p-14f, 1.0f), 24, 900, 20};
  problem.codebook[0] = -50.0f;  // makes float16 too coarse for the others
  soho_model::float64_products = 0;
  CHECK(compare(problem).all_codes == 24);
  CHECK(soho_model::float64_products <= 2 * (24 * 900 * 20 / 4));  // of two lookups

  // The same squares in many orders: their distances differ by less than float32 rounds, whose order is another.
  Problem alike{normal(24 * 20, 23, 0x1p-24f), {}, 24, 900, 20};
  std::vector<float> values = normal(20, 24);
  std::mt19937 engine(25);
  for (int j = 0; j < 900; ++j) {
    std::shuffle(values.begin(), values.end(), engine);
    alike.codebook.insert(alike.codebook.end(), values.begin(), values.end());
  }
  alike.codebook[0] = -50.0f;
  CHECK(compare(alike).all_codes == 24);
}

// Two blocks of each kernel fit a multiprocessor: of sm_80, of sm_86 and sm_89.
void test_shared_memory() {
  for (const int bytes : {164 * 1024, 100 * 1024}) {
    soho_model::shared_bytes_of_multiprocessor = bytes;
    soho_model::largest_shared_bytes = 0;
    for (const int64_t channels : {5, 40, 70, 100}) compare(random_problem(140, 300, channels));  // 1 to 4 steps a tile
    CHECK(2 * (static_cast<int>(soho_model::largest_shared_bytes) + 1024) <= bytes);
  }
}

void test_magnitudes() {
  for (float offset : {1e2f, 1e4f, 1e7f})
    compare({normal(60 * 33, 7, 1.0f, offset), normal(100 * 33, 8, 1.0f, offset), 60, 100, 33});
  Problem orders = random_problem(60, 100, 12);
  for (int i = 0; i < 60 * 12; ++i) orders.features[i] *= std::pow(10.0f, -15.0f + (i / 12) * 30.0f / 59);
  for (int j = 0; j < 100 * 12; ++j) orders.codebook[j] *= std::pow(10.0f, 15.0f - (j / 12) * 30.0f / 99);
  compare(orders);
  Problem far = random_problem(40, 50, 12);
  for (int i = 0; i < 40 * 12; ++i) far.features[i] *= std::pow(10.0f, (i / 12) * 37.0f / 39);
  for (float& value : far.codebook) value *= 1e-6f;
  compare(far);
  for (float scale : {1e-42f, 1e-30f, 1e-20f, 1e20f, 1e25f})
    compare({normal(20 * 9, 9, scale), normal(30 * 9, 10, scale), 20, 30, 9});
  compare({normal(20 * 9, 9, 1e-42f), normal(30 * 9, 10, 1e-3f), 20, 30, 9});
  Problem largest = random_problem(20, 30, 9);
  for (auto* values : {&largest.features, &largest.codebook}) {
    for (float& value : *values) value = std::copysign(3.4e38f, value);
  }
  compare(largest);
  compare({std::vector<float>(9 * 8), std::vector<float>(20 * 8), 9, 20, 8});
  // Rows near the codes beside one far away, which has a scale of its own:
  // it costs its neighbours nothing.
  const Took alone = compare(random_problem(30, 200, 16));
  for (float one_far : {1e4f, 1e8f, 1e20f}) {
    Problem mixed = random_problem(30, 200, 16);
    mixed.features[5] = one_far;
    const Took beside = compare(mixed);
    CHECK(beside.compared <= alone.compared + 1 && beside.all_codes <= 1);
  }
  // Codes much smaller than the rows, as at the usual start of a VQ-VAE, stay
  // screened.
  CHECK(compare({normal(64 * 32, 11), normal(300 * 32, 12, 1e-5f), 64, 300, 32}).all_codes == 0);
}

void test_not_finite() {
  Problem problem = random_problem(40, 60, 17);
  problem.features[3 * 17 + 5] = kNan;
  problem.features[4 * 17] = kInfinite;
  problem.features[5 * 17 + 16] = -kInfinite;
  problem.features[6 * 17 + 1] = kInfinite;
  problem.features[6 * 17 + 2] = kNan;
  problem.codebook[3] = kNan;
  problem.codebook[7 * 17] = kInfinite;
  problem.codebook[9 * 17 + 9] = -kInfinite;
  compare(problem);
  compare({normal(5 * 9, 13), std::vector<float>(4 * 9, kNan), 5, 4, 9});
  compare({std::vector<float>(4 * 9, kNan), normal(5 * 9, 13), 4, 5, 9});
}

// A codebook for each part of the rows: some whole codebooks to a slab, the
// last slab with fewer, undecided rows in one of them only.
void test_batched() {
  for (int64_t books : {2, 5, 9}) {
    Problem problem = random_problem(books * 130, books * 70, 20, 40 + books);
    problem.num_books = books;
    problem.num_rows = 130;
    problem.num_codes = 70;
    for (int j = 71 * 20; j < 2 * 70 * 20; ++j) problem.codebook[j] = 1.0f + 0x1p-14f * problem.codebook[j];
    problem.codebook[70 * 20] = -50.0f;  // far from the others, which it makes hard to tell apart
    compare(problem, Element::kBFloat16);
    CHECK(compare(problem).all_codes >= 130);
  }
  Problem many = random_problem(60 * 3, 60 * 5, 6);
  many.num_books = 60;
  many.num_rows = 3;
  many.num_codes = 5;
  many.codebook[7 * 5 * 6] = kNan;
  many.features[9 * 3 * 6] = kInfinite;
  compare(many);
}

// More rows than a slab, and a last slab that is spread over ranges of codes.
void test_slabs() { compare(random_problem(3 * 2 * 8 * 128 + 5, 140, 3)); }

void test_gather() {
  for (int64_t channels : {3, 8}) {
    const std::vector<float> codes = normal(5 * channels, 14);
    const std::vector<int64_t> index = {4, -1, 0, 5};
    std::vector<float> output(4 * channels, 7.0f);
    const GatherCodesArgs args{codes.data(), index.data(), output.data(), 5, channels * 4};
    CHECK(gather_codes_cuda(args, 4, 4, nullptr) == 0);
    CHECK(output[0] == codes[4 * channels] && output[channels] == 0.0f);
    CHECK(output[2 * channels] == codes[0] && output[4 * channels - 1] == 0.0f);
    const GatherCodesArgs of_two{codes.data(), index.data() + 1, output.data(), 2, channels * 4};
    CHECK(gather_codes_cuda(of_two, 2, 1, nullptr) == 0);  // the second row is of the second codebook
    CHECK(output[0] == 0.0f && output[channels] == codes[2 * channels]);
  }
}

}  // namespace

void test_codebook_lookup_cuda() {
  soho_model::set_seed(1);
  test_sizes();
  test_screening_decides();
  test_copies();
  test_float32_compares_first();
  test_shared_memory();
  test_magnitudes();
  test_slabs();
  test_batched();
  test_gather();
  for (uint64_t seed : {2, 3}) {
    soho_model::set_seed(seed);
    soho_model::shared_bytes_of_multiprocessor = seed == 2 ? 164 * 1024 : 100 * 1024;
    test_types_and_layouts();
    test_near_ties();
    test_not_finite();
  }
}
