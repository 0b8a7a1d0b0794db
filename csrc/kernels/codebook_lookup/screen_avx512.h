// What the AVX-512 levels share: scores of 14 rows x 32 codes in registers, candidates by comparison with each row's
// threshold. See screen.h on how it is included; Dot says how words are multiplied:
//   Sum, kFirstStep                                               of 16 codes; the first step that holds channels
//   static Sum start(negated_half, codes)                         before the first step
//   static Sum add(sum, row, codes)                               the sum plus one step's products
//   static __m512 score(sum, negated_half, row)                   after the last step; row: its first word
//   static Sum plus(sum, sum)                                     of two parts of the steps
//   static RowLengths convert_row(...)                            as of a Kernel
// FloatDot gives those of floating point, but for add and
//   static __m512 convert16(a, words, c)                          writes the words of 16 channels, returns a - a^
#pragma once

#include <immintrin.h>

#include "kernels/codebook_lookup/screen.h"
#include "kernels/codebook_lookup/screen_few_codes.h"

namespace soho {
namespace {

inline __m512 load16(const void* row, int64_t position, Element type, __mmask16 mask) {
  if (type == Element::kFloat32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(row) + position);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(row) + position);
  if (type == Element::kFloat16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// 16 channels from c on, centred and scaled; zeros behind the last.
inline __m512 centred16(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels, int64_t c) {
  const int64_t left = num_channels - c;
  const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  const __m512 centre = _mm512_maskz_loadu_ps(mask, screened.centre + c);
  return _mm512_mul_ps(_mm512_sub_ps(load16(row, c, type, mask), centre), _mm512_set1_ps(screened.scale));
}

constexpr int64_t kBytesAhead = 4096;  // of adjacent rows, which are fetched while these are converted

// Centres, scales and rounds one row to the words of Dot.
template <class Dot>
RowLengths convert_row_avx512(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                              float* words) {
  __m512 square[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, rounding_square[2] = {square[0], square[0]};
  const auto convert = [&](int64_t c, int chain) {
    const __m512 a = centred16(row, type, screened, num_channels, c);
    const __m512 lost = Dot::convert16(a, words, c);
    square[chain] = _mm512_fmadd_ps(a, a, square[chain]);
    rounding_square[chain] = _mm512_fmadd_ps(lost, lost, rounding_square[chain]);
  };
  int64_t c = 0;
  for (; c + 32 <= num_channels; c += 32) {
    _mm_prefetch(static_cast<const char*>(row) + c * element_size(type) + kBytesAhead, _MM_HINT_T0);
    _mm_prefetch(static_cast<const char*>(row) + (c + 16) * element_size(type) + kBytesAhead, _MM_HINT_T0);
    convert(c, 0);
    convert(c + 16, 1);
  }
  for (; c < num_channels; c += 16) convert(c, 0);
  return {_mm512_reduce_add_ps(_mm512_add_ps(square[0], square[1])),
          Dot::kRounds ? _mm512_reduce_add_ps(_mm512_add_ps(rounding_square[0], rounding_square[1])) : 0.0f};
}

struct RowInt8 {
  float unit;
  RowLengths lengths;
};

// Centres and scales one row and writes its numbers in units of its own, of [-127, 127] with `bias` added.
inline RowInt8 round_to_int8(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                             int32_t bias, int8_t* numbers) {
  const auto load = [&](int64_t c) { return centred16(row, type, screened, num_channels, c); };
  __m512 square = _mm512_setzero_ps(), rounding_square = square, largest = square;
  for (int64_t c = 0; c < num_channels; c += 16) {
    _mm_prefetch(static_cast<const char*>(row) + c * element_size(type) + kBytesAhead, _MM_HINT_T0);
    const __m512 a = load(c);
    square = _mm512_fmadd_ps(a, a, square);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(a));
  }
  const float most = _mm512_reduce_max_ps(largest), unit = most / 127.0f;
  const __m512 per_unit = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
  for (int64_t c = 0; c < num_channels; c += 16) {
    const __m512 a = load(c);
    __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(a, per_unit));
    number = _mm512_max_epi32(_mm512_min_epi32(number, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
    const __m512 lost = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(number), _mm512_set1_ps(unit), a);
    rounding_square = _mm512_fmadd_ps(lost, lost, rounding_square);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + c),
                     _mm512_cvtepi32_epi8(_mm512_add_epi32(number, _mm512_set1_epi32(bias))));
  }
  return {unit, {_mm512_reduce_add_ps(square), _mm512_reduce_add_ps(rounding_square)}};
}

// Adds those of 32 adjacent scores that reach the threshold to one row's list.
inline void add_candidates(Candidates& list, float& threshold, const float* scores, int32_t first_position) {
  const __m512 score[2] = {_mm512_loadu_ps(scores), _mm512_loadu_ps(scores + 16)};
  const float best = _mm512_reduce_max_ps(_mm512_max_ps(score[0], score[1]));
  if (best > list.best) {
    if (list.comparison->args.topk > 1) {
      raise_threshold(list, threshold, scores, 32);
    } else {
      raise_best(list, threshold, best);
    }
  }
  // Padding has a score of -inf, and so may a threshold that waits for the topk-th score.
  const __m512 limit = _mm512_set1_ps(threshold > kLowest ? threshold : kLowest);
  const __mmask16 hits[2] = {_mm512_cmp_ps_mask(score[0], limit, _CMP_GE_OQ),
                             _mm512_cmp_ps_mask(score[1], limit, _CMP_GE_OQ)};
  if (!make_room(list, threshold, __builtin_popcount(hits[0]) + __builtin_popcount(hits[1]), first_position)) return;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int half = 0; half < 2; ++half) {
    const __m512i position = _mm512_add_epi32(lane, _mm512_set1_epi32(first_position + 16 * half));
    _mm512_storeu_ps(list.score + list.count, _mm512_maskz_compress_ps(hits[half], score[half]));
    _mm512_storeu_si512(list.position + list.count, _mm512_maskz_compress_epi32(hits[half], position));
    list.count += __builtin_popcount(hits[half]);
  }
}

