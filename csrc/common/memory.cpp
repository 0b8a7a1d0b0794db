#include "common/memory.h"

#include <new>

namespace soho {

constexpr std::align_val_t kCacheLine{64};

Scratch::Scratch(size_t bytes) : data_(::operator new(bytes ? bytes : 1, kCacheLine)) {}
Scratch::~Scratch() { ::operator delete(data_, kCacheLine); }
void* Scratch::data() const { return data_; }

}  // namespace soho
