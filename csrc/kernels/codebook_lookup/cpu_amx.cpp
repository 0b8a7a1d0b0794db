// AMX level: scores of 32 rows x 32 codes by bfloat16 tile products. Compiled with the flags of AVX-512 BF16 as well.
//
// Tiles 0 to 3 hold scores, 4 and 5 rows, 6 and 7 codes, each 16 rows of 64 bytes. A code tile is 16 steps of 16 codes,
// which is how the panel lies in memory. The kernel's permission for tile data is asked for by common/cpu_level.cpp.
#include "kernels/codebook_lookup/screen_avx512.h"

#ifdef SOHO_TILE_MODEL  // tests run this file on machines without tiles
#include "tile_model.h"
#endif

namespace soho {
namespace {

struct KernelAmx {
  static constexpr int kRows = 32;
  static constexpr int kCodes = 32;
  static constexpr int64_t kSteps = 16;  // of one tile product
  static_assert(kCodes == kFormatAmx.width && kSteps == kFormatAmx.step_multiple);

  static void begin() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof(config) == 64);
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = 64;
      config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
  }

  static void end() { _tile_release(); }

  static RowLengths convert_row(const void* row, Element type, const ScreenedCodes& screened, int64_t num_channels,
                                float* words) {
    // Steps beyond the last channel multiply codes of 0, which NaN would not survive.
    for (int64_t step = screened.num_steps - kSteps; step < screened.num_steps; ++step) words[step] = 0.0f;
    return convert_row_avx512<DotBFloat16>(row, type, screened, num_channels, words);
  }

  static void scores(const float* rows, int64_t row_length, const ScreenedCodes& screened, int64_t group, float* out,
                     int64_t out_length) {
    const float* codes = static_cast<const float*>(screened.panel) + group * screened.num_steps * kCodes;
    const float* negated_half = screened.negated_half + group * kCodes;
    const int64_t row_bytes = row_length * 4, step_bytes = kCodes * 4, out_bytes = out_length * 4;
    _tile_loadd(0, negated_half, 0);  // a stride of 0 repeats the one row
    _tile_loadd(1, negated_half + 16, 0);
    _tile_loadd(2, negated_half, 0);
    _tile_loadd(3, negated_half + 16, 0);
    for (int64_t step = 0; step < screened.num_steps; step += kSteps) {
      _tile_loadd(4, rows + step, row_bytes);
      _tile_loadd(6, codes + step * kCodes, step_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, codes + step * kCodes + 16, step_bytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, rows + 16 * row_length + step, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + 16, out_bytes);
    _tile_stored(2, out + 16 * out_length, out_bytes);
    _tile_stored(3, out + 16 * out_length + 16, out_bytes);
  }

  static void look(const float* row, const ScreenedCodes& screened, int64_t group, float* out) {
    KernelAvx512<DotBFloat16>::look(row, screened, group, out);  // the panel lies alike
  }

  static void add(Candidates& list, float& threshold, const float* scores, int32_t first_position) {
    add_candidates(list, threshold, scores, first_position);
  }

  static void screen_row(const float* row, const ScreenedCodes& screened, int64_t group, float& threshold,
                         Candidates& list) {
    KernelAvx512<DotBFloat16>::screen_row(row, screened, group, threshold, list);
  }

  static void screen_tile(const float* rows, int64_t row_length, const ScreenedCodes& screened, int64_t group,
                          float* threshold, Candidates* lists) {
    if (!any_reachable<kRows>(threshold)) return;
    alignas(64) float stored[kRows][kCodes];
    scores(rows, row_length, screened, group, stored[0], kCodes);
    add_candidates_of_tile<kRows>(stored, group, threshold, lists);
  }
};

}  // namespace

LookupCounts screen_amx(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  if (args.topk == 1 && (screened.num_distinct <= (args.num_channels < 32 ? kFewShortCodes : kFewLongCodes) ||
                         are_few_rows(screened, end - begin)))
    return screen_few_codes<KernelAmx>(args, screened, begin, end);
  return screen_rows<KernelAmx>(args, screened, begin, end);
}

}  // namespace soho
