#include <algorithm>
#include <atomic>
#include <vector>

#include "common/cpu_level.h"
#include "common/float_environment.h"
#include "common/memory.h"
#include "kernels/codebook_update/codebook_update.h"
#include "kernels/codebook_update/sorted_members.h"

namespace soho {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kSumBytes = 262144;  // of the sums that one thread works on: they stay in its cache
constexpr int64_t kPartsPerShare = 4;  // a code with more members than a share divided by this is cut into slices

struct Kernels {
  decltype(&add_members_scalar) add_members;
  decltype(&move_code_scalar) move_code;
};

Kernels kernels_of([[maybe_unused]] CpuLevel level) {
#ifdef SOHO_X86_LEVELS
  if (level >= CpuLevel::kAvx512) return {add_members_avx512, move_code_avx512};
#endif
#ifdef SOHO_VECTOR_LEVELS
  if (level >= CpuLevel::kAvx2) return {add_members_avx2, move_code_avx2};
#endif
  return {add_members_scalar, move_code_scalar};
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Some channels of the codes [first_code, end_code): the work of one thread.
struct Piece {
  int64_t first_code, end_code;
  int64_t first_channel, num_channels;
};

std::vector<int64_t> count_members(const SortedMembers& members, int64_t num_codes) {
  std::vector<int64_t> counts(num_codes, 0);
  for (int64_t block = 0; block < members.num_blocks(); ++block) {
    const uint32_t* starts = members.starts(block);
    for (int64_t j = 0; j < num_codes; ++j) counts[j] += starts[j + 1] - starts[j];
  }
  return counts;
}

// Ranges of codes with about as many members each, and slices of the channels of codes with many members; no cache line
// of the features belongs to two slices. The cost of a code is its members and the sum to be written.
std::vector<std::vector<Piece>> share_out(const CodebookUpdateArgs& args, const std::vector<int64_t>& counts,
                                          int64_t num_shares) {
  std::vector<std::vector<Piece>> shares(num_shares);
  int64_t total = args.num_codes;
  for (const int64_t count : counts) total += count;
  const auto is_sliced = [&](int64_t j) {
    return num_shares > 1 && (counts[j] + 1) * num_shares * kPartsPerShare > total;
  };
  int64_t total_in_ranges = 0;
  for (int64_t j = 0; j < args.num_codes; ++j) total_in_ranges += is_sliced(j) ? 0 : counts[j] + 1;
  const int64_t line = kLineBytes / element_size(args.features_type);
  const int64_t slice_channels = divide_up(divide_up(args.num_channels, num_shares), line) * line;
  int64_t first_code = 0, passed = 0, share = 0, num_sliced = 0;
  const auto end_range = [&](int64_t end_code) {
    if (first_code < end_code) shares[share].push_back({first_code, end_code, 0, args.num_channels});
    first_code = end_code;
  };
  for (int64_t j = 0; j < args.num_codes; ++j) {
    if (is_sliced(j)) {
      end_range(j);
      first_code = j + 1;
      for (int64_t c = 0, turn = num_sliced++; c < args.num_channels; c += slice_channels, ++turn)
        shares[turn % num_shares].push_back({j, j + 1, c, std::min(slice_channels, args.num_channels - c)});
      continue;
    }
    passed += counts[j] + 1;
    if (passed * num_shares < total_in_ranges * (share + 1)) continue;
    end_range(j + 1);
    share = std::min(num_shares - 1, passed * num_shares / total_in_ranges);
  }
  end_range(args.num_codes);
  return shares;
}

void update_piece(const Kernels& kernels, const CodebookUpdateArgs& args, const SortedMembers& members,
                  const std::vector<int64_t>& counts, const Piece& piece) {
  const float decay = static_cast<float>(args.decay), rest = static_cast<float>(1.0 - args.decay);
  const int64_t length = piece.num_channels;
  const int64_t most_codes =
      std::min(piece.end_code - piece.first_code,
               std::max<int64_t>(1, kSumBytes / static_cast<int64_t>(sizeof(double) * std::max<int64_t>(1, length))));
  const Scratch sum_memory(args.wide ? 0 : sizeof(double) * most_codes * length);
  const Scratch rounded_memory(args.moves_codebook ? sizeof(float) * most_codes * length : 0);
  for (int64_t first_code = piece.first_code; first_code < piece.end_code; first_code += most_codes) {
    const int64_t num_codes = std::min(most_codes, piece.end_code - first_code);
    const int64_t position = first_code * args.num_channels + piece.first_channel;
    double* sums = static_cast<double*>(args.wide ? args.sums : sum_memory.data()) + (args.wide ? position : 0);
    float* rounded = static_cast<float*>(args.moves_codebook ? rounded_memory.data() : args.sums);
    if (!args.moves_codebook) rounded += position;
    const int64_t rounded_stride = args.moves_codebook ? length : args.num_channels;
    for (int64_t block = 0; block < members.num_blocks(); ++block) {
      const void* features = row_at(args.features, members.first_row(block), args.row_stride, args.features_type);
      const bool rounds = !args.wide && block + 1 == members.num_blocks();
      kernels.add_members(
          {features, args.features_type, args.row_stride, members.rows(block), members.starts(block) + first_code,
           num_codes, piece.first_channel, length, block == 0, rounds ? rounded : nullptr, rounded_stride},
          sums, args.wide ? args.num_channels : length);
    }
    for (int64_t k = 0; k < num_codes && args.moves_codebook; ++k) {
      const int64_t count = counts[first_code + k];
      if (count == 0) continue;
      kernels.move_code(args.codebook + position + k * args.num_channels, rounded + k * rounded_stride,
                        static_cast<float>(count), decay, rest, length);
    }
  }
}

}  // namespace

int64_t update_codebook(CpuLevel level, const CodebookUpdateArgs& args, int64_t num_threads,
                        const ParallelFor& parallel_for) {
  SortedMembers members(args);
  std::atomic<int64_t> bad_row{-1};
  parallel_for(members.num_blocks(), 1, [&](int64_t begin, int64_t end) {
    const int64_t bad = members.sort(args, begin, end);
    if (bad >= 0) bad_row.store(bad);
  });
  if (bad_row.load() >= 0) return bad_row.load();

  const std::vector<int64_t> counts = count_members(members, args.num_codes);
  if (!args.moves_codebook && args.wide) std::copy(counts.begin(), counts.end(), static_cast<double*>(args.counts));
  if (!args.moves_codebook && !args.wide) std::copy(counts.begin(), counts.end(), static_cast<float*>(args.counts));
  const std::vector<std::vector<Piece>> shares = share_out(args, counts, std::max<int64_t>(1, num_threads));
  parallel_for(static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
    DefaultFloatEnvironment of_this_thread;
    for (int64_t share = begin; share < end; ++share) {
      for (const Piece& piece : shares[share]) update_piece(kernels_of(level), args, members, counts, piece);
    }
  });
  return -1;
}

void codebook_ema(CpuLevel level, const CodebookEmaArgs& args, int64_t begin, int64_t end) {
  DefaultFloatEnvironment of_this_thread;
  const auto move_code = kernels_of(level).move_code;
  const float decay = static_cast<float>(args.decay), rest = static_cast<float>(1.0 - args.decay);
  for (int64_t j = begin; j < end; ++j) {
    if (!(args.counts[j] > 0.0f)) continue;
    move_code(args.codebook + j * args.codebook_row_stride, args.sums + j * args.num_channels, args.counts[j], decay,
              rest, args.num_channels);
  }
}

}  // namespace soho
