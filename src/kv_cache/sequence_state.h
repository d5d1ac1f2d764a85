// The state of sequences: what the model remembers of the tokens it has seen, truncatable, savable, shareable
// (design 2.3; model spec 2.5, 4).
//
//   Status s = sequence.Reserve(n);         // memory for n more tokens
//   for each layer: kernels read and write sequence.View(layer)
//   sequence.Advance(n);                    // the tokens are part of the sequence now
//   s = sequence.Truncate(sequence.length() - rejected);
//
// Everything is keyed by position, so that the content follows from `length` alone: ring rows lie at
// position % slots, entry s of ratio r at index s, and it is visible when (s+1)*r <= length. Truncate sets
// the length; what rejected tokens wrote is overwritten when their positions come again.
//
// Invariant: rows of positions [furthest - slots, length) are valid in each ring, where `furthest` is the
// highest length since the sequence was last empty. With slots = needed + slack everything that
// position `n` needs is there for every n >= furthest - slack.
//
// A step that was abandoned between its first write and Advance may have overwritten rows that `length`
// still needs: Reset or Restore the sequence then.
//
// One thread: the engine's. Nothing here allocates after KvCache::Create but Save and the file functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device.h"
#include "kv_cache/block_pool.h"
#include "kv_cache/cache_layout.h"
#include "kv_cache/state_pieces.h"
#include "tensor/cache_view.h"

namespace foresight {

struct KvCacheOptions {
  Device* device = nullptr;         // whose memory it is; borrowed; null: the machine's
  int64_t budget_bytes = 0;         // of everything: blocks and the fixed parts of max_sequences
  int max_sequences = 1;            // states that exist at a time, forks included
  int64_t max_sequence_tokens = 0;  // the longest sequence
  // Tells the models apart whose snapshots must not be mixed up: a hash of the checkpoint and the numerics.
  uint64_t model_identity = 0;
};

// All in bytes unless said. Memory of the tables that find blocks is part of sequence_bytes.
struct CacheStats {
  int64_t block_bytes = 0;      // of one block
  int64_t blocks_capacity = 0;  // count
  int64_t blocks_in_use = 0;    // count; a shared block counts once
  int64_t sequence_bytes = 0;   // fixed part of one sequence
  int64_t sequences = 0;        // count
  int64_t total_bytes = 0;      // in use: blocks_in_use * block_bytes + sequences * sequence_bytes
  int64_t resident_bytes = 0;   // the same with the most blocks and sequences that ever were in use
};

class SequenceState;

// The memory of all sequences of one model. Outlives its sequences.
class KvCache {
 public:
  // Errors: kInvalidArgument (limits below 1, a budget that doesn't hold the fixed parts and one block),
  // kResourceExhausted (address space).
  static Result<std::unique_ptr<KvCache>> Create(const CacheLayout& layout, const KvCacheOptions& options);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // An empty sequence. Errors: kResourceExhausted (max_sequences exist).
  Result<SequenceState> NewSequence();

  const CacheLayout& layout() const { return layout_; }
  const KvCacheOptions& options() const { return options_; }
  // Tokens that fit into the blocks that are free now.
  int64_t AvailableTokens() const;
  int64_t AvailableBlocks() const { return pool_.available(); }
  // Blocks of one sequence of so many tokens; 0 when every layer is SWA.
  int64_t BlocksFor(int64_t tokens) const;
  // Blocks that would be free if these (different) sequences were not there.
  int64_t BlocksHeldOnlyBy(std::span<const SequenceState* const> sequences);
  CacheStats stats() const;

 private:
  friend class SequenceState;
  KvCache(const CacheLayout& layout, const KvCacheOptions& options) : layout_(layout), options_(options) {}

  Device& device() { return options_.device != nullptr ? *options_.device : host_; }
  std::byte* SlotData(int slot) const { return slots_.data() + slot * slot_bytes_; }
  std::byte** HostTable(int slot) const {
    return reinterpret_cast<std::byte**>(tables_.data()) + slot * table_blocks_;
  }

  HostDevice host_;
  CacheLayout layout_;
  KvCacheOptions options_;
  BlockPool pool_;
  DeviceMemory slots_;  // [max_sequences] fixed part, then the block table as kernels read it
  int64_t slot_bytes_ = 0;
  DeviceMemory tables_;  // [max_sequences] block tables as the host reads them; the host's memory
  int64_t table_blocks_ = 0;
  std::vector<int> free_slots_;
  int touched_slots_ = 0;
  std::vector<int32_t> held_;  // [blocks]: scratch of BlocksHeldOnlyBy, zeros between calls
};

// The bytes of a saved state: pages, ring rows, and a record at the end that makes them valid (snapshot.cc).
struct Snapshot {
  std::vector<std::byte> bytes;
};

class SequenceState {
 public:
  SequenceState(SequenceState&& other) noexcept;
  SequenceState& operator=(SequenceState&& other) noexcept;
  ~SequenceState();

