// mma.sync and ldmatrix of a whole warp.
#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "cuda_model.h"

namespace soho_model {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

struct Multiplication {
  float* c;
  const uint32_t *a, *b;
};

uint16_t half_of(uint32_t word, unsigned odd) { return static_cast<uint16_t>(odd ? word >> 16 : word & 0xffffu); }

// The exponent of std::frexp, and a power of two, of what a float32 or a product of two 16-bit numbers can be: no zero
// and, in float64, nothing subnormal.
int exponent_of(double value) { return static_cast<int>(std::bit_cast<uint64_t>(value) >> 52 & 0x7ff) - 1022; }
double power_of_two(int exponent) { return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52); }

// Tensor cores align a few products and c to the largest exponent among them, cut off what lies below the mantissa
// and some extra bits, add exactly and cut off again (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA
// tensor cores, 2021).
float add_aligned(float c, const double* products, int num_products, int extra_bits) {
  int largest = -1000;
  const auto look = [&](double value) {
    if (value != 0) largest = std::max(largest, exponent_of(value));
  };
  look(c);
  for (int i = 0; i < num_products; ++i) look(products[i]);
  if (largest == -1000) return c;
  const int unit = largest - 24 - extra_bits;
  const double scale = power_of_two(-unit);
  const auto cut = [&](double value) { return std::trunc(value * scale); };
  double sum = cut(c);
  for (int i = 0; i < num_products; ++i) sum += cut(products[i]);
  if (sum == 0) return 0.0f;
  const int below = std::max(exponent_of(sum) - 24, -149 - unit);  // of the mantissa, or of the subnormals
  if (below > 0) sum = std::trunc(sum * power_of_two(-below)) * power_of_two(below);
  return static_cast<float>(sum * power_of_two(unit));
}

}  // namespace

float add_products(float c, const double (&products)[16]) {
  if (std::all_of(products, products + 16, [](double product) { return product == 0; })) return c + 0.0f;
  double shuffled[16];
  std::copy(products, products + 16, shuffled);
  bool finite = std::isfinite(c);
  for (const double product : products) finite = finite && std::isfinite(product);
  const uint64_t choice = random_bits();
  const int blocks[] = {4, 8, 16};
  const int num_products = blocks[choice % 3], extra_bits = static_cast<int>((choice >> 8) % 3);
  if (choice >> 16 & 1 || !finite) {  // float32 additions in any order
    for (int i = 16; i > 1; --i) std::swap(shuffled[i - 1], shuffled[random_bits() % i]);
    for (const double product : shuffled) c = static_cast<float>(c + product);
    return c;
  }
  for (int i = 0; i < 16; i += num_products) c = add_aligned(c, shuffled + i, num_products, extra_bits);
  return c;
}

void multiply_fragments(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site) {
  Multiplication own{c, a, b};
  meet_in_warp(
      "mma_float16", kAllLanes, &own,
      [](uint32_t present, void* const* all) {
        if (present != kAllLanes) fail("a matrix instruction needs the 32 lanes of a warp");
        const auto lane = [&](int l) { return *static_cast<const Multiplication*>(all[l]); };
        double left[16][16], right[16][8];
        for (int l = 0; l < 32; ++l) {
          const auto [unused, a, b] = lane(l);
          const int group = l / 4, column = l % 4 * 2;
          for (int odd = 0; odd < 2; ++odd) {
            for (int part = 0; part < 4; ++part)  // 1: row + 8; 2: column + 8
              left[group + part % 2 * 8][column + odd + part / 2 * 8] = soho::widen_float16(half_of(a[part], odd));
            for (int part = 0; part < 2; ++part)
              right[column + odd + part * 8][group] = soho::widen_float16(half_of(b[part], odd));
          }
        }
        for (int l = 0; l < 32; ++l) {
          for (int part = 0; part < 4; ++part) {
            const int row = l / 4 + part / 2 * 8, column = l % 4 * 2 + part % 2;
            double products[16];
            for (int k = 0; k < 16; ++k) products[k] = left[row][k] * right[k][column];
            lane(l).c[part] = add_products(lane(l).c[part], products);
          }
        }
      },
      site);
}

void load_fragments(uint32_t (&out)[4], const void* row, const Site& site) {
  struct Load {
    uint32_t* out;
    const void* row;
  } own{out, row};
  meet_in_warp(
      "ldmatrix_x4", kAllLanes, &own,
      [](uint32_t present, void* const* all) {
        if (present != kAllLanes) fail("a matrix instruction needs the 32 lanes of a warp");
        const auto lane = [&](int l) { return *static_cast<const Load*>(all[l]); };
        for (int matrix = 0; matrix < 4; ++matrix) {
          const uint16_t* rows[8];
          for (int r = 0; r < 8; ++r) {
            rows[r] = static_cast<const uint16_t*>(lane(matrix * 8 + r).row);
            if (reinterpret_cast<uintptr_t>(rows[r]) % 16)
              fail("ldmatrix: the address of row " + std::to_string(r) + " is no multiple of 16");
            report(thread_rank() / kWarpSize * kWarpSize + matrix * 8 + r, rows[r], 16, Access::kRead);
          }
          for (int l = 0; l < 32; ++l) {
            const int group = l / 4, position = l % 4 * 2;
            lane(l).out[matrix] = rows[group][position] | uint32_t{rows[group][position + 1]} << 16;
          }
        }
      },
      site);
}

}  // namespace soho_model
