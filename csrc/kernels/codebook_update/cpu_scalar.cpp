#include "kernels/codebook_update/codebook_update.h"

namespace soho {

void sum_slice_scalar(const MemberSlice& slice, float* sums) {
  for (int64_t c = slice.begin; c < slice.end; ++c) sums[c - slice.begin] = 0.0f;
  for (int64_t m = 0; m < slice.num_members; ++m) {
    const void* row = row_at(slice.features, slice.rows[m], slice.row_stride, slice.features_type);
    for (int64_t c = slice.begin; c < slice.end; ++c)
      sums[c - slice.begin] += load_element(row, c, slice.features_type);
  }
}

void move_code_scalar(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels) {
  for (int64_t c = 0; c < num_channels; ++c) code[c] = code[c] * decay + sums[c] / count * rest;
}

}  // namespace soho
