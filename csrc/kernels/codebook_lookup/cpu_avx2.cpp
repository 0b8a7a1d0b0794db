// AVX2 + FMA + F16C level: scores of 6 rows x 16 codes in registers, candidates by comparison with each row's
// threshold.
//
// Compiled with its own flags, so nothing here may be shared with other files by the linker: no standard containers or
// algorithms, everything in an unnamed namespace.
#include "common/vectors.h"
#include "kernels/codebook_lookup/compare_all.h"
#include "kernels/codebook_lookup/compare_few.h"
#include "kernels/codebook_lookup/pack_group.h"
#include "kernels/codebook_lookup/screen.h"
#include "kernels/codebook_lookup/screen_pruning.h"

namespace soho {
namespace {

template <Element type>
__m256 load8(const void* row, int64_t position) {
  if constexpr (type == Element::kFloat32) return _mm256_loadu_ps(static_cast<const float*>(row) + position);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(row) + position));
  if constexpr (type == Element::kFloat16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

template <Element type>
RowLengths convert(const void* row, const ScreenedCodes& screened, int64_t num_channels, float* target) {
  const __m256 factor = _mm256_set1_ps(screened.scale);
  __m256 square = _mm256_setzero_ps();
  int64_t c = 0;
  for (; c + 8 <= num_channels; c += 8) {
    const __m256 centre = _mm256_loadu_ps(screened.centre + c);
    const __m256 a = _mm256_mul_ps(_mm256_sub_ps(load8<type>(row, c), centre), factor);
    _mm256_storeu_ps(target + c, a);
    square = _mm256_fmadd_ps(a, a, square);
  }
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, square);
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  for (; c < num_channels; ++c) {
    target[c] = (load_element(row, c, type) - screened.centre[c]) * screened.scale;
    sum += target[c] * target[c];
  }
  return {sum, 0.0f};
}

void add_candidate(Candidates& list, float& threshold, int64_t position, float score) {
  if (!(score >= threshold)) return;
  if (score > list.best) {
    if (list.comparison->args.topk > 1) {
      raise_threshold(list, threshold, &score, 1);
    } else {
      raise_best(list, threshold, score);
    }
  }
  if (!make_room(list, threshold, 1, position)) return;
  list.position[list.count] = static_cast<int32_t>(position);
  list.score[list.count++] = score;
}

// Scores of 6 rows x 16 codes, all in registers, from what they hold.
[[gnu::always_inline]] inline void add_products(const float* rows, int64_t row_length, const float* codes,
                                                int64_t num_steps, __m256 (&score)[6][2]) {
  const float* upper = rows;
  const float* lower = rows + 3 * row_length;
#pragma GCC unroll 4
  for (int64_t step = 0; step < num_steps; ++step) {
    const __m256 code0 = _mm256_load_ps(codes), code1 = _mm256_load_ps(codes + 8);
    codes += 16;
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) {
      const __m256 x = _mm256_broadcast_ss(r < 3 ? upper + r * row_length : lower + (r - 3) * row_length);
      score[r][0] = _mm256_fmadd_ps(x, code0, score[r][0]);
      score[r][1] = _mm256_fmadd_ps(x, code1, score[r][1]);
    }
    ++upper;
    ++lower;
  }
}

struct Kernel {
  static constexpr int kRows = 6;  // 6 x 2 accumulators, 2 code vectors, 1 broadcast: 15 of 16 registers
  static constexpr int kCodes = kFormatAvx2.width;

  static void begin() {}
  static void end() {}

  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* target) {
    switch (type) {
      case Element::kBFloat16:
        return convert<Element::kBFloat16>(row, screened, num_channels, target);
      case Element::kFloat16:
        return convert<Element::kFloat16>(row, screened, num_channels, target);
      default:
        return convert<Element::kFloat32>(row, screened, num_channels, target);
    }
  }

  static void screen_tile(const float* rows, int64_t row_length, const ScreenedCodes& screened, int64_t group,
                          float* threshold, Candidates* lists) {
    bool reachable = false;  // rows that are given up often come together
    for (int r = 0; r < kRows; ++r) reachable |= threshold[r] < kInfinity;
    if (!reachable) return;
    const int64_t num_steps = screened.num_steps;
    const float* codes = static_cast<const float*>(screened.panel) + group * num_steps * kCodes;
    const float* negated_half = screened.negated_half + group * kCodes;
    __m256 score[kRows][2];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      score[r][0] = _mm256_load_ps(negated_half);
      score[r][1] = _mm256_load_ps(negated_half + 8);
    }
    add_products(rows, row_length, codes, num_steps, score);
    __m256 any = _mm256_setzero_ps();
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 limit = _mm256_broadcast_ss(threshold + r);
      any = _mm256_or_ps(any, _mm256_cmp_ps(_mm256_max_ps(score[r][0], score[r][1]), limit, _CMP_GE_OQ));
    }
    if (_mm256_movemask_ps(any) == 0) return;
    alignas(32) float stored[kRows][kCodes];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      _mm256_store_ps(stored[r], score[r][0]);
      _mm256_store_ps(stored[r] + 8, score[r][1]);
    }
    const int64_t first = group * kCodes;
    for (int r = 0; r < kRows; ++r) {
      const __m256 limit = _mm256_broadcast_ss(threshold + r);
      const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(stored[r]), limit, _CMP_GE_OQ));
      const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(stored[r] + 8), limit, _CMP_GE_OQ));
      for (unsigned hits = static_cast<unsigned>(low | high << 8); hits != 0; hits &= hits - 1) {
        const int code = __builtin_ctz(hits);
        if (first + code < screened.num_distinct) add_candidate(lists[r], threshold[r], first + code, stored[r][code]);
      }
    }
  }
};

