#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "common/float_environment.h"
#include "kernels/codebook_lookup/pruning.h"

namespace soho {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kGroupsPerTask = 2, kCodesPerTask = 56;
constexpr int64_t kMostSampled = 64;  // codes that say in which direction they are halved

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The block: usable and factor, then the parts of PruningCodes, each aligned to a cache line; every byte is written.
struct PruningHeader {
  int32_t usable;
  float factor;
};

struct Sections {
  int64_t subspace, panel, negated_half, radius, group_length, group_error, coarse_panel, coarse_unit, coarse_error,
      order, place, sifted, numbers, end;  // bytes from the start of the block
};

int64_t rounded_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

Sections sections(const PruningPass& pass, int64_t num_codes, int64_t num_channels, int64_t num_directions) {
  const int64_t directions = rounded_up(num_directions, kDirectionMultiple);
  const int64_t groups = (num_codes + pass.width - 1) / pass.width;
  Sections at{};
  at.subspace = aligned(sizeof(PruningHeader));
  at.panel = at.subspace + aligned(4 * rounded_up(directions, pass.width) * pruning_steps(pass.type, num_channels));
  at.negated_half = at.panel + aligned(4 * groups * pass.width * pruning_steps(pass.type, directions));
  at.radius = at.negated_half + aligned(4 * groups * pass.width);
  at.group_length = at.radius + aligned(4 * groups * pass.width);
  at.group_error = at.group_length + aligned(4 * groups);
  at.coarse_panel = at.group_error + aligned(4 * groups);
  at.coarse_unit = at.coarse_panel + (pass.coarse ? aligned(4 * groups * pass.width * coarse_steps(directions)) : 0);
  at.coarse_error = at.coarse_unit + (pass.coarse ? aligned(4 * groups) : 0);
  at.order = at.coarse_error + (pass.coarse ? aligned(4 * groups) : 0);
  at.place = at.order + aligned(4 * num_codes);
  at.sifted = at.place + aligned(4 * num_codes);
  at.numbers = at.sifted + (pass.sifts ? aligned(num_codes * sizeof(SiftedCode)) : 0);
  at.end = at.numbers + (pass.sifts ? num_codes * sifted_channels(num_channels) : 0);
  return at;
}

float to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

// At least the spectral norm of the columns (num_channels, num_directions), all finite; 0 where they are zero.
// With t the mean square of their lengths, |V|^2 = t |I + E|, and |E|^8 is at most the trace of E^8 = |E^4|^2.
double norm_bound(const std::vector<float>& columns, int64_t num_channels, int64_t num_directions) {
  const int64_t size = num_directions;
  std::vector<double> products(size * size, 0.0), square(size * size);
  for (int64_t c = 0; c < num_channels; ++c) {
    const float* row = columns.data() + c * size;
    for (int64_t k = 0; k < size; ++k) {
      const double value = row[k];
      double* target = products.data() + k * size;
      for (int64_t l = 0; l < size; ++l) target[l] += value * row[l];
    }
  }
  double mean = 0.0;
  for (int64_t k = 0; k < size; ++k) mean += products[k * size + k] / static_cast<double>(size);
  if (mean == 0.0) return 0.0;
  for (double& product : products) product /= mean;
  for (int64_t k = 0; k < size; ++k) products[k * size + k] -= 1.0;
  for (int times = 0; times < 2; ++times) {
    std::fill(square.begin(), square.end(), 0.0);
    for (int64_t k = 0; k < size; ++k) {
      for (int64_t m = 0; m < size; ++m) {
        const double value = products[k * size + m];
        for (int64_t l = 0; l < size; ++l) square[k * size + l] += value * products[m * size + l];
      }
    }
    products.swap(square);
  }
  double length = 0.0;
  for (double product : products) length += product * product;
  // The products are exact to 2^-50 or so of what they sum, which is at most the number of directions.
  return std::sqrt(mean * (1.0 + std::pow(length, 0.125))) * (1 + 0x1p-20);
}

// Orders codes so that every `width` adjacent ones lie close together: halves them, by whole groups, in the direction
// of the largest variance. Any order is right.
void gather_neighbours(const std::vector<float>& directions, int64_t num_directions, int64_t width, int32_t* begin,
                       int32_t* end) {
  const int64_t count = end - begin;
  if (count <= width) return;
  std::vector<double> sum(num_directions, 0.0), square(num_directions, 0.0);
  const int64_t step = (count + kMostSampled - 1) / kMostSampled;
  double num_sampled = 0.0;
  for (int64_t n = 0; n < count; n += step, ++num_sampled) {
    const float* code = directions.data() + begin[n] * num_directions;
    for (int64_t k = 0; k < num_directions; ++k) {
      sum[k] += code[k];
      square[k] += static_cast<double>(code[k]) * code[k];
    }
  }
  int64_t widest = 0;
  double variance = 0.0;
  for (int64_t k = 0; k < num_directions; ++k) {
    const double of_direction = square[k] - sum[k] * sum[k] / num_sampled;
    if (of_direction > variance) {
      variance = of_direction;
      widest = k;
    }
  }
  int32_t* middle = begin + (count + width - 1) / width / 2 * width;
  std::nth_element(begin, middle, end, [&](int32_t a, int32_t b) {
    const float of_a = directions[a * num_directions + widest], of_b = directions[b * num_directions + widest];
    return of_a < of_b || (of_a == of_b && a < b);
  });
  gather_neighbours(directions, num_directions, width, begin, middle);
  gather_neighbours(directions, num_directions, width, middle, end);
}

}  // namespace

