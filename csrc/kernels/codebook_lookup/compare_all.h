// The last pass: every code that is left in float64.
//
// It takes two steps as well. The distance with fused multiply-adds costs less and differs from the defined one only by
// the rounding of sums of C/8 + 3 positive terms and of each term (relative 2^-53 each; at most 1.01 (C/8 + 6) 2^-53 in
// each up to C = 2^40), so a code whose fused distance exceeds another's by more than (C/8 + 8) 2^-50 of it is
// not the nearest; what is as near as that is looked at by the defined distance. Rows with many such codes are compared
// by the defined distance at once; with fused multiply-adds again where no square is rounded, as with small integers.
//
// Included by each vector level and compiled with its flags; see exact_distance.h.
#pragma once

#include "kernels/codebook_lookup/exact_distance.h"

namespace soho {
namespace {

// Exponents of the highest and the lowest bit of float32 values.
struct BitRange {
  int high = -2048, low = 2048;

  void add(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if ((bits << 1) == 0) return;
    const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
    const int lowest = exponent - 52 + __builtin_ctzll(bits | uint64_t{1} << 52);
    high = exponent > high ? exponent : high;
    low = lowest < low ? lowest : low;
  }
};

inline BitRange bits_of_codes(const CodebookLookupArgs& args, const ScreenedCodes& screened) {
  BitRange bits;
  for (int64_t position = 0; position < screened.num_distinct; ++position) {
    const float* code = args.codebook + screened.codes[position] * args.num_channels;
    for (int64_t c = 0; c < args.num_channels; ++c) bits.add(code[c]);
  }
  return bits;
}

// Whether all differences between the values, of float32, and the codes have at most 26 bits, so that their squares are
// float64 numbers.
inline bool squares_are_exact(const BitRange& codes, const double* values, int64_t count) {
  constexpr int kBits = 26;
  int64_t largest = 0;
  for (int64_t n = 0; n < count; ++n) {
    int64_t bits;
    std::memcpy(&bits, values + n, sizeof(bits));
    bits &= INT64_MAX;
    largest = bits > largest ? bits : largest;
  }
  const int exponent = static_cast<int>(largest >> 52) - 1023, high = exponent > codes.high ? exponent : codes.high;
  const int lowest = high + 2 - kBits;
  if (codes.low < lowest) return false;
  const double rounder = __builtin_ldexp(1.5, lowest + 52);  // no bit below `lowest` fits behind it
  bool rounded = false;
  for (int64_t n = 0; n < count; ++n) rounded |= (values[n] + rounder) - rounder != values[n];
  return !rounded;
}

enum class Comparing { kByLooks, kDefined, kDefinedFused };

// The nearest code of one row so far.
struct Nearest {
  double distance;  // the defined one, or kUnknown
  double fused;     // by looks: no code so far has a lower one
  int64_t code;
};
constexpr double kUnknown = -1.0;

// A block of rows, in tiles, against every code that is left to them, four at a time.
struct RowBlock {
  static constexpr int64_t kTiles = 32, kRows = kTiles * kTileRows;
  // Of four codes: half of a 32 KiB L1 cache. The AVX-512 registers make more of what comes from the next cache.
  static constexpr int64_t kPartChannels = kWidth == kNumLanes ? 4096 : 512;
  static constexpr int64_t kManyLooks = 2 * kTileRows;  // of a tile, before it is compared by the defined distance
  static constexpr int64_t kBlocksAtOnce = 7;           // blocks that begin so after one that mostly ended so

  const CodebookLookupArgs& args;
  const ScreenedCodes& screened;
  const int64_t num_channels = args.num_channels;
  const int64_t row_length = padded_channels(num_channels) | kNumLanes;  // off the strides that share a cache set
  const int64_t code_length = num_channels < kPartChannels ? row_length : kPartChannels | kNumLanes;
  const double tolerance = 1 + (static_cast<double>(num_channels) / 8 + 8) * 0x1p-50;
  const Scratch memory{sizeof(double) * (kRows * (row_length + kTileCodes * kNumLanes) + kTileCodes * code_length)};
  double* const rows = static_cast<double*>(memory.data());
  double* const sums = rows + kRows * row_length;
  double* const codes = sums + kRows * kTileCodes * kNumLanes;

