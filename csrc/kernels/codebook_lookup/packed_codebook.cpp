#include "kernels/codebook_lookup/packed_codebook.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "common/float_environment.h"
#include "common/memory.h"

namespace soho {
namespace {

constexpr int64_t kMaxChannels = int64_t{1} << 18;  // of the error bound in passes.h
constexpr int kMaxExponent = 120;                   // the scale and its products stay normal float32 numbers
constexpr int64_t kAlignment = 64;
constexpr int64_t kElementsPerTask = 1 << 16;  // of codes: below, a second thread gains nothing
// Codes lie in order and have tiers where the largest |b| is over so many medians, for few codes over kHeavyTailByCodes
// / K of them. AVX2 screens in float32 alone, which decides what lies below its own number. Groups of a tier differ by
// kTierRatio if that many tiers are enough.
constexpr double kHeavyTail = 4.0, kHeavyTailAvx2 = 64.0, kHeavyTailByCodes = 2048.0, kTierRatio = 2.0;
constexpr size_t kFewestInTiers = 65;
constexpr double kNearCentre = 2.0;  // medians, of codes that say where the centre of a heavy-tailed codebook lies
constexpr double kSmallestNorm = 0x1p-40;  // of CodeTier

// The block: this header, then codes, copies, norms, centre, negated_half and panel, each aligned to a cache line.
// Every byte is written, so that equal codebooks have equal blocks.
struct PackedHeader {
  ScreeningFormat format;
  float scale, unit;
  int64_t num_codes, num_channels, num_distinct, num_groups;
  int64_t num_directions;  // of the pruning pass, packed behind this block
  int64_t ascending, num_tiers;
  CodeTier tiers[kMostTiers];
};
static_assert(sizeof(PackedHeader) == sizeof(ScreeningFormat) + 2 * 4 + 7 * 8 + kMostTiers * 5 * 8,
              "a gap would stay unwritten");

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Sections {
  int64_t codes, copies, norms, centre, negated_half, panel, end;  // bytes from the start of the block
};

int64_t num_steps(const ScreeningFormat& format, int64_t num_channels) {
  const int64_t steps = format.type == ScreeningType::kFloat32    ? num_channels
                        : format.type == ScreeningType::kBFloat16 ? (num_channels + 1) / 2
                                                                  : 1 + (num_channels + 3) / 4;
  return (steps + format.step_multiple - 1) / format.step_multiple * format.step_multiple;
}

Sections sections(const ScreeningFormat& format, int64_t num_codes, int64_t num_channels) {
  const int64_t width = format.width, num_groups = width == 0 ? 0 : (num_codes + width - 1) / width;
  Sections at{};
  at.codes = aligned(sizeof(PackedHeader));
  at.copies = at.codes + aligned(num_codes * sizeof(int64_t));
  at.norms = at.copies + aligned(num_codes * sizeof(int32_t));
  at.centre = at.norms + aligned(format.metric == Metric::kEuclidean ? 0 : num_codes * sizeof(double));
  at.negated_half = at.centre + aligned(num_channels * sizeof(float));
  at.panel = at.negated_half + aligned(num_groups * width * sizeof(float));
  at.end = at.panel + aligned(num_groups * num_steps(format, num_channels) * width * sizeof(uint32_t));
  return at;
}

template <class T>
T* section(void* packed, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(packed) + offset);
}

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

struct HashedCode {
  uint64_t hash;
  bool finite;
};

// How many codes of so many channels a task takes, or channels of so many codes.
int64_t per_task(int64_t num_others) { return kElementsPerTask / std::max<int64_t>(1, num_others) + 1; }

std::vector<int64_t> distinct_finite_codes(const float* codebook, int64_t num_codes, int64_t num_channels,
                                           int32_t* next_copy, const ParallelFor& parallel_for) {
  std::fill(next_copy, next_copy + num_codes, -1);
  std::vector<HashedCode> hashed(num_codes);
  parallel_for(num_codes, per_task(num_channels), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      hashed[j].hash = hash_code(codebook + j * num_channels, num_channels, hashed[j].finite);
  });
  size_t capacity = 16;
  while (capacity < 2 * static_cast<size_t>(num_codes)) capacity *= 2;
  std::vector<int32_t> table(capacity, -1);  // position in `codes`, open addressing
  std::vector<int64_t> codes, last_copy;
  for (int64_t j = 0; j < num_codes; ++j) {
    const float* code = codebook + j * num_channels;
    const auto [hash, finite] = hashed[j];
    if (!finite) continue;
    size_t slot = hash & (capacity - 1);
    bool copy = false;
    for (; table[slot] >= 0 && !copy; slot = copy ? slot : (slot + 1) & (capacity - 1)) {
      const int64_t other = codes[table[slot]];
      copy = hashed[other].hash == hash && std::equal(code, code + num_channels, codebook + other * num_channels);
    }
    if (copy) {
      int64_t& last = last_copy[table[slot]];
      next_copy[last] = static_cast<int32_t>(j);
      last = j;
      continue;
    }
    table[slot] = static_cast<int32_t>(codes.size());
    codes.push_back(j);
    last_copy.push_back(j);
  }
  return codes;
}

