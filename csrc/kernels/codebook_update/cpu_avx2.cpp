// AVX2 + F16C level. Compiled with its own flags: no standard containers, everything in an unnamed namespace.
#include "kernels/codebook_update/add_members.h"

namespace soho {
namespace {

struct Vector {
  static constexpr int64_t kLanes = 4;
  static constexpr int kMostVectors = 8;
  using Register = __m256d;

  static Register zero() { return _mm256_setzero_pd(); }
  static Register load(const double* sum) { return _mm256_loadu_pd(sum); }
  static Register add(Register a, Register b) { return _mm256_add_pd(a, b); }
  static void store(double* sum, Register value) { _mm256_storeu_pd(sum, value); }
  static void store(float* sum, Register value) { _mm_storeu_ps(sum, _mm256_cvtpd_ps(value)); }

  template <Element type>
  static Register row(const void* row) {
    if constexpr (type == Element::kFloat32) {
      return _mm256_cvtps_pd(_mm_loadu_ps(static_cast<const float*>(row)));
    } else {
      const __m128i half = _mm_loadl_epi64(static_cast<const __m128i*>(row));
      return _mm256_cvtps_pd(type == Element::kFloat16
                                 ? _mm_cvtph_ps(half)
                                 : _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16)));
    }
  }

  static Register load_some(const double* sum, int64_t left) {
    double lanes[kLanes] = {};
    for (int64_t c = 0; c < left; ++c) lanes[c] = sum[c];
    return load(lanes);
  }

  template <Element type>
  static Register row_some(const void* row, int64_t left) {
    double lanes[kLanes] = {};
    for (int64_t c = 0; c < left; ++c) lanes[c] = load_element(row, c, type);
    return load(lanes);
  }

  template <class Sum>
  static void store_some(Sum* sum, Register value, int64_t left) {
    Sum lanes[kLanes];
    store(lanes, value);
    for (int64_t c = 0; c < left; ++c) sum[c] = lanes[c];
  }
};

}  // namespace

void add_members_avx2(const Members& members, double* sums, int64_t sum_stride) {
  add_members<Vector>(members, sums, sum_stride);
}

void move_code_avx2(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels) {
  const __m256 count8 = _mm256_set1_ps(count), decay8 = _mm256_set1_ps(decay), rest8 = _mm256_set1_ps(rest);
  int64_t c = 0;
  for (; c + 8 <= num_channels; c += 8) {
    const __m256 mean = _mm256_div_ps(_mm256_loadu_ps(sums + c), count8);
    const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(code + c), decay8);
    _mm256_storeu_ps(code + c, _mm256_add_ps(kept, _mm256_mul_ps(mean, rest8)));
  }
  for (; c < num_channels; ++c) code[c] = code[c] * decay + sums[c] / count * rest;
}

}  // namespace soho
