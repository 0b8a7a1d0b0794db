// What encoder.cpp asks of a level: the work of one thread in one layer.
#pragma once

#include <cstdint>

#include "kernels/encoder/encoder.h"

namespace soho {

// out = a b + bias + add. a is (rows, depth) with any strides; b is packed, or rows of a dense matrix.
struct Product {
  int64_t rows, columns, depth;
  const float* a;
  int64_t a_row_stride, a_depth_stride;
  const float* b;
  int64_t b_panel_stride, b_depth_stride;
  const float* bias;  // (columns), or null
  const float* add;   // like out, or null
  int64_t add_stride;
  float* out;
  int64_t out_stride;
};

// One layer. "Queries" are all rows, in the last layer those that are read. Keys and values are of all rows; in the
// first layer they are computed for the shared rows.
struct Layer {
  const EncoderArgs* args;
  bool is_first, is_last;
  const float* const* parameters;
  int64_t width;                // of `projected`: keys, values, and unless the layer is the last queries: 3 D or 2 D
  const float* input;           // (N, D); in the first layer (U, D), the shared rows
  const int64_t* query_begin;   // (P + 1)
  const int64_t* share_begin;   // (P + 1), where the attention weights of a pair begin
  const float* packed_project;  // weights, packed for the products of this pass
  const float* packed_query;    // where the layer is the last
  const float *packed_output, *packed_up, *packed_down;
  const float* project_bias;  // (width)
  // Kept for the backward pass.
  float* projected;                           // (N or U, width)
  float *read_input, *query;                  // (M, D), where the layer is the last
  float* share;                               // attention weights: for each pair and head (queries, keys rounded up)
  float *context, *attended;                  // (queries, D): of attention, of its LayerNorm
  float *attention_normed, *attention_scale;  // (queries, D) before weight and bias, (queries)
  float* inner;                               // (queries, F) before GELU
  float *normed, *scale;                      // as above, of the layer's LayerNorm
  float* hidden;                              // (queries, D), the layer's output
  // Gradients, in the backward pass.
  const float* grad_hidden;  // (queries, D)
  float* grad_input;         // (N, D); may be grad_hidden. Where the layer is the first: what goes around attention
  float *grad_down, *grad_up, *activated, *grad_output;  // (queries, D), (queries, F) twice, (queries, D)
  float *grad_projected, *grad_query;                    // (N, width), (M, D)
};

// A product of gradients: grad (out, in) = sum over rows of grad_out[row]' input[row], and the sum of grad_out.
struct WeightGradient {
  const float* grad_out;
  int64_t grad_out_stride, num_rows;
  const float* input;
  int64_t num_in;
  float *grad_weight, *grad_bias;  // (num_out, num_in), (num_out)
  int64_t num_out;
};

constexpr int64_t kWeightBlock = 128;  // outputs and inputs of a weight's gradient that are one task

struct LayerKernels {
  int64_t panel;  // columns of b that are packed together
  // Floats of scratch memory for chunks of up to so many rows of pairs of up to so many.
  int64_t (*scratch)(const EncoderArgs& args, int64_t chunk_rows, int64_t pair_rows);
  // b[depth][column] from a matrix (depth, columns), or (columns, depth) and transposed, of the given row stride.
  void (*pack)(const float* matrix, int64_t stride, int64_t depth, int64_t columns, float* packed);
  void (*pack_transposed)(const float* matrix, int64_t stride, int64_t depth, int64_t columns, float* packed);
  void (*multiply)(const Product& product);
  void (*forward)(const Layer& layer, int64_t begin_pair, int64_t end_pair, float* scratch);
  // Leaves the sums for the LayerNorms' parameters of these pairs in norm_sums: (4, D), in the parameters' order.
  void (*backward)(const Layer& layer, int64_t begin_pair, int64_t end_pair, float* scratch, float* norm_sums);
  void (*weight_gradient)(const WeightGradient& gradient, int64_t begin_out, int64_t begin_in, float* scratch);
};

LayerKernels layer_kernels_scalar();
LayerKernels layer_kernels_avx2();
LayerKernels layer_kernels_avx512();

// Keys of a row of attention weights: whole vectors of each level; those beyond the pair's rows are zero.
constexpr int64_t rounded_keys(int64_t num_keys) { return (num_keys + 15) / 16 * 16; }

}  // namespace soho