// In the order of codebook_lookup.h.
double norm_of(const float* code, int64_t num_channels) {
  double sum[8] = {};
  for (int64_t c = 0; c < num_channels; ++c) sum[c % 8] += static_cast<double>(code[c]) * static_cast<double>(code[c]);
  for (int width = 4; width >= 1; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  }
  return std::sqrt(sum[0]);
}

// The codes as a metric compares them: those of kCosine have length 1.
class ComparedCodes {
 public:
  ComparedCodes(Metric metric, const float* codebook, const std::vector<int64_t>& codes, const double* norms,
                int64_t num_channels, const ParallelFor& parallel_for)
      : codebook_(codebook), codes_(codes), num_channels_(num_channels) {
    if (metric != Metric::kCosine) return;
    directions_.resize(codes.size() * num_channels);
    parallel_for(static_cast<int64_t>(codes.size()), per_task(num_channels), [&](int64_t begin, int64_t end) {
      DefaultFloatEnvironment of_this_thread;
      for (int64_t k = begin; k < end; ++k) {
        const double factor = norms[k] > 0.0 ? 1.0 / norms[k] : 0.0;
        for (int64_t c = 0; c < num_channels; ++c)
          directions_[k * num_channels + c] = static_cast<float>(codebook[codes[k] * num_channels + c] * factor);
      }
    });
  }

  const float* operator[](int64_t k) const {
    return directions_.empty() ? codebook_ + codes_[k] * num_channels_ : directions_.data() + k * num_channels_;
  }

 private:
  const float* const codebook_;
  const std::vector<int64_t>& codes_;
  const int64_t num_channels_;
  std::vector<float> directions_;
};

double largest_square(const std::vector<CodeSpread>& spreads) {
  double largest = 0.0;
  for (const CodeSpread& spread : spreads) largest = std::max(largest, spread.square);
  return largest;
}

double median_square(const std::vector<CodeSpread>& spreads) {
  std::vector<double> squares(spreads.size());
  std::transform(spreads.begin(), spreads.end(), squares.begin(),
                 [](const CodeSpread& spread) { return spread.square; });
  const auto middle = squares.begin() + static_cast<int64_t>(squares.size() / 2);
  std::nth_element(squares.begin(), middle, squares.end());
  return *middle;
}

double largest_channel(const std::vector<CodeSpread>& spreads, int64_t begin, int64_t end) {
  double largest = 0.0;
  for (int64_t k = begin; k < end; ++k) largest = std::max(largest, spreads[k].largest);
  return largest;
}

// The smallest |b| first; the codes ascend.
void put_in_order(std::vector<int64_t>& codes, std::vector<CodeSpread>& spreads, double* norms) {
  std::vector<int64_t> order(codes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return spreads[a].square < spreads[b].square; });
  const auto put = [&](auto* values) {
    const std::vector before(values, values + codes.size());
    for (size_t k = 0; k < order.size(); ++k) values[k] = before[order[k]];
  };
  put(codes.data());
  put(spreads.data());
  if (norms != nullptr) put(norms);
}

// Writes where the tiers end; returns how many there are.
int64_t set_tiers(const std::vector<CodeSpread>& spreads, int64_t width, bool is_one, CodeTier* tiers) {
  const int64_t num_codes = static_cast<int64_t>(spreads.size()), num_groups = (num_codes + width - 1) / width;
  const auto largest = [&](int64_t group) { return spreads[std::min((group + 1) * width, num_codes) - 1].square; };
  for (double ratio = kTierRatio; !is_one; ratio *= ratio) {
    int64_t num_tiers = 0;
    for (int64_t group = 0, first = 0; group < num_groups && num_tiers < kMostTiers; ++group) {
      const bool ends = group + 1 == num_groups || largest(group + 1) > ratio * ratio * largest(first);
      if (!ends) continue;
      first = group + 1;
      tiers[num_tiers++].end_group = first;
    }
    if (tiers[num_tiers - 1].end_group == num_groups) return num_tiers;
  }
  tiers[0].end_group = num_groups;
  return 1;
}

}  // namespace

