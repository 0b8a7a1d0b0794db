#include "kernels/codebook_lookup/plan.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <utility>

#include "kernels/codebook_lookup/packed_codebook.h"
#include "kernels/codebook_lookup/pruning.h"

namespace soho {
namespace {

constexpr int64_t kCodesPerTask = 64;       // as they are
constexpr int64_t kBytesPerTask = 1 << 20;  // of packed codes, some 60 us: below, a second thread gains nothing
constexpr int64_t kWorkPerTask = 1 << 23;   // products in float32, the same
// Before a pass in low precision its first rows are tried, 1.6 % of all or less.
constexpr int64_t kTriedRows = kRowsPerTask, kFewestToTry = 64 * kTriedRows;
constexpr int64_t kRowsSharingCodes = 2 * kFewRowsPerTask;
constexpr int64_t kFasterBf16 = 4;  // for codes in tiers, measured: a pass in bfloat16 and what it leaves
constexpr int64_t kTrialRows = 28, kTrialGroups = 8;

// Up to which comparing a codebook as it is is faster than packing it.
int64_t most_few_rows(int64_t num_channels) { return num_channels < 16 ? 64 : 128; }

// How many units of so much work a task takes.
int64_t units_of_task(int64_t num_units, int64_t work) {
  const int64_t num_tasks = std::max<int64_t>(1, num_units * work / kWorkPerTask);
  return (num_units + num_tasks - 1) / num_tasks;
}

std::vector<int64_t> undecided_rows(const CodebookLookupArgs& args) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < args.num_rows; ++i) {
    if (args.index[i] < 0) rows.push_back(i);
  }
  return rows;
}

// The codes of groups [begin, end), or, where none are screened, those at these positions.
ScreenedCodes some_codes(ScreenedCodes screened, const ScreeningFormat& format, int64_t begin, int64_t end) {
  const int64_t width = std::max(1, format.width), first = begin * width;
  screened.num_distinct = std::min(screened.num_distinct, end * width) - first;
  screened.codes += first;
  if (screened.norms != nullptr) screened.norms += first;
  if (format.width == 0) return screened;
  screened.num_groups = end - begin;
  const int64_t num_tiers = std::exchange(screened.num_tiers, 0);
  for (int64_t t = 0; t < num_tiers; ++t) {
    CodeTier tier = screened.tiers[t];
    if (tier.end_group <= begin) continue;
    tier.end_group = std::min(tier.end_group, end) - begin;
    screened.tiers[screened.num_tiers++] = tier;
    if (tier.end_group == screened.num_groups) break;
  }
  screened.panel = static_cast<const char*>(screened.panel) + first * screened.num_steps * sizeof(uint32_t);
  screened.negated_half += first;
  return screened;
}

// Whether the pruning pass decides some rows among these codes: where it does not, packing all is not worth it.
bool pruning_pays(const PruningPass& pass, CodebookLookupArgs args, const ScreenedCodes& screened) {
  std::vector<int64_t> index(std::min(args.num_rows, kTrialRows), kUndecided);
  args.num_rows = static_cast<int64_t>(index.size());
  args.index = index.data();
  args.distance = nullptr;
  args.warm_start = nullptr;
  return 4 * pass.run(args, screened, 0, args.num_rows).pruning >= args.num_rows;
}

