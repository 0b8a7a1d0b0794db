// Aligned scratch memory. Not a template and not inline: the vector levels call it, so it must not be compiled by them.
#pragma once

#include <cstddef>

namespace soho {

// Owns `bytes` of uninitialised memory aligned to a cache line; throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const;

 private:
  void* data_;
};

}  // namespace soho
