// The loops of a layer, included by each level after it has defined kLanes (floats of a vector) and kTileRows (rows of
// a tile of products, whose sums fit the registers); everything is in an unnamed namespace. GCC's and Clang's vector
// types say what a level's instructions are to do; products and sums are fused where the level has that.
#pragma once

#include <cstring>
#include <utility>

#include "kernels/encoder/layer.h"

namespace soho {
namespace {

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Words __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

constexpr int kTileVectors = 2;
constexpr int64_t kPanel = kTileVectors * kLanes;
constexpr int64_t kMostDepth = 512;           // of a pass over the columns: what is read of a stays in the first cache
constexpr int64_t kMostFloatsOfB = 96 << 10;  // of a pass over the rows: in the second cache
constexpr int64_t kRowsOfGradient = 384;      // of a pass over a weight's gradient

inline Vector load(const float* from, int64_t left = kLanes) {
  if (left >= kLanes) return *reinterpret_cast<const Unaligned*>(from);
  Vector lanes = {};
  for (int64_t c = 0; c < left; ++c) lanes[c] = from[c];
  return lanes;
}

inline void store(float* to, Vector value, int64_t left = kLanes) {
  if (left >= kLanes) {
    *reinterpret_cast<Unaligned*>(to) = value;
    return;
  }
  for (int64_t c = 0; c < left; ++c) to[c] = value[c];
}

inline float sum(Vector value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int c = 0; c < half; ++c) lanes[c] += lanes[c + half];
  }
  return lanes[0];
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector smaller(Vector a, Vector b) { return a < b ? a : b; }

// Within 1 ulp (Cephes' expf); 0 where the result would be below the smallest normal number, NaN stays.
inline Vector exponential(Vector x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: a sum with it has no fraction
  const Vector bounded = smaller(Vector{} + 88.7f, larger(Vector{} - 87.3f, x));
  const Vector shifted = bounded * 1.44269504088896341f + kRound;
  const Vector whole = shifted - kRound;
  const Vector rest = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector power = 1.9875691500e-4f * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * (rest * rest) + rest + 1.0f;
  // 2^whole by its exponent; in two factors, since 2^128 is none.
  const Words exponent = __builtin_convertvector(whole, Words), half = exponent >> 1;
  const Vector first = reinterpret_cast<Vector>((half + 127) << 23);
  const Vector second = reinterpret_cast<Vector>((exponent - half + 127) << 23);
  const Vector result = power * first * second;
  return x < -87.3f ? Vector{} : (x == x ? result : x);
}

// Within 1 ulp (N. Juffa's erff).
inline Vector error_function(Vector x) {
  const Vector size = x < 0.0f ? -x : x, square = x * x;
  Vector far = -1.72853470e-5f * size + 3.83197126e-4f;
  far = far * square + (-3.88396438e-3f * size + 2.42546219e-2f);
  far = far * size - 1.06777877e-1f;
  far = far * size - 6.34846687e-1f;
  far = far * size - 1.28717512e-1f;
  far = far * size - size;
  far = 1.0f - exponential(far);
  far = x < 0.0f ? -far : far;
  Vector near = -5.96761703e-4f * square + 4.99119423e-3f;
  near = near * square - 2.67681349e-2f;
  near = near * square + 1.12819925e-1f;
  near = near * square - 3.76125336e-1f;
  near = near * square + 1.28379166e-1f;
  near = near * x + x;
  return size > 0.927734375f ? far : near;
}

// The normal distribution's, of which GELU is x times.
inline Vector share_below(Vector x) { return 0.5f + 0.5f * error_function(x * 0.70710678118654752f); }

// Lanes in whose number the bit `step` is set come from b.
template <int step, int... lane>
inline void exchange(Vector& a, Vector& b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  const Vector low = __builtin_shufflevector(a, b, ((lane & step) ? kLanes + lane - step : lane)...);
  const Vector high = __builtin_shufflevector(a, b, ((lane & step) ? kLanes + lane : lane + step)...);
#else
  const Vector low = __builtin_shuffle(a, b, Words{((lane & step) ? kLanes + lane - step : lane)...});
  const Vector high = __builtin_shuffle(a, b, Words{((lane & step) ? kLanes + lane : lane + step)...});
#endif
  a = low, b = high;
}

template <int step>
inline void transpose(Vector (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    if ((r & step) == 0) exchange<step>(rows[r], rows[r + step], std::make_integer_sequence<int, kLanes>());
  }
  if constexpr (2 * step < kLanes) transpose<2 * step>(rows);
}

void pack(const float* matrix, int64_t stride, int64_t depth, int64_t columns, float* packed) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    for (int64_t k = 0; k < depth; ++k, packed += kPanel) {
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        const int64_t c = j + v * kLanes;
        store(packed + v * kLanes, load(matrix + k * stride + c, columns - c));
      }
    }
  }
}

