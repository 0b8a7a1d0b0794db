#include "kernels/codebook_update/codebook_update.h"

#include <tuple>

#include "common/cpu_level.h"
#include "torch/tensors.h"
#include "torch/threads.h"

namespace soho {
namespace {

constexpr int64_t kCodesPerTask = 64;
constexpr int64_t kFewElements = 32768;  // one thread has added them before others have begun

void run(CodebookUpdateArgs args, const Tensor& features, const Tensor& index, const std::optional<Tensor>& valid,
         const char* limit_name) {
  const Rows rows = as_rows(features);
  const Tensor positions = as_dense(index);
  const std::optional<Tensor> kept = as_contiguous(valid);
  args.features = rows.data;
  args.features_type = element_of(features);
  args.row_stride = rows.stride;
  args.index = positions.const_data_ptr<int64_t>();
  args.valid = bool_data(kept);
  args.num_rows = rows.num_rows;
  args.num_channels = rows.num_channels;
  const bool is_small = (args.num_rows + args.num_codes) * args.num_channels < kFewElements;
  const int64_t num_threads = is_small ? 1 : torch::stable::get_num_threads();
  const int64_t bad_row = update_codebook(active_cpu_level(), args, num_threads, intra_op_threads);
  if (bad_row >= 0) {
    throw std::invalid_argument(std::string("index: expected values below ") + limit_name + " = " +
                                std::to_string(args.num_codes) + ", got " + std::to_string(args.index[bad_row]));
  }
}

std::tuple<Tensor, Tensor> codebook_stats_cpu(const Tensor& features, const Tensor& index, int64_t num_codes,
                                              const std::optional<Tensor>& valid, bool wide) {
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  const Tensor counts = empty_cpu({num_codes}, type);
  const Tensor sums = empty_cpu({num_codes, features.size(features.dim() - 1)}, type);
  CodebookUpdateArgs args{};
  args.num_codes = num_codes;
  args.wide = wide;
  args.counts = counts.mutable_data_ptr();
  args.sums = sums.mutable_data_ptr();
  run(args, features, index, valid, "num_codes");
  return {counts, sums};
}

// A codebook of another layout is moved through a contiguous copy.
bool has_adjacent_rows(const Tensor& codebook) { return codebook.stride(1) == 1 || codebook.size(1) <= 1; }

void codebook_ema_cpu(const Tensor& codebook, const Tensor& counts, const Tensor& sums, double decay) {
  Tensor moved = has_adjacent_rows(codebook) ? codebook : as_dense(codebook);
  const Tensor dense_counts = as_dense(counts), dense_sums = as_dense(sums);
  const CodebookEmaArgs args{moved.mutable_data_ptr<float>(),
                             dense_counts.const_data_ptr<float>(),
                             dense_sums.const_data_ptr<float>(),
                             moved.stride(0),
                             codebook.size(1),
                             decay};
  const CpuLevel level = active_cpu_level();
  torch::stable::parallel_for(0, codebook.size(0), kCodesPerTask,
                              [&](int64_t begin, int64_t end) { codebook_ema(level, args, begin, end); });
  if (!has_adjacent_rows(codebook)) {
    Tensor target = codebook;
    torch::stable::copy_(target, moved);
  }
}

void scatter_mean_ema_cpu(const Tensor& codebook, const Tensor& features, const Tensor& index, double decay,
                          const std::optional<Tensor>& valid) {
  Tensor moved = as_dense(codebook);
  CodebookUpdateArgs args{};
  args.num_codes = codebook.size(0);
  args.moves_codebook = true;
  args.codebook = moved.mutable_data_ptr<float>();
  args.decay = decay;
  run(args, features, index, valid, "codes");
  if (!codebook.is_contiguous()) {
    Tensor target = codebook;
    torch::stable::copy_(target, moved);
  }
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CPU, library) {
  library.impl("codebook_stats_cpu", TORCH_BOX(&codebook_stats_cpu));
  library.impl("codebook_ema__cpu", TORCH_BOX(&codebook_ema_cpu));
  library.impl("scatter_mean_ema__cpu", TORCH_BOX(&scatter_mean_ema_cpu));
}

}  // namespace
}  // namespace soho
