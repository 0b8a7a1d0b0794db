// The codebook as tensor cores read it: distinct finite codes, centred, scaled by a power of two, rounded to float16.
//
// Copies of a code are found by a hash table of 64-bit entries, the upper half of the hash above the lowest index of a
// code with this content. An entry never moves, and its content never changes, so that all copies of a code come to
// one entry whatever the order; the atomic minimum leaves the lowest index. A code that is a copy or not finite stays
// in place with -inf for -|b|^2/2: no score of it reaches a threshold.
#pragma once

#include "common/cuda_element.cuh"
#include "common/cuda_warp.cuh"
#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {
namespace {

constexpr int kTileRows = 128;  // of a block of the screening kernel
constexpr int kTileCodes = 128;
constexpr int kTileChannels = 32;   // of one pipeline stage
constexpr int kBlockThreads = 256;  // of all kernels but the screening one
constexpr int kBlockWarps = kBlockThreads / kWarp;
constexpr int kMostSumParts = 64;    // of the mean of the codes
constexpr int kCodesOfSumPart = 32;  // at least, where there are as many
constexpr unsigned long long kEmpty = ~0ull;

constexpr int64_t kMaxScreenedChannels = int64_t{1} << 18;  // of the error bound
constexpr int kMaxScreenedExponent = 80;  // so that all scales and their products stay normal float32 numbers
constexpr int kTopExponent = 15;          // elements of b lie below 2^15, the largest one in [2^14, 2^15)

// Beside this the block holds the arrays of CudaCodes.
struct CudaCodesHeader {
  unsigned long long square_bits;           // max |b|^2, a float64
  unsigned long long rounding_square_bits;  // max |b - b^|^2, a float64
  uint32_t largest_bits;                    // max |d - m| over all elements, a float32
  uint32_t num_distinct;
};

struct CudaCodes {
  CudaCodesHeader* header;
  float* centre;        // (num_channels,)
  float* negated_half;  // (num_codes up to whole tiles,): -|b|^2/2; -inf at padding, copies and what is not finite
  uint16_t* panel;      // (num_codes up to whole tiles, padded_channels): b^, zeros at padding
  int64_t num_codes, num_channels, padded_channels;
  int64_t block_bytes;  // from one packed codebook to the next
};

template <class T>
__device__ __forceinline__ T* moved_by(T* array, int64_t num_bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(array) + num_bytes);
}

// The same of the codebook `book` places behind.
__device__ __forceinline__ CudaCodes codes_of_book(CudaCodes codes, unsigned book) {
  const int64_t num_bytes = book * codes.block_bytes;
  codes.header = moved_by(codes.header, num_bytes);
  codes.centre = moved_by(codes.centre, num_bytes);
  codes.negated_half = moved_by(codes.negated_half, num_bytes);
  codes.panel = moved_by(codes.panel, num_bytes);
  return codes;
}

__device__ __forceinline__ int exponent_above(uint32_t bits) {  // of a positive float32: it lies below 2^result
  return static_cast<int>(bits >> 23) - 126;
}
__device__ __forceinline__ float power_of_two(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}
__device__ __forceinline__ bool screenable(const CudaCodes& codes) {
  const int exponent = exponent_above(codes.header->largest_bits);
  return codes.header->num_distinct >= 2 && exponent >= -kMaxScreenedExponent && exponent <= kMaxScreenedExponent &&
         codes.num_channels <= kMaxScreenedChannels;
}

// What finds the copies while codebooks are packed.
struct CopyTable {
  unsigned long long* entries;  // (books, capacity), kEmpty at first
  int64_t capacity;             // a power of two, at least twice the codes
  int64_t* entry_of;            // (books, num_codes); -1 for a code that is not finite
  double* partial_sums;         // (books, num_parts, num_channels)
  int num_parts;
};

// The arguments of the kernels that pack. Their blocks' z is the codebook.
struct PackArgs {
  const float* codebook;
  CudaCodes codes;
  CopyTable table;
};

