// The loop of the vector levels over members; included by each and compiled with its flags: everything here is in an
// unnamed namespace. A Vector provides kLanes and
//   static void add<type>(sum, row)             adds kLanes elements of `row` to `sum`
//   static void add_some<type>(sum, row, left)  adds the first `left`
#pragma once

#include <immintrin.h>

#include "kernels/codebook_update/codebook_update.h"

namespace soho {
namespace {

// Rows of a slice lie apart, and so do the sums: the hardware does not foresee them, so they are asked for in time.
constexpr int64_t kBytesAhead = 2048;
constexpr int64_t kMaxMembersAhead = 8;
constexpr int64_t kLineBytes = 64;

template <class Vector, Element type>
void add_members_of(const Members& members, float* sums, int64_t sum_stride) {
  const int64_t length = members.num_channels, slice_bytes = length * element_size(type);
  int64_t distance = 1 + kBytesAhead / (slice_bytes + 1);
  if (distance > kMaxMembersAhead) distance = kMaxMembersAhead;
  const auto row_of = [&](int64_t m) {
    return static_cast<const char*>(row_at(members.features, members.rows[m], members.row_stride, type)) +
           members.first_channel * element_size(type);
  };
  for (int64_t m = 0; m < members.num_members; ++m) {
    const int64_t ahead = m + distance < members.num_members ? m + distance : m;
    const char* row_ahead = row_of(ahead);
    const float* sum_ahead = sums + members.codes[ahead] * sum_stride;
    const char* row = row_of(m);
    float* sum = sums + members.codes[m] * sum_stride;
    int64_t c = 0;
    for (; c + Vector::kLanes <= length; c += Vector::kLanes) {
      _mm_prefetch(row_ahead + c * element_size(type), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(sum_ahead + c), _MM_HINT_T0);
      Vector::template add<type>(sum + c, row + c * element_size(type));
    }
    if (c < length) Vector::template add_some<type>(sum + c, row + c * element_size(type), length - c);
  }
}

template <class Vector>
void add_members(const Members& members, float* sums, int64_t sum_stride) {
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