template <class Dot>
struct FloatDot {
  using Sum = __m512;
  static constexpr int64_t kFirstStep = 0;

  static Sum start(const float* negated_half, const float*) { return _mm512_load_ps(negated_half); }
  static __m512 score(Sum sum, const float*, const float*) { return sum; }
  static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    return convert_row_avx512<Dot>(row, type, screened, num_channels, words);
  }
};

struct DotFloat32 : FloatDot<DotFloat32> {
  static constexpr bool kRounds = false;

  static __m512 add(__m512 score, __m512 row, __m512 codes) { return _mm512_fmadd_ps(row, codes, score); }

  // The panel's rows are whole vectors long: zeros behind the last channel do no harm.
  static __m512 convert16(__m512 a, float* words, int64_t c) {
    _mm512_storeu_ps(words + c, a);
    return _mm512_setzero_ps();
  }
};

#ifdef __AVX512BF16__
struct DotBFloat16 : FloatDot<DotBFloat16> {
  static constexpr bool kRounds = true;

  static __m512 add(__m512 score, __m512 row, __m512 codes) {
    return _mm512_dpbf16_ps(score, (__m512bh)_mm512_castps_si512(row), (__m512bh)_mm512_castps_si512(codes));
  }

  static __m512 convert16(__m512 a, float* words, int64_t c) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + c / 2), rounded);
    return _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16)));
  }
};
#endif

#ifdef __AVX512VNNI__
// The instruction multiplies unsigned by signed numbers: a row's are kept with 128 added behind the unit of a product,
// and a code's sum starts at -128 times the sum of its numbers. The sums are exact.
struct DotInt8 {
  using Sum = __m512;  // of int32
  static constexpr int64_t kFirstStep = 1;

  static Sum start(const float*, const float* codes) { return _mm512_load_ps(codes); }

  static Sum add(Sum sum, __m512 row, __m512 codes) {
    __m512i next = _mm512_dpbusd_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(row), _mm512_castps_si512(codes));
    // Else GCC stores half of the sums in every fourth step, for what reads them behind the last.
    asm("" : "+v"(next));
    return _mm512_castsi512_ps(next);
  }

  static __m512 score(Sum sum, const float* negated_half, const float* row) {
    const __m512 products = _mm512_cvtepi32_ps(_mm512_castps_si512(sum));
    return _mm512_fmadd_ps(products, _mm512_set1_ps(*row), _mm512_load_ps(negated_half));
  }

  static Sum plus(Sum a, Sum b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }

  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    const RowInt8 rounded = round_to_int8(row, type, screened, num_channels, 128, reinterpret_cast<int8_t*>(words + 1));
    words[0] = rounded.unit * screened.unit;
    return rounded.lengths;
  }
};
#endif