void pack_transposed(const float* matrix, int64_t stride, int64_t depth, int64_t columns, float* packed) {
  for (int64_t j = 0; j < columns; j += kPanel, packed += depth * kPanel) {
    for (int v = 0; v < kTileVectors; ++v) {
      for (int64_t k = 0; k < depth; k += kLanes) {
        Vector rows[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          const int64_t column = j + v * kLanes + r;
          rows[r] = column < columns ? load(matrix + column * stride + k, depth - k) : Vector{};
        }
        transpose<1>(rows);
        float* const to = packed + k * kPanel + v * kLanes;
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          if (k + r < depth) store(to + r * kPanel, rows[r]);
        }
      }
    }
  }
}

template <int num_rows, int num_vectors>
inline void multiply_tile(const Product& product, int64_t row, int64_t column, int64_t begin_depth, int64_t end_depth) {
  const int64_t left = product.columns - column;
  float* const out = product.out + row * product.out_stride + column;
  Vector sums[num_rows][num_vectors];
#pragma GCC unroll 16
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v) {
      const int64_t c = v * kLanes;
      if (begin_depth > 0) {
        sums[r][v] = load(out + r * product.out_stride + c, left - c);
        continue;
      }
      sums[r][v] = product.bias == nullptr ? Vector{} : load(product.bias + column + c, left - c);
      if (product.add != nullptr)
        sums[r][v] += load(product.add + (row + r) * product.add_stride + column + c, left - c);
    }
  }
  const int64_t stride = product.a_row_stride, by_depth = product.a_depth_stride;
  const float* a0 = product.a + row * stride + begin_depth * by_depth;
  const float *a4 = a0 + 4 * stride, *a8 = a0 + 8 * stride;
  const float* b = product.b + column / kPanel * product.b_panel_stride + begin_depth * product.b_depth_stride;
  for (int64_t k = begin_depth; k < end_depth; ++k) {
    Vector of_b[num_vectors];
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v) of_b[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < num_rows; ++r) {
      // Not in one expression, which GCC 12's -fsanitize=shift compiles to another address.
      const float* const a = r < 4 ? a0 : r < 8 ? a4 : a8;
      const float of_a = a[(r & 3) * stride];
#pragma GCC unroll 4
      for (int v = 0; v < num_vectors; ++v) sums[r][v] += of_a * of_b[v];
    }
    a0 += by_depth, a4 += by_depth, a8 += by_depth;
    b += product.b_depth_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < num_rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < num_vectors; ++v)
      store(out + r * product.out_stride + v * kLanes, sums[r][v], left - v * kLanes);
  }
}

template <int num_rows>
void multiply_rows(const Product& product, int64_t row, int64_t begin_column, int64_t end_column, int64_t begin_depth,
                   int64_t end_depth) {
  for (int64_t column = begin_column; column < end_column; column += kPanel) {
    if (end_column - column > kLanes)
      multiply_tile<num_rows, 2>(product, row, column, begin_depth, end_depth);
    else
      multiply_tile<num_rows, 1>(product, row, column, begin_depth, end_depth);
  }
}

