// BERT's layers in training on packed rows: forward and backward of all layers, in float32.
//
// P pairs, N rows (the real tokens, pair by pair), U shared rows (words, then the visual tokens of each image once), of
// which each row is a copy when it enters the first layer, M rows that are read after the last layer, D channels, F
// channels of the feed-forward network, H heads. Matrices are dense, one row after the other, if nothing else is said.
#pragma once

#include <cstdint>

#include "common/cpu_level.h"
#include "common/parallel_for.h"

namespace soho {

// Of a layer, in the order of its module's parameters; a weight (out, in) comes before its bias (out).
enum EncoderParameter {
  kQuery,
  kKey = 2,
  kValue = 4,
  kOutput = 6,
  kAttentionNorm = 8,
  kUp = 10,
  kDown = 12,
  kNorm = 14,
  kEncoderParameters = 16
};

struct EncoderRows {
  int64_t num_pairs, num_shared, num_rows, num_reads;
  const int64_t* row_begin;   // (P + 1): the rows of pair p are row_begin[p] to row_begin[p + 1]; each has some
  const int64_t* read_begin;  // (P + 1): the same of reads
  const int64_t* shared_row;  // (N): which shared row it is
  const int64_t* read_row;    // (M): which row it is, ascending
};

struct EncoderArgs {
  EncoderRows rows;
  int64_t num_layers, num_channels, num_inner, num_heads;  // H divides D
  float attention_norm_eps, norm_eps;
  const float* const* parameters;  // kEncoderParameters of each layer
  const float* shared;             // (U, D)
  float* const* kept;              // of each layer encoder_kept_floats: written forward, read backward
};

int64_t encoder_kept_floats(const EncoderArgs& args, int64_t layer);

// hidden (M, D): the last layer's output at the rows that are read.
void encoder_forward(CpuLevel level, const EncoderArgs& args, float* hidden, const ParallelFor& parallel_for);

// From grad_hidden (M, D) the gradients of the parameters (each of its parameter's size) and of shared (U, D). Equal
// arguments give equal bits, whatever the number of threads.
void encoder_backward(CpuLevel level, const EncoderArgs& args, const float* grad_hidden, float* const* grad_parameters,
                      float* grad_shared, const ParallelFor& parallel_for);

}  // namespace soho
