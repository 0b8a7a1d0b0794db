// Blocks of rows go through all levels while they lie in the cache: what is left of them is written once.
#include <algorithm>
#include <deque>
#include <optional>
#include <vector>

#include "common/float_environment.h"
#include "common/memory.h"
#include "kernels/codebook_lookup/packed_codebook.h"
#include "kernels/codebook_lookup/plan.h"
#include "kernels/residual_lookup/residual_lookup.h"

namespace soho {
namespace {

constexpr int64_t kBlockBytes = 2 << 20;  // of what is left of the rows
constexpr int64_t kLeastRows = 1024;      // a panel of a screening pass
constexpr int64_t kMostRows = 4096;

void in_this_thread(int64_t total, int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, total); }

// One level. Its codebook is packed for the first pass at once, unless few rows are compared with it as it is.
class Level {
 public:
  Level(CpuLevel cpu_level, const CodebookLookupArgs& all_rows, const void* packed, const ParallelFor& parallel_for)
      : args_(all_rows), plan_(plan_of(cpu_level, all_rows, packed)), codebook_(all_rows, packed) {
    const PlannedPass& first = plan_.passes.front();
    if (first.reads != PlannedPass::kCodebookAsItIs) codebook_.screened(first.pass.format, parallel_for);
  }

  const float* code(int64_t j) const { return args_.codebook + j * args_.num_channels; }

  // Some of the rows; threads may do so at the same time.
  void look_up(const float* rows, int64_t num_rows, int64_t* index, const ParallelFor& parallel_for) {
    CodebookLookupArgs args = args_;
    args.features = rows;
    args.num_rows = num_rows;
    args.index = index;
    std::fill(index, index + num_rows, kUndecided);
    run_plan(plan_, args, codebook_, parallel_for);
  }

 private:
  const CodebookLookupArgs args_;
  const LookupPlan plan_;
  PackedCodebook codebook_;
};

class Quantiser {
 public:
  Quantiser(CpuLevel cpu_level, const ResidualLookupArgs& args, const void* packed, int64_t packed_bytes,
            const ParallelFor& parallel_for)
      : args_(args) {
    CodebookLookupArgs all_rows{};
    all_rows.features_type = Element::kFloat32;
    all_rows.row_stride = all_rows.num_channels = args.num_channels;
    all_rows.num_rows = args.num_rows;
    all_rows.num_codes = args.num_codes;
    const int64_t num_codebooks = args.level_stride == 0 ? 1 : args.num_levels;
    for (int64_t l = 0; l < num_codebooks; ++l) {
      all_rows.codebook = args.codebooks + l * args.level_stride;
      const void* block = packed == nullptr ? nullptr : static_cast<const char*>(packed) + l * packed_bytes;
      const bool fits = block != nullptr && packed_codebook_is(cpu_level, args.num_codes, args.num_channels,
                                                               Metric::kEuclidean, block, packed_bytes);
      levels_.emplace_back(cpu_level, all_rows, fits ? block : nullptr, parallel_for);
    }
    const int64_t row_bytes = std::max<int64_t>(1, args.num_channels * static_cast<int64_t>(sizeof(float)));
    block_rows_ = std::clamp(kBlockBytes / row_bytes, kLeastRows, kMostRows);
  }

  // Rows [begin, end); disjoint ranges may run at the same time. What one level takes may be shared out among threads.
  void run(int64_t begin, int64_t end, const ParallelFor& parallel_for) {
    DefaultFloatEnvironment environment;
    const int64_t num_channels = args_.num_channels, most_rows = std::min(block_rows_, end - begin);
    std::optional<Scratch> own;
    if (args_.residual == nullptr) own.emplace(sizeof(float) * std::max<int64_t>(1, most_rows * num_channels));
    std::vector<int64_t> index(most_rows);
    for (int64_t first = begin; first < end; first += most_rows) {
      const int64_t num_rows = std::min(most_rows, end - first);
      float* residual = own ? static_cast<float*>(own->data()) : args_.residual + first * num_channels;
      float* quantized = args_.quantized + first * num_channels;
      for (int64_t r = 0; r < num_rows; ++r) {
        const void* row = row_at(args_.features, first + r, args_.row_stride, args_.features_type);
        for (int64_t c = 0; c < num_channels; ++c)
          residual[r * num_channels + c] = load_element(row, c, args_.features_type);
      }
      std::fill(quantized, quantized + num_rows * num_channels, 0.0f);
      for (int64_t l = 0; l < args_.num_levels; ++l) {
        Level& level = levels_[args_.level_stride == 0 ? 0 : l];
        level.look_up(residual, num_rows, index.data(), parallel_for);
        for (int64_t r = 0; r < num_rows; ++r) {
          args_.index[(first + r) * args_.num_levels + l] = index[r];
          move(level.code(index[r]), residual + r * num_channels, quantized + r * num_channels);
        }
      }
    }
  }

 private:
  void move(const float* __restrict code, float* __restrict residual, float* __restrict quantized) const {
    for (int64_t c = 0; c < args_.num_channels; ++c) {
      residual[c] -= code[c];
      quantized[c] += code[c];
    }
  }

  const ResidualLookupArgs& args_;
  std::deque<Level> levels_;
  int64_t block_rows_;
};

}  // namespace

void residual_lookup(CpuLevel cpu_level, const ResidualLookupArgs& args, const void* packed, int64_t packed_bytes,
                     const ParallelFor& parallel_for) {
  if (args.num_rows == 0) return;
  Quantiser quantiser(cpu_level, args, packed, packed_bytes, parallel_for);
  if (args.num_rows <= kRowsPerTask) {
    quantiser.run(0, args.num_rows, parallel_for);
    return;
  }
  parallel_for(args.num_rows, rows_per_task(args.num_rows),
               [&](int64_t begin, int64_t end) { quantiser.run(begin, end, in_this_thread); });
}

}  // namespace soho