size_t packed_codebook_bytes(const ScreeningFormat& format, int64_t num_codes, int64_t num_channels) {
  return static_cast<size_t>(sections(format, num_codes, num_channels).end);
}

void pack_codebook(const ScreeningFormat& format, const float* codebook, int64_t num_codes, int64_t num_channels,
                   void* packed, const ParallelFor& parallel_for) {
  DefaultFloatEnvironment environment;
  const Sections at = sections(format, num_codes, num_channels);
  std::memset(packed, 0, at.panel);
  PackedHeader& header = *new (packed) PackedHeader{format, 1.0f, 0.0f, num_codes, num_channels, 0, 0, 0, 1, 0, {}};
  std::vector<int64_t> codes =
      distinct_finite_codes(codebook, num_codes, num_channels, section<int32_t>(packed, at.copies), parallel_for);
  std::copy(codes.begin(), codes.end(), section<int64_t>(packed, at.codes));
  header.num_distinct = static_cast<int64_t>(codes.size());
  const bool euclidean = format.metric == Metric::kEuclidean;
  double* norms = section<double>(packed, at.norms);
  if (!euclidean) {
    parallel_for(header.num_distinct, per_task(num_channels), [&](int64_t begin, int64_t end) {
      DefaultFloatEnvironment of_this_thread;
      for (int64_t k = begin; k < end; ++k) norms[k] = norm_of(codebook + codes[k] * num_channels, num_channels);
    });
  }
  const int64_t steps = num_steps(format, num_channels), group_bytes = steps * format.width * 4;
  const auto blank_groups_from = [&](int64_t group) {
    const int64_t start = at.panel + group * group_bytes;
    std::memset(section<char>(packed, start), 0, at.end - start);
  };
  if (format.width == 0 || codes.size() < 2 || num_channels > kMaxChannels) return blank_groups_from(0);

#ifdef SOHO_VECTOR_LEVELS                                       // no other has a format with a width
  std::vector<float> own_centre(euclidean ? 0 : num_channels);  // of the codes alone, rows have none
  float* centre = euclidean ? section<float>(packed, at.centre) : own_centre.data();
#ifdef SOHO_X86_LEVELS
  const PackingLoops& loops = format.width == kFormatAvx2.width ? kPackingLoopsAvx2 : kPackingLoopsAvx512;
#else
  const PackingLoops& loops = kPackingLoopsAvx2;
#endif
  const ComparedCodes compared(format.metric, codebook, codes, norms, num_channels, parallel_for);
  std::vector<CodeSpread> spreads(codes.size(), {0.0, 0.0});
  // Moves the centre to the mean of the codes whose |b|^2 is at most this.
  const auto centre_on = [&](double most_square) {
    std::vector<double> mean(num_channels, 0.0);
    parallel_for(num_channels, per_task(header.num_distinct), [&](int64_t begin, int64_t end) {
      DefaultFloatEnvironment of_this_thread;
      int64_t num_near = 0;
      for (int64_t k = 0; k < header.num_distinct; ++k) {
        if (!(spreads[k].square <= most_square)) continue;
        const float* code = compared[k];
        for (int64_t c = begin; c < end; ++c) mean[c] += code[c];
        ++num_near;
      }
      for (int64_t c = begin; c < end; ++c) centre[c] = static_cast<float>(mean[c] / static_cast<double>(num_near));
    });
    parallel_for(header.num_distinct, per_task(num_channels), [&](int64_t begin, int64_t end) {
      DefaultFloatEnvironment of_this_thread;
      for (int64_t k = begin; k < end; ++k) spreads[k] = loops.spread(compared[k], centre, num_channels);
    });
  };
  centre_on(0.0);
  const double median = median_square(spreads);
  // All formats of a level agree on the order.
  const double tail = std::max(format.width == kFormatAvx2.width ? kHeavyTailAvx2 : kHeavyTail,
                               kHeavyTailByCodes / static_cast<double>(codes.size()));
  if (format.metric != Metric::kCosine && codes.size() >= kFewestInTiers &&
      largest_square(spreads) > tail * tail * median) {
    centre_on(kNearCentre * kNearCentre * median);
    put_in_order(codes, spreads, euclidean ? nullptr : norms);
    std::copy(codes.begin(), codes.end(), section<int64_t>(packed, at.codes));
    header.ascending = 0;
  }
  if (format.type == ScreeningType::kInt8 && num_channels > kMaxInt8Channels) return blank_groups_from(0);
  const double largest = largest_channel(spreads, 0, header.num_distinct);
  int exponent;
  std::frexp(largest, &exponent);
  if (largest == 0.0 || std::abs(exponent) > kMaxExponent) return blank_groups_from(0);
  const double scale = std::ldexp(1.0, -exponent);
  header.scale = euclidean ? static_cast<float>(scale) : 1.0f;
  header.unit = static_cast<float>(largest * scale / 127.0);
  header.num_groups = (header.num_distinct + format.width - 1) / format.width;
  header.num_tiers = set_tiers(spreads, format.width, header.ascending != 0, header.tiers);
  for (int64_t t = 0; t < header.num_tiers; ++t) {
    const int64_t end = std::min(header.tiers[t].end_group * format.width, header.num_distinct);
    const double share = std::max(largest_channel(spreads, 0, end) / largest, kSmallestNorm);
    header.tiers[t].unit = format.type == ScreeningType::kInt8 ? std::exp2(std::ceil(std::log2(share))) : 1.0;
  }

  const CodePacking packing{format, num_channels, steps, centre, scale, header.unit};
  std::vector<CodeLengths> lengths(header.num_groups);
  parallel_for(header.num_groups, per_task(num_channels * format.width), [&](int64_t begin, int64_t end) {
    const Scratch words(format.width * packing_row_bytes(packing));
    std::vector<const float*> of_group(format.width);
    CodePacking packing_of_tier = packing;
    for (int64_t group = begin, tier = 0; group < end; ++group) {
      while (group >= header.tiers[tier].end_group) ++tier;
      packing_of_tier.unit = static_cast<float>(header.unit * header.tiers[tier].unit);
      const int64_t first = group * format.width;
      const int64_t filled = std::min<int64_t>(format.width, header.num_distinct - first);
      for (int64_t k = 0; k < filled; ++k) of_group[k] = compared[first + k];
      lengths[group] = loops.pack_group(packing_of_tier, of_group.data(), filled, words.data(),
                                        section<uint32_t>(packed, at.panel + group * group_bytes),
                                        section<float>(packed, at.negated_half) + first);
    }
  });
  CodeLengths longest{0.0, 0.0};
  double longest_code = format.metric == Metric::kCosine ? 1.0 : 0.0;
  for (int64_t group = 0, t = 0; group < header.num_groups; ++group) {
    longest.square = std::max(longest.square, lengths[group].square);
    longest.rounding_square = std::max(longest.rounding_square, lengths[group].rounding_square);
    const int64_t end = std::min((group + 1) * format.width, header.num_distinct);
    for (int64_t k = group * format.width; format.metric == Metric::kDot && k < end; ++k)
      longest_code = std::max(longest_code, norms[k]);
    CodeTier& tier = header.tiers[t];
    if (group + 1 < tier.end_group) continue;
    tier.largest_norm = std::max(std::sqrt(longest.square) * (1 + 0x1p-20), kSmallestNorm);
    tier.largest_rounding = std::sqrt(longest.rounding_square) * (1 + 0x1p-20);
    tier.largest_code = longest_code * scale * (1 + 0x1p-20);
    ++t;
  }
  blank_groups_from(header.num_groups);
#endif
}

