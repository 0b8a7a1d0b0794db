// AVX-512 (F, BW, DQ, VL) level: float32 fused multiply-add.
#include "kernels/codebook_lookup/compare_all.h"
#include "kernels/codebook_lookup/compare_few.h"
#include "kernels/codebook_lookup/pack_group.h"
#include "kernels/codebook_lookup/pruning_avx512.h"
#include "kernels/codebook_lookup/screen_avx512.h"

namespace soho {

static_assert(KernelAvx512<DotFloat32>::kCodes == kFormatAvx512.width);

LookupCounts screen_avx512(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  return screen_by<DotFloat32, 32, kFewShortCodes>(args, screened, begin, end);
}

LookupCounts compare_all_avx512(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  DefaultFloatEnvironment environment;
  return compare_all(args, screened, begin, end);
}

using Pruning = PruningAvx512<DotFloat32, ScreeningType::kFloat32>;
const PruningPass kPruningAvx512 = pruning_pass<Pruning>();

const FewRows kFewRowsAvx512{scan_few, merge_few, decide_few};

const PackingLoops kPackingLoopsAvx512{spread_of, pack_group};

}  // namespace soho
