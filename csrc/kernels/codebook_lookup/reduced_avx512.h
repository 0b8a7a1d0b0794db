// The reduced pass of the AVX-512 levels, by a Dot of floating point; see screen_avx512.h on Dot and on how it is
// included.
#pragma once

#include "kernels/codebook_lookup/screen_avx512.h"
#include "kernels/codebook_lookup/screen_reduced.h"

namespace soho {
namespace {

template <class Dot, ScreeningType type>
struct ReducedAvx512 {
  static constexpr ScreeningType kPass = type;
  static constexpr bool kSifts = false;
  static constexpr int kRows = KernelAvx512<Dot>::kRows;
  static constexpr int kCodes = KernelAvx512<Dot>::kCodes;

  static RowLengths convert_row(const void* row, Element row_type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    return Dot::convert_row(row, row_type, screened, num_channels, words);
  }

  static RowLengths round_directions(const float* directions, float factor, int64_t num_directions, float* words) {
    __m512 square = _mm512_setzero_ps(), rounding_square = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_directions; k += 16) {
      const __m512 p = _mm512_mul_ps(_mm512_loadu_ps(directions + k), _mm512_set1_ps(factor));
      const __m512 lost = Dot::convert16(p, words, k);
      square = _mm512_fmadd_ps(p, p, square);
      rounding_square = _mm512_fmadd_ps(lost, lost, rounding_square);
    }
    return {_mm512_reduce_add_ps(square), Dot::kRounds ? _mm512_reduce_add_ps(rounding_square) : 0.0f};
  }

  static void multiply(const float* rows, int64_t row_length, const float* codes, int64_t num_steps, float* out,
                       int64_t out_length) {
    __m512 sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    add_products<Dot>(rows, row_length, codes, 0, num_steps, sum);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_ps(out + r * out_length, sum[r][0]);
      _mm512_storeu_ps(out + r * out_length + 16, sum[r][1]);
    }
  }

  static void highest(const float* rows, int64_t row_length, const float* radius, const float* codes,
                      const float* negated_half, const float* code_radius, int64_t num_steps, float* out) {
    __m512 sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = _mm512_load_ps(negated_half);
      sum[r][1] = _mm512_load_ps(negated_half + 16);
    }
    add_products<Dot>(rows, row_length, codes, 0, num_steps, sum);
    const __m512 radius0 = _mm512_load_ps(code_radius), radius1 = _mm512_load_ps(code_radius + 16);
    __m512 best[16];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512 of_row = _mm512_set1_ps(radius[r]);
      best[r] = _mm512_max_ps(_mm512_fmadd_ps(of_row, radius0, sum[r][0]), _mm512_fmadd_ps(of_row, radius1, sum[r][1]));
    }
    best[14] = best[15] = best[0];
    _mm512_mask_storeu_ps(out, (1u << kRows) - 1, largest_of_each(best));
  }

  static void look(const float* row, float radius, const float* codes, const float* negated_half,
                   const float* code_radius, int64_t num_steps, float* out) {
    const __m512 of_row = _mm512_set1_ps(radius);
    __m512 sum[4][2] = {};  // chains that do not wait for each other; the steps are a multiple of 4
    sum[0][0] = _mm512_fmadd_ps(of_row, _mm512_load_ps(code_radius), _mm512_load_ps(negated_half));
    sum[0][1] = _mm512_fmadd_ps(of_row, _mm512_load_ps(code_radius + 16), _mm512_load_ps(negated_half + 16));
    for (int64_t step = 0; step < num_steps; step += 4) {
#pragma GCC unroll 4
      for (int chain = 0; chain < 4; ++chain) {
        const __m512 x = _mm512_set1_ps(row[step + chain]);
        sum[chain][0] = Dot::add(sum[chain][0], x, _mm512_load_ps(codes + (step + chain) * kCodes));
        sum[chain][1] = Dot::add(sum[chain][1], x, _mm512_load_ps(codes + (step + chain) * kCodes + 16));
      }
    }
    for (int half = 0; half < 2; ++half)
      _mm512_store_ps(out + 16 * half, _mm512_add_ps(_mm512_add_ps(sum[0][half], sum[1][half]),
                                                     _mm512_add_ps(sum[2][half], sum[3][half])));
  }
};

}  // namespace
}  // namespace soho
