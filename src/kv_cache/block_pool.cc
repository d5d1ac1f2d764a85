#include "kv_cache/block_pool.h"

#include <sys/mman.h>

#include <utility>

#include "base/check.h"

namespace foresight {

Result<ReservedMemory> ReservedMemory::Create(int64_t bytes) {
  CHECK(bytes >= 0);
  ReservedMemory memory;
  if (bytes == 0) return memory;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    return ResourceExhausted("KV cache: the system has no {} bytes of address space", bytes);
  }
  madvise(p, bytes, MADV_HUGEPAGE);  // advice: a refusal costs speed only
  memory.data_ = static_cast<std::byte*>(p);
  memory.bytes_ = bytes;
  return memory;
}

ReservedMemory::ReservedMemory(ReservedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

ReservedMemory& ReservedMemory::operator=(ReservedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

ReservedMemory::~ReservedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

Result<BlockPool> BlockPool::Create(int64_t block_bytes, int64_t capacity) {
  BlockPool pool;
  ASSIGN_OR_RETURN(pool.memory_, ReservedMemory::Create(block_bytes * capacity));
  pool.block_bytes_ = block_bytes;
  pool.capacity_ = capacity;
  pool.references_.assign(capacity, 0);
  pool.free_.reserve(capacity);
  return pool;
}

std::byte* BlockPool::Allocate() {
  CHECK(available() > 0);
  int64_t block = touched_;
  if (free_.empty()) {
    ++touched_;
  } else {
    block = free_.back();
    free_.pop_back();
  }
  DCHECK(references_[block] == 0);
  references_[block] = 1;
  return memory_.data() + block * block_bytes_;
}

void BlockPool::Release(std::byte* block) {
  const int64_t index = Index(block);
  CHECK(references_[index] > 0, "block {} is released more often than taken", index);
  if (--references_[index] == 0) free_.push_back(static_cast<int32_t>(index));
}

}  // namespace foresight