// What the pruning pass reads: as packed behind the codebook, or packed into `memory` from args.subspace. Not usable
// where there are no directions or nothing is gained by them.
PruningCodes pruning_codes_for(const PruningPass& pass, const ScreeningFormat& format, const CodebookLookupArgs& args,
                               const ScreenedCodes& screened, const void* packed, std::optional<Scratch>& memory,
                               const ParallelFor& parallel_for) {
  const int64_t num_codes = args.num_codes, num_channels = args.num_channels;
  const int64_t num_packed = packed == nullptr ? 0 : packed_directions(packed);
  if (num_packed > 0) {
    const char* block = static_cast<const char*>(packed) + packed_codebook_bytes(format, num_codes, num_channels);
    return pruning_codes(pass, num_codes, num_channels, num_packed, block);
  }
  if (args.num_directions == 0) return {};
  memory.emplace(pruning_codes_bytes(pass, num_codes, num_channels, args.num_directions));
  pack_directions(pass, num_codes, num_channels, args.subspace, args.num_directions, screened, memory->data());
  PruningCodes codes = pruning_codes(pass, num_codes, num_channels, args.num_directions, memory->data());
  if (!codes.usable) return codes;
  ScreenedCodes some = some_codes(screened, format, 0, std::min(kTrialGroups, screened.num_groups));
  some.pruning = &codes;
  pack_pruning_codes(pass, args.codebook, num_channels, some, codes, parallel_for);
  codes.usable = pruning_pays(pass, args, some);
  if (codes.usable && some.num_groups < screened.num_groups)
    pack_pruning_codes(pass, args.codebook, num_channels, screened, codes, parallel_for);
  return codes;
}

// One pass at its turn.
struct Turn {
  const LookupPlan& plan;
  const PlannedPass& planned;
  const CodebookLookupArgs& args;
  const ScreenedCodes& screened;
  const std::vector<int64_t>& rows;  // the undecided ones

  int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
  bool as_it_is() const { return planned.reads == PlannedPass::kCodebookAsItIs; }

  // What threads share of the codes: groups or, where none are screened, single ones.
  int64_t num_units() const {
    if (as_it_is()) return args.num_codes;
    return planned.pass.format.width > 0 ? screened.num_groups : screened.num_distinct;
  }
  int64_t units_per_task() const {
    // With few rows codes are read, not multiplied.
    if (as_it_is()) return std::max(kCodesPerTask, units_of_task(num_units(), args.num_channels * (num_rows() + 15)));
    const int64_t width = planned.pass.format.width, words = width > 0 ? screened.num_steps * width : args.num_channels;
    return std::max(kBytesPerTask / std::max<int64_t>(1, 4 * words), num_units() / kFewCodes) + 1;
  }
};

// The rows as float32, in `converted` unless they are that.
const float* float_rows(const Turn& turn, std::vector<float>& converted) {
  const CodebookLookupArgs& args = turn.args;
  const int64_t num_channels = args.num_channels;
  if (args.features_type == Element::kFloat32 && args.row_stride == num_channels && turn.num_rows() == args.num_rows)
    return static_cast<const float*>(args.features);
  converted.resize(turn.num_rows() * num_channels);
  for (int64_t n = 0; n < turn.num_rows(); ++n) {
    const void* row = row_at(args.features, turn.rows[n], args.row_stride, args.features_type);
    for (int64_t c = 0; c < num_channels; ++c)
      converted[n * num_channels + c] = load_element(row, c, args.features_type);
  }
  return converted.data();
}

// The nearest of some of the codes to each row, as the pass finds it.
void find_in_group(const Turn& turn, const ScreenedCodes& group, FewCodes* near) {
  CodebookLookupArgs args = turn.args;
  std::vector<int64_t> index(args.index, args.index + args.num_rows);
  for (int64_t row : turn.rows) index[row] = kUndecided;  // where it stands is a position among all codes
  args.index = index.data();
  args.distance = nullptr;
  turn.planned.pass.run(args, group, 0, args.num_rows);
  for (int64_t n = 0; n < turn.num_rows(); ++n) {
    const int64_t nearest = index[turn.rows[n]];
    // A distance of 0, which is none, makes float64 compare what all groups have found.
    near[n].smallest = near[n].distance[0] = 0.0f;
    near[n].code[0] = static_cast<int32_t>(nearest);
    near[n].count = nearest >= 0;
    near[n].overflows = nearest < 0;
  }
}