void multiply(const Product& product) {
  const int64_t passes = (product.depth + kMostDepth - 1) / kMostDepth;
  const int64_t depth = passes == 0 ? 1 : (product.depth + passes - 1) / passes;
  int64_t width = kMostFloatsOfB / depth / kPanel * kPanel;
  if (width < kPanel) width = kPanel;
  for (int64_t k = 0; k < product.depth || k == 0; k += depth) {
    const int64_t end_k = k + depth < product.depth ? k + depth : product.depth;
    for (int64_t j = 0; j < product.columns; j += width) {
      const int64_t end_j = j + width < product.columns ? j + width : product.columns;
      int64_t row = 0;
      for (; row + kTileRows <= product.rows; row += kTileRows)
        multiply_rows<kTileRows>(product, row, j, end_j, k, end_k);
      for (; kTileRows > 8 && row + 8 <= product.rows; row += 8) multiply_rows<8>(product, row, j, end_j, k, end_k);
      for (; row + 4 <= product.rows; row += 4) multiply_rows<4>(product, row, j, end_j, k, end_k);
      for (; row + 2 <= product.rows; row += 2) multiply_rows<2>(product, row, j, end_j, k, end_k);
      for (; row < product.rows; ++row) multiply_rows<1>(product, row, j, end_j, k, end_k);
    }
  }
}

// A product with a packed b.
inline void multiply_packed(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_stride,
                            const float* packed, const float* bias, const float* add, int64_t add_stride, float* out,
                            int64_t out_stride) {
  multiply(
      {rows, columns, depth, a, a_stride, 1, packed, depth * kPanel, kPanel, bias, add, add_stride, out, out_stride});
}

// `sum` holds rows before LayerNorm and gets them after, without weight and bias.
void norm_rows(int64_t rows, int64_t channels, float eps, const float* weight, const float* bias, float* normed,
               float* scale, float* out) {
  for (int64_t i = 0; i < rows; ++i, normed += channels, out += channels) {
    Vector total = {};
    for (int64_t c = 0; c < channels; c += kLanes) total += load(normed + c, channels - c);
    const float mean = sum(total) / static_cast<float>(channels);
    Vector squares = {};
    for (int64_t c = 0; c < channels; c += kLanes) {
      Vector off = load(normed + c, channels - c) - mean;
      // The lanes behind the last channel are 0 before the mean is taken off.
      for (int64_t r = channels - c; r < kLanes; ++r) off[r] = 0.0f;
      squares += off * off;
    }
    const float of_row = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(channels) + eps);
    scale[i] = of_row;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t left = channels - c;
      const Vector value = (load(normed + c, left) - mean) * of_row;
      store(normed + c, value, left);
      store(out + c, value * load(weight + c, left) + load(bias + c, left), left);
    }
  }
}

// Backward; adds to the sums for weight and bias.
void norm_rows_backward(int64_t rows, int64_t channels, const float* weight, const float* normed, const float* scale,
                        const float* grad, float* grad_sum, float* weight_sums, float* bias_sums) {
  for (int64_t i = 0; i < rows; ++i, normed += channels, grad += channels, grad_sum += channels) {
    Vector total = {}, along = {};
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t left = channels - c;
      const Vector of_out = load(grad + c, left), value = load(normed + c, left);
      store(weight_sums + c, load(weight_sums + c, left) + of_out * value, left);
      store(bias_sums + c, load(bias_sums + c, left) + of_out, left);
      const Vector weighted = of_out * load(weight + c, left);
      total += weighted;
      along += weighted * value;
    }
    const float mean = sum(total) / static_cast<float>(channels), share = sum(along) / static_cast<float>(channels);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t left = channels - c;
      const Vector weighted = load(grad + c, left) * load(weight + c, left);
      store(grad_sum + c, (weighted - mean - load(normed + c, left) * share) * scale[i], left);
    }
  }
}

