#include "kernels/codebook_update/codebook_update.h"

namespace soho {

void add_members_scalar(const Members& members, float* sums, int64_t sum_stride) {
  for (int64_t m = 0; m < members.num_members; ++m) {
    const void* row = row_at(members.features, members.rows[m], members.row_stride, members.features_type);
    float* sum = sums + members.codes[m] * sum_stride;
    for (int64_t c = 0; c < members.num_channels; ++c)
      sum[c] += load_element(row, members.first_channel + c, members.features_type);
  }
}

void move_code_scalar(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels) {
  for (int64_t c = 0; c < num_channels; ++c) code[c] = code[c] * decay + sums[c] / count * rest;
}

}  // namespace soho
