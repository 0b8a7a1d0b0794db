// The rows of the features sorted by code. They are sorted in blocks of rows: blocks are sorted by different threads,
// and the rows of one code that are added after each other lie in few pages.
#pragma once

#include <cstdint>

#include "common/memory.h"
#include "kernels/codebook_update/members.h"

namespace soho {

class SortedMembers {
 public:
  explicit SortedMembers(const CodebookUpdateArgs& args);

  int64_t num_blocks() const { return num_blocks_; }  // at least 1
  int64_t first_row(int64_t block) const { return block * block_rows_; }

  // Blocks [begin, end); disjoint ranges may run at the same time. Returns -1, or a counted row whose index is
  // num_codes or more.
  int64_t sort(const CodebookUpdateArgs& args, int64_t begin, int64_t end);

  // As Members wants them, for all codes; rows that do not count come last, as members of a code num_codes + 1.
  const uint32_t* rows(int64_t block) const;
  const uint32_t* starts(int64_t block) const;

 private:
  int64_t starts_length() const { return num_codes_ + 4; }

  int64_t num_codes_, num_rows_, block_rows_, num_blocks_;
  Scratch rows_, starts_;
};

}  // namespace soho
