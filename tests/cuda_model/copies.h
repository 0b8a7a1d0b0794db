// What copy_async has started and not yet waited for. A copy lands when it is
// started or only when it is waited for: both happen on hardware.
#pragma once

#include <cstddef>
#include <vector>

namespace soho_model {

struct PendingCopy {
  char* shared;
  const char* global;
  int num_bytes, num_read;  // the rest becomes 0
};

struct CopyQueue {
  std::vector<PendingCopy> open;                 // since the last commit
  std::vector<std::vector<PendingCopy>> groups;  // oldest first
};

CopyQueue& copies_of_thread();

void start_copy(void* shared, const void* global, int num_bytes, int num_read);
void commit_copies();
void wait_for_copies(size_t pending);  // until so many groups are left

}  // namespace soho_model
