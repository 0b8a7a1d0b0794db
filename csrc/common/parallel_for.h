// How kernels that take several steps run on the caller's threads.
#pragma once

#include <cstdint>
#include <functional>

namespace soho {

// Calls body(begin, end) on ranges that make up [0, total), possibly at the same time, none shorter than `grain` but
// the last; returns when all are done.
using ParallelFor =
    std::function<void(int64_t total, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body)>;

}  // namespace soho
