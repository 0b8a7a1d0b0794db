#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "check.h"
#include "common/memory.h"
#include "kernels/codebook_lookup/packed_codebook.h"
#include "kernels/codebook_lookup/plan.h"
#include "kernels/codebook_lookup/pruning.h"

#ifdef SOHO_AMX_MODEL
namespace soho {
LookupCounts screen_amx_model(const CodebookLookupArgs&, const ScreenedCodes&, int64_t begin, int64_t end);
}
#endif

namespace {

using namespace soho;

constexpr Metric kMetrics[] = {Metric::kEuclidean, Metric::kCosine, Metric::kDot};

// Those of every level that runs here, and the AMX level on modelled tiles.
std::vector<std::vector<LookupPass>> every_list_of_passes(Metric metric) {
  std::vector<std::vector<LookupPass>> lists;
  for (CpuLevel level : available_cpu_levels()) lists.push_back(passes_of(level, metric));
#ifdef SOHO_AMX_MODEL
  if (cpu_level_available(CpuLevel::kAvx512Bf16)) {
    lists.push_back({{kFormatAmx, screen_amx_model}, {kNothingScreened, compare_all_avx512}});
    for (LookupPass& pass : lists.back()) pass.format.metric = metric;
  }
#endif
  return lists;
}

double sum_of_lanes(const std::vector<double>& terms) {
  double lanes[8] = {};
  for (size_t c = 0; c < terms.size(); ++c) lanes[c % 8] += terms[c];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

double cost(const float* row, const float* code, int64_t num_channels, Metric metric) {
  std::vector<double> terms(num_channels), squares(num_channels);
  for (int64_t c = 0; c < num_channels; ++c) {
    const double x = row[c], d = code[c];
    terms[c] = metric == Metric::kEuclidean ? (x - d) * (x - d) : -x * d;
    squares[c] = d * d;
  }
  const double norm = std::sqrt(sum_of_lanes(squares));
  return sum_of_lanes(terms) / (metric == Metric::kCosine && norm != 0.0 ? norm : 1.0);
}

// Of dense float32 rows.
CodebookLookupArgs arguments(const std::vector<float>& features, const std::vector<float>& codebook, int64_t num_rows,
                             int64_t num_codes, int64_t num_channels, int64_t* index,
                             Metric metric = Metric::kEuclidean) {
  CodebookLookupArgs args{};
  args.features = features.data();
  args.row_stride = args.num_channels = num_channels;
  args.codebook = codebook.data();
  args.num_rows = num_rows;
  args.num_codes = num_codes;
  args.index = index;
  args.metric = metric;
  return args;
}

int64_t nearest(const float* row, const std::vector<float>& codebook, int64_t num_codes, int64_t num_channels,
                Metric metric = Metric::kEuclidean) {
  int64_t best = 0;
  double smallest = std::numeric_limits<double>::infinity();
  for (int64_t j = 0; j < num_codes; ++j) {
    const double cost_of_code = cost(row, codebook.data() + j * num_channels, num_channels, metric);
    if (std::isfinite(cost_of_code) && cost_of_code < smallest) {
      smallest = cost_of_code;
      best = j;
    }
  }
  return best;
}

// What lets few rows share the codes of a pass.
const FewRows* few_of(Metric metric) {
  return few_rows_of(cpu_level_available(CpuLevel::kAvx512) ? CpuLevel::kAvx512 : CpuLevel::kAvx2, metric);
}

// What the pruning pass is given.
struct Hints {
  const PruningPass* pruning = nullptr;
  const FewRows* few = nullptr;
  int64_t num_directions = 0;
  std::vector<float> subspace;
  std::vector<int64_t> warm_start;
};

// Directions good and bad: channels themselves, any, all alike, none, too large or small by far, not finite.
std::vector<Hints> every_hint(int64_t num_rows, int64_t num_codes, int64_t num_channels) {
  std::vector<Hints> found;
  std::mt19937 engine(22);
  std::uniform_int_distribution<int64_t> code(-2, num_codes + 1);
  for (int64_t num_directions : {1, 16, 33, 128}) {
    for (int kind = 0; kind < 6; ++kind) {
      Hints hints;
      hints.num_directions = num_directions;
      hints.subspace = normal(num_channels * num_directions, 23);
      for (int64_t c = 0; c < num_channels; ++c) {
        for (int64_t k = 0; k < num_directions; ++k) {
          float& value = hints.subspace[c * num_directions + k];
          if (kind == 0) value = c == k ? 1.0f : 0.0f;
          if (kind == 2) value = 1.0f;
          if (kind == 3) value = k > 0 ? 1e-30f * value : 1e30f * value;
          if (kind == 4) value = 0.0f;
          if (kind == 5 && c == k && k == num_directions / 2) value = std::numeric_limits<float>::quiet_NaN();
        }
      }
      for (int64_t i = 0; i < num_rows && kind % 2 == 0; ++i) hints.warm_start.push_back(code(engine));
      found.push_back(hints);
    }
  }
  return found;
}

// Looks up in parts, between sentinels; exact-sized buffers let the sanitizer
// see every stray access.
std::vector<int64_t> lookup(const std::vector<LookupPass>& passes, const std::vector<float>& features,
                            const std::vector<float>& codebook, int64_t num_rows, int64_t num_codes,
                            int64_t num_channels, int num_parts, const void* packed, Metric metric,
                            const Hints& hints = {}) {
  std::vector<int64_t> index(num_rows + 2, -7);
  std::fill(index.begin() + 1, index.end() - 1, kUndecided);
  std::vector<float> distance(num_rows + 2, -7.0f);
  CodebookLookupArgs args = arguments(features, codebook, num_rows, num_codes, num_channels, index.data() + 1, metric);
  args.distance = distance.data() + 1;
  args.subspace = hints.subspace.data();
  args.num_directions = hints.num_directions;
  args.warm_start = hints.warm_start.empty() ? nullptr : hints.warm_start.data();
  const LookupPlan plan = make_plan(passes, hints.pruning, hints.few, num_rows, num_channels, packed != nullptr);
  PackedCodebook packed_codebook(args, packed);
  run_plan(plan, args, packed_codebook, parts(num_parts));
  CHECK(index.front() == -7 && index.back() == -7 && distance.front() == -7.0f && distance.back() == -7.0f);
  return {index.begin() + 1, index.end() - 1};
}

// Every level, by all of its passes and with the cheap ones left out; the first
// pass once with a prepared codebook.
void compare_metric(const std::vector<float>& features, const std::vector<float>& codebook, int64_t num_rows,
                    int64_t num_codes, int64_t num_channels, Metric metric) {
  std::vector<int64_t> expected;
  for (int64_t i = 0; i < num_rows; ++i)
    expected.push_back(nearest(features.data() + i * num_channels, codebook, num_codes, num_channels, metric));
  for (const std::vector<LookupPass>& all : every_list_of_passes(metric)) {
    for (auto first = all.begin(); first != all.end(); ++first) {
      const std::vector<LookupPass> passes(first, all.end());
      const ScreeningFormat format = passes.front().format;
      const Scratch packed(packed_codebook_bytes(format, num_codes, num_channels));
      pack_codebook(format, codebook.data(), num_codes, num_channels, packed.data(), parts(2));
      CHECK(packed_codebook_fits(packed.data(), format, num_codes, num_channels));
      CHECK(!packed_codebook_fits(packed.data(), format, num_codes + 1, num_channels));
      static bool by_codes = false;  // in turn
      by_codes = !by_codes;
      for (int num_parts : {1, 3}) {
        Hints hints;
        if (num_parts == 3 && by_codes) hints.few = few_of(metric);
        CHECK(lookup(passes, features, codebook, num_rows, num_codes, num_channels, num_parts,
                     num_parts == 1 || by_codes ? packed.data() : nullptr, metric, hints) == expected);
      }
    }
  }
  for (CpuLevel level : available_cpu_levels()) {
    std::vector<int64_t> index(num_rows, -7);
    codebook_lookup(level, arguments(features, codebook, num_rows, num_codes, num_channels, index.data(), metric),
                    nullptr, parts(3));
    CHECK(index == expected);
  }
  if (metric != Metric::kEuclidean || num_rows < kFewestPruningRows || num_channels > 1200) return;
  static size_t next_hint = 0;  // two in turn: all of them are many
  std::vector<Hints> all_hints = every_hint(num_rows, num_codes, num_channels);
  for (int times = 0; times < 2; ++times) {
    Hints& hints = all_hints[next_hint++ % all_hints.size()];
    for (CpuLevel level : available_cpu_levels()) {
      set_cpu_level(times == 0 ? cpu_level_name(level) : "");  // forced, a level takes no instructions beyond its own
      for (int64_t of_channels : {int64_t{1}, int64_t{1} << 12}) {  // without and with a sift in int8
        hints.pruning = pruning_pass_of(level, of_channels);
        CHECK(lookup(passes_of(level), features, codebook, num_rows, num_codes, num_channels, 2, nullptr, metric,
                     hints) == expected);
      }
    }
  }
  set_cpu_level("");
}

// Rows near codes that differ in some channels: pruning decides them, in a subspace packed with the codebook.
void test_pruning() {
  constexpr int64_t kRows = 300, kCodes = 520, kChannels = 200, kDirections = 5;
  std::vector<float> codebook = normal(kCodes * kChannels, 24), features = normal(kRows * kChannels, 25);
  std::vector<float> subspace(kChannels * kDirections, 0.0f);
  for (int64_t c = 0; c < kChannels; ++c) {
    for (int64_t k = 0; k < kDirections; ++k) subspace[c * kDirections + k] = c == 3 * k ? 1.0f : 0.0f;
    const bool told = c % 3 == 0 && c < 3 * kDirections;
    for (int64_t j = 0; j < kCodes; ++j) codebook[j * kChannels + c] *= told ? 50.0f : 0.01f;
    for (int64_t i = 0; i < kRows; ++i) {
      float& value = features[i * kChannels + c];
      value = 0.01f * value + codebook[(i * 7 % kCodes) * kChannels + c];
    }
  }
  std::vector<int64_t> index(kRows);
  CodebookLookupArgs args = arguments(features, codebook, kRows, kCodes, kChannels, index.data());
  for (CpuLevel level : available_cpu_levels()) {
    const size_t bytes = packed_codebook_bytes(level, kCodes, kChannels, kDirections);
    const Scratch packed(bytes);
    pack_codebook(level, codebook.data(), kCodes, kChannels, subspace.data(), kDirections, packed.data(), parts(3));
    CHECK(packed_codebook_is(level, kCodes, kChannels, Metric::kEuclidean, packed.data(), bytes));
    CHECK(!packed_codebook_is(level, kCodes, kChannels, Metric::kEuclidean, packed.data(), bytes - 1));
    for (const void* block : {static_cast<const void*>(packed.data()), static_cast<const void*>(nullptr)}) {
      args.subspace = subspace.data();
      args.num_directions = block == nullptr ? kDirections : 0;
      const LookupCounts counts = codebook_lookup(level, args, block, parts(2));
      CHECK(counts.pruning == (level == CpuLevel::kScalar ? 0 : kRows));
      for (int64_t i = 0; i < kRows; ++i) CHECK(index[i] == i * 7 % kCodes);
    }
  }
}

void compare(const std::vector<float>& features, const std::vector<float>& codebook, int64_t num_rows,
             int64_t num_codes, int64_t num_channels) {
  static bool cosine = false;  // the others in turn: all of them take their time
  cosine = !cosine;
  compare_metric(features, codebook, num_rows, num_codes, num_channels, Metric::kEuclidean);
  compare_metric(features, codebook, num_rows, num_codes, num_channels, cosine ? Metric::kCosine : Metric::kDot);
}

// Rows of one kind after another, so that passes that skip neighbours
// come back to rows they can decide: near a cluster of codes that screening
// cannot tell apart, then near one of the codes that stand alone.
void test_stretches(bool integers) {
  constexpr int64_t kRows = 2600, kClose = 70, kAlone = 30, kChannels = 20;
  std::vector<float> codebook = normal((kClose + kAlone) * kChannels, 10);
  std::vector<float> features = normal(kRows * kChannels, 11);
  for (int64_t n = 0; n < kClose * kChannels; ++n) {
    codebook[n] = integers ? std::copysign(1.0f, codebook[n]) : 1.0f + codebook[n] * 0x1p-21f;
  }
  for (int64_t n = kClose * kChannels; n < (kClose + kAlone) * kChannels; ++n)
    codebook[n] = std::round(codebook[n] * 9.0f) + 20.0f;
  for (int64_t i = 0; i < kRows; ++i) {
    const bool alone = i > 900 && i < 1700 && i % 100 != 0;
    for (int64_t c = 0; c < kChannels; ++c) {
      float& value = features[i * kChannels + c];
      if (alone) {
        value += codebook[(kClose + i % kAlone) * kChannels + c];
      } else if (integers) {
        value = std::round(value * 0.4f);
      }
    }
  }
  compare(features, codebook, kRows, kClose + kAlone, kChannels);
}

// The codes hold the same numbers in another order and a row one number: the
// distances are equal but for the rounding of squares and sums.
void test_order_of_rounding(std::vector<float> code, const std::vector<float>& numbers) {
  constexpr int64_t kCodes = 60;
  const int64_t num_channels = static_cast<int64_t>(code.size());
  const int64_t num_rows = static_cast<int64_t>(numbers.size());
  std::vector<float> codebook, features;
  std::mt19937 engine(15);
  for (int64_t j = 0; j < kCodes; ++j) {
    std::shuffle(code.begin(), code.end(), engine);
    codebook.insert(codebook.end(), code.begin(), code.end());
  }
  for (float number : numbers) features.insert(features.end(), num_channels, number);
  compare(features, codebook, num_rows, kCodes, num_channels);
  // Codes apart from them, of which one may be found first.
  const std::vector<float> apart = normal(200 * num_channels, 17);
  codebook.insert(codebook.begin(), apart.begin(), apart.end());
  compare(features, codebook, num_rows, kCodes + 200, num_channels);
}

void test_orders_of_rounding() {
  std::vector<float> any = normal(50, 14), signs = any;
  for (float& value : signs) value = std::copysign(1.0f, value);
  std::vector<float> small = normal(900, 16, 1.0f, 0.1f), fine;
  for (float& value : small) value *= 1e-3f;
  for (int n = 0; n < 100; ++n)  // differences of 28 bits
    fine.push_back(static_cast<float>(1 + 2 * (n % 8)) * 0x1p-27f);
  test_order_of_rounding(any, small);
  test_order_of_rounding(signs, small);
  test_order_of_rounding(signs, fine);
}

// Two clusters of codes. Rows near the first, of few and then of many codes,
// leave screening in the middle, rows near the other one at once.
void test_dense_end() {
  constexpr int64_t kRows = 160, kCodes = 800, kChannels = 12;
  std::vector<float> codebook = normal(kCodes * kChannels, 18);
  std::vector<float> features = normal(kRows * kChannels, 19);
  for (int64_t j = 0; j < kCodes; ++j) {
    const float centre = j < 600 && j % 8 != 0 ? 50.0f : 1.0f;
    for (int64_t c = 0; c < kChannels; ++c) {
      float& value = codebook[j * kChannels + c];
      value = centre + value * 0x1p-18f;
    }
  }
  for (int64_t n = 0; n < kRows * kChannels; ++n) features[n] += n / kChannels / 20 % 2 == 0 ? 1.0f : 50.0f;
  compare(features, codebook, kRows, kCodes, kChannels);
}

// More channels than a cache holds of four codes, and so many that a panel of
// rows is one tile; codes as near as that, so that rows are skipped.
void test_many_channels(int64_t num_channels) {
  constexpr int64_t kTies = 300, kRows = 15, kCodes = 21;
  std::vector<float> codebook = normal(kCodes * num_channels, 12);
  for (int64_t j = 0; j < kCodes; ++j) {
    for (int64_t c = 0; c < num_channels; ++c) {
      const float sign = c % kCodes == j ? -1.0f : 1.0f;
      codebook[j * num_channels + c] = sign * codebook[c % kCodes];
    }
  }
  compare(std::vector<float>(kTies * num_channels, 0.0f), codebook, kTies, kCodes, num_channels);
  compare(normal(kRows * num_channels, 13), codebook, kRows, kCodes, num_channels);
}

// Groups of codes that lie close together, each on its own scale, at times on a
// grid, some twice, few or many of the last group before some position and all
// behind it; stretches of rows near one group after another.
void test_random_problem(unsigned seed) {
  std::mt19937 engine(seed);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  };
  const bool wide = seed % 8 == 0;
  const int64_t num_channels = wide ? draw(1000, 10000) : draw(1, 40);
  const int64_t num_codes = wide ? draw(1, 30) : draw(1, 1200);
  const int64_t num_rows = std::min((1 << (wide ? 24 : 22)) / (num_channels * num_codes), draw(1, 1500));
  const int64_t num_groups = draw(1, 3);
  const std::vector<float> centre = normal(3 * num_channels, seed + 1);
  const float spread[] = {std::ldexp(1.0f, -draw(0, 24)), 1.0f, std::ldexp(1.0f, -draw(-3, 24))};
  const int64_t turn = draw(0, num_codes), others = draw(1, 10);
  const bool on_grid = draw(0, 2) == 0;
  const auto fill = [&](std::vector<float>& values, int64_t n, int64_t group) {
    for (int64_t c = 0; c < num_channels; ++c) {
      float& value = values[n * num_channels + c];
      value = 3.0f * centre[group * num_channels + c] + spread[group] * value;
      if (on_grid) value = std::round(value);
    }
  };
  std::vector<float> codebook = normal(num_codes * num_channels, seed + 2);
  std::vector<float> features = normal(num_rows * num_channels, seed + 3);
  for (int64_t j = 0; j < num_codes; ++j) {
    const bool other = j < turn && num_groups > 1 && draw(0, others) > 0;
    fill(codebook, j, other ? draw(0, num_groups - 2) : num_groups - 1);
    if (j > 0 && draw(0, 9) == 0)
      std::copy_n(&codebook[draw(0, j - 1) * num_channels], num_channels, &codebook[j * num_channels]);
  }
  for (int64_t i = 0; i < num_rows;) {
    const int64_t end = std::min(num_rows, i + draw(1, 400));
    for (const int64_t group = draw(0, num_groups - 1); i < end; ++i) fill(features, i, group);
  }
  compare(features, codebook, num_rows, num_codes, num_channels);
  const int64_t num_few = std::min<int64_t>(num_rows, 1 + seed % 4);  // up to three take a way of their own
  features.resize(num_few * num_channels);
  compare(features, codebook, num_few, num_codes, num_channels);
}

// The topk nearest codes of every level, by all of its passes and with the cheap ones left out.
void compare_topk(const std::vector<float>& features, const std::vector<float>& codebook, int64_t num_rows,
                  int64_t num_codes, int64_t num_channels, int64_t topk, Metric metric) {
  std::vector<int64_t> expected;
  for (int64_t i = 0; i < num_rows; ++i) {
    std::vector<std::pair<double, int64_t>> ranked;
    for (int64_t j = 0; j < num_codes; ++j) {
      const double value = cost(&features[i * num_channels], &codebook[j * num_channels], num_channels, metric);
      ranked.emplace_back(std::isfinite(value) ? value : std::numeric_limits<double>::infinity(), j);
    }
    std::sort(ranked.begin(), ranked.end());
    for (int64_t n = 0; n < topk; ++n) expected.push_back(ranked[n].second);
  }
  for (const std::vector<LookupPass>& all : every_list_of_passes(metric)) {
    for (auto first = all.begin(); first != all.end(); ++first) {
      const std::vector<LookupPass> passes(first, all.end());
      for (const auto& [some, few] : {std::pair{num_rows, few_of(metric)}, {num_rows, nullptr}, {2, nullptr}}) {
        std::vector<int64_t> index(some, kUndecided), top(some * topk + 1, -7);
        std::vector<float> distance(some * topk + 1, -7.0f);
        CodebookLookupArgs args = arguments(features, codebook, some, num_codes, num_channels, index.data(), metric);
        args.distance = distance.data();
        args.topk = topk;
        args.top_index = top.data();
        PackedCodebook packed_codebook(args, nullptr);
        run_plan(make_plan(passes, nullptr, few, some, num_channels, false), args, packed_codebook, parts(3));
        CHECK(top.back() == -7 && distance.back() == -7.0f);
        top.pop_back();
        CHECK(top == std::vector<int64_t>(expected.begin(), expected.begin() + some * topk));
        for (int64_t i = 0; i < some; ++i) CHECK(index[i] == expected[i * topk]);
      }
    }
  }
}

void test_topk() {
  for (Metric metric : kMetrics) {
    for (int64_t topk : {2, 16}) {
      for (int64_t num_codes : {16, 100, 700}) {
        for (int64_t num_channels : {1, 9, 40}) {
          std::vector<float> codebook = normal(num_codes * num_channels, 26);
          const std::vector<float> features = normal(60 * num_channels, 25);
          compare_topk(features, codebook, 60, num_codes, num_channels, topk, metric);
          // Some copies and codes that are not finite.
          for (int64_t j = 3; j < num_codes; j += 3)
            std::copy_n(&codebook[(j % 9) * num_channels], num_channels, &codebook[j * num_channels]);
          for (int64_t j = 1; j < num_codes; j += 5)
            codebook[j * num_channels] = std::numeric_limits<float>::infinity();
          compare_topk(features, codebook, 60, num_codes, num_channels, topk, metric);
        }
      }
      std::vector<float> cluster = normal(700 * 16, 27), features = normal(60 * 16, 28);
      for (int64_t n = 0; n < 700 * 16; ++n)
        cluster[n] = n / 16 % 70 == 0 ? cluster[n] + 1.0f : 1.0f + cluster[n] * 0x1p-21f;
      features[5] = std::numeric_limits<float>::quiet_NaN();
      features[40] = -std::numeric_limits<float>::infinity();
      compare_topk(features, cluster, 60, 700, 16, topk, metric);
    }
  }
}

// Codes of few directions and many lengths, some opposed and some zero: of kCosine ties, near ties, and rows with which
// no code has a similarity above 0; rows of every size.
void test_directions() {
  constexpr int64_t kRows = 260, kCodes = 330, kChannels = 22;
  std::vector<float> codebook = normal(kCodes * kChannels, 23), features = normal(kRows * kChannels, 24);
  for (int64_t j = 0; j < kCodes; ++j) {
    const float length = std::ldexp(1.0f + static_cast<float>(j % 5), static_cast<int>(j % 90) - 45);
    for (int64_t c = 0; c < kChannels; ++c) {
      float& value = codebook[j * kChannels + c];
      value = j % 40 == 39 ? 0.0f : length * codebook[j % 7 * kChannels + c];
    }
  }
  for (int64_t i = 0; i < kRows; ++i) {
    const float length = std::ldexp(1.0f, static_cast<int>(i % 200) - 100);
    for (int64_t c = 0; c < kChannels; ++c) {
      float& value = features[i * kChannels + c];
      value = i % 20 == 19 ? 0.0f : length * (value - (i % 3 == 0 ? codebook[i % 7 * kChannels + c] : 0.0f));
    }
  }
  compare(features, codebook, kRows, kCodes, kChannels);
  // Among them one code that differs in the last bit of a channel, before and behind the others.
  for (int64_t j : {int64_t{7}, kCodes - 1}) {
    std::vector<float> near = codebook;
    near[j * kChannels + 3] = std::nextafter(near[j * kChannels + 3], 1e30f);
    compare(features, near, kRows, kCodes, kChannels);
  }
}

// Normal numbers, some of them divided by others: Cauchy.
std::vector<float> heavy_tailed(int64_t count, unsigned seed, bool on_grid) {
  std::vector<float> values = normal(count, seed);
  const std::vector<float> divisors = normal(count, seed + 1);
  for (int64_t n = 0; n < count; ++n) {
    values[n] /= divisors[n];
    if (on_grid) values[n] = std::round(values[n]);
  }
  return values;
}

// Codes of many lengths, which lie in order of these: on a grid with many ties between codes whose order is another,
// with copies, a code and a row far larger than all others, and what is not finite.
void test_heavy_tails() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  unsigned seed = 40;
  for (const auto& [num_codes, num_channels] :
       {std::pair{40, 1}, {300, 2}, {700, 9}, {2300, 24}, {2100, 70}, {200, 300}}) {
    for (int kind = 0; kind < 4; ++kind) {
      const int64_t num_rows = std::max(3, 400000 / (num_codes * num_channels));
      std::vector<float> codebook = heavy_tailed(num_codes * num_channels, seed += 2, kind == 0);
      std::vector<float> features = heavy_tailed(num_rows * num_channels, seed += 2, kind == 0);
      if (kind == 2) {
        for (int64_t j = 1; j < num_codes; j += 5)
          std::copy_n(&codebook[j / 2 * num_channels], num_channels, &codebook[j * num_channels]);
        codebook[num_codes / 3 * num_channels] = features[0] = kInfinity;
      }
      if (kind == 3) {
        codebook = normal(num_codes * num_channels, seed);
        for (int64_t c = 0; c < num_channels; ++c) {
          codebook[num_codes / 2 * num_channels + c] *= 1e9f;
          features[num_channels + c] *= 1e9f;
        }
      }
      compare(features, codebook, num_rows, num_codes, num_channels);
      for (Metric metric : {Metric::kEuclidean, Metric::kDot})
        compare_topk(features, codebook, std::min<int64_t>(num_rows, 60), num_codes, num_channels, 5, metric);
    }
  }
}