// Rows of scores to attention weights.
void softmax_rows(int64_t rows, int64_t keys, float factor, float* score) {
  const int64_t stride = rounded_keys(keys);
  for (int64_t i = 0; i < rows; ++i, score += stride) {
    for (int64_t c = keys; c < stride; ++c) score[c] = -__builtin_inff();
    Vector most = load(score);
    for (int64_t c = kLanes; c < stride; c += kLanes) most = larger(load(score + c), most);
    float top = most[0];
    for (int r = 1; r < kLanes; ++r) top = most[r] > top ? most[r] : top;
    Vector total = {};
    for (int64_t c = 0; c < stride; c += kLanes) {
      const Vector value = exponential((load(score + c) - top) * factor);
      store(score + c, value);
      total += value;
    }
    const float share = 1.0f / sum(total);
    for (int64_t c = 0; c < stride; c += kLanes) store(score + c, load(score + c) * share);
  }
}

// grad: of the attention weights, gets that of the scores.
void softmax_rows_backward(int64_t rows, int64_t keys, float factor, const float* share, float* grad) {
  const int64_t stride = rounded_keys(keys);
  for (int64_t i = 0; i < rows; ++i, share += stride, grad += stride) {
    for (int64_t c = keys; c < stride; ++c) grad[c] = 0.0f;
    Vector total = {};
    for (int64_t c = 0; c < stride; c += kLanes) total += load(share + c) * load(grad + c);
    const float mean = sum(total);
    for (int64_t c = 0; c < stride; c += kLanes) store(grad + c, load(share + c) * (load(grad + c) - mean) * factor);
  }
}

// What a chunk of pairs needs to find its rows.
struct Chunk {
  int64_t begin_row, num_rows, begin_query, num_queries;
};

inline Chunk chunk_of(const Layer& layer, int64_t begin_pair, int64_t end_pair) {
  const int64_t *rows = layer.args->rows.row_begin, *queries = layer.query_begin;
  return {rows[begin_pair], rows[end_pair] - rows[begin_pair], queries[begin_pair],
          queries[end_pair] - queries[begin_pair]};
}

inline void copy_rows(const float* from, int64_t width, const int64_t* which, int64_t num_rows, int64_t first,
                      float* to) {
  for (int64_t i = 0; i < num_rows; ++i)
    std::memcpy(to + i * width, from + (which[i] - first) * width, static_cast<size_t>(width) * sizeof(float));
}

// Keys, values and queries of the chunk's rows, (rows, width): in the first layer copied from the shared rows.
inline const float* projected_rows(const Layer& layer, const Chunk& chunk, float* copies) {
  if (!layer.is_first) return layer.projected + chunk.begin_row * layer.width;
  copy_rows(layer.projected, layer.width, layer.args->rows.shared_row + chunk.begin_row, chunk.num_rows, 0, copies);
  return copies;
}

// Of one head of a pair: (queries, E) and (keys, E) with row strides.
struct Head {
  int64_t num_queries, num_keys, channels;
  const float *query, *key, *value;
  int64_t query_stride, key_stride;
  float* share;
};

template <class Body>
inline void for_each_head(const Layer& layer, int64_t begin_pair, int64_t end_pair, const Chunk& chunk,
                          const float* projected, const Body& body) {
  const int64_t D = layer.args->num_channels, H = layer.args->num_heads, E = D / H;
  const int64_t* row_begin = layer.args->rows.row_begin;
  for (int64_t p = begin_pair; p < end_pair; ++p) {
    const int64_t row = row_begin[p] - chunk.begin_row, query = layer.query_begin[p] - chunk.begin_query;
    const float* rows = projected + row * layer.width;
    const float* queries = layer.is_last ? layer.query + layer.query_begin[p] * D : rows + 2 * D;
    Head head{layer.query_begin[p + 1] - layer.query_begin[p],
              row_begin[p + 1] - row_begin[p],
              E,
              nullptr,
              nullptr,
              nullptr,
              layer.is_last ? D : layer.width,
              layer.width,
              nullptr};
    const int64_t size = head.num_queries * rounded_keys(head.num_keys);
    for (int64_t h = 0; h < H; ++h) {
      head.query = queries + h * E;
      head.key = rows + h * E;
      head.value = rows + D + h * E;
      head.share = layer.share + layer.share_begin[p] + h * size;
      body(head, row, query, h * E);
    }
  }
}

