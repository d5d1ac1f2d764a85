// The memory of all blocks: a fixed number of chunks of equal size, counted references, no allocation after
// the start.
//
// On the host the range gets physical pages when first touched. Released blocks keep their pages and are
// handed out again first, so what is resident is the most that was ever in use. One thread: the engine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "device/device.h"

namespace foresight {

class BlockPool {
 public:
  BlockPool() = default;  // holds nothing
  // Errors: kResourceExhausted when the device doesn't have the memory.
  static Result<BlockPool> Create(Device& device, int64_t block_bytes, int64_t capacity);

  // A block with one reference; its content is whatever was there. There must be a free one (CHECK).
  std::byte* Allocate();
  void AddReference(std::byte* block) { ++references_[Index(block)]; }
  void Release(std::byte* block);
  bool IsShared(const std::byte* block) const { return references(block) > 1; }
  int32_t references(const std::byte* block) const { return references_[Index(block)]; }
  int64_t Index(const std::byte* block) const { return (block - memory_.data()) / block_bytes_; }

  int64_t block_bytes() const { return block_bytes_; }
  int64_t capacity() const { return capacity_; }
  int64_t in_use() const { return touched_ - static_cast<int64_t>(free_.size()); }
  int64_t available() const { return capacity_ - in_use(); }
  // Blocks that were ever in use.
  int64_t touched() const { return touched_; }

 private:
  DeviceMemory memory_;
  int64_t block_bytes_ = 0;
  int64_t capacity_ = 0;
  int64_t touched_ = 0;              // blocks [0, touched_) have been handed out at least once
  std::vector<int32_t> references_;  // [capacity]
  std::vector<int32_t> free_;        // released blocks, the last one first; capacity reserved
};

}  // namespace foresight
