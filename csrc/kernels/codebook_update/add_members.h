// The loop of the vector levels over members; included by each and compiled with its flags: everything here is in an
// unnamed namespace. A Vector of kLanes float64, of which kMostVectors fit the registers, provides Register and
//   static Register zero()
//   static Register load(sum), load_some(sum, left)                 the first `left` lanes, 0 behind them
//   static Register row<type>(row), row_some<type>(row, left)       the same from elements of features
//   static Register add(a, b)
//   static void store(sum, value), store_some(sum, value, left)     float64, or rounded where sum is float32
#pragma once

#include "common/vectors.h"
#include "kernels/codebook_update/members.h"

namespace soho {
namespace {

// Rows of a code lie apart: the hardware does not foresee them, so they are asked for in time, into the second level of
// the cache, which has more requests under way than the first.
constexpr int64_t kBytesAhead = 49152;
constexpr int64_t kLineBytes = 64;

// Members [begin, end) of one code.
struct Run {
  const char* features;  // first channel of the block's first row
  int64_t row_bytes;     // from one row to the next
  const uint32_t* rows;
  int64_t begin, end;
  int64_t ahead;  // members
  bool from_zero;
  float* rounded;  // or null
};

template <class Vector, Element type, int num_vectors>
void add_run(const Run& run, int64_t channel, double* sums) {
  typename Vector::Register sum[num_vectors];
#pragma GCC unroll 16
  for (int v = 0; v < num_vectors; ++v)
    sum[v] = run.from_zero ? Vector::zero() : Vector::load(sums + channel + v * Vector::kLanes);
  const char* features = run.features + channel * element_size(type);
  for (int64_t m = run.begin; m < run.end; ++m) {
    const char* row = features + run.rows[m] * run.row_bytes;
    const char* row_ahead = features + run.rows[m + run.ahead] * run.row_bytes;
#pragma GCC unroll 16
    for (int v = 0; v < num_vectors; ++v) {
      const int64_t offset = v * Vector::kLanes * element_size(type);
      if (offset % kLineBytes == 0) __builtin_prefetch(row_ahead + offset, 0, 2);
      sum[v] = Vector::add(sum[v], Vector::template row<type>(row + offset));
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < num_vectors; ++v) {
    if (run.rounded != nullptr)
      Vector::store(run.rounded + channel + v * Vector::kLanes, sum[v]);
    else
      Vector::store(sums + channel + v * Vector::kLanes, sum[v]);
  }
}

template <class Vector, Element type>
void add_run_end(const Run& run, int64_t channel, int64_t left, double* sums) {
  typename Vector::Register sum = run.from_zero ? Vector::zero() : Vector::load_some(sums + channel, left);
  const char* features = run.features + channel * element_size(type);
  for (int64_t m = run.begin; m < run.end; ++m) {
    __builtin_prefetch(features + run.rows[m + run.ahead] * run.row_bytes, 0, 2);
    sum = Vector::add(sum, Vector::template row_some<type>(features + run.rows[m] * run.row_bytes, left));
  }
  if (run.rounded != nullptr)
    Vector::store_some(run.rounded + channel, sum, left);
  else
    Vector::store_some(sums + channel, sum, left);
}

template <class Vector, Element type>
void add_members_of(const Members& members, double* sums, int64_t sum_stride) {
  constexpr int64_t kLanes = Vector::kLanes;
  const int64_t length = members.num_channels;
  Run run{static_cast<const char*>(members.features) + members.first_channel * element_size(type),
          members.row_stride * element_size(type),
          members.rows,
          0,
          0,
          1 + kBytesAhead / (length * element_size(type) + 1),
          members.from_zero,
          members.rounded};
  if (run.ahead > kMaxMembersAhead) run.ahead = kMaxMembersAhead;
  for (int64_t k = 0; k < members.num_codes; ++k, sums += sum_stride) {
    run.begin = members.starts[k], run.end = members.starts[k + 1];
    if (members.rounded != nullptr)
      run.rounded = members.rounded + k * members.rounded_stride;
    else if (run.begin == run.end && !run.from_zero)
      continue;
    int64_t c = 0;
    for (; c + Vector::kMostVectors * kLanes <= length; c += Vector::kMostVectors * kLanes)
      add_run<Vector, type, Vector::kMostVectors>(run, c, sums);
    for (; c + 4 * kLanes <= length; c += 4 * kLanes) add_run<Vector, type, 4>(run, c, sums);
    for (; c + kLanes <= length; c += kLanes) add_run<Vector, type, 1>(run, c, sums);
    if (c < length) add_run_end<Vector, type>(run, c, length - c, sums);
  }
}

template <class Vector>
void add_members(const Members& members, double* sums, int64_t sum_stride) {
  switch (members.features_type) {
    case Element::kFloat32:
      return add_members_of<Vector, Element::kFloat32>(members, sums, sum_stride);
    case Element::kBFloat16:
      return add_members_of<Vector, Element::kBFloat16>(members, sums, sum_stride);
    case Element::kFloat16:
      return add_members_of<Vector, Element::kFloat16>(members, sums, sum_stride);
  }
}

}  // namespace
}  // namespace soho