  // Tokens seen; the next one has this position.
  int64_t length() const { return marks_.main.length; }
  // Tokens that the draft layers have seen. It may be behind `length` (the MTP-1 block of position p needs
  // token p+1; a DSpark head takes up taps when it drafts) or ahead of it (chained drafts).
  int64_t draft_length() const { return marks_.draft.length; }
  // DSpark: the taps of positions [pending_taps(), length()) are in Taps() and not yet taken up. Older ones
  // that were passed over are of no use to any position that the sequence can come back to.
  int64_t pending_taps() const { return marks_.PendingTaps(cache_->layout_.taps.slots); }
  int64_t reserved_length() const { return reserved_; }
  // The lowest length that Truncate accepts beside 0.
  int64_t truncatable_to() const;

  // Makes positions [length, length + n) writable: blocks for them, and own copies of blocks that are shared
  // with a fork. Errors: kResourceExhausted (no free block, max_sequence_tokens); nothing has changed then.
  Status Reserve(int64_t n);
  // The memory of a layer: main layers, then draft layers. Valid until the next call that isn't const.
  LayerCacheView View(int layer) const;
  // DSpark: what it taps, by position, as `window`; else empty.
  LayerCacheView Taps() const;
  // Where compressed entry s, or index key s, of a main layer lies.
  std::byte* CompressedEntry(int layer, int64_t s) const;
  std::byte* IndexKey(int layer, int64_t s) const;
  // Adds n reserved tokens whose rows have been written in every main layer.
  void Advance(int64_t n);
  // The same for the draft layers, which need no reservation.
  void AdvanceDraft(int64_t n);

  // Back to the first n tokens, exactly; draft layers are cut back to n if they are ahead. Gives reserved
  // blocks back. Errors: kInvalidArgument (n above length; or below what the rings still hold, the message
  // says what would do); nothing has changed then.
  Status Truncate(int64_t n);
  // The same for the draft layers alone.
  Status TruncateDraft(int64_t n);
  // Empty again.
  void Reset();

  // A second sequence with the same content; blocks are shared until one of them writes. Ends this
  // sequence's reservation. Errors: kResourceExhausted (max_sequences exist).
  Result<SequenceState> Fork();

  // Bytes that Save gives.
  int64_t SavedBytes() const;
  // The state as bytes, equal for equal content. Includes what Truncate and the draft layers need. Of a
  // faulty device: no bytes, which Restore refuses.
  Snapshot Save() const;
  // Replaces this state. Errors: kDataLoss (damaged or cut off), kInvalidArgument (of another model, layout
  // or version; longer than max_sequence_tokens), kResourceExhausted (blocks). Nothing has changed then.
  Status Restore(std::span<const std::byte> snapshot);
  Status Restore(const Snapshot& snapshot) { return Restore(snapshot.bytes); }
  // Through a temporary file beside `path`, which is complete on the disk before it takes its name.
  // Errors: kInvalidArgument (can't be created), kResourceExhausted (disk full), kDeviceError, kUnavailable
  // (other).
  Status SaveToFile(const std::string& path) const;
  // Errors as Restore and MappedFile::Open.
  Status RestoreFromFile(const std::string& path);

 private:
  friend class KvCache;
  SequenceState(KvCache* cache, int slot) : cache_(cache), slot_(slot) {}

  // Block i of the sequence is table()[i]; valid for i < num_blocks_. Kernels read a copy of it, which
  // PublishBlocks brings up to date.
  std::byte** table() const { return cache_->HostTable(slot_); }
  std::byte** device_table() const;
  std::byte* Item(const PagedLayout& paged, int64_t i) const;
  void PublishBlocks(int64_t first, int64_t end);
  std::byte* fixed() const { return cache_->SlotData(slot_); }
  void ReleaseBlocks(int64_t keep);
  void GiveBack();

  KvCache* cache_ = nullptr;  // null: moved from
  int slot_ = -1;
  int64_t num_blocks_ = 0;
  StateMarks marks_;
  int64_t reserved_ = 0;  // blocks of [length, reserved_) exist and are ours alone
};

}  // namespace foresight
