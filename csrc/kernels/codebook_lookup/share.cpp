#include "kernels/codebook_lookup/share.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>

namespace soho {
namespace {

constexpr int64_t kCodesPerTask = 64;
constexpr int64_t kBytesPerTask = 1 << 18;  // of packed codes, some 15 us: below, a second thread gains nothing
constexpr int64_t kRowsOfAllThreads = 2 * kFewRowsPerTask;  // that share codes: more are shared out themselves
constexpr FewCodes kNone{std::numeric_limits<float>::infinity(), 0, false, {}, {}};

// Row i alone.
CodebookLookupArgs row_of(CodebookLookupArgs args, int64_t i) {
  args.features = row_at(args.features, i, args.row_stride, args.features_type);
  args.num_rows = 1;
  args.index += i;
  if (args.distance != nullptr) args.distance += i;
  return args;
}

// Each row by the codes near it, in float64 where there are several.
LookupCounts decide(const FewRows& few, const CodebookLookupArgs& args, const std::vector<int64_t>& rows,
                    std::vector<FewCodes>& near) {
  LookupCounts counts;
  for (size_t n = 0; n < rows.size(); ++n) {
    const CodebookLookupArgs row = row_of(args, rows[n]);
    *row.index = kUndecided;
    const LookupCounts of_row = few.decide(row, &near[n]);
    counts.compared += of_row.compared;
    counts.undecided += of_row.undecided;
  }
  return counts;
}

// The codes of groups [begin, end), or, where none are screened, those at these positions.
ScreenedCodes some_codes(ScreenedCodes screened, const ScreeningFormat& format, int64_t begin, int64_t end) {
  const int64_t width = std::max(1, format.width), first = begin * width;
  screened.num_distinct = std::min(screened.num_distinct, end * width) - first;
  screened.codes += first;
  if (screened.norms != nullptr) screened.norms += first;
  if (format.width == 0) return screened;
  screened.num_groups = end - begin;
  screened.panel = static_cast<const char*>(screened.panel) + first * screened.num_steps * sizeof(uint32_t);
  screened.negated_half += first;
  return screened;
}

// All rows with some of the codes at a time, then the nearest of each part with each other.
LookupCounts run_by_codes(const LookupPass& pass, const FewRows& few, const CodebookLookupArgs& args,
                          const ScreenedCodes& screened, const std::vector<int64_t>& rows,
                          const ParallelFor& parallel_for) {
  const int64_t width = pass.format.width, num_units = width > 0 ? screened.num_groups : screened.num_distinct;
  const int64_t unit_bytes =
      width > 0 ? screened.num_steps * width * int64_t{4} : args.num_channels * int64_t{sizeof(float)};
  const int64_t grain = std::max(kBytesPerTask / std::max<int64_t>(1, unit_bytes), num_units / kFewCodes) + 1;
  std::vector<FewCodes> near(rows.size(), FewCodes{0.0f, 0, false, {}, {}});
  LookupCounts whole;
  bool is_whole = false;
  std::mutex merging;
  parallel_for(num_units, grain, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    if (begin == 0 && end == num_units) {
      is_whole = true;
      whole = pass.run(args, screened, 0, args.num_rows);
      return;
    }
    std::vector<int64_t> index(args.index, args.index + args.num_rows);
    for (int64_t row : rows) index[row] = kUndecided;  // where it stands is a position among all codes
    CodebookLookupArgs part = args;
    part.index = index.data();
    part.distance = nullptr;
    pass.run(part, some_codes(screened, pass.format, begin, end), 0, args.num_rows);
    const std::lock_guard<std::mutex> lock(merging);
    for (size_t n = 0; n < rows.size(); ++n) {
      FewCodes& row = near[n];
      const int64_t nearest = index[rows[n]];
      row.overflows |= nearest < 0 || row.count == kFewCodes;
      if (row.overflows) continue;
      row.code[row.count] = static_cast<int32_t>(nearest);
      row.distance[row.count++] = 0.0f;  // which is none: float64 compares them all
    }
  });
  return is_whole ? whole : decide(few, args, rows, near);
}

}  // namespace

const FewRows* few_rows_of(CpuLevel level, const CodebookLookupArgs& args) {
  if (args.metric != Metric::kEuclidean || args.topk > 1) return nullptr;
  switch (level) {
#ifdef SOHO_X86_LEVELS
    case CpuLevel::kAmx:
    case CpuLevel::kAvx512Vnni:
    case CpuLevel::kAvx512Bf16:
    case CpuLevel::kAvx512:
      return &kFewRowsAvx512;
    case CpuLevel::kAvx2:
      return &kFewRowsAvx2;
#endif
    default:
      return nullptr;
  }
}

int64_t most_few_rows(int64_t num_channels) { return num_channels < 16 ? 64 : 128; }

std::vector<int64_t> undecided_rows(const CodebookLookupArgs& args) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < args.num_rows; ++i) {
    if (args.index[i] < 0) rows.push_back(i);
  }
  return rows;
}

LookupCounts compare_few(const FewRows& few, const CodebookLookupArgs& args, const std::vector<int64_t>& rows,
                         const ParallelFor& parallel_for) {
  const int64_t num_rows = static_cast<int64_t>(rows.size()), num_channels = args.num_channels;
  std::vector<float> converted;
  const float* features = static_cast<const float*>(args.features);
  if (args.features_type != Element::kFloat32 || args.row_stride != num_channels || num_rows != args.num_rows) {
    converted.resize(num_rows * num_channels);
    for (int64_t n = 0; n < num_rows; ++n) {
      const void* row = row_at(args.features, rows[n], args.row_stride, args.features_type);
      for (int64_t c = 0; c < num_channels; ++c)
        converted[n * num_channels + c] = load_element(row, c, args.features_type);
    }
    features = converted.data();
  }
  std::vector<FewCodes> all(num_rows, kNone);
  std::mutex merging;
  parallel_for(args.num_codes, kCodesPerTask, [&](int64_t begin, int64_t end) {
    std::vector<FewCodes> part(num_rows, kNone);
    few.scan(features, num_rows, args.codebook, num_channels, begin, end, part.data());
    const std::lock_guard<std::mutex> lock(merging);
    for (int64_t n = 0; n < num_rows; ++n) few.merge(all[n], part[n], num_channels);
  });
  return decide(few, args, rows, all);
}

LookupCounts run_shared(const LookupPass& pass, const FewRows* few, const CodebookLookupArgs& args,
                        const ScreenedCodes& screened, const ParallelFor& parallel_for) {
  const std::vector<int64_t> rows = undecided_rows(args);
  const int64_t num_rows = static_cast<int64_t>(rows.size());
  if (num_rows == 0) return {};
  const bool can_compare = pass.format.width == 0 || screened.screenable;
  if (few != nullptr && can_compare && num_rows <= kRowsOfAllThreads && screened.num_distinct > 1)
    return run_by_codes(pass, *few, args, screened, rows, parallel_for);
  std::atomic<int64_t> compared{0}, undecided{0};
  parallel_for(num_rows, rows_per_task(num_rows), [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    const int64_t first = rows[begin], last = end < num_rows ? rows[end] : args.num_rows;
    const LookupCounts part = pass.run(args, screened, first, last);
    compared += part.compared;
    undecided += part.undecided;
  });
  return {0, compared, undecided};
}

}  // namespace soho
