// AVX2 + FMA + F16C level: scores of 6 rows x 16 codes in registers, survivors by comparison with each row's threshold.
//
// Compiled with its own flags, so nothing here may be shared with other files by the linker: no standard containers or
// algorithms, everything in an unnamed namespace.
#include <immintrin.h>

#include <cmath>
#include <limits>

#include "common/float_environment.h"
#include "common/memory.h"
#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {
namespace {

constexpr int kRows = 6;  // 6 x 2 accumulators, 2 code vectors, 1 broadcast: 15 of 16 registers
constexpr int kCodes = 16;
static_assert(kCodes == kCodebookLookupWidthAvx2);
constexpr int kListLength = 128;  // survivors kept per row
constexpr int64_t kPanelBytes =
    256 * 1024;  // of converted rows: half of a 512 KiB L2 cache, the rest streams the codes
constexpr int64_t kMaxPanelRows = 192;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <Element type>
__m256 load8(const void* row, int64_t position) {
  if constexpr (type == Element::kFloat32) return _mm256_loadu_ps(static_cast<const float*>(row) + position);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(row) + position));
  if constexpr (type == Element::kFloat16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

double fold(__m256d low, __m256d high) {
  const __m256d four = _mm256_add_pd(low, high);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// |row - code|^2 in the order of codebook_lookup.h; `row` holds float64.
double squared_distance(const double* row, const float* code, int64_t num_channels) {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  int64_t c = 0;
  for (; c + 8 <= num_channels; c += 8) {
    const __m256d low_diff = _mm256_sub_pd(_mm256_loadu_pd(row + c), _mm256_cvtps_pd(_mm_loadu_ps(code + c)));
    const __m256d high_diff = _mm256_sub_pd(_mm256_loadu_pd(row + c + 4), _mm256_cvtps_pd(_mm_loadu_ps(code + c + 4)));
    low = _mm256_add_pd(low, _mm256_mul_pd(low_diff, low_diff));
    high = _mm256_add_pd(high, _mm256_mul_pd(high_diff, high_diff));
  }
  if (c < num_channels) {
    alignas(32) double square[8] = {};
    for (int lane = 0; c + lane < num_channels; ++lane) {
      const double difference = row[c + lane] - static_cast<double>(code[c + lane]);
      square[lane] = difference * difference;
    }
    low = _mm256_add_pd(low, _mm256_load_pd(square));
    high = _mm256_add_pd(high, _mm256_load_pd(square + 4));
  }
  return fold(low, high);
}

// Survivors of one row so far, in ascending order of code.
struct Survivors {
  float best;    // highest score seen
  float window;  // twice the error bound
  int32_t count;
  int32_t state;
  int32_t position[kListLength];  // in ScreenedCodes::codes
  float score[kListLength];
};
enum : int32_t { kScreened, kCompareAll, kNotFinite, kAbsent };

void keep_above(Survivors& list, float threshold) {
  int32_t kept = 0;
  for (int32_t i = 0; i < list.count; ++i) {
    list.position[kept] = list.position[i];
    list.score[kept] = list.score[i];
    kept += list.score[i] >= threshold;
  }
  list.count = kept;
}

void offer(Survivors& list, float& threshold, int64_t position, float score) {
  if (!(score >= threshold)) return;
  if (score > list.best) {
    list.best = score;
    threshold = score - list.window;
  }
  if (list.count == kListLength) keep_above(list, threshold);
  if (list.count == kListLength) {
    list.state = kCompareAll;
    threshold = kInfinity;
    return;
  }
  list.position[list.count] = static_cast<int32_t>(position);
  list.score[list.count++] = score;
}

// Scores of kRows rows against one group of codes; lists only what reaches the rows' thresholds.
inline void screen_tile(const float* rows, int64_t row_length, const float* codes, const float* negated_half,
                        int64_t num_channels, int64_t first_position, int64_t num_positions, float* threshold,
                        Survivors* lists) {
  __m256 score[kRows][2];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    score[r][0] = _mm256_load_ps(negated_half);
    score[r][1] = _mm256_load_ps(negated_half + 8);
  }
  const float* upper = rows;
  const float* lower = rows + 3 * row_length;
#pragma GCC unroll 4
  for (int64_t c = 0; c < num_channels; ++c) {
    const __m256 code0 = _mm256_load_ps(codes), code1 = _mm256_load_ps(codes + 8);
    codes += kCodes;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_broadcast_ss((r < 3 ? upper + r * row_length : lower + (r - 3) * row_length) + c);
      score[r][0] = _mm256_fmadd_ps(x, code0, score[r][0]);
      score[r][1] = _mm256_fmadd_ps(x, code1, score[r][1]);
    }
  }
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
  for (int r = 0; r < kRows; ++r) {
    const __m256 limit = _mm256_broadcast_ss(threshold + r);
    unsigned hits =
        static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(stored[r]), limit, _CMP_GE_OQ)) |
                              _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(stored[r] + 8), limit, _CMP_GE_OQ)) << 8);
    for (; hits != 0; hits &= hits - 1) {
      const int code = __builtin_ctz(hits);
      if (first_position + code < num_positions) offer(lists[r], threshold[r], first_position + code, stored[r][code]);
    }
  }
}

// Centres and scales one row into `target`; returns its squared norm.
template <Element type>
float convert_row(const void* row, const float* centre, float scale, int64_t num_channels, float* target) {
  const __m256 factor = _mm256_set1_ps(scale);
  __m256 square = _mm256_setzero_ps();
  int64_t c = 0;
  for (; c + 8 <= num_channels; c += 8) {
    const __m256 a = _mm256_mul_ps(_mm256_sub_ps(load8<type>(row, c), _mm256_loadu_ps(centre + c)), factor);
    _mm256_storeu_ps(target + c, a);
    square = _mm256_fmadd_ps(a, a, square);
  }
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, square);
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  for (; c < num_channels; ++c) {
    target[c] = (load_element(row, c, type) - centre[c]) * scale;
    sum += target[c] * target[c];
  }
  return sum;
}

