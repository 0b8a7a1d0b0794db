// AVX-512 VNNI level: dot products of int8 quadruples, four times the products of a float32 fused multiply-add. A row
// has its own unit, the codes share one.
#include "kernels/codebook_lookup/pruning_avx512.h"
#include "kernels/codebook_lookup/screen_avx512.h"

namespace soho {

static_assert(KernelAvx512<DotInt8>::kCodes == kFormatAvx512Vnni.width);

LookupCounts screen_avx512_vnni(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  return screen_by<DotInt8, 17, kFewLongCodes>(args, screened, begin, end);
}

const PruningPass kPruningAvx512Vnni = pruning_pass<CoarseAvx512<DotFloat32, ScreeningType::kFloat32>>();
const PruningPass kPruningAvx512Int8 = pruning_pass<SiftingAvx512<DotFloat32, ScreeningType::kFloat32>>();

}  // namespace soho
