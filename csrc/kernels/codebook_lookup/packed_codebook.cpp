#include "kernels/codebook_lookup/packed_codebook.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/float_environment.h"

namespace soho {
namespace {

constexpr int64_t kMaxChannels = int64_t{1} << 18;  // of the error bound in codebook_lookup.h
constexpr int64_t kMaxInt8Channels = 65536;          // their sums fit 32 bits
constexpr int kMaxExponent = 120;                   // the scale and its products stay normal float32 numbers
constexpr int64_t kLanes = 8;                       // of sums over channels, so that they vectorise
constexpr int64_t kAlignment = 64;
constexpr int64_t kGroupsPerTask = 2, kCodesPerTask = 64, kChannelsPerTask = 16;

// The block: this header, then codes, centre, negated_half and panel, each aligned to a cache line. Every byte of it is
// written, so that equal codebooks have equal blocks.
struct PackedHeader {
  ScreeningFormat format;
  float scale, unit;
  int32_t unused;  // no gap
  int64_t num_codes, num_channels, num_distinct, num_groups;
  double largest_norm, largest_rounding;
};
static_assert(sizeof(PackedHeader) == sizeof(ScreeningFormat) + 3 * 4 + 4 * 8 + 2 * 8, "a gap would stay unwritten");

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Sections {
  int64_t codes, centre, negated_half, panel, end;  // bytes from the start of the block
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
  at.centre = at.codes + aligned(num_codes * sizeof(int64_t));
  at.negated_half = at.centre + aligned(num_channels * sizeof(float));
  at.panel = at.negated_half + aligned(num_groups * width * sizeof(float));
  at.end = at.panel + aligned(num_groups * num_steps(format, num_channels) * width * sizeof(uint32_t));
  return at;
}

template <class T>
T* section(void* packed, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(packed) + offset);
}

uint16_t round_to_bfloat16(float value) {  // to nearest even; value is finite
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Of a channel in units, to nearest even.
double int8_number(double value) {
  constexpr double kToInteger = 0x1.8p52;  // no fraction fits behind it
  return std::max(-127.0, std::min(127.0, (value + kToInteger) - kToInteger));
}

// The screened value of a channel: centred, scaled, rounded.
struct Centring {
  const float* centre;
  double scale;
  double operator()(const float* code, int64_t c) const { return (static_cast<double>(code[c]) - centre[c]) * scale; }
};

double sum_of_lanes(const double* lanes) {
  double sum = 0.0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
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

std::vector<int64_t> distinct_finite_codes(const float* codebook, int64_t num_codes, int64_t num_channels,
                                           const ParallelFor& parallel_for) {
  std::vector<HashedCode> hashed(num_codes);
  parallel_for(num_codes, kCodesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      hashed[j].hash = hash_code(codebook + j * num_channels, num_channels, hashed[j].finite);
  });
  size_t capacity = 16;
  while (capacity < 2 * static_cast<size_t>(num_codes)) capacity *= 2;
  std::vector<int32_t> table(capacity, -1);  // position in `codes`, open addressing
  std::vector<int64_t> codes;
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
    if (copy) continue;
    table[slot] = static_cast<int32_t>(codes.size());
    codes.push_back(j);
  }
  return codes;
}

}  // namespace

size_t packed_codebook_bytes(const ScreeningFormat& format, int64_t num_codes, int64_t num_channels) {
  return static_cast<size_t>(sections(format, num_codes, num_channels).end);
}

int64_t begin_packing(const ScreeningFormat& format, const float* codebook, int64_t num_codes, int64_t num_channels,
                      void* packed, const ParallelFor& parallel_for) {
  DefaultFloatEnvironment environment;
  const Sections at = sections(format, num_codes, num_channels);
  std::memset(packed, 0, at.panel);
  PackedHeader& header = *new (packed) PackedHeader{format, 1.0f, 0.0f, 0, num_codes, num_channels, 0, 0, 0.0, 0.0};
  const std::vector<int64_t> codes = distinct_finite_codes(codebook, num_codes, num_channels, parallel_for);
  std::copy(codes.begin(), codes.end(), section<int64_t>(packed, at.codes));
  header.num_distinct = static_cast<int64_t>(codes.size());
  float* centre = section<float>(packed, at.centre);
  const int64_t most_channels = format.type == ScreeningType::kInt8 ? kMaxInt8Channels : kMaxChannels;
  const auto blank_groups_from = [&](int64_t group) {
    const int64_t start = at.panel + group * num_steps(format, num_channels) * format.width * 4;
    std::memset(section<char>(packed, start), 0, at.end - start);
    return group;
  };
  if (format.width == 0 || codes.size() < 2 || num_channels > most_channels) return blank_groups_from(0);

  std::vector<double> mean(num_channels, 0.0);
  parallel_for(num_channels, kChannelsPerTask, [&](int64_t begin, int64_t end) {
    DefaultFloatEnvironment of_this_thread;
    for (int64_t j : codes) {
      const float* code = codebook + j * num_channels;
      for (int64_t c = begin; c < end; ++c) mean[c] += code[c];
    }
    for (int64_t c = begin; c < end; ++c)
      centre[c] = static_cast<float>(mean[c] / static_cast<double>(header.num_distinct));
  });
  // The largest of what value_of(code) gives for each code.
  const auto largest_of = [&](const auto& value_of) {
    std::vector<double> values(codes.size());
    parallel_for(header.num_distinct, kCodesPerTask, [&](int64_t begin, int64_t end) {
      DefaultFloatEnvironment of_this_thread;
      for (int64_t k = begin; k < end; ++k) values[k] = value_of(codebook + codes[k] * num_channels);
    });
    return *std::max_element(values.begin(), values.end());
  };
  const double largest = largest_of([&](const float* code) {
    double most = 0.0;
    for (int64_t c = 0; c < num_channels; ++c)
      most = std::max(most, std::fabs(static_cast<double>(code[c]) - centre[c]));
    return most;
  });
  int exponent;
  std::frexp(largest, &exponent);
  if (largest == 0.0 || std::abs(exponent) > kMaxExponent) return blank_groups_from(0);
  header.scale = static_cast<float>(std::ldexp(1.0, -exponent));
  const Centring centred{centre, header.scale};
  header.unit = static_cast<float>(largest * header.scale / 127.0);
  const double unit = header.unit;
  const auto sum_of_squares = [&](const float* code, const auto& part_of) {
    double square[kLanes] = {};
    int64_t c = 0;
    for (; c + kLanes <= num_channels; c += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const double part = part_of(centred(code, c + lane));
        square[lane] += part * part;
      }
    }
    for (; c < num_channels; ++c) {
      const double part = part_of(centred(code, c));
      square[0] += part * part;
    }
    return sum_of_lanes(square);
  };
  const double largest_square =
      largest_of([&](const float* code) { return sum_of_squares(code, [](double b) { return b; }); });
  double largest_rounding = 0.0;
  if (format.type == ScreeningType::kBFloat16) {
    largest_rounding = largest_of([&](const float* code) {
      return sum_of_squares(
          code, [](double b) { return b - bfloat16_to_float(round_to_bfloat16(static_cast<float>(b))); });
    });
  } else if (format.type == ScreeningType::kInt8) {
    largest_rounding = largest_of([&](const float* code) {
      return sum_of_squares(code, [&](double b) { return b - int8_number(b / unit) * unit; });
    });
  }
  header.largest_norm = std::sqrt(largest_square) * (1 + 0x1p-20);
  header.largest_rounding = std::sqrt(largest_rounding) * (1 + 0x1p-20);
  header.num_groups = (header.num_distinct + format.width - 1) / format.width;
  return blank_groups_from(header.num_groups);
}

