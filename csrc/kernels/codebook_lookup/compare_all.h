// The last pass: every code that is left to a row, in float64.
//
// Included by each vector level and compiled with its flags; see exact_distance.h.
#pragma once

#include "kernels/codebook_lookup/exact_distance.h"

namespace soho {
namespace {

// The nearest codes of rows that no pass before has decided, for topk.
inline void rank_all(const CodebookLookupArgs& args, const ScreenedCodes& screened, const ExactCopies& copies,
                     const int64_t* row_id, int64_t num_rows) {
  constexpr int64_t kMostRows = 16 * kTileRows;
  Ranking rankings[kMostRows];
  for (Ranking& ranking : rankings) ranking.size = args.topk;
  const int64_t num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  const auto position_at = [](int64_t n) { return n; };
  find_nearest<kTileRows>(copies, screened, num_tiles, screened.num_distinct, position_at, rankings);
  for (int64_t r = 0; r < num_rows; ++r) {
    if (!row_is_finite(args, row_id[r])) rankings[r].count = 0;
    write_ranking(args, screened, copies, r, row_id[r], rankings[r]);
  }
}

// The undecided rows of [begin, end), in blocks: each code is converted once for a block.
inline LookupCounts compare_all(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  constexpr int64_t kTiles = 16, kRows = kTiles * kTileRows;
  const ExactCopies copies(args, kRows);
  LookupCounts counts;
  for (int64_t i = begin; i < end;) {
    int64_t row_id[kRows], num_rows = 0, first = screened.num_distinct;
    Nearest nearest[kRows];
    for (; i < end && num_rows < kRows; ++i) {
      if (args.index[i] >= 0) continue;
      copies.load_row(num_rows, i);
      const Undecided undecided = undecided_at(args.index[i]);
      first = undecided.position < first ? undecided.position : first;
      if (undecided.nearest >= 0) {
        nearest[num_rows] = {cost_of(copies, screened, num_rows, undecided.nearest), undecided.nearest};
      }
      row_id[num_rows++] = i;
    }
    counts.compared += num_rows;
    if (args.topk > 1) {
      rank_all(args, screened, copies, row_id, num_rows);
      continue;
    }
    const int64_t num_tiles = (num_rows + kTileRows - 1) / kTileRows, num_left = screened.num_distinct - first;
    const auto position_at = [&](int64_t n) { return first + n; };
    find_nearest<kTileRows>(copies, screened, num_tiles, num_left, position_at, nearest);
    for (int64_t r = 0; r < num_rows; ++r) {
      // An infinite similarity would win; a squared distance that is not finite has lost already.
      const bool comparable = args.metric == Metric::kEuclidean || row_is_finite(args, row_id[r]);
      const int64_t position = comparable ? nearest[r].position : -1;
      write_row(args, copies, r, row_id[r], position < 0 ? 0 : screened.codes[position]);
    }
  }
  return counts;
}

}  // namespace
}  // namespace soho
