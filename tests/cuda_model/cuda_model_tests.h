// One function per file of tests; main.cpp calls them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

void test_model();
void test_races();
void test_codebook_lookup_cuda();
void test_codebook_update_cuda();
void test_group_mask_cuda();

// For inputs; the kernels round to float16 alone.
inline uint16_t round_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
