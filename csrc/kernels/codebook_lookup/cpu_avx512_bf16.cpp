// AVX-512 BF16 level: dot products of bfloat16 pairs, twice the products of a float32 fused multiply-add.
#include "kernels/codebook_lookup/screen_avx512.h"

namespace soho {
namespace {

constexpr int64_t kFewSteps = 32;  // on which screen_groups is faster
static_assert(KernelAvx512<DotBFloat16>::kCodes == kFormatAvx512Bf16.width);

}  // namespace

LookupCounts screen_avx512_bf16(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  if (args.topk == 1 && screened.num_steps <= kFewSteps)
    return screen_groups<KernelAvx512<DotBFloat16>>(args, screened, begin, end);
  return screen_rows<KernelAvx512<DotBFloat16>>(args, screened, begin, end);
}

}  // namespace soho
