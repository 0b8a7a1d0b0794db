#include <algorithm>
#include <cstring>

#include "kernels/codebook_lookup/packed_codebook.h"
#include "kernels/codebook_lookup/plan.h"
#include "kernels/codebook_lookup/pruning.h"

namespace soho {
namespace {

constexpr int64_t kChannelsSifted = 512;  // in int8, from here on
// To round a row takes as long as to compare it with so few codes, or so few numbers of codes.
constexpr int64_t kFewestRoundedFor = 64, kFewestNumbersRoundedFor = 2048;
// Up to here int8, which rounds a row in two passes, saves less than bfloat16 decides.
constexpr int64_t kMostCodesBf16 = 512, kMostChannelsBf16 = 32;

std::vector<LookupPass> euclidean_passes(CpuLevel level) {
  switch (level) {
#ifdef SOHO_AMX_LEVEL
    case CpuLevel::kAmx:
      return {{kFormatAmx, screen_amx}, {kFormatAvx512, screen_avx512}, {kNothingScreened, compare_all_avx512}};
#endif
#ifdef SOHO_X86_LEVELS
    case CpuLevel::kAvx512Vnni:
      // Bfloat16 decides what is too coarse for int8: codes of which some are many times as large as others.
      if (!cpu_level_forced() && cpu_level_available(CpuLevel::kAvx512Bf16))
        return {{kFormatAvx512Vnni, screen_avx512_vnni},
                {kFormatAvx512Bf16, screen_avx512_bf16},
                {kFormatAvx512, screen_avx512},
                {kNothingScreened, compare_all_avx512}};
      return {{kFormatAvx512Vnni, screen_avx512_vnni},
              {kFormatAvx512, screen_avx512},
              {kNothingScreened, compare_all_avx512}};
    case CpuLevel::kAvx512Bf16:
      return {{kFormatAvx512Bf16, screen_avx512_bf16},
              {kFormatAvx512, screen_avx512},
              {kNothingScreened, compare_all_avx512}};
    case CpuLevel::kAvx512:
      return {{kFormatAvx512, screen_avx512}, {kNothingScreened, compare_all_avx512}};
#endif
#ifdef SOHO_VECTOR_LEVELS
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

const PruningPass* pruning_pass_of(CpuLevel level, [[maybe_unused]] int64_t num_channels, Metric metric) {
  if (metric != Metric::kEuclidean) return nullptr;
  switch (level) {
#ifdef SOHO_X86_LEVELS
    case CpuLevel::kAmx:
    case CpuLevel::kAvx512Vnni:
    case CpuLevel::kAvx512Bf16:
      if (!cpu_level_available(CpuLevel::kAvx512Vnni)) return &kPruningAvx512;
      if (num_channels < kChannelsSifted || num_channels > kMaxInt8Channels) return &kPruningAvx512Vnni;
      // Where many channels lie outside the directions, more of them say more than exact ones do. A level that is
      // forced stands for processors that have no more than it.
      if (level == CpuLevel::kAvx512Vnni && (cpu_level_forced() || !cpu_level_available(CpuLevel::kAvx512Bf16)))
        return &kPruningAvx512Int8;
      return &kPruningAvx512Bf16;
    case CpuLevel::kAvx512:
      return &kPruningAvx512;
#endif
#ifdef SOHO_VECTOR_LEVELS
    case CpuLevel::kAvx2:
      return &kPruningAvx2;
#endif
    default:
      return nullptr;
  }
}

const FewRows* few_rows_of(CpuLevel level, Metric metric) {
  if (metric != Metric::kEuclidean) return nullptr;
  switch (level) {
#ifdef SOHO_X86_LEVELS
    case CpuLevel::kAmx:
    case CpuLevel::kAvx512Vnni:
    case CpuLevel::kAvx512Bf16:
    case CpuLevel::kAvx512:
      return &kFewRowsAvx512;
#endif
#ifdef SOHO_VECTOR_LEVELS
    case CpuLevel::kAvx2:
      return &kFewRowsAvx2;
#endif
    default:
      return nullptr;
  }
}

LookupPlan plan_of(CpuLevel level, const CodebookLookupArgs& args, const void* packed) {
  const bool has_directions = args.num_directions > 0 || (packed != nullptr && packed_directions(packed) > 0);
  const bool may_prune = has_directions && args.num_rows >= kFewestPruningRows && args.topk == 1;
  const PruningPass* pruning = may_prune ? pruning_pass_of(level, args.num_channels, args.metric) : nullptr;
  const FewRows* few = few_rows_of(level, args.metric);
  return make_plan(passes_of(level, args.metric), pruning, few, args.num_rows, args.num_channels, packed != nullptr);
}

LookupCounts codebook_lookup(CpuLevel level, const CodebookLookupArgs& args, const void* packed,
                             const ParallelFor& parallel_for) {
  std::fill(args.index, args.index + args.num_rows, kUndecided);
  const ScreeningFormat format = passes_of(level, args.metric).front().format;
  if (packed != nullptr && !packed_codebook_fits(packed, format, args.num_codes, args.num_channels)) packed = nullptr;
  PackedCodebook codebook(args, packed);
  return run_plan(plan_of(level, args, packed), args, codebook, parallel_for);
}

CpuLevel lookup_level(int64_t num_codes, int64_t num_channels) {
  const CpuLevel level = active_cpu_level();
  if (level < CpuLevel::kAvx512Vnni || cpu_level_forced()) return level;
  const bool few_codes = num_codes <= kFewestRoundedFor;
  if (level == CpuLevel::kAmx) return num_channels <= 8 || (few_codes && num_channels < 64) ? CpuLevel::kAvx512 : level;
  const bool has_bf16 = cpu_level_available(CpuLevel::kAvx512Bf16);
  if (num_channels <= 4 || (few_codes && (!has_bf16 || num_codes * num_channels < kFewestNumbersRoundedFor)))
    return CpuLevel::kAvx512;
  const bool is_small = num_codes <= kMostCodesBf16 && num_channels <= kMostChannelsBf16;
  return has_bf16 && (num_channels <= 8 || few_codes || is_small) ? CpuLevel::kAvx512Bf16 : level;
}

size_t packed_codebook_bytes(CpuLevel level, int64_t num_codes, int64_t num_channels, int64_t num_directions,
                             Metric metric) {
  const size_t bytes = packed_codebook_bytes(passes_of(level, metric).front().format, num_codes, num_channels);
  const PruningPass* pruning = num_directions > 0 ? pruning_pass_of(level, num_channels, metric) : nullptr;
  if (pruning == nullptr) return bytes;
  return bytes + pruning_codes_bytes(*pruning, num_codes, num_channels, num_directions);
}

void pack_codebook(CpuLevel level, const float* codebook, int64_t num_codes, int64_t num_channels,
                   const float* subspace, int64_t num_directions, void* packed, const ParallelFor& parallel_for,
                   Metric metric) {
  const ScreeningFormat format = passes_of(level, metric).front().format;
  pack_codebook(format, codebook, num_codes, num_channels, packed, parallel_for);
  const PruningPass* pruning = num_directions > 0 ? pruning_pass_of(level, num_channels, metric) : nullptr;
  if (pruning == nullptr) return;
  set_packed_directions(packed, num_directions);
  void* block = static_cast<char*>(packed) + packed_codebook_bytes(format, num_codes, num_channels);
  const ScreenedCodes screened = screened_codes(packed);
  pack_directions(*pruning, num_codes, num_channels, subspace, num_directions, screened, block);
  const PruningCodes codes = pruning_codes(*pruning, num_codes, num_channels, num_directions, block);
  if (codes.usable) pack_pruning_codes(*pruning, codebook, num_channels, screened, codes, parallel_for);
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