// out (rows, channels) = a b, where b has one row of channels for each key or query: as it is, or packed into `panels`
// where its last panel would reach beyond its rows.
inline void multiply_head(int64_t rows, int64_t channels, int64_t depth, const float* a, int64_t a_row_stride,
                          int64_t a_depth_stride, const float* b, int64_t b_stride, float* panels, float* out,
                          int64_t out_stride) {
  Product product{rows,     channels, depth,   a, a_row_stride, a_depth_stride, b, kPanel,
                  b_stride, nullptr,  nullptr, 0, out,          out_stride};
  if (channels % kPanel != 0) {
    pack(b, b_stride, depth, channels, panels);
    product.b = panels, product.b_panel_stride = depth * kPanel, product.b_depth_stride = kPanel;
  }
  multiply(product);
}

int64_t scratch_floats(const EncoderArgs& args, int64_t chunk_rows, int64_t pair_rows) {
  const int64_t D = args.num_channels, E = D / args.num_heads, rounded = pair_rows + 2 * kPanel + 16;
  const int64_t panels = rounded * (E + kPanel);
  const int64_t of_pairs = chunk_rows * (5 * D + args.num_inner) + panels + pair_rows * rounded;
  const int64_t of_weights = kRowsOfGradient * (kWeightBlock + kPanel);
  return of_pairs > of_weights ? of_pairs : of_weights;
}

void forward(const Layer& layer, int64_t begin_pair, int64_t end_pair, float* scratch) {
  const EncoderArgs& args = *layer.args;
  const int64_t D = args.num_channels, F = args.num_inner;
  const Chunk chunk = chunk_of(layer, begin_pair, end_pair);
  const int64_t num_queries = chunk.num_queries;
  float* const copies = scratch;
  float* const activated = copies + chunk.num_rows * 3 * D;
  float* const inputs = activated + chunk.num_rows * F;
  float* const panels = inputs + chunk.num_rows * D;
  const float* input = layer.input + chunk.begin_row * D;
  if (layer.is_first) {
    copy_rows(layer.input, D, args.rows.shared_row + chunk.begin_row, chunk.num_rows, 0, inputs);
    input = inputs;
  } else {
    multiply_packed(chunk.num_rows, layer.width, D, input, D, layer.packed_project, layer.project_bias, nullptr, 0,
                    layer.projected + chunk.begin_row * layer.width, layer.width);
  }
  const float* const projected = projected_rows(layer, chunk, copies);
  if (layer.is_last) {
    float* const reads = layer.read_input + chunk.begin_query * D;
    copy_rows(input, D, args.rows.read_row + chunk.begin_query, num_queries, chunk.begin_row, reads);
    input = reads;
    multiply_packed(num_queries, D, D, reads, D, layer.packed_query, layer.parameters[kQuery + 1], nullptr, 0,
                    layer.query + chunk.begin_query * D, D);
  }
  float* const context = layer.context + chunk.begin_query * D;
  const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(D / args.num_heads));
  for_each_head(layer, begin_pair, end_pair, chunk, projected,
                [&](const Head& head, int64_t, int64_t query, int64_t channel) {
                  const int64_t stride = rounded_keys(head.num_keys);
                  pack_transposed(head.key, head.key_stride, head.channels, head.num_keys, panels);
                  multiply_packed(head.num_queries, head.num_keys, head.channels, head.query, head.query_stride, panels,
                                  nullptr, nullptr, 0, head.share, stride);
                  softmax_rows(head.num_queries, head.num_keys, factor, head.share);
                  multiply_head(head.num_queries, head.channels, head.num_keys, head.share, stride, 1, head.value,
                                head.key_stride, panels, context + query * D + channel, D);
                });
  float* const attended = layer.attended + chunk.begin_query * D;
  float* normed = layer.attention_normed + chunk.begin_query * D;
  multiply_packed(num_queries, D, D, context, D, layer.packed_output, layer.parameters[kOutput + 1], input, D, normed,
                  D);
  norm_rows(num_queries, D, args.attention_norm_eps, layer.parameters[kAttentionNorm],
            layer.parameters[kAttentionNorm + 1], normed, layer.attention_scale + chunk.begin_query, attended);
  float* const inner = layer.inner + chunk.begin_query * F;
  multiply_packed(num_queries, F, D, attended, D, layer.packed_up, layer.parameters[kUp + 1], nullptr, 0, inner, F);
  for (int64_t c = 0; c < num_queries * F; c += kLanes) {
    const Vector value = load(inner + c, num_queries * F - c);
    store(activated + c, value * share_below(value), num_queries * F - c);
  }
  normed = layer.normed + chunk.begin_query * D;
  multiply_packed(num_queries, D, F, activated, F, layer.packed_down, layer.parameters[kDown + 1], attended, D, normed,
                  D);
  norm_rows(num_queries, D, args.norm_eps, layer.parameters[kNorm], layer.parameters[kNorm + 1], normed,
            layer.scale + chunk.begin_query, layer.hidden + chunk.begin_query * D);
}

