// Packs a codebook for the screening of codebook_lookup.h; once per call, shared by all threads.
#pragma once

#include <memory>
#include <vector>

#include "common/memory.h"
#include "kernels/codebook_lookup/codebook_lookup.h"

namespace soho {

class PackedCodebook {
 public:
  // Finds the distinct codes, their centre and scale. `codebook` (num_codes, num_channels) must outlive the object.
  // `width` is codebook_lookup_width() of the level that will run; 0 packs nothing.
  PackedCodebook(const float* codebook, int64_t num_codes, int64_t num_channels, int64_t width);

  int64_t num_groups() const { return num_groups_; }

  // Fills groups [begin, end); disjoint ranges may run at the same time. All groups must be filled before a lookup.
  void pack(int64_t begin, int64_t end);

  ScreenedCodes screened() const;

 private:
  const float* codebook_;
  int64_t num_channels_, width_;
  int64_t num_groups_ = 0;
  float scale_ = 1.0f;
  double largest_norm_ = 0.0;
  std::vector<int64_t> codes_;
  std::vector<float> centre_;
  std::unique_ptr<Scratch> panel_, negated_half_;
};

}  // namespace soho