template <int num_rows>
bool any_reachable(const float* threshold) {  // rows that are given up often come together
  for (int r = 0; r < num_rows; r += 16) {
    const __mmask16 present = num_rows - r >= 16 ? 0xffff : (1u << (num_rows - r)) - 1;
    const __m512 limits = _mm512_maskz_loadu_ps(present, threshold + r);
    if (_mm512_mask_cmp_ps_mask(present, limits, _mm512_set1_ps(kInfinity), _CMP_LT_OQ) != 0) return true;
  }
  return false;
}

// Adds the scores of num_rows x 32 codes to the lists of the rows whose threshold they reach.
template <int num_rows>
void add_candidates_of_tile(const float (*scores)[32], int64_t group, float* threshold, Candidates* lists) {
  for (int r = 0; r < num_rows; ++r) {
    const __m512 best = _mm512_max_ps(_mm512_load_ps(scores[r]), _mm512_load_ps(scores[r] + 16));
    if (_mm512_cmp_ps_mask(best, _mm512_set1_ps(threshold[r]), _CMP_GE_OQ) == 0) continue;
    add_candidates(lists[r], threshold[r], scores[r], static_cast<int32_t>(group * 32));
  }
}

// Sums of 14 rows x 32 codes, or the first 16 of them, all in registers, from what they hold.
template <class Dot, int num_rows, int num_vectors, class Sum>
[[gnu::always_inline]] inline void add_products(const float* rows, int64_t row_length, const float* codes,
                                                int64_t first_step, int64_t num_steps,
                                                Sum (&sum)[num_rows][num_vectors]) {
  const float* three[(num_rows + 2) / 3];  // of every three rows the first: an address reaches two rows further
#pragma GCC unroll 5
  for (int t = 0; t < (num_rows + 2) / 3; ++t) three[t] = rows + 3 * t * row_length;
#pragma GCC unroll 4
  for (int64_t step = first_step; step < num_steps; ++step) {
    __m512 code[num_vectors];
    for (int v = 0; v < num_vectors; ++v) code[v] = _mm512_load_ps(codes + 16 * v);
    codes += 32;
#pragma GCC unroll 14
    for (int r = 0; r < num_rows; ++r) {
      const __m512 x = _mm512_set1_ps(three[r / 3][(r % 3) * row_length + step]);
      for (int v = 0; v < num_vectors; ++v) sum[r][v] = Dot::add(sum[r][v], x, code[v]);
    }
  }
}

template <class Dot>
struct KernelAvx512 {
  static constexpr int kRows = 14;  // 14 x 2 accumulators, 2 code vectors, 1 broadcast: 31 of 32 registers
  static constexpr int kCodes = 32;

