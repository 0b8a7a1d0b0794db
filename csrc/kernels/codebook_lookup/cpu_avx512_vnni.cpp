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

  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    const __m512 factor = _mm512_set1_ps(screened.scale);
    const auto load = [&](int64_t c) {
      const int64_t left = num_channels - c;
      const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      const __m512 centre = _mm512_maskz_loadu_ps(mask, screened.centre + c);
      return _mm512_mul_ps(_mm512_sub_ps(load16(row, c, type, mask), centre), factor);
    };
    __m512 square = _mm512_setzero_ps(), rounding_square = square, largest = square;
    for (int64_t c = 0; c < num_channels; c += 16) {
      const __m512 a = load(c);
      square = _mm512_fmadd_ps(a, a, square);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(a));
    }
    const float most = _mm512_reduce_max_ps(largest), unit = most / 127.0f;
    const __m512 per_unit = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
    uint8_t* numbers = reinterpret_cast<uint8_t*>(words + 1);
    for (int64_t c = 0; c < num_channels; c += 16) {
      const __m512 a = load(c);
      __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(a, per_unit));
      number = _mm512_max_epi32(_mm512_min_epi32(number, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
      const __m512 lost = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(number), _mm512_set1_ps(unit), a);
      rounding_square = _mm512_fmadd_ps(lost, lost, rounding_square);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + c),
                       _mm512_cvtepi32_epi8(_mm512_add_epi32(number, _mm512_set1_epi32(128))));
    }
    words[0] = unit * screened.unit;
    return {_mm512_reduce_add_ps(square), _mm512_reduce_add_ps(rounding_square)};
  }
};
static_assert(KernelAvx512<DotInt8>::kCodes == kFormatAvx512Vnni.width);

}  // namespace

LookupCounts screen_avx512_vnni(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  return screen_rows<KernelAvx512<DotInt8>>(args, screened, begin, end);
}

}  // namespace soho
