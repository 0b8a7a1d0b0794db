// Packs a group of codes; see packed_codebook.h. Included by vector levels; see exact_distance.h.
#pragma once

#include "common/float_environment.h"
#include "kernels/codebook_lookup/exact_distance.h"
#include "kernels/codebook_lookup/packed_codebook.h"

namespace soho {
namespace {

#ifdef __AVX512F__
using Words = __m256i;  // a 32-bit word of each lane
inline Lanes larger(Lanes a, Lanes b) { return _mm512_max_pd(a, b); }
inline Lanes smaller(Lanes a, Lanes b) { return _mm512_min_pd(a, b); }
inline Words to_floats(Lanes a) { return _mm256_castps_si256(_mm512_cvtpd_ps(a)); }
inline Lanes from_floats(Words a) { return _mm512_cvtps_pd(_mm256_castsi256_ps(a)); }
inline Words to_integers(Lanes a) { return _mm512_cvtpd_epi32(a); }  // to nearest even
inline Lanes from_integers(Words a) { return _mm512_cvtepi32_pd(a); }
inline Words all_words(int32_t value) { return _mm256_set1_epi32(value); }
inline Words plus(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline Words both(Words a, Words b) { return _mm256_and_si256(a, b); }
template <int count>
inline Words shifted_right(Words a) {
  return _mm256_srli_epi32(a, count);
}
template <int count>
inline Words shifted_left(Words a) {
  return _mm256_slli_epi32(a, count);
}
inline void store_words(void* target, Words a) { _mm256_storeu_si256(static_cast<__m256i*>(target), a); }
#else
using Words = __m128i;
inline Lanes larger(Lanes a, Lanes b) { return _mm256_max_pd(a, b); }
inline Words to_floats(Lanes a) { return _mm_castps_si128(_mm256_cvtpd_ps(a)); }
inline void store_words(void* target, Words a) { _mm_storeu_si128(static_cast<__m128i*>(target), a); }
#endif

inline double largest_lane(Lanes lanes) {
  double values[kWidth], largest = 0.0;
  store_lanes(values, lanes);
  for (double value : values) largest = value > largest ? value : largest;
  return largest;
}

inline double sum_of_lanes(Lanes lanes) {
  double values[kWidth], sum = 0.0;
  store_lanes(values, lanes);
  for (double value : values) sum += value;
  return sum;
}

// Calls work(code, centre, c) for the lanes of every kWidth channels from c on; zeros behind the last one.
template <class Work>
inline void for_lanes(const float* code, const float* centre, int64_t num_channels, Work work) {
  int64_t c = 0;
  for (; c + kWidth <= num_channels; c += kWidth) work(load_lanes(code + c), load_lanes(centre + c), c);
  if (c == num_channels) return;
  float last[2][kWidth] = {};
  std::memcpy(last[0], code + c, sizeof(float) * (num_channels - c));
  std::memcpy(last[1], centre + c, sizeof(float) * (num_channels - c));
  work(load_lanes(last[0]), load_lanes(last[1]), c);
}

inline CodeSpread spread_of(const float* code, const float* centre, int64_t num_channels) {
  Lanes largest{}, square{};
  for_lanes(code, centre, num_channels, [&](Lanes value, Lanes middle, int64_t) {
    largest = larger(largest, larger(value - middle, middle - value));
    square = times_plus(value - middle, value - middle, square);
  });
  return {largest_lane(largest), sum_of_lanes(square)};
}

// Rounds the channels of one code by round(b, c), which writes those of the lanes and returns b^.
template <class Round>
inline CodeLengths round_code(const CodePacking& packing, const float* code, Round round) {
  Lanes square{}, rounding_square{};
  for_lanes(code, packing.centre, packing.num_channels, [&](Lanes value, Lanes middle, int64_t c) {
    const Lanes b = (value - middle) * packing.scale, lost = b - round(b, c);
    square = times_plus(b, b, square);
    rounding_square = times_plus(lost, lost, rounding_square);
  });
  return {sum_of_lanes(square), sum_of_lanes(rounding_square)};
}

// Writes the words of one code, zeros up to the end of the row.
inline CodeLengths pack_code(const CodePacking& packing, const float* code, char* row) {
  std::memset(row, 0, packing_row_bytes(packing));
#ifdef __AVX512F__
  if (packing.format.type == ScreeningType::kBFloat16) {
    return round_code(packing, code, [=](Lanes b, int64_t c) {
      const Words bits = to_floats(b), odd = both(shifted_right<16>(bits), all_words(1));
      const Words rounded = shifted_right<16>(plus(bits, plus(odd, all_words(0x7fff))));  // to nearest even
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + 2 * c), _mm256_cvtepi32_epi16(rounded));
      return from_floats(shifted_left<16>(rounded));
    });
  }
  if (packing.format.type == ScreeningType::kInt8) {
    const double unit = packing.unit, per_unit = 1.0 / unit;
    Words sum = all_words(0);
    const CodeLengths lengths = round_code(packing, code, [&](Lanes b, int64_t c) {
      const Lanes number = larger(smaller(b * per_unit, all_lanes(127.0)), all_lanes(-127.0));
      const Words integer = to_integers(number);
      sum = plus(sum, integer);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(row + 4 + c), _mm256_cvtepi32_epi8(integer));
      return from_integers(integer) * unit;
    });
    int32_t sums[kWidth], start = 0;
    store_words(sums, sum);
    for (int32_t lane : sums) start -= 128 * lane;
    std::memcpy(row, &start, sizeof(start));
    return lengths;
  }
#endif
  return round_code(packing, code, [=](Lanes b, int64_t c) {
    store_words(row + 4 * c, to_floats(b));
    return b;  // this rounding is another term of the bound
  });
}

inline CodeLengths pack_group(const CodePacking& packing, const float* const* codes, int64_t num_codes, void* words,
                              uint32_t* panel, float* negated_half) {
  DefaultFloatEnvironment environment;
  const int64_t width = packing.format.width, row_bytes = packing_row_bytes(packing);
  char* rows = static_cast<char*>(words);
  CodeLengths longest{0.0, 0.0};
  std::memset(rows + num_codes * row_bytes, 0, (width - num_codes) * row_bytes);
  for (int64_t k = 0; k < width; ++k) negated_half[k] = -std::numeric_limits<float>::infinity();
  for (int64_t k = 0; k < num_codes; ++k) {
    const auto [square, rounding_square] = pack_code(packing, codes[k], rows + k * row_bytes);
    negated_half[k] = packing.format.metric == Metric::kEuclidean ? static_cast<float>(-0.5 * square) : 0.0f;
    longest.square = square > longest.square ? square : longest.square;
    longest.rounding_square = rounding_square > longest.rounding_square ? rounding_square : longest.rounding_square;
  }
  for (int64_t step = 0; step < packing.num_steps; ++step) {
    for (int64_t k = 0; k < width; ++k) std::memcpy(panel + step * width + k, rows + k * row_bytes + 4 * step, 4);
  }
  return longest;
}

}  // namespace
}  // namespace soho