  static void begin() {}
  static void end() {}

  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    return Dot::convert_row(row, type, screened, num_channels, words);
  }

  static void add(Candidates& list, float& threshold, const float* scores, int32_t first_position) {
    add_candidates(list, threshold, scores, first_position);
  }

  static void highest(const float* rows, int64_t row_length, const ScreenedCodes& screened, int64_t group, float* out) {
    const float* codes = static_cast<const float*>(screened.panel) + group * screened.num_steps * kCodes;
    const float* negated_half = screened.negated_half + group * kCodes;
    typename Dot::Sum sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = Dot::start(negated_half, codes);
      sum[r][1] = Dot::start(negated_half + 16, codes + 16);
    }
    add_products<Dot>(rows, row_length, codes + Dot::kFirstStep * kCodes, Dot::kFirstStep, screened.num_steps, sum);
    __m512 best[16];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      best[r] = _mm512_max_ps(Dot::score(sum[r][0], negated_half, rows + r * row_length),
                              Dot::score(sum[r][1], negated_half + 16, rows + r * row_length));
    }
    best[14] = best[15] = best[0];
    _mm512_mask_storeu_ps(out, (1u << kRows) - 1, largest_of_each(best));
  }

  static void scores(const float* rows, int64_t row_length, const ScreenedCodes& screened, int64_t group, float* out,
                     int64_t out_length) {
    if (screened.num_distinct - group * kCodes > 16)
      return scores_of<2>(rows, row_length, screened, group, out, out_length);
    scores_of<1>(rows, row_length, screened, group, out, out_length);
  }

  template <int num_vectors>
  static void scores_of(const float* rows, int64_t row_length, const ScreenedCodes& screened, int64_t group, float* out,
                        int64_t out_length) {
    const float* codes = static_cast<const float*>(screened.panel) + group * screened.num_steps * kCodes;
    const float* negated_half = screened.negated_half + group * kCodes;
    typename Dot::Sum sum[kRows][num_vectors];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < num_vectors; ++v) sum[r][v] = Dot::start(negated_half + 16 * v, codes + 16 * v);
    }
    add_products<Dot>(rows, row_length, codes + Dot::kFirstStep * kCodes, Dot::kFirstStep, screened.num_steps, sum);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < num_vectors; ++v)
        _mm512_storeu_ps(out + r * out_length + 16 * v,
                         Dot::score(sum[r][v], negated_half + 16 * v, rows + r * row_length));
    }
  }

  static void look(const float* row, const ScreenedCodes& screened, int64_t group, float* out) {
    const float* codes = static_cast<const float*>(screened.panel) + group * screened.num_steps * kCodes;
    const float* negated_half = screened.negated_half + group * kCodes;
    typename Dot::Sum sum[2][2] = {{Dot::start(negated_half, codes), Dot::start(negated_half + 16, codes + 16)}, {}};
    for (int64_t step = Dot::kFirstStep; step < screened.num_steps; ++step) {  // in two chains
      const __m512 x = _mm512_set1_ps(row[step]);
      typename Dot::Sum(&chain)[2] = sum[step % 2];
      chain[0] = Dot::add(chain[0], x, _mm512_load_ps(codes + step * kCodes));
      chain[1] = Dot::add(chain[1], x, _mm512_load_ps(codes + step * kCodes + 16));
    }
    for (int half = 0; half < 2; ++half) {
      const typename Dot::Sum all = Dot::plus(sum[0][half], sum[1][half]);
      _mm512_store_ps(out + 16 * half, Dot::score(all, negated_half + 16 * half, row));
    }
  }

  static void screen_row(const float* row, const ScreenedCodes& screened, int64_t group, float& threshold,
                         Candidates& list) {
    alignas(64) float scores[1][kCodes];
    look(row, screened, group, scores[0]);
    add_candidates_of_tile<1>(scores, group, &threshold, &list);
  }

  static void screen_tile(const float* rows, int64_t row_length, const ScreenedCodes& screened, int64_t group,
                          float* threshold, Candidates* lists) {
    if (!any_reachable<kRows>(threshold)) return;
    const int64_t num_steps = screened.num_steps;
    const float* codes = static_cast<const float*>(screened.panel) + group * num_steps * kCodes;
    const float* negated_half = screened.negated_half + group * kCodes;
    typename Dot::Sum sum[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = Dot::start(negated_half, codes);
      sum[r][1] = Dot::start(negated_half + 16, codes + 16);
    }
    add_products<Dot>(rows, row_length, codes + Dot::kFirstStep * kCodes, Dot::kFirstStep, num_steps, sum);
    __m512 score[kRows][2];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      score[r][0] = Dot::score(sum[r][0], negated_half, rows + r * row_length);
      score[r][1] = Dot::score(sum[r][1], negated_half + 16, rows + r * row_length);
    }
    __mmask16 reached = 0;
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512 limit = _mm512_set1_ps(threshold[r]);
      reached |= _mm512_cmp_ps_mask(_mm512_max_ps(score[r][0], score[r][1]), limit, _CMP_GE_OQ);
    }
    if (reached == 0) return;
    alignas(64) float stored[kRows][kCodes];
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      _mm512_store_ps(stored[r], score[r][0]);
      _mm512_store_ps(stored[r] + 16, score[r][1]);
    }
    add_candidates_of_tile<kRows>(stored, group, threshold, lists);
  }
};

// All scores of few codes, by the highest scores of groups where rows have few steps, else by lists: what is fastest.
template <class Dot, int64_t few_steps, int64_t few_long_codes>
LookupCounts screen_by(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  using Kernel = KernelAvx512<Dot>;
  const bool has_few_steps = screened.num_steps <= few_steps;
  if (args.topk == 1 && (screened.num_distinct <= (has_few_steps ? kFewShortCodes : few_long_codes) ||
                         are_few_rows(screened, end - begin)))
    return screen_few_codes<Kernel>(args, screened, begin, end);
  return args.topk == 1 && has_few_steps && end - begin > kRowsOneByOne
             ? screen_groups<Kernel>(args, screened, begin, end)
             : screen_rows<Kernel>(args, screened, begin, end);
}

}  // namespace
}  // namespace soho
