// AVX-512 BF16 level: dot products of bfloat16 pairs, twice the products of a float32 fused multiply-add.
#include "kernels/codebook_lookup/screen_avx512.h"

namespace soho {

static_assert(KernelAvx512<DotBFloat16>::kCodes == kFormatAvx512Bf16.width);

LookupCounts screen_avx512_bf16(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  return screen_by<DotBFloat16, 32, kFewShortCodes>(args, screened, begin, end);
}

}  // namespace soho