void backward(const Layer& layer, int64_t begin_pair, int64_t end_pair, float* scratch, float* norm_sums) {
  const EncoderArgs& args = *layer.args;
  const int64_t D = args.num_channels, F = args.num_inner, width = layer.width;
  const Chunk chunk = chunk_of(layer, begin_pair, end_pair);
  const int64_t num_queries = chunk.num_queries, of_queries = chunk.begin_query * D;
  std::memset(norm_sums, 0, static_cast<size_t>(4 * D) * sizeof(float));
  float* const copies = scratch;
  float* const grad_rows = copies + chunk.num_rows * 3 * D;  // of `attended`, then of the context
  float* const grad_share = grad_rows + chunk.num_rows * D;

  float* const grad_down = layer.grad_down + of_queries;
  norm_rows_backward(num_queries, D, layer.parameters[kNorm], layer.normed + of_queries,
                     layer.scale + chunk.begin_query, layer.grad_hidden + of_queries, grad_down, norm_sums + 2 * D,
                     norm_sums + 3 * D);
  float* const grad_up = layer.grad_up + chunk.begin_query * F;
  float* const activated = layer.activated + chunk.begin_query * F;
  const float* const inner = layer.inner + chunk.begin_query * F;
  multiply_packed(num_queries, F, D, grad_down, D, layer.packed_down, nullptr, nullptr, 0, grad_up, F);
  for (int64_t c = 0; c < num_queries * F; c += kLanes) {
    const int64_t left = num_queries * F - c;
    const Vector value = load(inner + c, left), share = share_below(value);
    store(activated + c, value * share, left);
    const Vector density = 0.39894228040143268f * exponential(-0.5f * value * value);
    store(grad_up + c, load(grad_up + c, left) * (share + value * density), left);
  }
  multiply_packed(num_queries, D, F, grad_up, F, layer.packed_up, nullptr, grad_down, D, grad_rows, D);
  float* const grad_output = layer.grad_output + of_queries;
  norm_rows_backward(num_queries, D, layer.parameters[kAttentionNorm], layer.attention_normed + of_queries,
                     layer.attention_scale + chunk.begin_query, grad_rows, grad_output, norm_sums, norm_sums + D);
  multiply_packed(num_queries, D, D, grad_output, D, layer.packed_output, nullptr, nullptr, 0, grad_rows, D);

  const float* const projected = projected_rows(layer, chunk, copies);
  float* const grad_projected = layer.grad_projected + chunk.begin_row * width;
  const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(D / args.num_heads));
  for_each_head(
      layer, begin_pair, end_pair, chunk, projected,
      [&](const Head& head, int64_t row, int64_t query, int64_t channel) {
        const int64_t stride = rounded_keys(head.num_keys), E = head.channels;
        float* const panels = grad_share + head.num_queries * stride;
        const float* const grad = grad_rows + query * D + channel;
        float* const grad_key = grad_projected + row * width + channel;
        float* const grad_query =
            layer.is_last ? layer.grad_query + of_queries + query * D + channel : grad_key + 2 * D;
        multiply_head(head.num_keys, E, head.num_queries, head.share, 1, stride, grad, D, panels, grad_key + D, width);
        pack_transposed(head.value, head.key_stride, E, head.num_keys, panels);
        multiply_packed(head.num_queries, head.num_keys, E, grad, D, panels, nullptr, nullptr, 0, grad_share, stride);
        softmax_rows_backward(head.num_queries, head.num_keys, factor, head.share, grad_share);
        multiply_head(head.num_queries, E, head.num_keys, grad_share, stride, 1, head.key, head.key_stride, panels,
                      grad_query, head.query_stride);
        multiply_head(head.num_keys, E, head.num_queries, grad_share, 1, stride, head.query, head.query_stride, panels,
                      grad_key, width);
      });

  float* const grad_input = layer.grad_input + chunk.begin_row * D;
  if (!layer.is_last) {
    if (layer.is_first)
      std::memcpy(grad_input, grad_output, static_cast<size_t>(chunk.num_rows * D) * sizeof(float));
    else
      multiply_packed(chunk.num_rows, D, width, grad_projected, width, layer.packed_project, nullptr, grad_output, D,
                      grad_input, D);
    return;
  }
  if (layer.is_first)
    std::memset(grad_input, 0, static_cast<size_t>(chunk.num_rows * D) * sizeof(float));
  else
    multiply_packed(chunk.num_rows, D, width, grad_projected, width, layer.packed_project, nullptr, nullptr, 0,
                    grad_input, D);
  multiply_packed(num_queries, D, D, layer.grad_query + of_queries, D, layer.packed_query, nullptr, grad_output, D,
                  grad_rows, D);
  for (int64_t i = 0; i < num_queries; ++i) {
    float* const to = grad_input + (args.rows.read_row[chunk.begin_query + i] - chunk.begin_row) * D;
    for (int64_t c = 0; c < D; c += kLanes)
      store(to + c, load(to + c, D - c) + load(grad_rows + i * D + c, D - c), D - c);
  }
}