  BitRange code_bits;
  bool has_code_bits = false;
  int64_t blocks_at_once = 0;

  int64_t num_rows, num_tiles;
  int64_t first;  // position of the four codes in turn, at the beginning the lowest that is left to a row
  int64_t row_id[kRows];
  Nearest nearest[kRows];
  double limit[kRows];  // only distances below it can change the nearest
  Comparing comparing[kTiles];
  int64_t num_looks[kTiles], first_code[kTiles];

  RowBlock(const CodebookLookupArgs& args, const ScreenedCodes& screened) : args(args), screened(screened) {}

  const double* row(int64_t r) const { return rows + r * row_length; }

  // Takes undecided rows from `i` on, and returns where it stopped.
  int64_t load(int64_t i, int64_t end) {
    first = screened.num_distinct;
    for (num_rows = 0; i < end && num_rows < kRows; ++i) {
      if (args.index[i] >= 0) continue;
      load_exact_row(args, i, rows + num_rows * row_length);
      const Undecided undecided = undecided_at(args.index[i]);
      const int64_t tile = num_rows / kTileRows, position = undecided.position / kTileCodes * kTileCodes;
      if (num_rows % kTileRows == 0 || position < first_code[tile]) first_code[tile] = position;
      first = position < first ? position : first;
      nearest[num_rows] = {kFar, kFar, 0};
      if (undecided.nearest >= 0) {
        const int64_t code = screened.codes[undecided.nearest];
        const double distance = squared_distance(args, row(num_rows), code);
        nearest[num_rows] = {distance, distance, code};
      }
      limit[num_rows] = nearest[num_rows].fused * tolerance;
      row_id[num_rows++] = i;
    }
    num_tiles = (num_rows + kTileRows - 1) / kTileRows;
    const int64_t num_padded = num_tiles * kTileRows;
    std::memset(rows + num_rows * row_length, 0, sizeof(double) * row_length * (num_padded - num_rows));
    for (int64_t r = num_rows; r < num_padded; ++r) {
      nearest[r] = {kFar, kFar, 0};
      limit[r] = kFar;
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      num_looks[tile] = 0;
      comparing[tile] = Comparing::kByLooks;
      if (blocks_at_once > 0) compare_at_once(tile);
    }
    return i;
  }

  void compare_at_once(int64_t tile) {
    if (!has_code_bits) code_bits = bits_of_codes(args, screened);
    has_code_bits = true;
    comparing[tile] = Comparing::kDefinedFused;
    for (int64_t r = tile * kTileRows; r < (tile + 1) * kTileRows; ++r) {
      know_distance(r);
      limit[r] = nearest[r].distance;
      if (!squares_are_exact(code_bits, row(r), padded_channels(num_channels))) comparing[tile] = Comparing::kDefined;
    }
  }

  void know_distance(int64_t r) {
    if (nearest[r].distance == kUnknown) nearest[r].distance = squared_distance(args, row(r), nearest[r].code);
  }

  // Four distances of which one is below the limit.
  void take(int64_t r, const double* distance, const int64_t* code) {
    for (int64_t k = 0; k < kTileCodes; ++k) {
      if (!(distance[k] < limit[r])) continue;
      nearest[r].code = code[k];
      limit[r] = nearest[r].distance = distance[k];
    }
  }

  // The same with fused distances. Returns whether it had to look at the defined ones.
  bool take_fused(int64_t r, const double* fused, const int64_t* code) {
    int64_t lowest = 0, num_near = 0;
    for (int64_t k = 1; k < kTileCodes; ++k) lowest = fused[k] < fused[lowest] ? k : lowest;
    const double lowest_limit = fused[lowest] * tolerance;
    if (lowest_limit < limit[r]) limit[r] = lowest_limit;
    for (int64_t k = 0; k < kTileCodes; ++k) num_near += fused[k] <= limit[r];
    if (num_near == 1 && lowest_limit < nearest[r].fused) {
      nearest[r] = {kUnknown, fused[lowest], code[lowest]};
      return false;
    }
    know_distance(r);
    if (fused[lowest] < nearest[r].fused) nearest[r].fused = fused[lowest];
    const float* codes[kTileCodes];
    for (int64_t k = 0; k < kTileCodes; ++k) codes[k] = args.codebook + code[k] * num_channels;
    double distance[kTileCodes];
    _mm256_storeu_pd(distance, squared_distances(args, row(r), codes));
    for (int64_t k = 0; k < kTileCodes; ++k) {
      if (!(distance[k] < nearest[r].distance)) continue;
      nearest[r].code = code[k];
      nearest[r].distance = distance[k];
    }
    return true;
  }

