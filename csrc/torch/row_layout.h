// Rows of adjacent elements within a tensor of any layout.
#pragma once

#include <cstdint>
#include <optional>

namespace soho {

// How many rows, and the stride that leads from each to the next, where one does.
struct RowLayout {
  int64_t num_rows;
  std::optional<int64_t> stride;
};

// The leading dimensions flattened to rows.
inline RowLayout row_layout(int64_t num_dims, const int64_t* sizes, const int64_t* strides) {
  const int64_t last = num_dims - 1;
  bool flat = strides[last] == 1 || sizes[last] <= 1;
  int64_t num_rows = 1, stride = 0, expected = -1;
  for (int64_t d = last - 1; d >= 0; --d) {
    num_rows *= sizes[d];
    if (sizes[d] == 1) continue;
    if (expected < 0) stride = strides[d];
    flat = flat && (expected < 0 || strides[d] == expected);
    expected = strides[d] * sizes[d];
  }
  return {num_rows, flat ? std::optional<int64_t>(stride) : std::nullopt};
}

}  // namespace soho
