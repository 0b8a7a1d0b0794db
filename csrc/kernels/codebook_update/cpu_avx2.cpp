// AVX2 + F16C level. Compiled with its own flags: no standard containers, everything in an unnamed namespace.
#include <immintrin.h>

#include "kernels/codebook_update/codebook_update.h"

namespace soho {
namespace {

template <Element type>
__m256 load8(const void* row, int64_t position) {
  if constexpr (type == Element::kFloat32) return _mm256_loadu_ps(static_cast<const float*>(row) + position);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(row) + position));
  if constexpr (type == Element::kFloat16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Adds two members at a time, in order, to halve the traffic to the sums; the next two are on their way meanwhile,
// since rows of one code lie apart and the hardware does not foresee them.
template <Element type>
void sum_slice(const MemberSlice& slice, float* sums) {
  const int64_t length = slice.end - slice.begin;
  const auto member = [&](int64_t m) {
    return static_cast<const char*>(row_at(slice.features, slice.rows[m], slice.row_stride, type)) +
           slice.begin * element_size(type);
  };
  for (int64_t c = 0; c < length; ++c) sums[c] = 0.0f;
  for (int64_t m = 0; m < slice.num_members; m += 2) {
    const bool pair = m + 1 < slice.num_members;
    const char* first = member(m);
    const char* second = pair ? member(m + 1) : first;
    const char* next_first = m + 2 < slice.num_members ? member(m + 2) : first;
    const char* next_second = m + 3 < slice.num_members ? member(m + 3) : second;
    int64_t c = 0;
    for (; c + 8 <= length; c += 8) {
      _mm_prefetch(next_first + c * element_size(type), _MM_HINT_T0);
      _mm_prefetch(next_second + c * element_size(type), _MM_HINT_T0);
      __m256 sum = _mm256_add_ps(_mm256_loadu_ps(sums + c), load8<type>(first, c));
      if (pair) sum = _mm256_add_ps(sum, load8<type>(second, c));
      _mm256_storeu_ps(sums + c, sum);
    }
    for (; c < length; ++c) {
      sums[c] += load_element(first, c, type);
      if (pair) sums[c] += load_element(second, c, type);
    }
  }
}

}  // namespace

void sum_slice_avx2(const MemberSlice& slice, float* sums) {
  switch (slice.features_type) {
    case Element::kFloat32:
      return sum_slice<Element::kFloat32>(slice, sums);
    case Element::kBFloat16:
      return sum_slice<Element::kBFloat16>(slice, sums);
    case Element::kFloat16:
      return sum_slice<Element::kFloat16>(slice, sums);
  }
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