LookupCounts run_by_codes(const Turn& turn, const ParallelFor& parallel_for) {
  const FewRows& few = *turn.plan.few;
  const int64_t num_rows = turn.num_rows(), num_units = turn.num_units(), num_channels = turn.args.num_channels;
  std::vector<float> converted;
  const float* features = turn.as_it_is() ? float_rows(turn, converted) : nullptr;
  const FewCodes none(turn.args.topk);
  std::vector<FewCodes> near(num_rows, none);
  std::optional<LookupCounts> whole;
  std::mutex merging;
  parallel_for(num_units, turn.units_per_task(), [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    std::vector<FewCodes> part(num_rows, none);
    if (turn.as_it_is()) {
      few.scan(features, num_rows, turn.args.codebook, num_channels, begin, end, part.data());
    } else if (end - begin < num_units) {
      find_in_group(turn, some_codes(turn.screened, turn.planned.pass.format, begin, end), part.data());
    } else {
      whole = turn.planned.pass.run(turn.args, turn.screened, 0, turn.args.num_rows);
      return;
    }
    const std::lock_guard<std::mutex> lock(merging);
    for (int64_t n = 0; n < num_rows; ++n) few.merge(near[n], part[n], num_channels);
  });
  return whole ? *whole : few.decide(turn.args, turn.rows.data(), num_rows, near.data());
}

// Whether a pass leaves so much of some rows to compare that the next one, `faster` times as fast as one in float32, is
// faster. A row with candidates takes as long as three of them, one of them as long as 32 (C + 48) products more than
// screening in float32; half of the rows left, or looked at again, are too many.
bool is_too_coarse(const LookupCounts& counts, const CodebookLookupArgs& args, int64_t faster) {
  const int64_t products = args.num_codes * args.num_channels, whole = counts.undecided + counts.looked_again;
  return 32 * faster * (3 * counts.compared + counts.candidates) * (args.num_channels + 48) + 2 * whole * products >
         kTriedRows * products;
}

bool is_float32(const PlannedPass& planned) {
  return planned.pass.format.type == ScreeningType::kFloat32 && planned.pass.format.width > 0;
}

LookupCounts run_by_rows(const Turn& turn, const ParallelFor& parallel_for) {
  const int64_t num_rows = turn.num_rows(), work = turn.args.num_codes * turn.args.num_channels;
  const int64_t rows_of_task = std::max(rows_per_task(num_rows), units_of_task(num_rows, work));
  std::atomic<int64_t> pruning{0}, compared{0}, undecided{0};
  parallel_for(num_rows, rows_of_task, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    const int64_t last = end < num_rows ? turn.rows[end] : turn.args.num_rows;
    const LookupCounts part = turn.planned.pass.run(turn.args, turn.screened, turn.rows[begin], last);
    pruning += part.pruning;
    compared += part.compared;
    undecided += part.undecided;
  });
  return {pruning, compared, undecided};
}

}  // namespace

LookupPlan make_plan(const std::vector<LookupPass>& passes, const PruningPass* pruning, const FewRows* few,
                     int64_t num_rows, int64_t num_channels, bool is_packed) {
  LookupPlan plan{num_rows, {}, pruning, few};
  plan.passes.reserve(passes.size() + 2);
  const int64_t most_few = most_few_rows(num_channels);
  const size_t turn_of_few = !is_packed && num_rows <= most_few ? 0 : 1;
  for (size_t p = 0; p < passes.size(); ++p) {
    const LookupPass& pass = passes[p];
    // Float32 codes, which come after the first pass, take longer to pack.
    if (few != nullptr && p == turn_of_few && (p == 0 || pass.format.width > 0))
      plan.passes.push_back({PlannedPass::kCodebookAsItIs, {}, 1, 2 * most_few, num_rows});
    if (pruning != nullptr && p == 0)
      plan.passes.push_back({PlannedPass::kDirections, {pass.format, pruning->run}, kFewestPruningRows, num_rows, 0});
    plan.passes.push_back({PlannedPass::kPackedCodebook, pass, 1, num_rows, few == nullptr ? 0 : kRowsSharingCodes});
  }
  return plan;
}

