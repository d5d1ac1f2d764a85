#include "kv_cache/block_pool.h"

#include "base/check.h"

namespace foresight {

Result<BlockPool> BlockPool::Create(Device& device, int64_t block_bytes, int64_t capacity) {
  BlockPool pool;
  ASSIGN_OR_RETURN(pool.memory_, device.Allocate(block_bytes * capacity, "KV cache blocks"));
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
