// Low-dimensional pruning on processors that have AVX-512 VNNI: groups found in int8; and for many channels, where
// there is BF16 too, projections in bfloat16 and survivors sifted in int8.
#include "kernels/codebook_lookup/pruning_avx512.h"

namespace soho {
namespace {

struct Pruning : CoarseAvx512<DotBFloat16, ScreeningType::kBFloat16> {
  static constexpr bool kSifts = true;

  // Zeros of a row count as 128 behind the last channel, where those of a code are 0.
  static SiftedRow sift_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                            int8_t* numbers) {
    const RowInt8 rounded = round_to_int8(row, type, screened, num_channels, 128, numbers);
    return {rounded.unit, rounded.lengths};
  }

  static SiftedCode sift_code(const float* code, const ScreenedCodes& screened, int64_t num_channels, int8_t* numbers) {
    const RowInt8 rounded = round_to_int8(code, Element::kFloat32, screened, num_channels, 0, numbers);
    int32_t sum = 0;
    for (int64_t c = 0; c < num_channels; ++c) sum += numbers[c];
    const Projection lengths = certify(rounded.lengths, {0.0f, 0.0f}, num_channels, 1);
    const double error = std::sqrt(static_cast<double>(rounded.lengths.rounding_square)) * (1 + 0x1p-8) +
                         0x1p-23 * lengths.whole + 0x1p-50;
    return {rounded.unit, static_cast<float>(lengths.whole * (1 + 0x1p-22)), static_cast<float>(error), -128 * sum};
  }

  // Sums of products of a row with four codes.
  static void sift(const int8_t* row, const int8_t* const* codes, int64_t num_numbers, int32_t* sums) {
    __m512i sum[4] = {};
    for (int64_t c = 0; c < num_numbers; c += 64) {
      const __m512i x = _mm512_load_si512(row + c);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[k] = _mm512_dpbusd_epi32(sum[k], x, _mm512_load_si512(codes[k] + c));
    }
    for (int k = 0; k < 4; ++k) sums[k] = _mm512_reduce_add_epi32(sum[k]);
  }
};

}  // namespace

const PruningPass kPruningAvx512Bf16 = pruning_pass<Pruning>();

}  // namespace soho
