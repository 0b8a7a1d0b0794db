// Low-dimensional pruning at the AVX-512 levels, by a Dot of floating point; see screen_avx512.h on Dot and on how it
// is included.
#pragma once

#include "kernels/codebook_lookup/screen_avx512.h"
#include "kernels/codebook_lookup/screen_pruning.h"

namespace soho {
namespace {

template <class Dot, ScreeningType type>
struct PruningAvx512 {
  static constexpr ScreeningType kPass = type;
  static constexpr bool kCoarse = false, kSifts = false;
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

  template <int num_codes>
  static void multiply(const float* rows, int64_t row_length, const float* codes, int64_t num_steps, float* out,
                       int64_t out_length) {
    constexpr int kVectors = num_codes / 16;
    __m512 sum[kRows][kVectors];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
    }
    add_products<Dot>(rows, row_length, codes, 0, num_steps, sum);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(out + r * out_length + 16 * v, sum[r][v]);
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

#ifdef __AVX512VNNI__
// The same with groups found in int8.
template <class Dot, ScreeningType type>
struct CoarseAvx512 : PruningAvx512<Dot, type> {
  using Base = PruningAvx512<Dot, type>;
  using Base::kCodes, Base::kRows;
  static constexpr bool kCoarse = true;

  static float largest_direction(const float* directions, float factor, int64_t num_directions) {
    __m512 largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_directions; k += 16) {
      const __m512 p = _mm512_mul_ps(_mm512_loadu_ps(directions + k), _mm512_set1_ps(factor));
      largest = _mm512_max_ps(largest, _mm512_abs_ps(p));
    }
    return _mm512_reduce_max_ps(largest);
  }

  // Numbers of factor p, none above `largest`, with `bias` added.
  static RowLengths round_coarse(const float* directions, float factor, int64_t num_directions, float largest,
                                 int32_t bias, int8_t* numbers) {
    const __m512 unit = _mm512_set1_ps(largest / 127.0f);
    const __m512 per_unit = _mm512_set1_ps(largest > 0.0f ? 127.0f / largest : 0.0f);
    __m512 square = _mm512_setzero_ps(), rounding_square = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_directions; k += 16) {
      const __m512 p = _mm512_mul_ps(_mm512_loadu_ps(directions + k), _mm512_set1_ps(factor));
      __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(p, per_unit));
      number = _mm512_max_epi32(_mm512_min_epi32(number, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
      const __m512 lost = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(number), unit, p);
      square = _mm512_fmadd_ps(p, p, square);
      rounding_square = _mm512_fmadd_ps(lost, lost, rounding_square);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + k),
                       _mm512_cvtepi32_epi8(_mm512_add_epi32(number, _mm512_set1_epi32(bias))));
    }
    return {_mm512_reduce_add_ps(square), _mm512_reduce_add_ps(rounding_square)};
  }

  // As `highest`, of int8 words; row by row their unit, then the numbers.
  static void highest_coarse(const float* rows, int64_t row_length, const float* radius, const float* codes, float unit,
                             const float* negated_half, const float* code_radius, int64_t num_steps, float* out) {
    __m512 sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = _mm512_load_ps(codes);
      sum[r][1] = _mm512_load_ps(codes + 16);
    }
    add_products<DotInt8>(rows, row_length, codes + kCodes, 1, num_steps, sum);
    const __m512 half[2] = {_mm512_load_ps(negated_half), _mm512_load_ps(negated_half + 16)};
    const __m512 rest[2] = {_mm512_load_ps(code_radius), _mm512_load_ps(code_radius + 16)};
    __m512 best[16];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512 of_row = _mm512_set1_ps(radius[r]), of_product = _mm512_set1_ps(rows[r * row_length] * unit);
      __m512 highest[2];
      for (int h = 0; h < 2; ++h) {
        highest[h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(sum[r][h])), of_product,
                                     _mm512_fmadd_ps(of_row, rest[h], half[h]));
      }
      best[r] = _mm512_max_ps(highest[0], highest[1]);
    }
    best[14] = best[15] = best[0];
    _mm512_mask_storeu_ps(out, (1u << kRows) - 1, largest_of_each(best));
  }
};

// The same with survivors sifted in int8, for many channels.
template <class Dot, ScreeningType type>
struct SiftingAvx512 : CoarseAvx512<Dot, type> {
  static constexpr bool kSifts = true;

  // Zeros of a row count as 128 behind the last channel, where those of a code are 0.
  static SiftedRow sift_row(const void* row, Element row_type, const ScreenedCodes& screened, int64_t num_channels,
                            int8_t* numbers) {
    const RowInt8 rounded = round_to_int8(row, row_type, screened, num_channels, 128, numbers);
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
#endif

}  // namespace
}  // namespace soho
