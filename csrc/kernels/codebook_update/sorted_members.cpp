#include "kernels/codebook_update/sorted_members.h"

#include <algorithm>

namespace soho {
namespace {

// A block needs several members of each code: its sums are read and written again in every block.
constexpr int64_t kBlockRows = 16384;
constexpr int64_t kBlockRowsPerCode = 8;
constexpr int64_t kMostBlockRows = int64_t{1} << 31;

bool is_counted(const CodebookUpdateArgs& args, int64_t i) {
  return args.index[i] >= 0 && (args.valid == nullptr || args.valid[i]);
}

}  // namespace

SortedMembers::SortedMembers(const CodebookUpdateArgs& args)
    : num_codes_(args.num_codes),
      num_rows_(args.num_rows),
      block_rows_(std::min(std::max(kBlockRows, kBlockRowsPerCode * args.num_codes), kMostBlockRows)),
      num_blocks_(std::max<int64_t>(1, (args.num_rows + block_rows_ - 1) / block_rows_)),
      rows_(sizeof(uint32_t) * (num_rows_ + kMaxMembersAhead)),
      starts_(sizeof(uint32_t) * num_blocks_ * starts_length()) {
  uint32_t* end = static_cast<uint32_t*>(rows_.data()) + num_rows_;
  std::fill(end, end + kMaxMembersAhead, 0);
}

const uint32_t* SortedMembers::rows(int64_t block) const {
  return static_cast<const uint32_t*>(rows_.data()) + first_row(block);
}

const uint32_t* SortedMembers::starts(int64_t block) const {
  return static_cast<const uint32_t*>(starts_.data()) + block * starts_length();
}

// A counting sort: it keeps the order of rows. Of code j, counted at j + 2, the next member has its place at j + 1;
// behind the last one that is where code j + 1 starts.
int64_t SortedMembers::sort(const CodebookUpdateArgs& args, int64_t begin, int64_t end) {
  const uint64_t too_large = num_codes_, not_counted = num_codes_ + 1;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = first_row(block), num_rows = std::min(block_rows_, num_rows_ - first);
    uint32_t* rows = static_cast<uint32_t*>(rows_.data()) + first;
    uint32_t* starts = static_cast<uint32_t*>(starts_.data()) + block * starts_length();
    const auto code_of = [&](int64_t i) {
      const uint64_t index = args.index[first + i];
      return is_counted(args, first + i) ? std::min(index, too_large) : not_counted;
    };
    std::fill(starts, starts + starts_length(), 0);
    for (int64_t i = 0; i < num_rows; ++i) ++starts[code_of(i) + 2];
    for (int64_t i = 0; starts[too_large + 2] > 0; ++i) {
      if (code_of(i) == too_large) return first + i;
    }
    uint32_t sum = 0;
    for (int64_t j = 0; j < starts_length(); ++j) starts[j] = sum += starts[j];
    for (int64_t i = 0; i < num_rows; ++i) rows[starts[code_of(i) + 1]++] = static_cast<uint32_t>(i);
  }
  return -1;
}

}  // namespace soho
