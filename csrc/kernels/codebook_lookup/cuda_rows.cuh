// Feature rows as tensor cores read them, and the window of each row: twice the error bound of its scores.
//
// The scale of a row is that of the codes times its `ratio`, a power of two that brings its largest element just below
// 2^15, but not above 1 (then |b|^2/2 counts more than the rounding of a) and not below 2^-40 (then an element may
// exceed float16; the row is left undecided).
#pragma once

#include "kernels/codebook_lookup/cuda_codes.cuh"

namespace soho {
namespace {

constexpr int kLowestRatioExponent = -40;
constexpr int kLanesOfFour = 4;  // channels that a lane converts at a time
constexpr int kHeldPieces = 6;   // of four channels that a lane keeps: rows of up to 768 channels are read once

struct CudaRows {
  uint16_t* panel;    // (books, book_rows, padded_channels): a^, zeros at padding
  float* window;      // (books, book_rows): inf: cannot be screened or padding, NaN: the row is not finite
  float* ratio;       // (books, book_rows)
  int64_t num_rows;   // of each codebook
  int64_t book_rows;  // the same up to whole tiles
};

// The part of the lookup that concerns one slab.
struct RowsArgs {
  const void* features;  // of the slab, the rows of one codebook after the other
  int64_t row_stride;
  bool aligned;  // four adjacent elements from any multiple of four channels
  CudaCodes codes;
  CudaRows rows;
};

template <Element type>
__device__ __forceinline__ void load_centred(const CudaCodes& codes, const void* row, bool aligned, int64_t c,
                                             float (&difference)[4], bool& finite) {
  const int64_t num_channels = codes.num_channels;
  float value[4] = {};
  if (aligned && c + kLanesOfFour <= num_channels) {
    load_four<type>(row, c, value);
  } else {
    for (int e = 0; e < kLanesOfFour; ++e) {
      if (c + e < num_channels) value[e] = load_value<type>(row, c + e);
    }
  }
  for (int e = 0; e < kLanesOfFour; ++e) {
    finite &= finite_bits(value[e]);
    difference[e] = c + e < num_channels ? value[e] - codes.centre[c + e] : 0.0f;
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

// Four channels of `a` from what `load_centred` gave, and what their rounding loses.
struct Converted {
  float square = 0.0f, rounding_square = 0.0f;
  __device__ __forceinline__ uint2 convert(const float (&difference)[kLanesOfFour], float scale) {
    uint16_t rounded[kLanesOfFour];
    for (int e = 0; e < kLanesOfFour; ++e) {
      const float a = difference[e] * scale;
      rounded[e] = round_float16(a);
      const float lost = a - widen_float16(rounded[e]);
      square += a * a;
      rounding_square += lost * lost;
    }
    return make_uint2(rounded[0] | static_cast<uint32_t>(rounded[1]) << 16,
                      rounded[2] | static_cast<uint32_t>(rounded[3]) << 16);
  }
};

// `lanes_of_row` (a power of two) lanes for each row, those of padding included; blocks' z is the codebook.
template <Element type>
__global__ void __launch_bounds__(kBlockThreads) convert_rows(RowsArgs args, int lanes_of_row) {
  const CudaCodes codes = codes_of_book(args.codes, blockIdx.z);
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x) / lanes_of_row;
  if (i >= args.rows.book_rows) return;  // whole warps, whose rows are at most 32
  const int64_t place = blockIdx.z * args.rows.book_rows + i;
  const int64_t first = threadIdx.x % lanes_of_row * kLanesOfFour, step = lanes_of_row * kLanesOfFour;
  const bool present = i < args.rows.num_rows, screens = screenable(codes);
  const int64_t source = blockIdx.z * args.rows.num_rows + (present ? i : 0);
  const void* row = row_on_device<type>(args.features, source, args.row_stride);

  float held[kHeldPieces][kLanesOfFour], largest = 0.0f;
  bool all_finite = true;
#pragma unroll
  for (int piece = 0; piece < kHeldPieces; ++piece) {
    if (piece * step >= codes.padded_channels) break;
    load_centred<type>(codes, row, args.aligned, first + piece * step, held[piece], all_finite);
    for (float value : held[piece]) largest = fmaxf(largest, fabsf(value));
  }
  for (int64_t c = first + kHeldPieces * step; c < codes.num_channels; c += step) {
    float difference[kLanesOfFour];
    load_centred<type>(codes, row, args.aligned, c, difference, all_finite);
    for (float value : difference) largest = fmaxf(largest, fabsf(value));
  }
  largest = warp_max(largest, lanes_of_row);
  const bool finite = warp_sum(static_cast<int>(all_finite), lanes_of_row) == lanes_of_row;
  const bool usable = present && finite && screens && finite_bits(largest);
  float window = finite || !present ? INFINITY : NAN;
  float ratio = 1.0f;
  if (screens) {  // else nothing of the codebook is screened, and the panel is not read
    const int code_exponent = exponent_above(codes.header->largest_bits);
    const int ratio_exponent =
        max(kLowestRatioExponent, min(0, code_exponent - exponent_above(__float_as_uint(usable ? largest : 0.0f))));
    ratio = power_of_two(ratio_exponent);
    const float scale = power_of_two(kTopExponent - code_exponent + ratio_exponent);
    Converted sums;
    uint16_t* panel = args.rows.panel + place * codes.padded_channels;
#pragma unroll
    for (int piece = 0; piece < kHeldPieces; ++piece) {
      const int64_t c = first + piece * step;
      if (c >= codes.padded_channels) break;
      *reinterpret_cast<uint2*>(panel + c) = usable ? sums.convert(held[piece], scale) : make_uint2(0, 0);
    }
    for (int64_t c = first + kHeldPieces * step; c < codes.padded_channels; c += step) {
      float difference[kLanesOfFour];
      load_centred<type>(codes, row, args.aligned, c, difference, all_finite);
      *reinterpret_cast<uint2*>(panel + c) = usable ? sums.convert(difference, scale) : make_uint2(0, 0);
    }
    const float square = warp_sum(sums.square, lanes_of_row);
    const float rounding_square = warp_sum(sums.rounding_square, lanes_of_row);
    if (usable && finite_bits(square) && finite_bits(rounding_square))
      window = static_cast<float>(window_of(codes, square, rounding_square, ratio));
  }
  if (first != 0) return;
  args.rows.window[place] = window;
  args.rows.ratio[place] = ratio;
}

}  // namespace
}  // namespace soho
