// A slab of feature rows as tensor cores read it, and the window of each row: twice the error bound of its scores.
//
// Rows are scaled by tiles: the scale of a tile is that of the codes times `ratio`, a power of two that brings its
// largest element just below 2^15, but not above 1 (then |b|^2/2 counts more than the rounding of a) and not below
// 2^-40 (then an element may exceed float16; its row is left undecided).
#pragma once

#include "kernels/codebook_lookup/cuda_codes.cuh"

namespace soho {
namespace {

constexpr int kLowestRatioExponent = -40;
constexpr int kLanesOfFour = 4;  // channels that a lane converts at a time

struct CudaRows {
  uint16_t* panel;  // (num_rows up to whole tiles, padded_channels): a^, zeros at padding
  float* window;    // (num_rows up to whole tiles,); inf: cannot be screened or padding, NaN: the row is not finite
  float* ratio;     // (tiles,)
  int64_t num_rows;
};

// The part of the lookup that concerns one slab.
struct RowsArgs {
  const void* features;  // of the slab
  int64_t row_stride;
  bool aligned;  // four adjacent elements from any multiple of four channels
  CudaCodes codes;
  CudaRows rows;
};

template <Element type>
__device__ __forceinline__ void load_centred(const RowsArgs& args, const void* row, int64_t c, float (&difference)[4],
                                             bool& finite) {
  const int64_t num_channels = args.codes.num_channels;
  float value[4] = {};
  if (args.aligned && c + kLanesOfFour <= num_channels) {
    load_four<type>(row, c, value);
  } else {
    for (int e = 0; e < kLanesOfFour; ++e) {
      if (c + e < num_channels) value[e] = load_value<type>(row, c + e);
    }
  }
  for (int e = 0; e < kLanesOfFour; ++e) {
    finite &= finite_bits(value[e]);
    difference[e] = c + e < num_channels ? value[e] - args.codes.centre[c + e] : 0.0f;
  }
}

// See passes.h. All in units of the scaled scores.
__device__ __forceinline__ double window_of(const CudaCodes& codes, double square, double rounding_square,
                                            double ratio) {
  const double margin = 1 + 0x1p-20;
  const double norm = sqrt(square), lost = sqrt(rounding_square);
  const double largest = sqrt(__longlong_as_double(static_cast<long long>(codes.header->square_bits))) * margin;
  const double largest_lost =
      sqrt(__longlong_as_double(static_cast<long long>(codes.header->rounding_square_bits))) * margin;
  const double unit = static_cast<double>(codes.num_channels + 16);
  const double length = norm / ratio + largest;
  const double bound = 3.0 * unit * 0x1p-24 * (norm * largest + 0.5 * ratio * largest * largest) +
                       unit * 0x1p-52 * ratio * length * length +
                       (1 + 0x1p-8) * (lost * largest + (norm + lost) * largest_lost);
  return 2.0 * bound * margin;
}

// One block for each tile. `lanes_of_row` (a power of two) lanes share a row.
template <Element type>
__global__ void __launch_bounds__(kBlockThreads) convert_rows(RowsArgs args, int lanes_of_row) {
  __shared__ uint32_t largest_bits_of_tile;
  __shared__ float state[kTileRows];  // 0, or the window of a row that is not screened
  const CudaCodes& codes = args.codes;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int lane_of_row = threadIdx.x % lanes_of_row, first_of_thread = threadIdx.x / lanes_of_row;
  const int rows_at_once = kBlockThreads / lanes_of_row;
  const bool screens = screenable(codes);
  if (threadIdx.x == 0) largest_bits_of_tile = 0;
  __syncthreads();

  for (int r = first_of_thread; r < kTileRows; r += rows_at_once) {
    const int64_t i = first_row + r;
    const bool present = i < args.rows.num_rows;
    const void* row = row_on_device<type>(args.features, present ? i : 0, args.row_stride);
    float largest = 0.0f;
    int finite = 1;
    for (int64_t c = lane_of_row * kLanesOfFour; c < codes.num_channels; c += lanes_of_row * kLanesOfFour) {
      float difference[kLanesOfFour];
      bool all_finite = true;
      load_centred<type>(args, row, c, difference, all_finite);
      finite &= all_finite;
      for (float value : difference) largest = fmaxf(largest, fabsf(value));
    }
    largest = warp_max(largest, lanes_of_row);
    finite = warp_sum(finite, lanes_of_row) == lanes_of_row;
    if (lane_of_row != 0) continue;
    const bool usable = present && finite && screens && finite_bits(largest);
    state[r] = usable ? 0.0f : finite || !present ? INFINITY : NAN;
    if (usable) atomicMax(&largest_bits_of_tile, __float_as_uint(largest));
  }
  __syncthreads();

  if (!screens) {  // uniform: the panel is not read
    for (int r = threadIdx.x; r < kTileRows; r += kBlockThreads) args.rows.window[first_row + r] = state[r];
    return;
  }
  const int code_exponent = exponent_above(codes.header->largest_bits);
  const int ratio_exponent = max(kLowestRatioExponent, min(0, code_exponent - exponent_above(largest_bits_of_tile)));
  const float ratio = power_of_two(ratio_exponent);
  const float scale = power_of_two(kTopExponent - code_exponent + ratio_exponent);
  if (threadIdx.x == 0) args.rows.ratio[blockIdx.x] = ratio;
  for (int r = first_of_thread; r < kTileRows; r += rows_at_once) {
    const int64_t i = first_row + r;
    const bool usable = state[r] == 0.0f;
    const void* row = row_on_device<type>(args.features, usable ? i : 0, args.row_stride);
    float square = 0.0f, rounding_square = 0.0f;
    for (int64_t c = lane_of_row * kLanesOfFour; c < codes.padded_channels; c += lanes_of_row * kLanesOfFour) {
      uint2 words = make_uint2(0, 0);
      if (usable) {
        float a[kLanesOfFour];
        bool all_finite = true;
        load_centred<type>(args, row, c, a, all_finite);
        uint16_t rounded[kLanesOfFour];
        for (int e = 0; e < kLanesOfFour; ++e) {
          a[e] *= scale;
          rounded[e] = round_float16(a[e]);
          const float lost = a[e] - widen_float16(rounded[e]);
          square += a[e] * a[e];
          rounding_square += lost * lost;
        }
        words = make_uint2(rounded[0] | static_cast<uint32_t>(rounded[1]) << 16,
                           rounded[2] | static_cast<uint32_t>(rounded[3]) << 16);
      }
      *reinterpret_cast<uint2*>(args.rows.panel + i * codes.padded_channels + c) = words;
    }
    square = warp_sum(square, lanes_of_row);
    rounding_square = warp_sum(rounding_square, lanes_of_row);
    if (lane_of_row != 0) continue;
    float window = state[r];
    if (usable) {
      const bool measured = finite_bits(square) && finite_bits(rounding_square);
      window = measured ? static_cast<float>(window_of(codes, square, rounding_square, ratio)) : INFINITY;
    }
    args.rows.window[i] = window;
  }
}

}  // namespace
}  // namespace soho