template <Element type>
bool row_is_finite(const void* row, int64_t num_channels) {
  bool finite = true;
  for (int64_t c = 0; c < num_channels; ++c) finite &= is_finite(load_element(row, c, type));
  return finite;
}

// Prepares the list of one row and its converted channels; a row that cannot be screened gets an unreachable threshold.
template <Element type>
void begin_row(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t i, float* target,
               float& threshold, Survivors& list) {
  const void* row = row_at(args.features, i, args.row_stride, type);
  list.count = 0;
  list.best = -kInfinity;
  list.state = kScreened;
  threshold = -kInfinity;
  const float square = screened.screenable
                           ? convert_row<type>(row, screened.centre, screened.scale, args.num_channels, target)
                           : kInfinity;
  if (is_finite(square)) {
    const double norm = std::sqrt(static_cast<double>(square)), largest = screened.largest_norm;
    const double unit = static_cast<double>(args.num_channels + 16);
    const double bound = 1.25 * unit * 0x1p-24 * (norm * largest + 0.5 * largest * largest) +
                         unit * 0x1p-52 * (norm + largest) * (norm + largest);
    list.window = static_cast<float>(2.0 * bound * (1 + 0x1p-20));
    return;
  }
  list.state = row_is_finite<type>(row, args.num_channels) ? kCompareAll : kNotFinite;
  threshold = kInfinity;
  if (screened.screenable) std::memset(target, 0, sizeof(float) * args.num_channels);
}

// Decides between the survivors of one row in float64.
template <Element type>
void finish_row(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t i, float threshold,
                Survivors& list, double* exact_row) {
  const int64_t num_channels = args.num_channels;
  const int64_t* codes = screened.codes;
  if (list.state == kScreened) keep_above(list, threshold);
  int64_t num_open = list.state == kScreened ? list.count : list.state == kCompareAll ? screened.num_distinct : 0;
  int64_t nearest = 0;
  if (num_open == 1) nearest = list.state == kScreened ? codes[list.position[0]] : codes[0];
  if (num_open > 1 || args.distance != nullptr) {
    const void* row = row_at(args.features, i, args.row_stride, type);
    for (int64_t c = 0; c < num_channels; ++c) exact_row[c] = load_element(row, c, type);
  }
  if (num_open > 1) {
    double smallest = std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < num_open; ++k) {
      const int64_t code = codes[list.state == kScreened ? list.position[k] : k];
      const double distance = squared_distance(exact_row, args.codebook + code * num_channels, num_channels);
      if (distance < smallest) {
        smallest = distance;
        nearest = code;
      }
    }
  }
  args.index[i] = nearest;
  if (args.distance != nullptr) {
    const double distance = squared_distance(exact_row, args.codebook + nearest * num_channels, num_channels);
    args.distance[i] = static_cast<float>(distance);
  }
}

template <Element type>
void lookup_rows(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  const int64_t num_channels = args.num_channels;
  const int64_t row_length =
      (num_channels + 7) / 8 * 8 + 16;  // off the 4 KiB stride that maps all rows to one cache set
  int64_t panel_rows = kPanelBytes / static_cast<int64_t>(sizeof(float) * row_length) / kRows * kRows;
  panel_rows = panel_rows < kRows ? kRows : panel_rows > kMaxPanelRows ? kMaxPanelRows : panel_rows;
  const Scratch row_memory(sizeof(float) * panel_rows * row_length), list_memory(sizeof(Survivors) * panel_rows),
      threshold_memory(sizeof(float) * panel_rows), exact_memory(sizeof(double) * num_channels);
  float* rows = static_cast<float*>(row_memory.data());
  float* threshold = static_cast<float*>(threshold_memory.data());
  Survivors* lists = static_cast<Survivors*>(list_memory.data());

  for (int64_t first = begin; first < end; first += panel_rows) {
    const int64_t num_rows = end - first < panel_rows ? end - first : panel_rows;
    const int64_t num_padded = (num_rows + kRows - 1) / kRows * kRows;
    for (int64_t r = 0; r < num_padded; ++r) {
      if (r < num_rows) {
        begin_row<type>(args, screened, first + r, rows + r * row_length, threshold[r], lists[r]);
      } else {
        std::memset(rows + r * row_length, 0, sizeof(float) * num_channels);
        threshold[r] = kInfinity;
        lists[r].state = kAbsent;
      }
    }
    for (int64_t group = 0; screened.screenable && group < screened.num_groups; ++group) {
      for (int64_t r = 0; r < num_padded; r += kRows) {
        screen_tile(rows + r * row_length, row_length, screened.panel + group * num_channels * kCodes,
                    screened.negated_half + group * kCodes, num_channels, group * kCodes, screened.num_distinct,
                    threshold + r, lists + r);
      }
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      finish_row<type>(args, screened, first + r, threshold[r], lists[r], static_cast<double*>(exact_memory.data()));
    }
  }
}

}  // namespace

void codebook_lookup_avx2(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  DefaultFloatEnvironment environment;
  switch (args.features_type) {
    case Element::kFloat32:
      return lookup_rows<Element::kFloat32>(args, screened, begin, end);
    case Element::kBFloat16:
      return lookup_rows<Element::kBFloat16>(args, screened, begin, end);
    case Element::kFloat16:
      return lookup_rows<Element::kFloat16>(args, screened, begin, end);
  }
}

}  // namespace soho