struct Pruning {
  static constexpr ScreeningType kPass = ScreeningType::kFloat32;
  static constexpr bool kCoarse = false, kSifts = false;
  static constexpr int kRows = Kernel::kRows, kCodes = Kernel::kCodes;

  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    return Kernel::convert_row(row, type, screened, num_channels, words);
  }

  static RowLengths round_directions(const float* directions, float factor, int64_t num_directions, float* words) {
    __m256 square = _mm256_setzero_ps();
    for (int64_t k = 0; k < num_directions; k += 8) {
      const __m256 p = _mm256_mul_ps(_mm256_loadu_ps(directions + k), _mm256_set1_ps(factor));
      _mm256_storeu_ps(words + k, p);
      square = _mm256_fmadd_ps(p, p, square);
    }
    return {sum_of_floats(square), 0.0f};
  }

  template <int num_codes>
  static void multiply(const float* rows, int64_t row_length, const float* codes, int64_t num_steps, float* out,
                       int64_t out_length) {
    static_assert(num_codes == kCodes);
    __m256 sum[kRows][2];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    add_products(rows, row_length, codes, num_steps, sum);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      _mm256_storeu_ps(out + r * out_length, sum[r][0]);
      _mm256_storeu_ps(out + r * out_length + 8, sum[r][1]);
    }
  }

  static void highest(const float* rows, int64_t row_length, const float* radius, const float* codes,
                      const float* negated_half, const float* code_radius, int64_t num_steps, float* out) {
    __m256 sum[kRows][2];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = _mm256_load_ps(negated_half);
      sum[r][1] = _mm256_load_ps(negated_half + 8);
    }
    add_products(rows, row_length, codes, num_steps, sum);
    const __m256 radius0 = _mm256_load_ps(code_radius), radius1 = _mm256_load_ps(code_radius + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 of_row = _mm256_broadcast_ss(radius + r);
      const __m256 eight =
          _mm256_max_ps(_mm256_fmadd_ps(of_row, radius0, sum[r][0]), _mm256_fmadd_ps(of_row, radius1, sum[r][1]));
      const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
      const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
      _mm_store_ss(out + r, _mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
  }

  static void look(const float* row, float radius, const float* codes, const float* negated_half,
                   const float* code_radius, int64_t num_steps, float* out) {
    const __m256 of_row = _mm256_set1_ps(radius);
    __m256 sum[4][2] = {};  // chains that do not wait for each other; the steps are a multiple of 4
    sum[0][0] = _mm256_fmadd_ps(of_row, _mm256_load_ps(code_radius), _mm256_load_ps(negated_half));
    sum[0][1] = _mm256_fmadd_ps(of_row, _mm256_load_ps(code_radius + 8), _mm256_load_ps(negated_half + 8));
    for (int64_t step = 0; step < num_steps; step += 4) {
#pragma GCC unroll 4
      for (int chain = 0; chain < 4; ++chain) {
        const __m256 x = _mm256_broadcast_ss(row + step + chain);
        sum[chain][0] = _mm256_fmadd_ps(x, _mm256_load_ps(codes + (step + chain) * kCodes), sum[chain][0]);
        sum[chain][1] = _mm256_fmadd_ps(x, _mm256_load_ps(codes + (step + chain) * kCodes + 8), sum[chain][1]);
      }
    }
    for (int half = 0; half < 2; ++half)
      _mm256_store_ps(out + 8 * half, _mm256_add_ps(_mm256_add_ps(sum[0][half], sum[1][half]),
                                                    _mm256_add_ps(sum[2][half], sum[3][half])));
  }
};

}  // namespace

LookupCounts screen_avx2(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  return screen_rows<Kernel>(args, screened, begin, end);
}

LookupCounts compare_all_avx2(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                              int64_t end) {
  DefaultFloatEnvironment environment;
  return compare_all(args, screened, begin, end);
}

const PruningPass kPruningAvx2 = pruning_pass<Pruning>();

const FewRows kFewRowsAvx2{scan_few, merge_few, decide_few};

const PackingLoops kPackingLoopsAvx2{spread_of, pack_group};

}  // namespace soho
