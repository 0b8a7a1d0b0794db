// Element types of feature rows, and their exact conversion to float32.
// Functions are static: each vector level compiles its own copy with its own flags.
#pragma once

#include <cstdint>
#include <cstring>

namespace soho {

enum class Element { kFloat32, kBFloat16, kFloat16 };

static inline int64_t element_size(Element type) { return type == Element::kFloat32 ? 4 : 2; }

static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline float bfloat16_to_float(uint16_t half) { return bits_to_float(uint32_t{half} << 16); }

static inline float float16_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  if (exponent == 0x1f) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal: exact in float32
  return sign ? -magnitude : magnitude;
}

static inline float load_element(const void* row, int64_t position, Element type) {
  if (type == Element::kFloat32) return static_cast<const float*>(row)[position];
  const uint16_t half = static_cast<const uint16_t*>(row)[position];
  return type == Element::kBFloat16 ? bfloat16_to_float(half) : float16_to_float(half);
}

static inline const void* row_at(const void* base, int64_t row, int64_t row_stride, Element type) {
  return static_cast<const char*>(base) + row * row_stride * element_size(type);
}

static inline bool is_finite(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits & 0x7f800000u) != 0x7f800000u;
}

}  // namespace soho