// One bound for all codes would leave every row to float64.
void test_a_giant_code_costs_its_own_group() {
  constexpr int64_t kRows = 560, kCodes = 3000, kChannels = 24;
  for (bool heavy : {false, true}) {
    std::vector<float> codebook = normal(kCodes * kChannels, 80), features = normal(kRows * kChannels, 81);
    if (heavy)
      codebook = heavy_tailed(kCodes * kChannels, 82, false), features = heavy_tailed(kRows * kChannels, 84, false);
    for (int64_t c = 0; c < kChannels; ++c) codebook[7 * kChannels + c] *= 1e6f;
    std::vector<int64_t> index(kRows);
    const CodebookLookupArgs args = arguments(features, codebook, kRows, kCodes, kChannels, index.data());
    for (CpuLevel level : available_cpu_levels()) {
      if (level == CpuLevel::kScalar) continue;
      const LookupCounts counts = codebook_lookup(level, args, nullptr, parts(1));
      CHECK(counts.compared < kRows / 3 && counts.undecided < kRows / 10);
    }
  }
}

// What a caller sees: a level, and a codebook packed for it or for another one.
void test_levels_of_packing() {
  constexpr int64_t kRows = 100, kCodes = 50, kChannels = 20;
  const std::vector<float> features = normal(kRows * kChannels, 20), codebook = normal(kCodes * kChannels, 21);
  std::vector<int64_t> expected, index(kRows);
  for (int64_t i = 0; i < kRows; ++i)
    expected.push_back(nearest(features.data() + i * kChannels, codebook, kCodes, kChannels));
  CodebookLookupArgs args = arguments(features, codebook, kRows, kCodes, kChannels, index.data());
  for (CpuLevel packed_for : available_cpu_levels()) {
    const Scratch packed(packed_codebook_bytes(packed_for, kCodes, kChannels, 0));
    pack_codebook(packed_for, codebook.data(), kCodes, kChannels, nullptr, 0, packed.data(), parts(2));
    for (CpuLevel level : available_cpu_levels()) {
      std::fill(index.begin(), index.end(), -7);
      const LookupCounts counts = codebook_lookup(level, args, packed.data(), parts(2));
      CHECK(index == expected);
      CHECK(level != CpuLevel::kScalar || (counts.compared == kRows && counts.undecided == 0));
      CHECK(level == CpuLevel::kScalar || counts.compared < kRows);
    }
  }
  // All codes are as near: screening decides nothing, and every row is left by the first pass and compared once.
  std::vector<float> signs = codebook;
  for (float& value : signs) value = std::copysign(1.0f, value);
  const std::vector<float> zeros(kRows * kChannels, 0.0f);
  args.features = zeros.data();
  args.codebook = signs.data();
  for (CpuLevel level : available_cpu_levels()) {
    const LookupCounts counts = codebook_lookup(level, args, nullptr, parts(1));
    CHECK(counts.compared == kRows && counts.undecided == (level == CpuLevel::kScalar ? 0 : kRows));
  }
}