ScreenedCodes PackedCodebook::screened(const ScreeningFormat& format, const ParallelFor& parallel_for) {
  const auto fits = [&](const void* block) {  // any lists the distinct codes
    return format.width == 0 || packed_codebook_fits(block, format, num_codes_, num_channels_);
  };
  if (packed_ != nullptr && fits(packed_)) return screened_codes(packed_);
  const std::lock_guard<std::mutex> lock(packing_);
  for (const Scratch& block : memory_) {
    if (fits(block.data())) return screened_codes(block.data());
  }
  const Scratch& block = memory_.emplace_back(packed_codebook_bytes(format, num_codes_, num_channels_));
  pack_codebook(format, codebook_, num_codes_, num_channels_, block.data(), parallel_for);
  return screened_codes(block.data());
}

LookupCounts run_plan(const LookupPlan& plan, const CodebookLookupArgs& args, PackedCodebook& codebook,
                      const ParallelFor& parallel_for) {
  LookupCounts total;
  bool is_first = true;  // of those that screen all channels
  std::vector<int64_t> rows = undecided_rows(args);
  for (size_t p = 0; p < plan.passes.size(); ++p) {
    const PlannedPass& planned = plan.passes[p];
    const int64_t num_rows = static_cast<int64_t>(rows.size());
    if (num_rows == 0) break;
    if (num_rows < planned.fewest_rows || num_rows * plan.num_rows > planned.most_rows * args.num_rows) continue;
    ScreenedCodes screened{};
    PruningCodes directions{};
    std::optional<Scratch> memory;
    if (planned.reads != PlannedPass::kCodebookAsItIs) screened = codebook.screened(planned.pass.format, parallel_for);
    if (planned.reads == PlannedPass::kDirections) {
      directions = pruning_codes_for(*plan.pruning, planned.pass.format, args, screened, codebook.packed(), memory,
                                     parallel_for);
      if (!directions.usable) continue;
      screened.pruning = &directions;
    }
    const bool is_coarse =
        planned.reads == PlannedPass::kPackedCodebook && planned.pass.format.type != ScreeningType::kFloat32;
    if (is_coarse && num_rows >= kFewestToTry && is_float32(plan.passes.end()[-2])) {
      const LookupCounts tried = planned.pass.run(args, screened, rows[0], rows[kTriedRows]);
      total.compared += tried.compared;
      rows = undecided_rows(args);
      // In bfloat16, where it comes next, codes in tiers leave few candidates.
      const bool before_bf16 = planned.pass.format.type == ScreeningType::kInt8 && screened.has_tiers() &&
                               plan.passes.end()[-3].pass.format.type == ScreeningType::kBFloat16;
      if (is_too_coarse(tried, args, before_bf16 ? kFasterBf16 : 1)) {
        if (std::exchange(is_first, false)) total.undecided = static_cast<int64_t>(rows.size());
        continue;
      }
    }
    const Turn turn{plan, planned, args, screened, rows};
    // What a pass finds in a group is one code.
    const bool shares = turn.as_it_is() || args.topk == 1;
    const bool by_codes = shares && turn.num_rows() <= planned.rows_sharing_codes && turn.num_units() > 0;
    const LookupCounts counts = by_codes ? run_by_codes(turn, parallel_for) : run_by_rows(turn, parallel_for);
    total.pruning += counts.pruning;
    total.compared += counts.compared;
    if (planned.reads == PlannedPass::kPackedCodebook && std::exchange(is_first, false))
      total.undecided = counts.undecided;
    if (counts.undecided == 0) break;
    rows = undecided_rows(args);
  }
  return total;
}

}  // namespace soho