  void run() {
    for (; first < screened.num_distinct; first += kTileCodes) {
      int64_t code[kTileCodes];  // the last one is repeated: a copy is not nearer
      for (int64_t k = 0; k < kTileCodes; ++k)
        code[k] = screened.codes[first + k < screened.num_distinct ? first + k : screened.num_distinct - 1];
      if (num_channels <= kPartChannels) {
        compare_tiles(0, AllChannels{num_channels}, code);
        continue;
      }
      for (int64_t c = 0; c < num_channels; c += kPartChannels) {
        const int64_t left = num_channels - c;
        const bool is_last = left <= kPartChannels;
        compare_tiles(c, SomeChannels{is_last ? left : kPartChannels, c == 0, is_last, sums}, code);
      }
    }
  }

  // All tiles against the channels of four codes from c on.
  template <class Channels>
  void compare_tiles(int64_t c, Channels channels, const int64_t* code) {
    const double* exact_code[kTileCodes];
    for (int64_t k = 0; k < kTileCodes; ++k) {
      load_exact(args.codebook + code[k] * num_channels + c, Element::kFloat32, channels.num_channels,
                 codes + k * code_length);
      exact_code[k] = codes + k * code_length;
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      if constexpr (!Channels::kAll) channels.sums = sums + tile * kTileRows * kTileCodes * kNumLanes;
      if (first >= first_code[tile]) compare_tile(tile, c, channels, exact_code, code);
    }
  }

  template <class Channels>
  void compare_tile(int64_t tile, int64_t c, const Channels& channels, const double* const* exact_code,
                    const int64_t* code) {
    const int64_t first_row = tile * kTileRows;
    __m256d distances[kTileRows];
    if (comparing[tile] == Comparing::kDefined) {
      squared_distances<kTileRows>(row(first_row) + c, row_length, exact_code, channels, distances);
    } else {
      squared_distances<kTileRows, true>(row(first_row) + c, row_length, exact_code, channels, distances);
    }
    if (!channels.is_last) return;
    if (!any_below(distances, limit + first_row)) return;
    for (int64_t r = 0; r < kTileRows; ++r) {
      if (!any_below<1>({distances[r]}, limit + first_row + r)) continue;
      double distance[kTileCodes];
      _mm256_storeu_pd(distance, distances[r]);
      if (comparing[tile] == Comparing::kByLooks) {
        num_looks[tile] += take_fused(first_row + r, distance, code);
      } else {
        take(first_row + r, distance, code);
      }
    }
    // A look costs about as much as comparing a tile by the defined distance costs beyond the fused one.
    const int64_t num_compared = (first - first_code[tile]) / kTileCodes + 1;
    if (comparing[tile] == Comparing::kByLooks && num_looks[tile] > kManyLooks && num_looks[tile] > num_compared)
      compare_at_once(tile);
  }

  void finish() {
    for (int64_t r = 0; r < num_rows; ++r) write_row(args, row_id[r], nearest[r].code, row(r));
    if (blocks_at_once > 0) {
      --blocks_at_once;
      return;
    }
    int64_t num_at_once = 0;
    for (int64_t tile = 0; tile < num_tiles; ++tile) num_at_once += comparing[tile] != Comparing::kByLooks;
    if (num_at_once * 4 >= num_tiles * 3) blocks_at_once = kBlocksAtOnce;
  }
};

// The undecided rows of [begin, end).
inline LookupCounts compare_all(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  RowBlock block(args, screened);
  LookupCounts counts;
  for (int64_t i = begin; i < end;) {
    i = block.load(i, end);
    block.run();
    block.finish();
    counts.compared += block.num_rows;
  }
  return counts;
}

}  // namespace
}  // namespace soho
