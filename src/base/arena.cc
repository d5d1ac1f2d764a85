#include "base/arena.h"

#include <sys/mman.h>

#include <algorithm>

namespace foresight {
namespace {

// Between allocations, so that AddressSanitizer sees when one is overrun.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kRedZone = 64;
#else
constexpr size_t kRedZone = 0;
#endif

}  // namespace

Arena::Arena(size_t bytes) : capacity_(bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED, "can't reserve {} bytes of address space", bytes);
  madvise(p, bytes, MADV_HUGEPAGE);  // advice: a refusal costs speed only
  base_ = static_cast<std::byte*>(p);
}

Arena::~Arena() {
  if (is_borrowed_) return;
  ASAN_UNPOISON_MEMORY_REGION(base_, high_water_);
  munmap(base_, capacity_);
}

void* Arena::AllocateBytes(size_t bytes) {
  const size_t begin = (used_ + 63) & ~size_t{63};
  const size_t end = begin + bytes + kRedZone;
  CHECK(end <= capacity_, "arena of {} bytes is too small for {} more", capacity_, bytes);
  if (!is_borrowed_) {
    ASAN_POISON_MEMORY_REGION(base_ + used_, begin - used_);
    ASAN_UNPOISON_MEMORY_REGION(base_ + begin, bytes);
    ASAN_POISON_MEMORY_REGION(base_ + begin + bytes, kRedZone);
  }
  used_ = end;
  high_water_ = std::max(high_water_, used_);
  kept_ = std::max(kept_, used_);
  return base_ + begin;
}

}  // namespace foresight
