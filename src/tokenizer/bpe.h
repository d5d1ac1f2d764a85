// Byte-pair encoding of one piece of text.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "tokenizer/vocabulary.h"

namespace foresight {

// The definition: a piece starts as its bytes; as long as a neighbouring pair is in the list of merges, the
// pair that stands first in the list is joined, the leftmost one where it occurs more than once.
class Bpe {
 public:
  // Working memory, to be kept between pieces. One thread at a time.
  struct Scratch {
    std::vector<TokenId> ids;
    std::vector<uint32_t> ranks;
    std::vector<uint32_t> next, previous;
    std::vector<uint64_t> queue;
  };
  using Merge = std::pair<TokenId, TokenId>;

  // merges: by rising rank. whole_first: a piece that is an entry is that entry, whatever the merges make of
  // it (ignore_merges of tokenizer.json). The vocabulary must outlive the Bpe. Errors: kInvalidArgument when
  // a byte has no entry, a merge makes no entry or a pair occurs twice.
  static Result<Bpe> Build(const Vocabulary& vocabulary, std::span<const Merge> merges, bool whole_first);

  // Appends the ids of a piece of less than 4 GiB. Takes O(n log n) for n bytes, whatever they are.
  void Encode(std::string_view piece, Scratch* scratch, std::vector<TokenId>* ids) const;

 private:
  struct Slot {  // a pair and its rank
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
  };
  static constexpr uint64_t kNoPair = UINT64_MAX;
  static constexpr uint32_t kNoRank = UINT32_MAX;

  Bpe() = default;
  size_t FindSlot(uint64_t pair) const;
  uint32_t Rank(TokenId left, TokenId right) const;
  void MergeByScan(Scratch* scratch) const;
  void MergeByQueue(Scratch* scratch) const;
  void MergePiece(std::string_view piece, Scratch* scratch) const;

  const Vocabulary* vocabulary_ = nullptr;
  TokenId id_of_byte_[256];
  std::vector<Slot> slots_;        // open addressing, a power of two
  int shift_ = 0;                  // 64 - log2(slots)
  std::vector<TokenId> merged_;    // by rank: what the pair becomes
  std::vector<uint8_t> is_whole_;  // by id: a piece of these bytes becomes this one id
};

}  // namespace foresight
