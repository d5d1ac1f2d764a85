// Byte-pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstddef>
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
  // Working memory, to be kept between pieces of one text. One thread at a time.
  struct Scratch {
    // text_bytes: about how much text is to come. Usual text repeats its words: a cache of short pieces,
    // small enough for the processor's own, saves most of the work on a long one.
    explicit Scratch(size_t text_bytes);

    static constexpr size_t kCachedBytesMax = 15;
    static constexpr size_t kCachedIdsMax = 3;
    struct CachedPiece {
      std::array<char, kCachedBytesMax + 1> key{};  // the bytes, zeros, and last their number
      uint32_t num_ids = 0;
      TokenId ids[kCachedIdsMax];
    };
    std::vector<CachedPiece> cache;  // a power of two; a piece has one place

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
  void EncodeUncached(std::string_view piece, Scratch* scratch) const;
  void MergeByScan(Scratch* scratch) const;
  void MergeByQueue(Scratch* scratch) const;

  const Vocabulary* vocabulary_ = nullptr;
  bool whole_first_ = false;
  TokenId id_of_byte_[256];
  std::vector<Slot> slots_;      // open addressing, a power of two
  int shift_ = 0;                // 64 - log2(slots)
  std::vector<TokenId> merged_;  // by rank: what the pair becomes
};

}  // namespace foresight
