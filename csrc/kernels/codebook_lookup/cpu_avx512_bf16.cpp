// AVX-512 BF16 level: dot products of bfloat16 pairs, twice the products of a float32 fused multiply-add.
#include "kernels/codebook_lookup/screen_avx512.h"

namespace soho {
namespace {

struct DotBFloat16 {
  static constexpr bool kRounds = true;

  static __m512 add(__m512 score, __m512 row, __m512 codes) {
    return _mm512_dpbf16_ps(score, (__m512bh)_mm512_castps_si512(row), (__m512bh)_mm512_castps_si512(codes));
  }

  static __m512 convert16(__m512 a, float* words, int64_t c) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + c / 2), rounded);
    return _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
  }
};
static_assert(KernelAvx512<DotBFloat16>::kCodes == kFormatAvx512Bf16.width);

}  // namespace

LookupCounts screen_avx512_bf16(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  return screen_rows<KernelAvx512<DotBFloat16>, 4>(args, screened, begin, end);
}

}  // namespace soho
