#include <algorithm>

#include "common/cpu_level.h"
#include "common/memory.h"
#include "kernels/codebook_update/codebook_update.h"

namespace soho {
namespace {

constexpr int64_t kSliceChannels = 64;  // four cache lines of float32: the grain at which threads share one code

struct Kernels {
  decltype(&sum_slice_scalar) sum_slice;
  decltype(&move_code_scalar) move_code;
};

Kernels kernels_of([[maybe_unused]] CpuLevel level) {
#ifdef SOHO_X86_LEVELS
  if (level >= CpuLevel::kAvx2) return {sum_slice_avx2, move_code_avx2};
#endif
  return {sum_slice_scalar, move_code_scalar};
}

int64_t num_slices(const CodebookUpdateArgs& args) {
  return std::max<int64_t>(1, (args.num_channels + kSliceChannels - 1) / kSliceChannels);
}

}  // namespace

int64_t list_members(const CodebookUpdateArgs& args) {
  int64_t* offsets = args.members.offsets;
  std::fill(offsets, offsets + args.num_codes + 1, 0);
  const auto counted = [&](int64_t i) { return args.index[i] >= 0 && (args.valid == nullptr || args.valid[i]); };
  for (int64_t i = 0; i < args.num_rows; ++i) {
    if (!counted(i)) continue;
    if (args.index[i] >= args.num_codes) return i;
    ++offsets[args.index[i] + 1];
  }
  for (int64_t j = 0; j < args.num_codes; ++j) offsets[j + 1] += offsets[j];
  // Placing advances each start to its end, which is the next code's start: shift back afterwards.
  for (int64_t i = 0; i < args.num_rows; ++i) {
    if (counted(i)) args.members.rows[offsets[args.index[i]]++] = i;
  }
  for (int64_t j = args.num_codes; j > 0; --j) offsets[j] = offsets[j - 1];
  offsets[0] = 0;
  return -1;
}

// A slice of a code weighs its members plus one, so that empty codes are shared as well.
int64_t update_work(const CodebookUpdateArgs& args) {
  return (args.members.offsets[args.num_codes] + args.num_codes) * num_slices(args);
}

void update_members(CpuLevel level, const CodebookUpdateArgs& args, int64_t begin, int64_t end) {
  const int64_t* offsets = args.members.offsets;
  const int64_t slices = num_slices(args);
  const auto work_before = [&](int64_t j) { return (offsets[j] + j) * slices; };
  const auto [sum_slice, move_code] = kernels_of(level);
  const float decay = static_cast<float>(args.decay), rest = static_cast<float>(1.0 - args.decay);
  const Scratch scratch(args.moves_codebook ? sizeof(float) * args.num_channels : 0);

  int64_t low = 0, high = args.num_codes;  // the last code whose work starts at or before `begin`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (work_before(middle) <= begin ? low : high) = middle;
  }
  for (int64_t j = low; j < args.num_codes && work_before(j) < end; ++j) {
    const int64_t num_members = offsets[j + 1] - offsets[j], weight = num_members + 1, start = work_before(j);
    // A slice belongs to the part in which its work starts.
    const int64_t first = begin <= start ? 0 : std::min(slices, (begin - start + weight - 1) / weight);
    const int64_t last = std::min(slices, (end - start + weight - 1) / weight);
    if (first >= last) continue;
    const MemberSlice slice{args.features,
                            args.features_type,
                            args.row_stride,
                            args.members.rows + offsets[j],
                            num_members,
                            first * kSliceChannels,
                            std::min(args.num_channels, last * kSliceChannels)};
    const int64_t position = j * args.num_channels + slice.begin;
    if (!args.moves_codebook) {
      sum_slice(slice, args.sums + position);
      if (first == 0) args.counts[j] = static_cast<float>(num_members);
    } else if (num_members > 0) {
      float* sums = static_cast<float*>(scratch.data());
      sum_slice(slice, sums);
      move_code(args.codebook + position, sums, static_cast<float>(num_members), decay, rest, slice.end - slice.begin);
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