void pack_groups(const float* codebook, int64_t begin, int64_t end, void* packed) {
  DefaultFloatEnvironment environment;
  const PackedHeader& header = *static_cast<const PackedHeader*>(packed);
  const Sections at = sections(header.format, header.num_codes, header.num_channels);
  const int64_t width = header.format.width, num_channels = header.num_channels;
  const int64_t steps = num_steps(header.format, num_channels);
  const int64_t* codes = section<int64_t>(packed, at.codes);
  const Centring centred{section<float>(packed, at.centre), header.scale};
  for (int64_t group = begin; group < end; ++group) {
    uint32_t* target = section<uint32_t>(packed, at.panel) + group * steps * width;
    float* negated_half = section<float>(packed, at.negated_half) + group * width;
    const int64_t filled = std::min(width, header.num_distinct - group * width);
    for (int64_t k = 0; k < width; ++k) {
      if (k >= filled) {
        for (int64_t step = 0; step < steps; ++step) target[step * width + k] = 0;
        negated_half[k] = -std::numeric_limits<float>::infinity();
        continue;
      }
      const float* code = codebook + codes[group * width + k] * num_channels;
      double square[kLanes] = {};
      const auto next = [&](int64_t c) {
        const double b = centred(code, c);
        square[c % kLanes] += b * b;
        return b;
      };
      int64_t step = 0;
      if (header.format.type == ScreeningType::kFloat32) {
        for (; step < num_channels; ++step) {
          const float b = static_cast<float>(next(step));
          std::memcpy(target + step * width + k, &b, sizeof(b));
        }
      } else if (header.format.type == ScreeningType::kInt8) {
        int32_t sum = 0;
        for (step = 1; 4 * (step - 1) < num_channels; ++step) {
          int8_t numbers[4] = {};
          for (int64_t c = 4 * (step - 1); c < std::min(num_channels, 4 * step); ++c)
            numbers[c % 4] = static_cast<int8_t>(int8_number(next(c) / header.unit));
          sum += numbers[0] + numbers[1] + numbers[2] + numbers[3];
          std::memcpy(target + step * width + k, numbers, sizeof(numbers));
        }
        target[k] = static_cast<uint32_t>(-128 * sum);
      } else {
        for (; 2 * step < num_channels; ++step) {
          const uint32_t low = round_to_bfloat16(static_cast<float>(next(2 * step)));
          const bool pair = 2 * step + 1 < num_channels;
          const uint32_t high = pair ? round_to_bfloat16(static_cast<float>(next(2 * step + 1))) : 0;
          target[step * width + k] = low | high << 16;
        }
      }
      for (; step < steps; ++step) target[step * width + k] = 0;
      negated_half[k] = static_cast<float>(-0.5 * sum_of_lanes(square));
    }
  }
}

void pack_codebook(const ScreeningFormat& format, const float* codebook, int64_t num_codes, int64_t num_channels,
                   void* packed, const ParallelFor& parallel_for) {
  const int64_t num_groups = begin_packing(format, codebook, num_codes, num_channels, packed, parallel_for);
  parallel_for(num_groups, kGroupsPerTask,
               [&](int64_t begin, int64_t end) { pack_groups(codebook, begin, end, packed); });
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
  view.screenable = header.num_groups > 0;
  view.centre = reinterpret_cast<const float*>(block + at.centre);
  view.scale = header.scale;
  view.unit = header.unit;
  view.largest_norm = header.largest_norm;
  view.largest_rounding = header.largest_rounding;
  view.num_groups = header.num_groups;
  view.num_steps = num_steps(header.format, header.num_channels);
  view.panel = block + at.panel;
  view.negated_half = reinterpret_cast<const float*>(block + at.negated_half);
  return view;
}

}  // namespace soho
