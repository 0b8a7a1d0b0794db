#include "kernels/encoder/encoder.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "common/float_environment.h"
#include "common/memory.h"
#include "kernels/encoder/layer.h"

namespace soho {
namespace {

constexpr int64_t kChunkRows = 96;          // pairs that go through a layer together have so many rows, or more
constexpr int64_t kSharedRows = 96;         // of a task
constexpr int64_t kPackedFloats = 1 << 15;  // of a task

LayerKernels kernels_of([[maybe_unused]] CpuLevel level) {
#ifdef SOHO_X86_LEVELS
  if (level >= CpuLevel::kAvx512) return layer_kernels_avx512();
#endif
#ifdef SOHO_VECTOR_LEVELS
  if (level >= CpuLevel::kAvx2) return layer_kernels_avx2();
#endif
  return layer_kernels_scalar();
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out parts of a block, each beginning at a cache line; where the block is null it only counts.
class Parts {
 public:
  explicit Parts(float* block) : block_(block) {}
  float* next(int64_t floats) {
    float* const part = block_ == nullptr ? nullptr : block_ + size_;
    size_ += divide_up(floats, 16) * 16;
    return part;
  }
  int64_t size() const { return size_; }

 private:
  float* const block_;
  int64_t size_ = 0;
};

class Floats {
 public:
  explicit Floats(int64_t count) : memory_(sizeof(float) * static_cast<size_t>(count)) {}
  float* data() const { return static_cast<float*>(memory_.data()); }

 private:
  const Scratch memory_;
};

class Encoder {
 public:
  Encoder(CpuLevel level, const EncoderArgs& args, const ParallelFor& parallel_for)
      : kernels_(kernels_of(level)),
        args_(args),
        rows_(args.rows),
        parallel_for_(parallel_for),
        D_(args.num_channels),
        F_(args.num_inner),
        layer_(divided(args)),
        packed_(packed_floats()),
        stacked_(3 * D_ * (D_ + 1)) {}

  void forward(float* hidden) {
    const float* input = args_.shared;
    for (int64_t number = 0; number < args_.num_layers; ++number) {
      enter(number, input);
      if (layer_.is_last) layer_.hidden = hidden;
      pack(false);
      if (layer_.is_first) {
        in_tasks(rows_.num_shared, kSharedRows, [&](int64_t begin, int64_t end) {
          kernels_.multiply(packed_product(end - begin, layer_.width, D_, args_.shared + begin * D_,
                                           layer_.packed_project, layer_.project_bias, nullptr,
                                           layer_.projected + begin * layer_.width));
        });
      }
      over_chunks([&](int64_t chunk, float* scratch) {
        kernels_.forward(layer_, chunks_[chunk], chunks_[chunk + 1], scratch);
      });
      input = layer_.hidden;
    }
  }

  void backward(const float* grad_hidden, float* const* grad_parameters, float* grad_shared) {
    const int64_t N = rows_.num_rows, num_chunks = static_cast<int64_t>(chunks_.size()) - 1;
    const Floats grads(N * (6 * D_ + 2 * F_) + rows_.num_reads * D_ + 6 * 16), norm_sums(num_chunks * 4 * D_);
    for (int64_t number = args_.num_layers - 1; number >= 0; --number) {
      enter(number, nullptr);
      layer_.input = number == 0 ? args_.shared : hidden_of(number - 1);
      Parts parts(grads.data());
      layer_.grad_input = parts.next(N * D_);
      layer_.grad_hidden = layer_.is_last ? grad_hidden : layer_.grad_input;
      layer_.grad_down = parts.next(N * D_), layer_.grad_output = parts.next(N * D_);
      layer_.grad_up = parts.next(N * F_), layer_.activated = parts.next(N * F_);
      layer_.grad_projected = parts.next(N * 3 * D_), layer_.grad_query = parts.next(rows_.num_reads * D_);
      pack(true);
      over_chunks([&](int64_t chunk, float* scratch) {
        kernels_.backward(layer_, chunks_[chunk], chunks_[chunk + 1], scratch, norm_sums.data() + chunk * 4 * D_);
      });
      float* const* const gradients = grad_parameters + number * kEncoderParameters;
      for (int64_t c = 0; c < D_; ++c) {
        int64_t sum = 0;
        for (const int parameter : {kAttentionNorm + 0, kAttentionNorm + 1, kNorm + 0, kNorm + 1}) {
          float total = 0.0f;
          for (int64_t chunk = 0; chunk < num_chunks; ++chunk) total += norm_sums.data()[(chunk * 4 + sum) * D_ + c];
          gradients[parameter][c] = total;
          ++sum;
        }
      }
      if (!layer_.is_first) {
        weight_gradients(gradients, layer_.grad_projected, N);
        continue;
      }
      const Floats of_shared(rows_.num_shared * layer_.width);
      gather_shared(of_shared.data(), grad_shared);
      weight_gradients(gradients, of_shared.data(), rows_.num_shared);
    }
  }

  int64_t kept_floats(int64_t number) { return lay_out(number, nullptr); }

 private:
  // Chunks of pairs first: the sizes of all that follows depend on them.
  Layer divided(const EncoderArgs& args) {
    chunks_.push_back(0);
    for (int64_t p = 0; p < rows_.num_pairs; ++p) {
      longest_pair_ = std::max(longest_pair_, rows_.row_begin[p + 1] - rows_.row_begin[p]);
      const int64_t chunk_rows = rows_.row_begin[p + 1] - rows_.row_begin[chunks_.back()];
      if (chunk_rows < kChunkRows && p + 1 < rows_.num_pairs) continue;
      longest_chunk_ = std::max(longest_chunk_, chunk_rows);
      chunks_.push_back(p + 1);
    }
    Layer layer{};
    layer.args = &args;
    return layer;
  }

  // The layer's parts of `kept`, and their sizes in all.
  int64_t lay_out(int64_t number, float* kept) {
    layer_.is_first = number == 0;
    layer_.is_last = number + 1 == args_.num_layers;
    layer_.width = layer_.is_last ? 2 * D_ : 3 * D_;
    layer_.query_begin = layer_.is_last ? rows_.read_begin : rows_.row_begin;
    share_begin_.assign(1, 0);
    for (int64_t p = 0; p < rows_.num_pairs; ++p) {
      const int64_t keys = rounded_keys(rows_.row_begin[p + 1] - rows_.row_begin[p]);
      const int64_t num_queries = layer_.query_begin[p + 1] - layer_.query_begin[p];
      share_begin_.push_back(share_begin_.back() + args_.num_heads * num_queries * keys);
    }
    layer_.share_begin = share_begin_.data();
    const int64_t num_queries = layer_.query_begin[rows_.num_pairs], last_queries = layer_.is_last ? num_queries : 0;
    Parts parts(kept);
    layer_.hidden = parts.next(layer_.is_last ? 0 : num_queries * D_);
    layer_.projected = parts.next((layer_.is_first ? rows_.num_shared : rows_.num_rows) * layer_.width);
    layer_.read_input = parts.next(last_queries * D_), layer_.query = parts.next(last_queries * D_);
    layer_.share = parts.next(share_begin_.back());
    layer_.context = parts.next(num_queries * D_), layer_.attended = parts.next(num_queries * D_);
    layer_.attention_normed = parts.next(num_queries * D_), layer_.attention_scale = parts.next(num_queries);
    layer_.inner = parts.next(num_queries * F_);
    layer_.normed = parts.next(num_queries * D_), layer_.scale = parts.next(num_queries);
    return parts.size();
  }

  // `hidden` is the first part of what a layer keeps.
  const float* hidden_of(int64_t number) const { return args_.kept[number]; }

  void enter(int64_t number, const float* input) {
    lay_out(number, args_.kept[number]);
    layer_.parameters = args_.parameters + number * kEncoderParameters;
    layer_.input = input;
  }

  int64_t packed_floats() const {
    const auto of = [&](int64_t depth, int64_t columns) {
      return depth * divide_up(columns, kernels_.panel) * kernels_.panel + 16;
    };
    const int64_t forward = of(D_, 3 * D_) + 2 * of(D_, D_) + of(D_, F_) + of(F_, D_);
    return std::max(forward, of(3 * D_, D_) + 2 * of(D_, D_) + of(D_, F_) + of(F_, D_));
  }

  // The layer's weights, packed for products with rows of inputs, or of gradients.
  void pack(bool backward) {
    float* stacked = stacked_.data();
    float* const bias = stacked + layer_.width * D_;
    for (const int number : {kKey, kValue, kQuery}) {
      if (number == kQuery && layer_.is_last) break;
      std::copy_n(layer_.parameters[number + 1], D_, bias + (stacked - stacked_.data()) / D_);
      stacked = std::copy_n(layer_.parameters[number], D_ * D_, stacked);
    }
    layer_.project_bias = bias;
    struct Task {
      const float* weight;
      int64_t stride, depth, columns;
      float* packed;
    };
    std::vector<Task> tasks;
    Parts parts(packed_.data());
    const auto add = [&](const float* weight, int64_t num_out, int64_t num_in) {
      const int64_t depth = backward ? num_out : num_in, columns = backward ? num_in : num_out;
      float* const packed = parts.next(depth * divide_up(columns, kernels_.panel) * kernels_.panel);
      const int64_t width = divide_up(kPackedFloats / depth, kernels_.panel) * kernels_.panel;
      for (int64_t c = 0; c < columns; c += width)
        tasks.push_back(
            {weight + c * (backward ? 1 : num_in), num_in, depth, std::min(width, columns - c), packed + c * depth});
      return packed;
    };
    layer_.packed_project = add(stacked_.data(), layer_.width, D_);
    layer_.packed_query = layer_.is_last ? add(layer_.parameters[kQuery], D_, D_) : nullptr;
    layer_.packed_output = add(layer_.parameters[kOutput], D_, D_);
    layer_.packed_up = add(layer_.parameters[kUp], F_, D_);
    layer_.packed_down = add(layer_.parameters[kDown], D_, F_);
    in_tasks(static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto [weight, stride, depth, columns, packed] = tasks[i];
        (backward ? kernels_.pack : kernels_.pack_transposed)(weight, stride, depth, columns, packed);
      }
    });
  }

