#include "base/arena.h"

#include <sys/mman.h>

#include <algorithm>

namespace foresight {

Arena::Arena(size_t bytes) : capacity_(bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED, "can't reserve {} bytes of address space", bytes);
  madvise(p, bytes, MADV_HUGEPAGE);  // advice: a refusal costs speed only
  base_ = static_cast<std::byte*>(p);
}

Arena::~Arena() {
  munmap(base_, capacity_);
}

void* Arena::AllocateBytes(size_t bytes) {
  const size_t begin = (used_ + 63) & ~size_t{63};
  CHECK(begin + bytes <= capacity_, "arena of {} bytes is too small for {} more", capacity_, bytes);
  used_ = begin + bytes;
  high_water_ = std::max(high_water_, used_);
  return base_ + begin;
}

}  // namespace foresight
