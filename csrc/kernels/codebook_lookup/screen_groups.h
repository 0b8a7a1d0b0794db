// The frame of a screening pass over few channels, where looking through scores costs more than computing them: the
// highest score of each group of codes for a panel of rows, then a second look at the groups that reach a row's
// threshold. Rows are started anew, whatever an earlier pass has found. Not for topk: one group may hold several of the
// nearest codes.
//
// Included by each vector level and compiled with its flags; see exact_distance.h. A Kernel provides, beside what
// screen.h asks for,
//   static void highest(rows, row_length, screened, group, out)   the highest score of a group, per row
//   static void look(row, screened, group, out)                   the scores of one row, per code
//   static void add(list, threshold, scores, first_position)      those that reach the row's threshold to its list
#pragma once

#include "kernels/codebook_lookup/group_maxima.h"
#include "kernels/codebook_lookup/screen.h"

namespace soho {
namespace {

template <class Kernel>
LookupCounts screen_groups(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin, int64_t end) {
  constexpr int64_t kRows = Kernel::kRows, kPanel = kGroupRows;
  static_assert(kPanel % kRows == 0);
  LookupCounts counts;
  if (!screened.screenable) {
    for (int64_t i = begin; i < end; ++i) counts.undecided += args.index[i] < 0;
    return counts;
  }
  DefaultFloatEnvironment environment;
  const int64_t row_length = panel_row_length(screened.num_steps);
  const int64_t most_groups = screened.num_groups < kGroupsPerChunk ? screened.num_groups : kGroupsPerChunk;
  const Scratch row_memory(sizeof(float) * kPanel * row_length), list_memory(sizeof(Candidates) * kPanel);
  const Scratch highest_memory(sizeof(float) * (most_groups * kPanel + kListSlack));
  const ExactCopies copies(args, 1);
  float* rows = static_cast<float*>(row_memory.data());
  Candidates* lists = static_cast<Candidates*>(list_memory.data());
  float* highest = static_cast<float*>(highest_memory.data());
  alignas(64) float threshold[kPanel + kListSlack] = {}, best[kPanel];
  alignas(64) float scores[Kernel::kCodes];
  const Comparison comparison{args, screened, copies};

  int64_t skipped = 0;
  for (int64_t i = begin; i < end;) {
    int64_t num_rows = 0;
    const int64_t most_rows = skipped > 0 ? kTrialTiles * kRows : kPanel;
    for (; i < end && num_rows < most_rows; ++i) {
      if (args.index[i] >= 0) continue;
      begin_row<Kernel>(comparison, i, rows + num_rows * row_length, threshold[num_rows], lists[num_rows]);
      Candidates& list = lists[num_rows++];
      list.first = list.count = 0;
      list.has_nearest = false;
    }
    int64_t num_padded = num_rows;
    for (; num_padded % kRows != 0; ++num_padded) {
      std::memset(rows + num_padded * row_length, 0, sizeof(float) * screened.num_steps);
      threshold[num_padded] = kInfinity;
    }
    for (int64_t chunk = 0; chunk < screened.num_groups; chunk += most_groups) {
      const int64_t num_groups = screened.num_groups - chunk < most_groups ? screened.num_groups - chunk : most_groups;
      for (int64_t g = 0; g < num_groups; ++g) {
        for (int64_t r = 0; r < num_padded; r += kRows)
          Kernel::highest(rows + r * row_length, row_length, screened, chunk + g, highest + g * kPanel + r);
      }
      for (int64_t r = 0; r < num_padded; ++r) best[r] = -kInfinity;
      for (int64_t g = 0; g < num_groups; ++g) {
        for (int64_t r = 0; r < num_padded; ++r) {
          const float value = highest[g * kPanel + r];
          best[r] = value > best[r] ? value : best[r];
        }
      }
      for (int64_t r = 0; r < num_rows; ++r) {
        if (lists[r].state != kListed || !(best[r] > lists[r].best)) continue;
        lists[r].best = best[r];
        threshold[r] = best[r] - lists[r].window;
      }
      for (int64_t g = 0; g < num_groups; ++g) {
        for (int64_t first = 0; first < num_padded; first += kFloatLanes) {
          uint32_t hits = rows_reaching(highest + g * kPanel + first, threshold + first);
          for (; hits != 0; hits &= hits - 1) {
            const int64_t r = first + __builtin_ctz(hits);
            if (r >= num_rows) break;
            Kernel::look(rows + r * row_length, screened, chunk + g, scores);
            Kernel::add(lists[r], threshold[r], scores, static_cast<int32_t>((chunk + g) * Kernel::kCodes));
          }
        }
      }
    }
    int64_t num_left = 0;  // pairs
    for (int64_t r = 0; r < num_rows; ++r) num_left += finish_row(threshold[r], lists[r], counts);
    skipped = next_skipped(skipped, num_rows, static_cast<double>(num_left) / (num_rows * screened.num_distinct));
    for (int64_t left = skipped; i < end && left > 0; ++i) {
      counts.undecided += args.index[i] < 0;
      left -= args.index[i] < 0;
    }
  }
  return counts;
}

}  // namespace
}  // namespace soho
