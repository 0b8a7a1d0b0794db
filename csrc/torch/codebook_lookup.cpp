#include "kernels/codebook_lookup/codebook_lookup.h"

#include <algorithm>
#include <atomic>
#include <tuple>

#include "torch/lookup_totals.h"
#include "torch/tensors.h"
#include "torch/threads.h"

namespace soho {
namespace {

constexpr int64_t kGatherRowsPerTask = 64;

std::atomic<int64_t> total_rows{0}, total_pruning{0}, total_compared{0}, total_left{0};

// Rows `index` of the contiguous `codes` (K, C) or (..., K, C), of which each has as many, shaped (index's shape, C).
Tensor gather(const Tensor& codes, const Tensor& index) {
  std::vector<int64_t> shape = shape_of(index);
  shape.push_back(codes.size(codes.dim() - 1));
  const Tensor positions = as_dense(index);
  const Tensor output = empty_cpu(shape, codes.scalar_type());
  const int64_t num_rows = positions.numel(), num_codes = codes.size(codes.dim() - 2);
  const int64_t row_bytes = shape.back() * element_size(element_of(codes));
  int64_t num_books = 1;
  for (int64_t d = 0; d < codes.dim() - 2; ++d) num_books *= codes.size(d);
  const int64_t rows_per_batch = num_rows / std::max<int64_t>(1, num_books);
  std::atomic<int64_t> bad_row{-1};
  for (int64_t b = 0; b * rows_per_batch < num_rows; ++b) {
    const GatherCodesArgs args{static_cast<const char*>(codes.const_data_ptr()) + b * num_codes * row_bytes,
                               positions.const_data_ptr<int64_t>() + b * rows_per_batch,
                               static_cast<char*>(output.mutable_data_ptr()) + b * rows_per_batch * row_bytes,
                               num_codes, row_bytes};
    torch::stable::parallel_for(0, rows_per_batch, kGatherRowsPerTask, [&](int64_t begin, int64_t end) {
      const int64_t bad = gather_codes(args, begin, end);
      if (bad >= 0) bad_row.store(b * rows_per_batch + bad);
    });
  }
  if (bad_row.load() >= 0) {
    throw std::invalid_argument("index: expected values below " + std::to_string(num_codes) + " (codes), got " +
                                std::to_string(positions.const_data_ptr<int64_t>()[bad_row.load()]));
  }
  return output;
}

Metric metric_of(int64_t number) {
  if (number < 0 || number > 2)
    throw std::invalid_argument("metric: expected 0 (euclidean), 1 (cosine) or 2 (dot), got " + std::to_string(number));
  return static_cast<Metric>(number);
}

// The directions of one codebook or of each of several: float32 (C, D) or (..., C, D), contiguous.
struct Subspaces {
  Subspaces(const std::optional<Tensor>& subspace, const Codebooks& books) {
    if (!subspace.has_value()) return;
    const int64_t dims = subspace->dim();
    if (subspace->scalar_type() != ScalarType::Float || dims < 2 || subspace->size(dims - 2) != books.num_channels ||
        (dims > 2 && subspace->numel() != books.num_codebooks * books.num_channels * subspace->size(dims - 1)))
      throw std::invalid_argument(
          "subspace: expected float32 (C, D), or (..., C, D) with the batch shape of the codebook");
    contiguous = as_dense(*subspace);
    num_directions = contiguous->size(dims - 1);
    stride = dims > 2 ? books.num_channels * num_directions : 0;
  }

  const float* at(int64_t b) const {
    return num_directions == 0 ? nullptr : contiguous->const_data_ptr<float>() + b * stride;
  }

