#include <algorithm>

#include "common/cpu_level.h"
#include "common/memory.h"
#include "kernels/codebook_update/codebook_update.h"

namespace soho {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kBlockRows = 512;

struct Kernels {
  decltype(&add_members_scalar) add_members;
  decltype(&move_code_scalar) move_code;
};

Kernels kernels_of([[maybe_unused]] CpuLevel level) {
#ifdef SOHO_X86_LEVELS
  if (level >= CpuLevel::kAvx512) return {add_members_avx512, move_code_avx512};
  if (level >= CpuLevel::kAvx2) return {add_members_avx2, move_code_avx2};
#endif
  return {add_members_scalar, move_code_scalar};
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t find_bad_index(const CodebookUpdateArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (args.index[i] >= args.num_codes && (args.valid == nullptr || args.valid[i])) return i;
  }
  return -1;
}

// Slices first, since each costs the same whatever the index holds; as wide as there are threads, since long runs of
// channels are what the memory is fast at.
UpdateParts update_parts(const CodebookUpdateArgs& args, int64_t num_threads) {
  const int64_t channels = std::max<int64_t>(1, args.num_channels), codes = std::max<int64_t>(1, args.num_codes);
  const int64_t line = kLineBytes / element_size(args.features_type);  // channels; a line belongs to one slice
  UpdateParts parts{};
  parts.slice_channels = std::min(channels, divide_up(divide_up(channels, num_threads), line) * line);
  parts.num_slices = divide_up(channels, parts.slice_channels);
  parts.range_codes = divide_up(codes, std::min(codes, divide_up(num_threads, parts.num_slices)));
  parts.num_ranges = divide_up(codes, parts.range_codes);
  return parts;
}

void update_codebook(CpuLevel level, const CodebookUpdateArgs& args, const UpdateParts& parts, int64_t begin,
                     int64_t end) {
  const auto [add_members, move_code] = kernels_of(level);
  const float decay = static_cast<float>(args.decay), rest = static_cast<float>(1.0 - args.decay);
  const Scratch sum_memory(args.moves_codebook ? sizeof(float) * parts.range_codes * parts.slice_channels : 0),
      count_memory(sizeof(int64_t) * parts.range_codes);
  int64_t* counts = static_cast<int64_t*>(count_memory.data());
  int64_t rows[kBlockRows], codes[kBlockRows];
  for (int64_t part = begin; part < end; ++part) {
    const int64_t slice = part % parts.num_slices, range = part / parts.num_slices;
    const int64_t first_code = range * parts.range_codes, first_channel = slice * parts.slice_channels;
    const int64_t num_codes = std::min(parts.range_codes, args.num_codes - first_code);
    const int64_t length = std::min(parts.slice_channels, args.num_channels - first_channel);
    const int64_t position = first_code * args.num_channels + first_channel;
    float* sums = args.moves_codebook ? static_cast<float*>(sum_memory.data()) : args.sums + position;
    const int64_t sum_stride = args.moves_codebook ? length : args.num_channels;
    for (int64_t j = 0; j < num_codes; ++j) std::fill(sums + j * sum_stride, sums + j * sum_stride + length, 0.0f);
    std::fill(counts, counts + num_codes, 0);
    for (int64_t i = 0; i < args.num_rows;) {
      int64_t num_members = 0;
      for (const int64_t block_end = std::min(args.num_rows, i + kBlockRows); i < block_end; ++i) {
        const uint64_t code = static_cast<uint64_t>(args.index[i]) - static_cast<uint64_t>(first_code);
        const bool counted = args.valid == nullptr || args.valid[i];
        rows[num_members] = i;
        codes[num_members] = static_cast<int64_t>(code);
        num_members += counted && code < static_cast<uint64_t>(num_codes);  // a negative index is no small number
      }
      for (int64_t m = 0; m < num_members; ++m) ++counts[codes[m]];
      add_members({args.features, args.features_type, args.row_stride, rows, codes, num_members, first_channel, length},
                  sums, sum_stride);
    }
    for (int64_t j = 0; j < num_codes; ++j) {
      const float count = static_cast<float>(counts[j]);
      if (!args.moves_codebook) {
        if (slice == 0) args.counts[first_code + j] = count;
      } else if (counts[j] > 0) {
        move_code(args.codebook + position + j * args.num_channels, sums + j * sum_stride, count, decay, rest, length);
      }
    }
  }
}

void codebook_ema(CpuLevel level, const CodebookEmaArgs& args, int64_t begin, int64_t end) {
  const auto move_code = kernels_of(level).move_code;
  const float decay = static_cast<float>(args.decay), rest = static_cast<float>(1.0 - args.decay);
  for (int64_t j = begin; j < end; ++j) {
    if (!(args.counts[j] > 0.0f)) continue;
    move_code(args.codebook + j * args.codebook_row_stride, args.sums + j * args.num_channels, args.counts[j], decay,
              rest, args.num_channels);
  }
}

}  // namespace soho
