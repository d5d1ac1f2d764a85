// States of prefixes that later prompts may begin with (design 1; dspark.md 2.4).
//
// A kept prefix is a sequence state at a block border: a fork, so its blocks are shared with whoever made it,
// and everything that the tokens behind it need is there, draft layers included. A tree of blocks of 256
// tokens finds them: a node is one block, its parent the block before; a hash of the chain narrows the
// search, the tokens decide. The prefix used least recently goes first.
//
// Hits are exact: a hit is the state that computing the prefix would give, bit for bit.
// One thread: the engine's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "kv_cache/sequence_state.h"

namespace foresight {

struct PrefixCacheStats {
  int64_t prefixes = 0;
  int64_t tokens = 0;  // of all kept prefixes, shared ones counted for each
  int64_t lookups = 0;
  int64_t hits = 0;
  int64_t evictions = 0;
  int64_t index_bytes = 0;  // memory of the tree; the states' memory is in the KvCache's account
};

class PrefixCache {
 public:
  static constexpr int kNone = -1;

  // `cache` outlives this object and has slots for `prefixes_max` states beside those of running sequences.
  PrefixCache(KvCache& cache, int prefixes_max);

  // The longest kept prefix of `tokens` under the same `salt`, or kNone. Counts as a use of it.
  int Find(uint64_t salt, std::span<const TokenId> tokens);
  // How many tokens, in whole blocks, `tokens` has in common with any kept prefix.
  int64_t CommonTokens(uint64_t salt, std::span<const TokenId> tokens) const;
  bool Contains(uint64_t salt, std::span<const TokenId> tokens) const;

  int64_t tokens(int prefix) const { return entries_[prefix].state->length(); }
  // A sequence with that state. Errors: kResourceExhausted (no slot).
  Result<SequenceState> Fork(int prefix) { return entries_[prefix].state->Fork(); }

  // Makes room for one more prefix, if there are prefixes_max. False: prefixes_max is 0.
  bool MakeRoom();
  // Keeps `state` as the state after `tokens`: as many, a positive multiple of kBlockTokens, not kept yet;
  // MakeRoom has been called.
  void Insert(uint64_t salt, std::span<const TokenId> tokens, SequenceState state);

  // Drops the prefix used least recently, `keep` excepted. False when there is none.
  bool EvictOne(int keep = kNone);
  void Clear();
  // Blocks that evicting all but `keep` would free.
  int64_t EvictableBlocks(int keep = kNone);

  PrefixCacheStats stats() const;

 private:
  struct Node {
    uint64_t hash = 0;  // of the salt and every token up to this block's end
    std::array<TokenId, kBlockTokens> tokens;
    int parent = kNone;
    int first_child = kNone;
    int next_sibling = kNone;
    int entry = kNone;
  };
  struct Entry {
    std::optional<SequenceState> state;  // none: unused
    int node = kNone;
    int64_t last_use = 0;
  };

  static constexpr int kChunkNodes = 128;
  const Node& node(int i) const { return chunks_[i / kChunkNodes][i % kChunkNodes]; }
  Node& node(int i) { return chunks_[i / kChunkNodes][i % kChunkNodes]; }
  // The child of `parent` (kNone: a first block) with this hash and these tokens, or kNone.
  int Child(int parent, uint64_t hash, std::span<const TokenId> block) const;
  // Calls visit(node) for every block of `tokens` that the tree has, in order; returns their number.
  template <typename Visit>
  int64_t Walk(uint64_t salt, std::span<const TokenId> tokens, Visit visit) const;
  int NewNode();
  void AddNodes();
  void Remove(int entry);

  KvCache& cache_;
  std::vector<Entry> entries_;
  std::vector<std::unique_ptr<Node[]>> chunks_;
  std::vector<int> free_nodes_;
  int first_block_ = kNone;  // of the list of first blocks
  int64_t clock_ = 0;
  int64_t lookups_ = 0;
  int64_t hits_ = 0;
  int64_t evictions_ = 0;
  std::vector<const SequenceState*> states_;  // scratch of EvictableBlocks
};

}  // namespace foresight