void test_gather() {
  const std::vector<float> codebook = normal(15, 9);
  const std::vector<int64_t> index = {4, -1, 0, 5};
  std::vector<float> output(12, 7.0f);
  const GatherCodesArgs args{codebook.data(), index.data(), output.data(), 5, 3 * sizeof(float)};
  CHECK(gather_codes(args, 0, 3) == -1);
  CHECK(output[0] == codebook[12] && output[3] == 0.0f && output[6] == codebook[0] && output[9] == 7.0f);
  CHECK(gather_codes(args, 0, 4) == 3 && output[9] == 7.0f);
}

}  // namespace

void test_codebook_lookup() {
  for (int64_t num_rows : {0, 1, 5, 6, 7, 200}) {
    for (int64_t num_codes : {1, 2, 15, 16, 17, 40}) {
      for (int64_t num_channels : {1, 7, 8, 9, 33}) {
        compare(normal(num_rows * num_channels, 1), normal(num_codes * num_channels, 2), num_rows, num_codes,
                num_channels);
      }
    }
  }
  compare(normal(50 * 20, 3, 1.0f, 1e4f), normal(60 * 20, 4, 1.0f, 1e4f), 50, 60, 20);
  compare(normal(20 * 8, 5), std::vector<float>(700 * 8, 0.0f), 20, 700, 8);
  std::vector<float> cluster = normal(500 * 8, 6);
  for (float& value : cluster) value = 1.0f + value * 0x1p-22f;
  compare(normal(20 * 8, 7), cluster, 20, 500, 8);
  std::vector<float> broken = normal(20 * 8, 8);
  broken[3] = std::numeric_limits<float>::quiet_NaN();
  broken[9] = std::numeric_limits<float>::infinity();
  compare(broken, cluster, 20, 500, 8);
  compare(cluster, broken, 100, 20, 8);
  test_stretches(false);
  test_stretches(true);
  test_orders_of_rounding();
  test_dense_end();
  for (int64_t num_channels : {520, 1100, 2400, 4101, 5600, 9500}) test_many_channels(num_channels);
#ifdef __SANITIZE_ADDRESS__
  constexpr unsigned kStep = 3;
#else
  constexpr unsigned kStep = 1;
#endif
  for (unsigned seed = 0; seed < 40; seed += kStep) test_random_problem(seed);
  test_directions();
  test_heavy_tails();
  test_a_giant_code_costs_its_own_group();
  test_topk();
  test_levels_of_packing();
  test_pruning();
  test_gather();
}