size_t pruning_codes_bytes(const PruningPass& pass, int64_t num_codes, int64_t num_channels, int64_t num_directions) {
  return static_cast<size_t>(sections(pass, num_codes, num_channels, num_directions).end);
}

PruningCodes pruning_codes(const PruningPass& pass, int64_t num_codes, int64_t num_channels, int64_t num_directions,
                           const void* block) {
  const Sections at = sections(pass, num_codes, num_channels, num_directions);
  const char* bytes = static_cast<const char*>(block);
  const PruningHeader& header = *static_cast<const PruningHeader*>(block);
  const auto floats = [&](int64_t offset) { return reinterpret_cast<const float*>(bytes + offset); };
  PruningCodes view{};
  view.usable = header.usable != 0;
  view.num_directions = rounded_up(num_directions, kDirectionMultiple);
  view.factor = header.factor;
  view.subspace = bytes + at.subspace;
  view.panel = bytes + at.panel;
  view.negated_half = floats(at.negated_half);
  view.radius = floats(at.radius);
  view.group_length = floats(at.group_length);
  view.group_error = floats(at.group_error);
  view.coarse_panel = floats(at.coarse_panel);
  view.coarse_unit = floats(at.coarse_unit);
  view.coarse_error = floats(at.coarse_error);
  view.order = reinterpret_cast<const int32_t*>(bytes + at.order);
  view.place = reinterpret_cast<const int32_t*>(bytes + at.place);
  view.sifted = reinterpret_cast<const SiftedCode*>(bytes + at.sifted);
  view.numbers = reinterpret_cast<const int8_t*>(bytes + at.numbers);
  return view;
}

void pack_directions(const PruningPass& pass, int64_t num_codes, int64_t num_channels, const float* subspace,
                     int64_t num_directions, const ScreenedCodes& screened, void* block) {
  DefaultFloatEnvironment environment;
  const Sections at = sections(pass, num_codes, num_channels, num_directions);
  std::memset(block, 0, at.end);
  std::fill_n(reinterpret_cast<int32_t*>(static_cast<char*>(block) + at.place), num_codes, -1);
  const int64_t num_values = num_channels * num_directions, width = pass.width;
  float largest = 0.0f;
  bool finite = true;
  for (int64_t n = 0; n < num_values; ++n) {
    finite &= std::isfinite(subspace[n]);
    largest = std::max(largest, std::abs(subspace[n]));
  }
  if (!screened.screenable || !finite || largest == 0.0f || num_directions > kMostDirections) return;

  int exponent;
  std::frexp(largest, &exponent);
  std::vector<float> columns(num_values);  // as they are screened: scaled by a power of two, rounded
  for (int64_t n = 0; n < num_values; ++n) {
    const float scaled = std::ldexp(subspace[n], -exponent);
    columns[n] = pass.type == ScreeningType::kBFloat16 ? to_bfloat16(scaled) : scaled;
  }
  const double norm = norm_bound(columns, num_channels, num_directions);
  const float factor = static_cast<float>((1.0 - 0x1p-22) / norm);
  if (!(factor > 0.0f && factor <= 0x1p20f)) return;

  char* words = static_cast<char*>(block) + at.subspace;
  const int64_t steps = pruning_steps(pass.type, num_channels);
  for (int64_t c = 0; c < num_channels; ++c) {
    for (int64_t k = 0; k < num_directions; ++k) {
      const float value = columns[c * num_directions + k];
      if (pass.type == ScreeningType::kBFloat16) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        const uint16_t upper = static_cast<uint16_t>(bits >> 16);
        const int64_t word = (k / width * steps + c / 2) * width + k % width;
        std::memcpy(words + 4 * word + 2 * (c % 2), &upper, sizeof(upper));
      } else {
        std::memcpy(words + 4 * ((k / width * steps + c) * width + k % width), &value, sizeof(value));
      }
    }
  }
  new (block) PruningHeader{1, factor};
}

void pack_pruning_codes(const PruningPass& pass, const float* codebook, int64_t num_channels,
                        const ScreenedCodes& screened, const PruningCodes& pruning, const ParallelFor& parallel_for) {
  const int64_t num_codes = screened.num_distinct;
  std::vector<float> directions(num_codes * pruning.num_directions);
  std::vector<RowLengths> lengths(num_codes);
  parallel_for(num_codes, kCodesPerTask, [&](int64_t begin, int64_t end) {
    pass.project(codebook, num_channels, screened, pruning, begin, end,
                 directions.data() + begin * pruning.num_directions, lengths.data() + begin);
  });
  int32_t* order = const_cast<int32_t*>(pruning.order);
  std::iota(order, order + num_codes, 0);
  gather_neighbours(directions, pruning.num_directions, pass.width, order, order + num_codes);
  for (int64_t n = 0; n < num_codes; ++n)
    const_cast<int32_t*>(pruning.place)[screened.codes[order[n]]] = static_cast<int32_t>(n);
  parallel_for(screened.num_groups, kGroupsPerTask, [&](int64_t begin, int64_t end) {
    pass.pack_groups(codebook, num_channels, screened, pruning, directions.data(), lengths.data(), begin, end);
  });
}

}  // namespace soho