__device__ __forceinline__ PackArgs pack_args_of_book(PackArgs args, unsigned book) {
  const int64_t num_codes = args.codes.num_codes, num_channels = args.codes.num_channels;
  args.codebook += book * num_codes * num_channels;
  args.codes = codes_of_book(args.codes, book);
  args.table.entries += book * args.table.capacity;
  args.table.entry_of += book * num_codes;
  args.table.partial_sums += book * args.table.num_parts * num_channels;
  return args;
}

__device__ __forceinline__ bool is_first_copy(const CopyTable& table, int64_t j) {
  const int64_t entry = table.entry_of[j];
  return entry >= 0 && static_cast<int64_t>(table.entries[entry] & 0xffffffffu) == j;
}

__device__ __forceinline__ bool same_code(const float* left, const float* right, int64_t num_channels, int lane) {
  bool same = true;
  for (int64_t c = lane; c < num_channels; c += kWarp) same &= left[c] == right[c];
  return __all_sync(kAllLanes, same);
}

// One warp for each code. The first thread of a codebook empties its header, which nobody reads here.
__global__ void __launch_bounds__(kBlockThreads) insert_codes(PackArgs args) {
  const auto [codebook, codes, table] = pack_args_of_book(args, blockIdx.z);
  if (blockIdx.x == 0 && threadIdx.x == 0) *codes.header = {};
  const int64_t num_codes = codes.num_codes, num_channels = codes.num_channels;
  const int lane = threadIdx.x % kWarp;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp;
  if (j >= num_codes) return;
  const float* code = codebook + j * num_channels;
  unsigned long long hash = 0x9e3779b97f4a7c15ull * (lane + 1);
  bool finite = true;
  for (int64_t c = lane; c < num_channels; c += kWarp) {
    const uint32_t bits = __float_as_uint(code[c]);
    finite &= finite_bits(code[c]);
    hash = (hash ^ (bits == 0x80000000u ? 0u : bits)) * 0xbf58476d1ce4e5b9ull;  // -0 equals +0
    hash ^= hash >> 29;
  }
  hash = warp_sum(hash * (2 * lane + 1));
  hash ^= hash >> 32;
  if (!__all_sync(kAllLanes, finite)) {
    if (lane == 0) table.entry_of[j] = -1;
    return;
  }
  const unsigned long long own = (hash & 0xffffffff00000000ull) | static_cast<unsigned long long>(j);
  int64_t entry = static_cast<int64_t>(hash & static_cast<unsigned long long>(table.capacity - 1));
  while (true) {
    unsigned long long seen = 0;
    if (lane == 0) seen = atomicCAS(table.entries + entry, kEmpty, own);
    seen = __shfl_sync(kAllLanes, seen, 0);
    if (seen == kEmpty) break;
    if ((seen ^ own) >> 32 == 0 &&
        same_code(code, codebook + static_cast<int64_t>(seen & 0xffffffffu) * num_channels, num_channels, lane)) {
      if (lane == 0) atomicMin(table.entries + entry, own);
      break;
    }
    entry = (entry + 1) & (table.capacity - 1);
  }
  if (lane == 0) table.entry_of[j] = entry;
}

// Block (x, part): the sum of 32 channels over a part of the distinct codes, and their number.
__global__ void __launch_bounds__(kBlockThreads) sum_codes(PackArgs args) {
  __shared__ double sums[kBlockWarps][kWarp];
  const auto [codebook, codes, table] = pack_args_of_book(args, blockIdx.z);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const int64_t begin = codes.num_codes * blockIdx.y / table.num_parts;
  const int64_t end = codes.num_codes * (blockIdx.y + 1) / table.num_parts;
  double sum = 0.0;
  uint32_t num_distinct = 0;
  for (int64_t j = begin + warp; j < end; j += kBlockWarps) {
    if (!is_first_copy(table, j)) continue;
    ++num_distinct;
    if (c < codes.num_channels) sum += codebook[j * codes.num_channels + c];
  }
  sums[warp][lane] = sum;
  if (blockIdx.x == 0 && lane == 0) atomicAdd(&codes.header->num_distinct, num_distinct);
  __syncthreads();
  if (warp != 0 || c >= codes.num_channels) return;
  for (int other = 1; other < kBlockWarps; ++other) sum += sums[other][lane];
  table.partial_sums[blockIdx.y * codes.num_channels + c] = sum;
}

