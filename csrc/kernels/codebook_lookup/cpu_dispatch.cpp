#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "common/memory.h"
#include "kernels/codebook_lookup/packed_codebook.h"

namespace soho {
namespace {

constexpr int64_t kRowsPerTask = 56;  // four register tiles of the AVX-512 levels

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

std::vector<LookupCounts> run_passes(const std::vector<LookupPass>& passes, const CodebookLookupArgs& args,
                                     const void* packed, const ParallelFor& parallel_for) {
  std::fill(args.index, args.index + args.num_rows, kUndecided);
  std::vector<LookupCounts> counts(passes.size());
  std::optional<Scratch> memory;
  ScreenedCodes screened{};
  for (size_t p = 0; p < passes.size() && (p == 0 || counts[p - 1].undecided > 0); ++p) {
    const LookupPass& pass = passes[p];
    if (packed != nullptr && packed_codebook_fits(packed, pass.format, args.num_codes, args.num_channels)) {
      screened = screened_codes(packed);
    } else if (p == 0 || pass.format.width > 0) {  // any packed codebook lists the distinct codes
      memory.emplace(packed_codebook_bytes(pass.format, args.num_codes, args.num_channels));
      pack_codebook(pass.format, args.codebook, args.num_codes, args.num_channels, memory->data(), parallel_for);
      screened = screened_codes(memory->data());
    }
    std::atomic<int64_t> compared{0}, undecided{0};
    parallel_for(args.num_rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
      const LookupCounts part = pass.run(args, screened, begin, end);
      compared += part.compared;
      undecided += part.undecided;
    });
    counts[p] = {compared, undecided};
  }
  return counts;
}

LookupCounts codebook_lookup(CpuLevel level, const CodebookLookupArgs& args, const void* packed,
                             const ParallelFor& parallel_for) {
  const std::vector<LookupCounts> counts = run_passes(passes_of(level, args.metric), args, packed, parallel_for);
  LookupCounts total{0, counts.front().undecided};
  for (const LookupCounts& pass : counts) total.compared += pass.compared;
  return total;
}

size_t packed_codebook_bytes(CpuLevel level, int64_t num_codes, int64_t num_channels, Metric metric) {
  return packed_codebook_bytes(passes_of(level, metric).front().format, num_codes, num_channels);
}

void pack_codebook(CpuLevel level, const float* codebook, int64_t num_codes, int64_t num_channels, void* packed,
                   const ParallelFor& parallel_for, Metric metric) {
  const ScreeningFormat format = passes_of(level, metric).front().format;
  pack_codebook(format, codebook, num_codes, num_channels, packed, parallel_for);
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
