// What copy_async has started and not yet waited for. A copy lands when it is
// started or only when it is waited for: both happen on hardware.
#pragma once

#include <vector>

namespace soho_model {

struct PendingCopy {
  char *shared;
  const char *global;
  int num_bytes, num_read; // the rest becomes 0
};

struct CopyQueue {
  std::vector<PendingCopy> open;                // since the last commit
  std::vector<std::vector<PendingCopy>> groups; // oldest first
};

CopyQueue &copies_of_thread();

} // namespace soho_model
