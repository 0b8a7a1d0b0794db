#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "common/memory.h"
#include "kernels/codebook_lookup/packed_codebook.h"
#include "kernels/codebook_lookup/reduced.h"
#include "kernels/codebook_lookup/share.h"

namespace soho {
namespace {

constexpr int64_t kChannelsOfBFloat16 = 512;
constexpr int64_t kTrialRows = 28, kTrialGroups = 8;

// Some of the codes.
ScreenedCodes first_groups(ScreenedCodes screened, int64_t num_groups, int64_t width) {
  screened.num_groups = std::min(screened.num_groups, num_groups);
  screened.num_distinct = std::min(screened.num_distinct, screened.num_groups * width);
  return screened;
}

// Whether the reduced pass decides some rows among these codes: where it does not, packing all is not worth it.
bool reduced_pays(const ReducedPass& pass, const CodebookLookupArgs& args, const ScreenedCodes& screened,
                  const ReducedCodes& codes) {
  std::vector<int64_t> index(std::min(args.num_rows, kTrialRows), kUndecided);
  CodebookLookupArgs trial = args;
  trial.num_rows = static_cast<int64_t>(index.size());
  trial.index = index.data();
  trial.distance = nullptr;
  trial.guess = nullptr;
  return 4 * pass.run(trial, screened, codes, 0, trial.num_rows).reduced >= trial.num_rows;
}

// By the reduced pass, with what it reads of the codebook packed in `packed`, or from args.basis.
LookupCounts run_reduced(const ReducedPass& pass, const CodebookLookupArgs& args, const ScreenedCodes& screened,
                         const void* packed, int64_t num_directions, const ParallelFor& parallel_for) {
  std::optional<Scratch> memory;
  const void* block = packed;
  if (block == nullptr) {
    memory.emplace(reduced_codes_bytes(pass, args.num_codes, args.num_channels, num_directions));
    pack_directions(pass, args.num_codes, args.num_channels, args.basis, num_directions, screened, memory->data());
    block = memory->data();
  }
  const ReducedCodes codes = reduced_codes(pass, args.num_codes, args.num_channels, num_directions, block);
  if (!codes.usable) return {};
  if (packed == nullptr) {
    const ScreenedCodes some = first_groups(screened, kTrialGroups, pass.width);
    pack_reduced_codes(pass, args.codebook, args.num_channels, some, codes, parallel_for);
    if (!reduced_pays(pass, args, some, codes)) return {};
    if (some.num_groups < screened.num_groups)
      pack_reduced_codes(pass, args.codebook, args.num_channels, screened, codes, parallel_for);
  }
  std::atomic<int64_t> reduced{0}, compared{0};
  parallel_for(args.num_rows, rows_per_task(args.num_rows), [&](int64_t begin, int64_t end) {
    const LookupCounts part = pass.run(args, screened, codes, begin, end);
    reduced += part.reduced;
    compared += part.compared;
  });
  return {reduced, compared, 0};
}

std::vector<LookupPass> euclidean_passes(CpuLevel level) {
  switch (level) {
#ifdef SOHO_AMX_LEVEL
    case CpuLevel::kAmx:
      return {{kFormatAmx, screen_amx}, {kFormatAvx512, screen_avx512}, {kNothingScreened, compare_all_avx512}};
#endif
#ifdef SOHO_X86_LEVELS
    case CpuLevel::kAvx512Vnni:
      return {{kFormatAvx512Vnni, screen_avx512_vnni},
              {kFormatAvx512, screen_avx512},
              {kNothingScreened, compare_all_avx512}};
    case CpuLevel::kAvx512Bf16:
      return {{kFormatAvx512Bf16, screen_avx512_bf16},
              {kFormatAvx512, screen_avx512},
              {kNothingScreened, compare_all_avx512}};
    case CpuLevel::kAvx512:
      return {{kFormatAvx512, screen_avx512}, {kNothingScreened, compare_all_avx512}};
    case CpuLevel::kAvx2:
      return {{kFormatAvx2, screen_avx2}, {kNothingScreened, compare_all_avx2}};
#endif
    default:
      return {{kNothingScreened, compare_all_scalar}};
  }
}

}  // namespace

std::vector<LookupPass> passes_of(CpuLevel level, Metric metric) {
  std::vector<LookupPass> passes = euclidean_passes(level);
  for (LookupPass& pass : passes) pass.format.metric = metric;
  return passes;
}

const ReducedPass* reduced_pass_of(CpuLevel level, int64_t num_channels, Metric metric) {
  if (metric != Metric::kEuclidean) return nullptr;
  switch (level) {
#ifdef SOHO_X86_LEVELS
    case CpuLevel::kAmx:
    case CpuLevel::kAvx512Vnni:
    case CpuLevel::kAvx512Bf16:
      // Where many channels lie outside the directions, more of them say more than exact ones do.
      if (num_channels >= kChannelsOfBFloat16 && num_channels <= kMaxInt8Channels &&
          cpu_level_available(CpuLevel::kAvx512Bf16) && cpu_level_available(CpuLevel::kAvx512Vnni))
        return &kReducedAvx512Bf16;
      return cpu_level_available(CpuLevel::kAvx512Vnni) ? &kReducedAvx512Vnni : &kReducedAvx512;
    case CpuLevel::kAvx512:
      return &kReducedAvx512;
    case CpuLevel::kAvx2:
      return &kReducedAvx2;
#endif
    default:
      return nullptr;
  }
}

std::vector<LookupCounts> run_passes(const std::vector<LookupPass>& passes, const ReducedPass* reduced,
                                     const FewRows* few, const CodebookLookupArgs& args, const void* packed,
                                     const ParallelFor& parallel_for) {
  std::vector<LookupCounts> counts(passes.size());
  std::optional<Scratch> memory;
  ScreenedCodes screened{};
  LookupCounts front;
  bool few_are_next = few != nullptr && (packed != nullptr || args.num_rows > most_few_rows(args.num_channels));
  for (size_t p = 0; p < passes.size() && (p == 0 || counts[p - 1].undecided > 0); ++p) {
    const LookupPass& pass = passes[p];
    LookupCounts by_few;
    if (packed != nullptr && packed_codebook_fits(packed, pass.format, args.num_codes, args.num_channels)) {
      screened = screened_codes(packed);
    } else if (p == 0 || pass.format.width > 0) {  // any packed codebook lists the distinct codes
      if (p > 0 && few_are_next && counts[p - 1].undecided <= most_left_rows(args.num_channels)) {
        few_are_next = false;
        by_few = compare_few(*few, args, undecided_rows(args), parallel_for);
        counts[p].compared = by_few.compared;
        if (by_few.undecided == 0) break;
      }
      memory.emplace(packed_codebook_bytes(pass.format, args.num_codes, args.num_channels));
      pack_codebook(pass.format, args.codebook, args.num_codes, args.num_channels, memory->data(), parallel_for);
      screened = screened_codes(memory->data());
    }
    if (p == 0 && reduced != nullptr && args.num_rows >= kFewestReducedRows) {
      const bool fits =
          packed != nullptr && packed_codebook_fits(packed, pass.format, args.num_codes, args.num_channels);
      const int64_t directions_packed = fits ? packed_directions(packed) : 0;
      const int64_t num_directions = directions_packed > 0 ? directions_packed : args.num_directions;
      const void* block =
          directions_packed > 0
              ? static_cast<const char*>(packed) + packed_codebook_bytes(pass.format, args.num_codes, args.num_channels)
              : nullptr;
      if (num_directions > 0) front = run_reduced(*reduced, args, screened, block, num_directions, parallel_for);
    }
    counts[p] = run_shared(pass, few, args, screened, parallel_for);
    counts[p].compared += by_few.compared;
  }
  counts[0].reduced = front.reduced;
  counts[0].compared += front.compared;
  return counts;
}

LookupCounts codebook_lookup(CpuLevel level, const CodebookLookupArgs& args, const void* packed,
                             const ParallelFor& parallel_for) {
  std::fill(args.index, args.index + args.num_rows, kUndecided);
  LookupCounts total;
  const FewRows* few = few_rows_of(level, args);
  if (packed == nullptr && few != nullptr && args.num_rows <= most_few_rows(args.num_channels)) {
    total = compare_few(*few, args, undecided_rows(args), parallel_for);
    if (total.undecided == 0) return total;
  }
  const bool one_nearest = args.metric == Metric::kEuclidean && args.topk == 1;
  const ReducedPass* reduced = one_nearest ? reduced_pass_of(level, args.num_channels, args.metric) : nullptr;
  const std::vector<LookupCounts> counts =
      run_passes(passes_of(level, args.metric), reduced, few, args, packed, parallel_for);
  total.reduced = counts.front().reduced;
  total.undecided = counts.front().undecided;
  for (const LookupCounts& pass : counts) total.compared += pass.compared;
  return total;
}

CpuLevel lookup_level(int64_t num_channels) {
  const CpuLevel level = active_cpu_level();
  if (level != CpuLevel::kAvx512Vnni || cpu_level_forced()) return level;
  if (num_channels <= 4) return CpuLevel::kAvx512;
  return num_channels <= 8 && cpu_level_available(CpuLevel::kAvx512Bf16) ? CpuLevel::kAvx512Bf16 : level;
}

size_t packed_codebook_bytes(CpuLevel level, int64_t num_codes, int64_t num_channels, int64_t num_directions,
                             Metric metric) {
  const size_t bytes = packed_codebook_bytes(passes_of(level, metric).front().format, num_codes, num_channels);
  const ReducedPass* reduced = reduced_pass_of(level, num_channels, metric);
  if (reduced == nullptr || num_directions == 0) return bytes;
  return bytes + reduced_codes_bytes(*reduced, num_codes, num_channels, num_directions);
}

void pack_codebook(CpuLevel level, const float* codebook, int64_t num_codes, int64_t num_channels, const float* basis,
                   int64_t num_directions, void* packed, const ParallelFor& parallel_for, Metric metric) {
  const ScreeningFormat format = passes_of(level, metric).front().format;
  pack_codebook(format, codebook, num_codes, num_channels, packed, parallel_for);
  const ReducedPass* reduced = reduced_pass_of(level, num_channels, metric);
  if (reduced == nullptr || num_directions == 0) return;
  set_packed_directions(packed, num_directions);
  void* block = static_cast<char*>(packed) + packed_codebook_bytes(format, num_codes, num_channels);
  const ScreenedCodes screened = screened_codes(packed);
  pack_directions(*reduced, num_codes, num_channels, basis, num_directions, screened, block);
  const ReducedCodes codes = reduced_codes(*reduced, num_codes, num_channels, num_directions, block);
  if (codes.usable) pack_reduced_codes(*reduced, codebook, num_channels, screened, codes, parallel_for);
}

bool packed_codebook_is(CpuLevel level, int64_t num_codes, int64_t num_channels, Metric metric, const void* packed,
                        size_t bytes) {
  const ScreeningFormat format = passes_of(level, metric).front().format;
  if (bytes < packed_codebook_bytes(format, num_codes, num_channels)) return false;
  return packed_codebook_fits(packed, format, num_codes, num_channels) &&
         packed_codebook_bytes(level, num_codes, num_channels, packed_directions(packed), metric) == bytes;
}

int64_t gather_codes(const GatherCodesArgs& args, int64_t begin, int64_t end) {
  const char* codebook = static_cast<const char*>(args.codebook);
  char* output = static_cast<char*>(args.output);
  int64_t first_bad = -1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t code = args.index[i];
    if (code >= args.num_codes) {
      if (first_bad < 0) first_bad = i;
    } else if (code < 0) {
      std::memset(output + i * args.row_bytes, 0, args.row_bytes);
    } else {
      std::memcpy(output + i * args.row_bytes, codebook + code * args.row_bytes, args.row_bytes);
    }
  }
  return first_bad;
}

}  // namespace soho
