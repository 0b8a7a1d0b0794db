// Asynchronous copies to shared memory.
#include "copies.h"

#include <cstdint>
#include <string>
#include <utility>

#include "execution.h"
#include "races.h"

namespace soho_model {
namespace {

void land(const PendingCopy& copy) {
  report(thread_rank(), copy.global, copy.num_read, Access::kRead);
  report(thread_rank(), copy.shared, copy.num_bytes, Access::kWrite);
  for (int b = 0; b < copy.num_bytes; ++b) copy.shared[b] = b < copy.num_read ? copy.global[b] : 0;
}

}  // namespace

void start_copy(void* shared, const void* global, int num_bytes, int num_read) {
  if (reinterpret_cast<uintptr_t>(shared) % num_bytes || reinterpret_cast<uintptr_t>(global) % num_bytes)
    fail("copy_async: an address is no multiple of " + std::to_string(num_bytes));
  if (num_read < 0 || num_read > num_bytes) fail("copy_async: num_bytes is " + std::to_string(num_read));
  const PendingCopy copy{static_cast<char*>(shared), static_cast<const char*>(global), num_bytes, num_read};
  if (coin())
    land(copy);
  else
    copies_of_thread().open.push_back(copy);
}

void commit_copies() {
  CopyQueue& copies = copies_of_thread();
  copies.groups.push_back(std::exchange(copies.open, {}));
}

void wait_for_copies(size_t pending) {
  CopyQueue& copies = copies_of_thread();
  while (copies.groups.size() > pending) {
    for (const PendingCopy& copy : copies.groups.front()) land(copy);
    copies.groups.erase(copies.groups.begin());
  }
}

}  // namespace soho_model
