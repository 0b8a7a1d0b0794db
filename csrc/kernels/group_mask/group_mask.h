// Grouped masking: draw one present label per image, and replace all its tokens by the mask token.
//
// Bound by memory: rows are copied, so there is one level for all machines. A token is hit when it is valid,
// its index equals the image's target, and the target is not negative.
#pragma once

#include <cstdint>

namespace soho {

constexpr int64_t kIgnoredLabel = -100;  // cross-entropy's ignore_index

struct GroupMaskArgs {
  const void* features;        // (num_images, num_tokens, num_channels); null when masking in place
  int64_t feature_strides[3];  // in elements
  void* masked;
  int64_t masked_strides[3];  // in elements
  const int64_t* index;       // (num_images, num_tokens), contiguous
  const bool* valid;          // (num_images, num_tokens), contiguous, or null
  const int64_t* target;      // (num_images,)
  const void* mask_token;     // (num_channels,), contiguous
  int64_t* labels;            // (num_images, num_tokens): the index at hits, kIgnoredLabel elsewhere
  int64_t num_images, num_tokens, num_channels;
  int64_t element_size;  // in bytes, 2 or 4
};

// Tokens [begin, end) of num_images * num_tokens; in place only hits are touched.
void group_mask(const GroupMaskArgs& args, int64_t begin, int64_t end);

struct SampleGroupArgs {
  const int64_t* index;   // (num_images, num_tokens), contiguous; negative entries are absent
  const bool* valid;      // (num_images, num_tokens), contiguous, or null
  const double* uniform;  // (num_images,) in [0, 1)
  int64_t* target;        // (num_images,): the floor(uniform n)-th of the n distinct labels, ascending; -1 if none
  int64_t num_images, num_tokens;
};

// Images [begin, end).
void sample_group(const SampleGroupArgs& args, int64_t begin, int64_t end);

}  // namespace soho
