// A lookup so small that torch's dispatcher would take longer than it does: from Python's tensors to the kernel at
// once.
#pragma once

#include <pybind11/pybind11.h>

namespace soho {

// The index (..., N) or (..., N, topk), or with `return_distance` (index, distance); None where the arguments are not
// what it serves: dense CPU tensors, features (..., N, C) of one stride, a contiguous float32 codebook (K, C), `packed`
// as pack_codebook made it or None, few products N * K * C.
pybind11::object small_lookup(pybind11::object features, pybind11::object codebook, pybind11::object packed,
                              int64_t metric, int64_t topk, bool return_distance);

// To be called once before: a thread that did so in a call could wait, holding the interpreter's lock, for another that
// waits for the lock.
void prepare_small_lookup();

}  // namespace soho
