#include "tests/allocation_counter.h"

#include <atomic>
#include <cstdlib>
#include <new>

// The replacements stand in a file of their own: inlined beside what they serve, compilers take the pair of
// operator new and free() for a mistake.
namespace {
std::atomic<int64_t> g_allocations{0};

void* CountedAllocate(std::size_t bytes) noexcept {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(bytes == 0 ? 1 : bytes);
}

void* CountedAllocateOrThrow(std::size_t bytes) {
  void* memory = CountedAllocate(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t bytes) {
  return CountedAllocateOrThrow(bytes);
}
void* operator new[](std::size_t bytes) {
  return CountedAllocateOrThrow(bytes);
}
// The library's would call the ones above, a sanitizer's would not.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return CountedAllocate(bytes);
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return CountedAllocate(bytes);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace foresight {

int64_t Allocations() {
  return g_allocations.load(std::memory_order_relaxed);
}

}  // namespace foresight
