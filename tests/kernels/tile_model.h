// The tile instructions that cpu_amx.cpp uses, in scalar code after the
// manual's pseudocode (Intel SDM, TDPBF16PS: the even and the odd products of a
// tile are summed apart, then together, then added; subnormals count as zero).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/element.h"

namespace soho {
namespace {

struct Tile {
  uint32_t word[16][16];
};
thread_local Tile tiles[8];
thread_local bool tiles_configured = false;

inline void model_loadconfig(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  uint16_t row_bytes;
  std::memcpy(&row_bytes, bytes + 16 + 2 * 7, 2);
  tiles_configured = bytes[0] == 1 && row_bytes == 64 && bytes[48 + 7] == 16;
}

inline void model_loadd(int tile, const void* base, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(tiles[tile].word[row], static_cast<const char*>(base) + row * stride, 64);
  if (!tiles_configured) std::memset(&tiles[tile], 0xff, sizeof(Tile));  // NaN: seen in the result
}

inline void model_stored(int tile, void* base, int64_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(base) + row * stride, tiles[tile].word[row], 64);
}

inline float flushed(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value; }

inline float half_of(uint32_t word, int odd) {
  return flushed(bfloat16_to_float(static_cast<uint16_t>(odd ? word >> 16 : word & 0xffffu)));
}

inline void model_dpbf16ps(int target, int left, int right) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sum[2] = {};
      for (int k = 0; k < 16; ++k) {
        for (int odd = 0; odd < 2; ++odd) {
          const float x = half_of(tiles[left].word[m][k], odd), d = half_of(tiles[right].word[k][n], odd);
          sum[odd] = flushed(std::fma(x, d, sum[odd]));
        }
      }
      const float score = flushed(bits_to_float(tiles[target].word[m][n]) + flushed(sum[0] + sum[1]));
      std::memcpy(&tiles[target].word[m][n], &score, sizeof(score));
    }
  }
}

}  // namespace
}  // namespace soho

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig model_loadconfig
#define _tile_release() (tiles_configured = false)
#define _tile_loadd model_loadd
#define _tile_stored model_stored
#define _tile_dpbf16ps model_dpbf16ps
