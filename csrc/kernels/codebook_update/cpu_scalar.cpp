#include <algorithm>

#include "kernels/codebook_update/members.h"

namespace soho {
namespace {

constexpr int64_t kMembersAhead = 4;
constexpr int64_t kLineChannels = 16;

}  // namespace

void add_members_scalar(const Members& members, double* sums, int64_t sum_stride) {
  float* rounded = members.rounded;
  for (int64_t k = 0; k < members.num_codes; ++k, sums += sum_stride, rounded += members.rounded_stride) {
    if (members.from_zero) std::fill(sums, sums + members.num_channels, 0.0);
    for (int64_t m = members.starts[k]; m < members.starts[k + 1]; ++m) {
      const void* row = row_at(members.features, members.rows[m], members.row_stride, members.features_type);
      const void* row_ahead =
          row_at(members.features, members.rows[m + kMembersAhead], members.row_stride, members.features_type);
      for (int64_t c = 0; c < members.num_channels; c += kLineChannels)
        __builtin_prefetch(static_cast<const char*>(row_ahead) +
                           (members.first_channel + c) * element_size(members.features_type));
      for (int64_t c = 0; c < members.num_channels; ++c)
        sums[c] += load_element(row, members.first_channel + c, members.features_type);
    }
    for (int64_t c = 0; members.rounded != nullptr && c < members.num_channels; ++c)
      rounded[c] = static_cast<float>(sums[c]);
  }
}

void move_code_scalar(float* code, const float* sums, float count, float decay, float rest, int64_t num_channels) {
  for (int64_t c = 0; c < num_channels; ++c) code[c] = code[c] * decay + sums[c] / count * rest;
}

}  // namespace soho