  std::optional<Tensor> contiguous;
  int64_t num_directions = 0, stride = 0;
};

// (num_codebooks, bytes) uint8: each codebook packed for the level in use, with its directions.
Tensor pack_codebook_cpu(const Tensor& codebook, const std::optional<Tensor>& subspace, int64_t metric) {
  const Codebooks books = as_codebooks(codebook);
  const Subspaces subspaces(subspace, books);
  const CpuLevel level = lookup_level(books.num_codes, books.num_channels);
  const int64_t bytes = static_cast<int64_t>(
      packed_codebook_bytes(level, books.num_codes, books.num_channels, subspaces.num_directions, metric_of(metric)));
  const Tensor packed = empty_cpu({books.num_codebooks, bytes}, ScalarType::Byte);
  for (int64_t b = 0; b < books.num_codebooks; ++b) {
    char* block = static_cast<char*>(packed.mutable_data_ptr()) + b * bytes;
    pack_codebook(level, books.at(b), books.num_codes, books.num_channels, subspaces.at(b), subspaces.num_directions,
                  block, intra_op_threads, metric_of(metric));
  }
  return packed;
}

// Block b of `packed`, or null where it was packed for another level than the one in use.
const void* packed_block(const std::optional<Tensor>& packed, int64_t b, const Codebooks& books, CpuLevel level,
                         Metric metric) {
  if (!packed.has_value() || packed->numel() == 0) return nullptr;
  if (packed->scalar_type() != ScalarType::Byte || packed->dim() != 2 || packed->size(0) != books.num_codebooks)
    throw std::invalid_argument("packed: expected what pack_codebook returned for this codebook");
  if (!packed->is_contiguous()) return nullptr;
  const void* block = static_cast<const char*>(packed->const_data_ptr()) + b * packed->size(1);
  const size_t bytes = static_cast<size_t>(packed->size(1));
  return packed_codebook_is(level, books.num_codes, books.num_channels, metric, block, bytes) ? block : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> codebook_lookup_cpu(const Tensor& features, const Tensor& codebook,
                                                       bool return_distance, bool return_codes,
                                                       const std::optional<Tensor>& packed,
                                                       const std::optional<Tensor>& subspace,
                                                       const std::optional<Tensor>& warm_start, int64_t metric,
                                                       int64_t topk) {
  std::vector<int64_t> shape = shape_of(features);
  shape.pop_back();
  const Tensor index = empty_cpu(shape, ScalarType::Long);
  if (topk > 1) shape.push_back(topk);
  const Tensor top_index = topk > 1 ? empty_cpu(shape, ScalarType::Long) : index;
  const Tensor distance = empty_cpu(return_distance ? shape : std::vector<int64_t>{0}, ScalarType::Float);
  const Codebooks books = as_codebooks(codebook);
  if (topk < 1 || topk > std::min(kMostNearest, books.num_codes))
    throw std::invalid_argument("topk: expected 1 to 16, at most the number of codes, got " + std::to_string(topk));
  const Rows rows = as_rows(features);
  const int64_t rows_per_batch = codebook.dim() == 2 ? rows.num_rows : features.size(features.dim() - 2);
  const CpuLevel level = lookup_level(books.num_codes, books.num_channels);
  const Subspaces subspaces(subspace, books);
  std::optional<Tensor> warm_starts;
  if (warm_start.has_value()) {
    if (warm_start->scalar_type() != ScalarType::Long || warm_start->numel() != rows.num_rows)
      throw std::invalid_argument("warm_start: expected int64 with a code for each row of features");
    warm_starts = as_dense(*warm_start);
  }
  for (int64_t b = 0; b * rows_per_batch < rows.num_rows; ++b) {
    CodebookLookupArgs args{};
    args.features_type = element_of(features);
    args.features = row_at(rows.data, b * rows_per_batch, rows.stride, args.features_type);
    args.row_stride = rows.stride;
    args.codebook = books.at(b);
    args.metric = metric_of(metric);
    args.num_rows = rows_per_batch;
    args.num_codes = books.num_codes;
    args.num_channels = books.num_channels;
    args.index = index.mutable_data_ptr<int64_t>() + b * rows_per_batch;
    args.distance = return_distance ? distance.mutable_data_ptr<float>() + b * rows_per_batch * topk : nullptr;
    args.subspace = subspaces.at(b);
    args.num_directions = subspaces.num_directions;
    args.topk = topk;
    args.top_index = topk > 1 ? top_index.mutable_data_ptr<int64_t>() + b * rows_per_batch * topk : nullptr;
    args.warm_start = warm_starts.has_value() ? warm_starts->const_data_ptr<int64_t>() + b * rows_per_batch : nullptr;
    const void* block = packed_block(packed, b, books, level, args.metric);
    count_lookup(args.num_rows, codebook_lookup(level, args, block, intra_op_threads));
  }
  const Tensor chosen = return_codes ? gather(as_dense(codebook), top_index) : empty_cpu({0}, codebook.scalar_type());
  return {distance, top_index, chosen};
}

Tensor straight_through_cpu(const Tensor& features, const Tensor& codebook, const Tensor& index) {
  const bool same_type = codebook.scalar_type() == features.scalar_type();
  return gather(as_dense(same_type ? codebook : torch::stable::to(codebook, features.scalar_type())), index);
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CPU, library) {
  library.impl("codebook_lookup_cpu", TORCH_BOX(&codebook_lookup_cpu));
  library.impl("pack_codebook_cpu", TORCH_BOX(&pack_codebook_cpu));
  library.impl("straight_through_cpu", TORCH_BOX(&straight_through_cpu));
}

}  // namespace

void count_lookup(int64_t num_rows, const LookupCounts& counts) {
  total_rows += num_rows;
  total_pruning += counts.pruning;
  total_compared += counts.compared;
  total_left += counts.undecided;
}

LookupTotals lookup_totals() { return {total_rows, total_pruning, total_compared, total_left}; }

}  // namespace soho
