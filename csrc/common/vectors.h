// What the AVX2 level is written in: on x86 the processor's own instructions, on ARM the same names over pairs of NEON
// registers, with the same results bit for bit.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>

#include <cstdint>

using __m128 = float32x4_t;
using __m128i = uint32x4_t;
struct __m256 {
  float32x4_t low, high;
};
struct __m256i {
  uint32x4_t low, high;
};
struct __m256d {
  float64x2_t low, high;
};

namespace soho {
namespace {

constexpr int _CMP_LT_OQ = 0, _CMP_LE_OQ = 1, _CMP_GT_OQ = 2, _CMP_GE_OQ = 3;

inline __m128 _mm_loadu_ps(const float* values) { return vld1q_f32(values); }
inline void _mm_storeu_ps(float* target, __m128 a) { vst1q_f32(target, a); }
inline void _mm_store_ss(float* target, __m128 a) { vst1q_lane_f32(target, a, 0); }
inline float _mm_cvtss_f32(__m128 a) { return vgetq_lane_f32(a, 0); }
inline __m128 _mm_add_ps(__m128 a, __m128 b) { return vaddq_f32(a, b); }
inline __m128 _mm_add_ss(__m128 a, __m128 b) { return vsetq_lane_f32(a[0] + b[0], a, 0); }
inline __m128 _mm_max_ps(__m128 a, __m128 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b where one is NaN
inline __m128 _mm_max_ss(__m128 a, __m128 b) { return vsetq_lane_f32(_mm_max_ps(a, b)[0], a, 0); }
inline __m128 _mm_movehl_ps(__m128 a, __m128 b) { return vcombine_f32(vget_high_f32(b), vget_high_f32(a)); }
inline __m128 _mm_shuffle_ps(__m128 a, __m128 b, int lanes) {
  return __m128{a[lanes & 3], a[lanes >> 2 & 3], b[lanes >> 4 & 3], b[lanes >> 6]};
}

// Bytes, since rows of 16-bit elements begin anywhere.
inline __m128i _mm_loadu_si128(const __m128i* words) {
  return vreinterpretq_u32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(words)));
}
inline __m128i _mm_loadl_epi64(const __m128i* words) {
  return vreinterpretq_u32_u8(vcombine_u8(vld1_u8(reinterpret_cast<const uint8_t*>(words)), vdup_n_u8(0)));
}
inline void _mm_storeu_si128(__m128i* target, __m128i a) { vst1q_u32(reinterpret_cast<uint32_t*>(target), a); }
inline __m128i _mm_castps_si128(__m128 a) { return vreinterpretq_u32_f32(a); }
inline __m128 _mm_castsi128_ps(__m128i a) { return vreinterpretq_f32_u32(a); }
inline __m128i _mm_cvtepu16_epi32(__m128i a) { return vmovl_u16(vget_low_u16(vreinterpretq_u16_u32(a))); }
inline __m128i _mm_slli_epi32(__m128i a, int count) { return vshlq_u32(a, vdupq_n_s32(count)); }
inline __m128 _mm_cvtph_ps(__m128i a) { return vcvt_f32_f16(vget_low_f16(vreinterpretq_f16_u32(a))); }

inline __m256 _mm256_setzero_ps() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
inline __m256 _mm256_set1_ps(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
inline __m256 _mm256_broadcast_ss(const float* value) { return _mm256_set1_ps(*value); }
inline __m256 _mm256_loadu_ps(const float* values) { return {vld1q_f32(values), vld1q_f32(values + 4)}; }
inline __m256 _mm256_load_ps(const float* values) { return _mm256_loadu_ps(values); }
inline void _mm256_storeu_ps(float* target, __m256 a) {
  vst1q_f32(target, a.low);
  vst1q_f32(target + 4, a.high);
}
inline void _mm256_store_ps(float* target, __m256 a) { _mm256_storeu_ps(target, a); }
inline __m256 _mm256_add_ps(__m256 a, __m256 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline __m256 _mm256_sub_ps(__m256 a, __m256 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline __m256 _mm256_mul_ps(__m256 a, __m256 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline __m256 _mm256_div_ps(__m256 a, __m256 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline __m256 _mm256_max_ps(__m256 a, __m256 b) { return {_mm_max_ps(a.low, b.low), _mm_max_ps(a.high, b.high)}; }
inline __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline __m256 _mm256_hadd_ps(__m256 a, __m256 b) { return {vpaddq_f32(a.low, b.low), vpaddq_f32(a.high, b.high)}; }
inline __m256 operator+(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
inline __m256 _mm256_or_ps(__m256 a, __m256 b) {
  return {_mm_castsi128_ps(vorrq_u32(_mm_castps_si128(a.low), _mm_castps_si128(b.low))),
          _mm_castsi128_ps(vorrq_u32(_mm_castps_si128(a.high), _mm_castps_si128(b.high)))};
}
inline __m256 _mm256_cmp_ps(__m256 a, __m256 b, int how) {
  if (how == _CMP_LE_OQ) return _mm256_cmp_ps(b, a, _CMP_GE_OQ);
  if (how == _CMP_GT_OQ)
    return {_mm_castsi128_ps(vcgtq_f32(a.low, b.low)), _mm_castsi128_ps(vcgtq_f32(a.high, b.high))};
  return {_mm_castsi128_ps(vcgeq_f32(a.low, b.low)), _mm_castsi128_ps(vcgeq_f32(a.high, b.high))};
}
inline __m256 _mm256_blendv_ps(__m256 a, __m256 b, __m256 of_b) {
  return {vbslq_f32(_mm_castps_si128(of_b.low), b.low, a.low), vbslq_f32(_mm_castps_si128(of_b.high), b.high, a.high)};
}
inline int _mm256_movemask_ps(__m256 a) {
  const uint32x4_t bits = {1, 2, 4, 8};
  return static_cast<int>(vaddvq_u32(vandq_u32(_mm_castps_si128(a.low), bits)) |
                          vaddvq_u32(vandq_u32(_mm_castps_si128(a.high), bits)) << 4);
}
inline __m128 _mm256_castps256_ps128(__m256 a) { return a.low; }
inline __m128 _mm256_extractf128_ps(__m256 a, int half) { return half == 0 ? a.low : a.high; }
inline __m256 _mm256_permute2f128_ps(__m256 a, __m256 b, int halves) {
  const __m128 of[4] = {a.low, a.high, b.low, b.high};
  return {of[halves & 3], of[halves >> 4]};
}

inline __m256i _mm256_cvtepu16_epi32(__m128i a) {
  const uint16x8_t words = vreinterpretq_u16_u32(a);
  return {vmovl_u16(vget_low_u16(words)), vmovl_high_u16(words)};
}
inline __m256i _mm256_slli_epi32(__m256i a, int count) {
  return {_mm_slli_epi32(a.low, count), _mm_slli_epi32(a.high, count)};
}
inline __m256 _mm256_castsi256_ps(__m256i a) { return {_mm_castsi128_ps(a.low), _mm_castsi128_ps(a.high)}; }
inline __m256 _mm256_cvtph_ps(__m128i a) {
  const float16x8_t halves = vreinterpretq_f16_u32(a);
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}

inline __m256d _mm256_setzero_pd() { return {vdupq_n_f64(0), vdupq_n_f64(0)}; }
inline __m256d _mm256_set1_pd(double value) { return {vdupq_n_f64(value), vdupq_n_f64(value)}; }
inline __m256d _mm256_loadu_pd(const double* values) { return {vld1q_f64(values), vld1q_f64(values + 2)}; }
inline void _mm256_storeu_pd(double* target, __m256d a) {
  vst1q_f64(target, a.low);
  vst1q_f64(target + 2, a.high);
}
inline double _mm256_cvtsd_f64(__m256d a) { return a.low[0]; }
inline __m256d _mm256_cvtps_pd(__m128 a) { return {vcvt_f64_f32(vget_low_f32(a)), vcvt_high_f64_f32(a)}; }
inline __m128 _mm256_cvtpd_ps(__m256d a) { return vcvt_high_f32_f64(vcvt_f32_f64(a.low), a.high); }
inline __m256d operator+(__m256d a, __m256d b) { return {vaddq_f64(a.low, b.low), vaddq_f64(a.high, b.high)}; }
inline __m256d operator-(__m256d a, __m256d b) { return {vsubq_f64(a.low, b.low), vsubq_f64(a.high, b.high)}; }
inline __m256d operator*(__m256d a, __m256d b) { return {vmulq_f64(a.low, b.low), vmulq_f64(a.high, b.high)}; }
inline __m256d operator*(__m256d a, double b) { return a * _mm256_set1_pd(b); }
inline __m256d _mm256_add_pd(__m256d a, __m256d b) { return a + b; }
inline __m256d _mm256_div_pd(__m256d a, __m256d b) { return {vdivq_f64(a.low, b.low), vdivq_f64(a.high, b.high)}; }
inline __m256d _mm256_fmadd_pd(__m256d a, __m256d b, __m256d c) {
  return {vfmaq_f64(c.low, a.low, b.low), vfmaq_f64(c.high, a.high, b.high)};
}
inline __m256d _mm256_max_pd(__m256d a, __m256d b) {  // b where one is NaN
  return {vbslq_f64(vcgtq_f64(a.low, b.low), a.low, b.low), vbslq_f64(vcgtq_f64(a.high, b.high), a.high, b.high)};
}
inline __m256d _mm256_xor_pd(__m256d a, __m256d b) {
  return {vreinterpretq_f64_u64(veorq_u64(vreinterpretq_u64_f64(a.low), vreinterpretq_u64_f64(b.low))),
          vreinterpretq_f64_u64(veorq_u64(vreinterpretq_u64_f64(a.high), vreinterpretq_u64_f64(b.high)))};
}
inline __m256d _mm256_or_pd(__m256d a, __m256d b) {
  return {vreinterpretq_f64_u64(vorrq_u64(vreinterpretq_u64_f64(a.low), vreinterpretq_u64_f64(b.low))),
          vreinterpretq_f64_u64(vorrq_u64(vreinterpretq_u64_f64(a.high), vreinterpretq_u64_f64(b.high)))};
}
inline __m256d _mm256_cmp_pd(__m256d a, __m256d b, int) {  // _CMP_LT_OQ
  return {vreinterpretq_f64_u64(vcltq_f64(a.low, b.low)), vreinterpretq_f64_u64(vcltq_f64(a.high, b.high))};
}
inline int _mm256_movemask_pd(__m256d a) {
  const uint64x2_t low = vreinterpretq_u64_f64(a.low), high = vreinterpretq_u64_f64(a.high);
  return static_cast<int>((low[0] & 1) | (low[1] & 2) | (high[0] & 4) | (high[1] & 8));
}
inline __m256d _mm256_blend_pd(__m256d a, __m256d b, int of_b) {
  return {float64x2_t{of_b & 1 ? b.low[0] : a.low[0], of_b & 2 ? b.low[1] : a.low[1]},
          float64x2_t{of_b & 4 ? b.high[0] : a.high[0], of_b & 8 ? b.high[1] : a.high[1]}};
}
inline __m256d _mm256_shuffle_pd(__m256d a, __m256d b, int lanes) {
  return {float64x2_t{a.low[lanes & 1], b.low[lanes >> 1 & 1]},
          float64x2_t{a.high[lanes >> 2 & 1], b.high[lanes >> 3]}};
}
inline __m256d _mm256_permute2f128_pd(__m256d a, __m256d b, int halves) {
  const float64x2_t of[4] = {a.low, a.high, b.low, b.high};
  return {of[halves & 3], of[halves >> 4]};
}

}  // namespace
}  // namespace soho
#endif
