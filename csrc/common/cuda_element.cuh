// Elements of feature rows on a GPU; see element.h.
#pragma once

#include "common/cuda_device.cuh"
#include "common/element.h"

namespace soho {

template <Element type>
__device__ __forceinline__ float load_value(const void* row, int64_t position) {
  if constexpr (type == Element::kFloat32) {
    return static_cast<const float*>(row)[position];
  } else {
    const uint16_t bits = static_cast<const uint16_t*>(row)[position];
    return type == Element::kBFloat16 ? widen_bfloat16(bits) : widen_float16(bits);
  }
}

// Four adjacent elements; `adjacent` addresses are aligned to all four of them.
template <Element type>
__device__ __forceinline__ void load_four(const void* row, int64_t position, float (&value)[4]) {
  if constexpr (type == Element::kFloat32) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(row) + position);
    value[0] = four.x, value[1] = four.y, value[2] = four.z, value[3] = four.w;
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(row) + position);
    const uint16_t bits[4] = {static_cast<uint16_t>(words.x & 0xffffu), static_cast<uint16_t>(words.x >> 16),
                              static_cast<uint16_t>(words.y & 0xffffu), static_cast<uint16_t>(words.y >> 16)};
    for (int e = 0; e < 4; ++e)
      value[e] = type == Element::kBFloat16 ? widen_bfloat16(bits[e]) : widen_float16(bits[e]);
  }
}

template <Element type>
__device__ __forceinline__ const void* row_on_device(const void* base, int64_t row, int64_t row_stride) {
  return static_cast<const char*>(base) + row * row_stride * (type == Element::kFloat32 ? 4 : 2);
}

__device__ __forceinline__ bool finite_bits(float value) {
  return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// Calls body with the type as a template argument: body.template operator()<type>().
template <class Body>
auto for_element(Element type, Body body) {
  switch (type) {
    case Element::kFloat32:
      return body.template operator()<Element::kFloat32>();
    case Element::kBFloat16:
      return body.template operator()<Element::kBFloat16>();
    default:
      return body.template operator()<Element::kFloat16>();
  }
}

}  // namespace soho
