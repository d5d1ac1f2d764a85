// Step memory: a bump allocator over reserved address space.
//
// The whole range is reserved once and gets physical pages when first touched, so a step never calls the
// allocator and a short step never pays for the longest one. Allocate/Rewind are for one thread (the one that
// runs the step).
//
// Under AddressSanitizer, reads and writes past an allocation's end or after its Rewind are errors, as on the
// heap.
#pragma once

#include <sanitizer/asan_interface.h>  // its macros are empty in other builds

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"

namespace foresight {

class Arena {
 public:
  // Reserves `bytes` of address space. CHECKs that the reservation works.
  explicit Arena(size_t bytes);
  // Hands out `memory`, which outlives the arena and which the host may have no access to.
  explicit Arena(std::span<std::byte> memory)
      : base_(memory.data()), capacity_(memory.size()), is_borrowed_(true) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // 64-byte aligned, uninitialised. Running past the reservation is a programmer error (CHECK).
  template <typename T>
  T* Allocate(int64_t count) {
    return static_cast<T*>(AllocateBytes(static_cast<size_t>(count) * sizeof(T)));
  }
  size_t used() const { return used_; }
  // The most that was ever in use: what the arena holds in physical memory.
  size_t high_water() const { return high_water_; }
  void Rewind(size_t used) {
    DCHECK(used <= used_);
    if (is_held_) return;
    if (!is_borrowed_) ASAN_POISON_MEMORY_REGION(base_ + used, used_ - used);
    used_ = used;
  }

 private:
  void* AllocateBytes(size_t bytes);

  std::byte* base_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
  size_t high_water_ = 0;
  size_t kept_ = 0;  // the most that was in use since an ArenaKeep began
  bool is_borrowed_ = false;
  bool is_held_ = false;

  friend class ArenaHold;
  friend class ArenaKeep;
};

// What was in use at any time within its scope stays allocated behind it, given back or not.
class ArenaKeep {
 public:
  explicit ArenaKeep(Arena& arena) : arena_(arena), kept_(arena.kept_) { arena_.kept_ = arena_.used_; }
  ~ArenaKeep() {
    if (arena_.kept_ > arena_.used_)
      arena_.Allocate<std::byte>(static_cast<int64_t>(arena_.kept_ - arena_.used_));
    arena_.kept_ = std::max(kept_, arena_.used_);
  }
  ArenaKeep(const ArenaKeep&) = delete;
  ArenaKeep& operator=(const ArenaKeep&) = delete;

 private:
  Arena& arena_;
  size_t kept_;
};

// What is allocated within its scope lies apart, even if it is given back before: the scope's end gives all
// of it back.
class ArenaHold {
 public:
  explicit ArenaHold(Arena& arena) : arena_(arena), used_(arena.used()) {
    CHECK(!arena_.is_held_);
    arena_.is_held_ = true;
  }
  ~ArenaHold() {
    arena_.is_held_ = false;
    arena_.Rewind(used_);
  }
  ArenaHold(const ArenaHold&) = delete;
  ArenaHold& operator=(const ArenaHold&) = delete;

 private:
  Arena& arena_;
  size_t used_;
};

// Gives back at scope end what was allocated within.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), used_(arena.used()) {}
  ~ArenaScope() { arena_.Rewind(used_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  size_t used_;
};

}  // namespace foresight