int64_t packed_directions(const void* packed) { return static_cast<const PackedHeader*>(packed)->num_directions; }

void set_packed_directions(void* packed, int64_t num_directions) {
  static_cast<PackedHeader*>(packed)->num_directions = num_directions;
}

bool packed_codebook_fits(const void* packed, const ScreeningFormat& format, int64_t num_codes, int64_t num_channels) {
  const PackedHeader& header = *static_cast<const PackedHeader*>(packed);
  return header.format == format && header.num_codes == num_codes && header.num_channels == num_channels;
}

ScreenedCodes screened_codes(const void* packed) {
  const PackedHeader& header = *static_cast<const PackedHeader*>(packed);
  const Sections at = sections(header.format, header.num_codes, header.num_channels);
  const char* block = static_cast<const char*>(packed);
  ScreenedCodes view{};
  view.codes = reinterpret_cast<const int64_t*>(block + at.codes);
  view.num_distinct = header.num_distinct;
  view.ascending = header.ascending != 0;
  view.next_copy = reinterpret_cast<const int32_t*>(block + at.copies);
  view.metric = header.format.metric;
  view.norms = reinterpret_cast<const double*>(block + at.norms);
  view.screenable = header.num_groups > 0;
  view.centre = reinterpret_cast<const float*>(block + at.centre);
  view.scale = header.scale;
  view.unit = header.unit;
  view.num_tiers = header.num_tiers;
  std::copy(header.tiers, header.tiers + kMostTiers, view.tiers);
  view.num_groups = header.num_groups;
  view.num_steps = num_steps(header.format, header.num_channels);
  view.panel = block + at.panel;
  view.negated_half = reinterpret_cast<const float*>(block + at.negated_half);
  return view;
}

}  // namespace soho
