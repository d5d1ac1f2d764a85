// The entries of a tokenizer: which bytes each id stands for, and which id stands for some bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace foresight {

// Ids may have holes; the bytes of all entries lie in one string. Immutable once loaded: any thread may read.
class Vocabulary {
 public:
  // Larger ids are refused: tables are as long as the largest id.
  static constexpr TokenId kIdMax = (1 << 22) - 1;

  // Errors: kInvalidArgument for an id out of range or given twice, and for an empty entry.
  // Add: an entry that merges can make. AddAside: an entry that FindBytes never answers (added tokens, and
  // spellings outside the byte alphabet).
  Status Add(TokenId id, std::string_view bytes);
  Status AddAside(TokenId id, std::string_view bytes);
  // Builds the lookup by bytes. Nothing may be added after it.
  Status BuildIndex();

  // One more than the largest id.
  TokenId size() const { return static_cast<TokenId>(entries_.size()); }
  bool Contains(TokenId id) const { return id >= 0 && id < size() && entries_[id].length != 0; }
  // Of an id that Contains() knows.
  std::string_view Bytes(TokenId id) const {
    return {bytes_.data() + entries_[id].offset, entries_[id].length};
  }
  std::optional<TokenId> FindBytes(std::string_view bytes) const;

 private:
  struct Entry {
    uint32_t offset = 0;
    uint32_t length = 0;  // 0: no such id
  };

  struct Slot {
    TokenId id = -1;    // free
    uint32_t hash = 0;  // of the bytes: most comparisons end here
  };

  size_t FindSlot(std::string_view bytes, uint64_t hash) const;

  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<TokenId> indexed_;  // ids given to Add
  size_t indexed_bytes_max_ = 0;  // of the longest of them
  std::vector<Slot> slots_;       // open addressing, a power of two
};

}  // namespace foresight