void weight_gradient(const WeightGradient& gradient, int64_t begin_out, int64_t begin_in, float* scratch) {
  const int64_t left_out = gradient.num_out - begin_out, left_in = gradient.num_in - begin_in;
  const int64_t num_out = left_out < kWeightBlock ? left_out : kWeightBlock;
  const int64_t num_in = left_in < kWeightBlock ? left_in : kWeightBlock;
  const int64_t stride = gradient.grad_out_stride;
  float* const out = gradient.grad_weight + begin_out * gradient.num_in + begin_in;
  for (int64_t row = 0; row < gradient.num_rows; row += kRowsOfGradient) {
    const int64_t left = gradient.num_rows - row, num_rows = left < kRowsOfGradient ? left : kRowsOfGradient;
    pack(gradient.input + row * gradient.num_in + begin_in, gradient.num_in, num_rows, num_in, scratch);
    multiply({num_out, num_in, num_rows, gradient.grad_out + row * stride + begin_out, 1, stride, scratch,
              num_rows * kPanel, kPanel, nullptr, row == 0 ? nullptr : out, gradient.num_in, out, gradient.num_in});
  }
  if (begin_in > 0) return;
  for (int64_t c = begin_out; c < begin_out + num_out; c += kLanes) {
    const int64_t left = begin_out + num_out - c;
    Vector total = {};
    for (int64_t row = 0; row < gradient.num_rows; ++row) total += load(gradient.grad_out + row * stride + c, left);
    store(gradient.grad_bias + c, total, left);
  }
}

constexpr LayerKernels kLayerKernels{kPanel,   scratch_floats, pack,     pack_transposed,
                                     multiply, forward,        backward, weight_gradient};

}  // namespace
}  // namespace soho