  Product packed_product(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* packed,
                         const float* bias, const float* add, float* out) const {
    return {rows,           columns, depth, a,       depth, 1,      packed, depth * kernels_.panel,
            kernels_.panel, bias,    add,   columns, out,   columns};
  }

  void in_tasks(int64_t total, int64_t grain, const std::function<void(int64_t, int64_t)>& body) const {
    if (total == 0) return;
    parallel_for_(total, grain, [&](int64_t begin, int64_t end) {
      const DefaultFloatEnvironment environment;
      body(begin, end);
    });
  }

  void over_chunks(const std::function<void(int64_t, float*)>& body) const {
    in_tasks(static_cast<int64_t>(chunks_.size()) - 1, 1, [&](int64_t begin, int64_t end) {
      const Floats scratch(kernels_.scratch(args_, longest_chunk_, longest_pair_));
      for (int64_t chunk = begin; chunk < end; ++chunk) body(chunk, scratch.data());
    });
  }

  // In the first layer: gradients of the rows, summed for each shared row, and from there to the shared rows.
  void gather_shared(float* grad_projected, float* grad_shared) const {
    const int64_t U = rows_.num_shared, width = layer_.width;
    std::vector<int64_t> begin_U(U + 1, 0), row_of(rows_.num_rows);
    for (int64_t i = 0; i < rows_.num_rows; ++i) ++begin_U[rows_.shared_row[i] + 1];
    for (int64_t u = 0; u < U; ++u) begin_U[u + 1] += begin_U[u];
    std::vector<int64_t> next(begin_U.begin(), begin_U.end() - 1);
    for (int64_t i = 0; i < rows_.num_rows; ++i) row_of[next[rows_.shared_row[i]]++] = i;
    const auto sum = [&](const float* rows, int64_t channels, int64_t u, float* out) {
      std::fill_n(out, channels, 0.0f);
      for (int64_t k = begin_U[u]; k < begin_U[u + 1]; ++k) {
        const float* const row = rows + row_of[k] * channels;
        for (int64_t c = 0; c < channels; ++c) out[c] += row[c];
      }
    };
    in_tasks(U, kSharedRows, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        sum(layer_.grad_projected, width, u, grad_projected + u * width);
        sum(layer_.grad_input, D_, u, grad_shared + u * D_);
      }
      kernels_.multiply(packed_product(end - begin, D_, width, grad_projected + begin * width, layer_.packed_project,
                                       nullptr, grad_shared + begin * D_, grad_shared + begin * D_));
    });
  }

  void weight_gradients(float* const* gradients, const float* grad_projected, int64_t num_projected) const {
    const int64_t num_queries = layer_.query_begin[rows_.num_pairs], width = layer_.width;
    std::vector<WeightGradient> all;
    const auto add = [&](int parameter, const float* grad_out, int64_t stride, int64_t num_rows, const float* input,
                         int64_t num_in, int64_t num_out) {
      all.push_back(
          {grad_out, stride, num_rows, input, num_in, gradients[parameter], gradients[parameter + 1], num_out});
    };
    add(kKey, grad_projected, width, num_projected, layer_.input, D_, D_);
    add(kValue, grad_projected + D_, width, num_projected, layer_.input, D_, D_);
    if (layer_.is_last)
      add(kQuery, layer_.grad_query, D_, num_queries, layer_.read_input, D_, D_);
    else
      add(kQuery, grad_projected + 2 * D_, width, num_projected, layer_.input, D_, D_);
    add(kOutput, layer_.grad_output, D_, num_queries, layer_.context, D_, D_);
    add(kUp, layer_.grad_up, F_, num_queries, layer_.attended, D_, F_);
    add(kDown, layer_.grad_down, D_, num_queries, layer_.activated, F_, D_);
    struct Task {
      const WeightGradient* gradient;
      int64_t begin_out, begin_in;
    };
    std::vector<Task> tasks;
    for (const WeightGradient& gradient : all) {
      for (int64_t out = 0; out < gradient.num_out; out += kWeightBlock) {
        for (int64_t in = 0; in < gradient.num_in; in += kWeightBlock) tasks.push_back({&gradient, out, in});
      }
    }
    in_tasks(static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
      const Floats scratch(kernels_.scratch(args_, 0, 0));
      for (int64_t i = begin; i < end; ++i)
        kernels_.weight_gradient(*tasks[i].gradient, tasks[i].begin_out, tasks[i].begin_in, scratch.data());
    });
  }

  const LayerKernels kernels_;
  const EncoderArgs& args_;
  const EncoderRows& rows_;
  const ParallelFor& parallel_for_;
  const int64_t D_, F_;
  std::vector<int64_t> chunks_, share_begin_;
  int64_t longest_pair_ = 0, longest_chunk_ = 0;
  Layer layer_;
  const Floats packed_, stacked_;
};

}  // namespace

int64_t encoder_kept_floats(const EncoderArgs& args, int64_t layer) {
  return Encoder(CpuLevel::kScalar, args, {}).kept_floats(layer);
}

void encoder_forward(CpuLevel level, const EncoderArgs& args, float* hidden, const ParallelFor& parallel_for) {
  Encoder(level, args, parallel_for).forward(hidden);
}

void encoder_backward(CpuLevel level, const EncoderArgs& args, const float* grad_hidden, float* const* grad_parameters,
                      float* grad_shared, const ParallelFor& parallel_for) {
  Encoder(level, args, parallel_for).backward(grad_hidden, grad_parameters, grad_shared);
}

}  // namespace soho
