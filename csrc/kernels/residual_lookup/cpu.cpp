// Blocks of rows go through all levels while they lie in the cache: what is left of them is written once.
#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "common/float_environment.h"
#include "common/memory.h"
#include "kernels/codebook_lookup/packed_codebook.h"
#include "kernels/codebook_lookup/reduced.h"
#include "kernels/codebook_lookup/share.h"
#include "kernels/residual_lookup/residual_lookup.h"

namespace soho {
namespace {

constexpr int64_t kBlockBytes = 2 << 20;  // of what is left of the rows
constexpr int64_t kLeastRows = 1024;      // a panel of a screening pass
constexpr int64_t kMostRows = 4096;

void in_this_thread(int64_t total, int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, total); }

// The codebook of a level, packed for each pass: for the first one at once, unless rows are few, for the others when a
// row is left to them.
class LevelCodes {
 public:
  // `packed` is null, or the codebook packed for the first pass, perhaps with directions for `reduced` behind it.
  LevelCodes(const std::vector<LookupPass>& passes, const ReducedPass* reduced, const ResidualLookupArgs& args,
             int64_t level, const void* packed, bool few_rows, const ParallelFor& parallel_for)
      : passes_(passes),
        args_(args),
        codebook_(args.codebooks + level * args.level_stride),
        once_(passes.size()),
        memory_(passes.size()),
        screened_(passes.size()) {
    first_is_packed_ = packed != nullptr || !few_rows;
    if (packed == nullptr) {
      if (first_is_packed_) pack(0, parallel_for);
      return;
    }
    screened_[0] = screened_codes(packed);
    const int64_t num_directions = packed_directions(packed);
    if (reduced == nullptr || num_directions == 0) return;
    const int64_t bytes = packed_codebook_bytes(passes[0].format, args.num_codes, args.num_channels);
    const void* behind = static_cast<const char*>(packed) + bytes;
    reduced_ = reduced_codes(*reduced, args.num_codes, args.num_channels, num_directions, behind);
  }

  const ReducedCodes& reduced() const { return reduced_; }
  const float* code(int64_t j) const { return codebook_ + j * args_.num_channels; }
  bool must_pack(size_t pass) const { return pass == 0 ? !first_is_packed_ : passes_[pass].format.width > 0; }

  // Any thread may ask.
  const ScreenedCodes& screened(size_t pass) {
    if (pass > 0 || !first_is_packed_) {
      std::call_once(once_[pass], [&] {
        if (pass == 0 || passes_[pass].format.width > 0) {
          pack(pass, in_this_thread);
        } else {
          screened_[pass] = screened(0);  // any packed codebook lists the distinct codes
        }
      });
    }
    return screened_[pass];
  }

 private:
  void pack(size_t pass, const ParallelFor& parallel_for) {
    const ScreeningFormat& format = passes_[pass].format;
    memory_[pass] = std::make_unique<Scratch>(packed_codebook_bytes(format, args_.num_codes, args_.num_channels));
    void* block = memory_[pass]->data();
    pack_codebook(format, codebook_, args_.num_codes, args_.num_channels, block, parallel_for);
    screened_[pass] = screened_codes(block);
  }

  const std::vector<LookupPass>& passes_;
  const ResidualLookupArgs& args_;
  const float* const codebook_;
  bool first_is_packed_;
  std::deque<std::once_flag> once_;
  std::vector<std::unique_ptr<Scratch>> memory_;
  std::vector<ScreenedCodes> screened_;
  ReducedCodes reduced_{};  // not usable without directions
};

class Quantiser {
 public:
  Quantiser(CpuLevel cpu_level, const ResidualLookupArgs& args, const void* packed, int64_t packed_bytes,
            const ParallelFor& parallel_for)
      : args_(args),
        passes_(passes_of(cpu_level)),
        reduced_(reduced_pass_of(cpu_level, args.num_channels, Metric::kEuclidean)),
        few_(few_rows_of(cpu_level, CodebookLookupArgs{})) {
    const int64_t num_codebooks = args.level_stride == 0 ? 1 : args.num_levels;
    for (int64_t l = 0; l < num_codebooks; ++l) {
      const void* block = packed == nullptr ? nullptr : static_cast<const char*>(packed) + l * packed_bytes;
      const bool fits = block != nullptr && packed_codebook_is(cpu_level, args.num_codes, args.num_channels,
                                                               Metric::kEuclidean, block, packed_bytes);
      const bool few_rows = few_ != nullptr && args.num_rows <= most_few_rows(args.num_channels);
      levels_.emplace_back(passes_, reduced_, args, l, fits ? block : nullptr, few_rows, parallel_for);
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
        LevelCodes& level = levels_[args_.level_stride == 0 ? 0 : l];
        look_up(level, residual, num_rows, index.data(), parallel_for);
        for (int64_t r = 0; r < num_rows; ++r) {
          args_.index[(first + r) * args_.num_levels + l] = index[r];
          move(level.code(index[r]), residual + r * num_channels, quantized + r * num_channels);
        }
      }
    }
  }

 private:
  void look_up(LevelCodes& level, const float* rows, int64_t num_rows, int64_t* index,
               const ParallelFor& parallel_for) {
    CodebookLookupArgs args{};
    args.features = rows;
    args.features_type = Element::kFloat32;
    args.row_stride = args.num_channels = args_.num_channels;
    args.codebook = level.code(0);
    args.num_rows = num_rows;
    args.num_codes = args_.num_codes;
    args.index = index;
    std::fill(index, index + num_rows, kUndecided);
    if (level.reduced().usable && num_rows >= kFewestReducedRows)
      reduced_->run(args, level.screened(0), level.reduced(), 0, num_rows);
    int64_t undecided = num_rows;
    bool few_are_next = few_ != nullptr;
    for (size_t p = 0; undecided > 0; ++p) {
      // As many rows in a hundred may be left of all other blocks.
      const bool few = undecided * args_.num_rows <= most_left_rows(args.num_channels) * num_rows;
      if (few_are_next && few && level.must_pack(p)) {
        few_are_next = false;
        undecided = compare_few(*few_, args, undecided_rows(args), parallel_for).undecided;
      }
      if (undecided > 0) undecided = run_shared(passes_[p], few_, args, level.screened(p), parallel_for).undecided;
    }
  }

  void move(const float* __restrict code, float* __restrict residual, float* __restrict quantized) const {
    for (int64_t c = 0; c < args_.num_channels; ++c) {
      residual[c] -= code[c];
      quantized[c] += code[c];
    }
  }

  const ResidualLookupArgs& args_;
  const std::vector<LookupPass> passes_;
  const ReducedPass* const reduced_;
  const FewRows* const few_;
  std::deque<LevelCodes> levels_;
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
