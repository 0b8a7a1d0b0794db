// AVX-512 (F, BW, VL) level. Compiled with its own flags: no standard containers, everything in an unnamed namespace.
#include "kernels/codebook_update/add_members.h"

namespace soho {
namespace {

__mmask16 first_lanes(int64_t left) { return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1); }

struct Vector {
  static constexpr int64_t kLanes = 8;
  static constexpr int kMostVectors = 8;
  using Register = __m512d;

  static Register zero() { return _mm512_setzero_pd(); }
  static Register load(const double* sum) { return _mm512_loadu_pd(sum); }
  static Register add(Register a, Register b) { return _mm512_add_pd(a, b); }
  static void store(double* sum, Register value) { _mm512_storeu_pd(sum, value); }
  static void store(float* sum, Register value) { _mm256_storeu_ps(sum, _mm512_cvtpd_ps(value)); }

  template <Element type>
  static Register row(const void* row) {
    return row_some<type>(row, kLanes);
  }

  static __mmask8 mask_of(int64_t left) { return static_cast<__mmask8>(first_lanes(left)); }

  static Register load_some(const double* sum, int64_t left) { return _mm512_maskz_loadu_pd(mask_of(left), sum); }

  template <Element type>
  static Register row_some(const void* row, int64_t left) {
    const __mmask8 mask = mask_of(left);
    if constexpr (type == Element::kFloat32) {
      return _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, row));
    } else {
      const __m128i half = _mm_maskz_loadu_epi16(mask, row);
      return _mm512_cvtps_pd(type == Element::kFloat16
                                 ? _mm256_cvtph_ps(half)
                                 : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
    }
  }

  static void store_some(double* sum, Register value, int64_t left) {
    _mm512_mask_storeu_pd(sum, mask_of(left), value);
  }

  static void store_some(float* sum, Register value, int64_t left) {
    _mm256_mask_storeu_ps(sum, mask_of(left), _mm512_cvtpd_ps(value));
  }
};

}  // namespace

void add_members_avx512(const Members& members, double* sums, int64_t sum_stride) {
  add_members<Vector>(members, sums, sum_stride);
}

void move_code_avx512(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels) {
  const __m512 count16 = _mm512_set1_ps(count), decay16 = _mm512_set1_ps(decay), rest16 = _mm512_set1_ps(rest);
  for (int64_t c = 0; c < num_channels; c += 16) {
    const __mmask16 mask = first_lanes(num_channels - c);
    const __m512 mean = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, sums + c), count16);
    const __m512 kept = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, code + c), decay16);
    _mm512_mask_storeu_ps(code + c, mask, _mm512_add_ps(kept, _mm512_mul_ps(mean, rest16)));
  }
}

}  // namespace soho