// One thread for each channel.
__global__ void __launch_bounds__(kBlockThreads) centre_codes(PackArgs args) {
  const auto [codebook, codes, table] = pack_args_of_book(args, blockIdx.z);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (c >= codes.num_channels) return;
  double sum = 0.0;
  for (int part = 0; part < table.num_parts; ++part) sum += table.partial_sums[part * codes.num_channels + c];
  const uint32_t num_distinct = codes.header->num_distinct;
  codes.centre[c] = num_distinct == 0 ? 0.0f : static_cast<float>(sum / num_distinct);
}

// Largest |d - m| of all elements; warps take codes in turn.
__global__ void __launch_bounds__(kBlockThreads) measure_codes(PackArgs args) {
  const auto [codebook, codes, table] = pack_args_of_book(args, blockIdx.z);
  const int lane = threadIdx.x % kWarp;
  float largest = 0.0f;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp; j < codes.num_codes;
       j += static_cast<int64_t>(gridDim.x) * kBlockWarps) {
    if (!is_first_copy(table, j)) continue;
    for (int64_t c = lane; c < codes.num_channels; c += kWarp)
      largest = fmaxf(largest, fabsf(codebook[j * codes.num_channels + c] - codes.centre[c]));
  }
  largest = warp_max(largest);
  if (lane == 0) atomicMax(&codes.header->largest_bits, __float_as_uint(largest));
}

// Centres, scales and rounds; warps take codes in turn, padding included.
__global__ void __launch_bounds__(kBlockThreads) pack_codes(PackArgs args) {
  const auto [codebook, codes, table] = pack_args_of_book(args, blockIdx.z);
  const int lane = threadIdx.x % kWarp;
  const int64_t padded_codes = (codes.num_codes + kTileCodes - 1) / kTileCodes * kTileCodes;
  const bool screens = screenable(codes);
  const float scale = screens ? power_of_two(kTopExponent - exponent_above(codes.header->largest_bits)) : 0.0f;
  double largest_square = 0.0, largest_rounding_square = 0.0;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp; j < padded_codes;
       j += static_cast<int64_t>(gridDim.x) * kBlockWarps) {
    const bool used = j < codes.num_codes && is_first_copy(table, j);
    double square = 0.0, rounding_square = 0.0;
    for (int64_t c = lane; c < codes.padded_channels; c += kWarp) {
      uint16_t rounded = 0;
      if (used && screens && c < codes.num_channels) {
        const float b = (codebook[j * codes.num_channels + c] - codes.centre[c]) * scale;
        rounded = round_float16(b);
        const double exact = b, lost = exact - widen_float16(rounded);
        square += exact * exact;
        rounding_square += lost * lost;
      }
      codes.panel[j * codes.padded_channels + c] = rounded;
    }
    square = warp_sum(square);
    largest_square = fmax(largest_square, square);
    largest_rounding_square = fmax(largest_rounding_square, warp_sum(rounding_square));
    if (lane == 0) codes.negated_half[j] = used ? static_cast<float>(-0.5 * square) : -INFINITY;
  }
  if (lane != 0) return;  // float64 above zero are ordered like their bits
  atomicMax(&codes.header->square_bits, static_cast<unsigned long long>(__double_as_longlong(largest_square)));
  atomicMax(&codes.header->rounding_square_bits,
            static_cast<unsigned long long>(__double_as_longlong(largest_rounding_square)));
}

}  // namespace
}  // namespace soho
