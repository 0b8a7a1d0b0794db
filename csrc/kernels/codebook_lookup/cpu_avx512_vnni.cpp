// AVX-512 VNNI level: dot products of int8 quadruples, four times the products of a float32 fused multiply-add.
//
// A row has its own unit, the codes share one. The instruction multiplies unsigned by signed numbers: a row's are kept
// with 128 added, and a code's sum starts at -128 times the sum of its numbers. The sums are exact.
#include "kernels/codebook_lookup/screen_avx512.h"

namespace soho {
namespace {

struct DotInt8 {
  using Sum = __m512;  // of int32
  static constexpr int64_t kFirstStep = 1;

  static Sum start(const float*, const float* codes) { return _mm512_load_ps(codes); }

  static Sum add(Sum sum, __m512 row, __m512 codes) {
    return _mm512_castsi512_ps(
        _mm512_dpbusd_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(row), _mm512_castps_si512(codes)));
  }

  static __m512 score(Sum sum, const float* negated_half, const float* row) {
    const __m512 products = _mm512_cvtepi32_ps(_mm512_castps_si512(sum));
    return _mm512_fmadd_ps(products, _mm512_set1_ps(*row), _mm512_load_ps(negated_half));
  }

  static Sum plus(Sum a, Sum b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }

  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    const RowInt8 rounded = round_to_int8(row, type, screened, num_channels, 128, reinterpret_cast<int8_t*>(words + 1));
    words[0] = rounded.unit * screened.unit;
    return rounded.lengths;
  }
};
constexpr int64_t kFewSteps = 17;  // on which screen_groups is faster
static_assert(KernelAvx512<DotInt8>::kCodes == kFormatAvx512Vnni.width);

}  // namespace

LookupCounts screen_avx512_vnni(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  if (args.topk == 1 && screened.num_steps <= kFewSteps)
    return screen_groups<KernelAvx512<DotInt8>>(args, screened, begin, end);
  return screen_rows<KernelAvx512<DotInt8>>(args, screened, begin, end);
}

}  // namespace soho
