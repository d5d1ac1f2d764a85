#include "kv_cache/sequence_state.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kv_cache/state_pieces.h"

namespace foresight {
namespace {

constexpr int64_t kSequenceTokensMax = int64_t{1} << 32;
constexpr int kSequencesMax = 1 << 20;

// Blocks that `tokens` tokens take.
int64_t NumBlocks(const CacheLayout& layout, int64_t tokens) {
  return layout.block_bytes == 0 ? 0 : (tokens + kBlockTokens - 1) / kBlockTokens;
}

// Of the device, and of the host's table beside it.
int64_t SlotBytes(const CacheLayout& layout, int64_t table_bytes) {
  return (layout.fixed_bytes + table_bytes + 63) / 64 * 64;
}

}  // namespace

Result<std::unique_ptr<KvCache>> KvCache::Create(const CacheLayout& layout, const KvCacheOptions& options) {
  if (options.max_sequences < 1 || options.max_sequences > kSequencesMax) {
    return InvalidArgument("KV cache: max_sequences: want 1..{}, got {}", kSequencesMax,
                           options.max_sequences);
  }
  if (options.max_sequence_tokens < 1 || options.max_sequence_tokens > kSequenceTokensMax) {
    return InvalidArgument("KV cache: max_sequence_tokens: want 1..{}, got {}", kSequenceTokensMax,
                           options.max_sequence_tokens);
  }
  const int64_t table_blocks = NumBlocks(layout, options.max_sequence_tokens);
  const int64_t table_bytes = table_blocks * int64_t{sizeof(std::byte*)};
  const int64_t slot_bytes = SlotBytes(layout, table_bytes);
  const int64_t slots_bytes = (slot_bytes + table_bytes) * options.max_sequences;
  const int64_t budget_bytes_min = slots_bytes + layout.block_bytes;
  if (options.budget_bytes < budget_bytes_min) {
    return InvalidArgument(
        "KV cache: a budget of {} bytes is too small for {} sequences: want {} for their fixed parts and one "
        "block of {} tokens",
        options.budget_bytes, options.max_sequences, budget_bytes_min, kBlockTokens);
  }
  int64_t capacity = 0;
  if (layout.block_bytes > 0) {
    // More than the longest sequences take is never used.
    capacity = std::min((options.budget_bytes - slots_bytes) / layout.block_bytes,
                        table_blocks * options.max_sequences);
  }
  std::unique_ptr<KvCache> cache(new KvCache(layout, options));
  ASSIGN_OR_RETURN(cache->pool_, BlockPool::Create(cache->device(), layout.block_bytes, capacity));
  ASSIGN_OR_RETURN(cache->slots_,
                   cache->device().Allocate(slot_bytes * options.max_sequences, "KV cache sequences"));
  ASSIGN_OR_RETURN(cache->tables_,
                   cache->host_.Allocate(table_bytes * options.max_sequences, "KV cache tables"));
  cache->slot_bytes_ = slot_bytes;
  cache->table_blocks_ = table_blocks;
  cache->free_slots_.reserve(options.max_sequences);
  cache->held_.assign(capacity, 0);
  return cache;
}

KvCache::~KvCache() {
  CHECK(static_cast<int>(free_slots_.size()) == touched_slots_, "a sequence outlives its cache");
}

Result<SequenceState> KvCache::NewSequence() {
  if (!free_slots_.empty()) {
    const int slot = free_slots_.back();
    free_slots_.pop_back();
    return SequenceState(this, slot);
  }
  if (touched_slots_ == options_.max_sequences) {
    return ResourceExhausted("KV cache: all {} sequences are in use", options_.max_sequences);
  }
  return SequenceState(this, touched_slots_++);
}

int64_t KvCache::BlocksFor(int64_t tokens) const {
  return NumBlocks(layout_, tokens);
}

int64_t KvCache::AvailableTokens() const {
  return layout_.block_bytes == 0 ? options_.max_sequence_tokens : pool_.available() * kBlockTokens;
}

int64_t KvCache::BlocksHeldOnlyBy(std::span<const SequenceState* const> sequences) {
  for (const SequenceState* s : sequences) {
    for (int64_t i = 0; i < s->num_blocks_; ++i) ++held_[pool_.Index(s->table()[i])];
  }
  int64_t count = 0;
  for (const SequenceState* s : sequences) {
    for (int64_t i = 0; i < s->num_blocks_; ++i) {
      int32_t& held = held_[pool_.Index(s->table()[i])];
      if (held == 0) continue;  // counted already
      if (held == pool_.references(s->table()[i])) ++count;
      held = 0;
    }
  }
  return count;
}

CacheStats KvCache::stats() const {
  CacheStats stats;
  stats.block_bytes = layout_.block_bytes;
  stats.blocks_capacity = pool_.capacity();
  stats.blocks_in_use = pool_.in_use();
  stats.sequence_bytes = slot_bytes_ + table_blocks_ * int64_t{sizeof(std::byte*)};
  stats.sequences = touched_slots_ - static_cast<int64_t>(free_slots_.size());
  stats.total_bytes = stats.blocks_in_use * stats.block_bytes + stats.sequences * stats.sequence_bytes;
  stats.resident_bytes = pool_.touched() * stats.block_bytes + touched_slots_ * stats.sequence_bytes;
  return stats;
}

SequenceState::SequenceState(SequenceState&& other) noexcept {
  *this = std::move(other);
}

SequenceState& SequenceState::operator=(SequenceState&& other) noexcept {
  if (this == &other) return *this;
  GiveBack();
  cache_ = std::exchange(other.cache_, nullptr);
  slot_ = other.slot_;
  num_blocks_ = other.num_blocks_;
  marks_ = other.marks_;
  reserved_ = other.reserved_;
  return *this;
}

SequenceState::~SequenceState() {
  GiveBack();
}

void SequenceState::GiveBack() {
  if (cache_ == nullptr) return;
  ReleaseBlocks(/*keep=*/0);
  cache_->free_slots_.push_back(slot_);
  cache_ = nullptr;
}

std::byte** SequenceState::device_table() const {
  return reinterpret_cast<std::byte**>(fixed() + cache_->layout_.fixed_bytes);
}

void SequenceState::PublishBlocks(int64_t first, int64_t end) {
  if (first >= end) return;
  cache_->device().Upload(device_table() + first, table() + first,
                          (end - first) * int64_t{sizeof(std::byte*)});
}

void SequenceState::ReleaseBlocks(int64_t keep) {
  while (num_blocks_ > keep) cache_->pool_.Release(table()[--num_blocks_]);
}

Status SequenceState::Reserve(int64_t n) {
  CHECK(n >= 0);
  const int64_t tokens_max = cache_->options_.max_sequence_tokens;
  if (n > tokens_max - length()) {
    return ResourceExhausted("KV cache: {} + {} tokens are more than the {} of a sequence", length(), n,
                             tokens_max);
  }
  if (length() + n <= reserved_) return Status();
  BlockPool& pool = cache_->pool_;
  const int64_t end = cache_->BlocksFor(length() + n);
  // The block that the first new token falls into may hold entries before it, and be a fork's, too. Blocks
  // behind it are ours alone: sharing ends at `length`.
  const int64_t first = std::min(length() / kBlockTokens, num_blocks_);
  int64_t wanted = std::max<int64_t>(end - num_blocks_, 0);
  const bool copy = first < num_blocks_ && pool.IsShared(table()[first]);
  if (copy) ++wanted;
  if (wanted > pool.available()) {
    return ResourceExhausted("KV cache: {} more tokens take {} blocks of {} tokens, {} of {} are free", n,
                             wanted, kBlockTokens, pool.available(), pool.capacity());
  }
  if (copy) {
    std::byte* own = pool.Allocate();
    cache_->device().Copy(own, table()[first], pool.block_bytes());
    pool.Release(table()[first]);
    table()[first] = own;
    PublishBlocks(first, first + 1);
  }
  const int64_t appended = num_blocks_;
  while (num_blocks_ < end) table()[num_blocks_++] = pool.Allocate();
  PublishBlocks(appended, num_blocks_);
  reserved_ = length() + n;
  return Status();
}

LayerCacheView SequenceState::View(int layer) const {
  const LayerCacheLayout& layout = cache_->layout_.layers[layer];
  const auto ring = [this](const RingLayout& ring) {
    return ring.slots == 0 ? RingView{} : RingView{fixed() + ring.offset, ring.item_bytes, ring.slots};
  };
  const auto paged = [this](const PagedLayout& paged) {
    return paged.item_bytes == 0 ? PagedView{}
                                 : PagedView{device_table(), paged.offset, paged.item_bytes, paged.per_block};
  };
  return {ring(layout.window), paged(layout.compressed), paged(layout.index_keys),
          ring(layout.compressor_rows), ring(layout.index_compressor_rows)};
}

LayerCacheView SequenceState::Taps() const {
  const RingLayout& taps = cache_->layout_.taps;
  LayerCacheView view;
  if (taps.slots > 0) view.window = {fixed() + taps.offset, taps.item_bytes, taps.slots};
  return view;
}

std::byte* SequenceState::Item(const PagedLayout& paged, int64_t i) const {
  CHECK(i / paged.per_block < num_blocks_);
  return table()[i / paged.per_block] + paged.offset + i % paged.per_block * paged.item_bytes;
}

std::byte* SequenceState::CompressedEntry(int layer, int64_t s) const {
  return Item(cache_->layout_.layers[layer].compressed, s);
}

std::byte* SequenceState::IndexKey(int layer, int64_t s) const {
  return Item(cache_->layout_.layers[layer].index_keys, s);
}

void SequenceState::Advance(int64_t n) {
  CHECK(n >= 0 && length() + n <= reserved_, "{} + {} tokens, reserved up to {}", length(), n, reserved_);
  marks_.main.Advance(n);
}

void SequenceState::AdvanceDraft(int64_t n) {
  CHECK(n >= 0);
  marks_.draft.Advance(n);
}

int64_t SequenceState::truncatable_to() const {
  const int64_t slack = cache_->layout_.slack_tokens;
  // Draft layers that are behind already don't move.
  return std::max(marks_.main.LowestExact(slack), std::min(draft_length(), marks_.draft.LowestExact(slack)));
}

Status SequenceState::Truncate(int64_t n) {
  CHECK(n >= 0);
  if (n > length()) return InvalidArgument("KV cache: can't truncate {} tokens to {}", length(), n);
  if (n != 0 && n < truncatable_to()) {
    return InvalidArgument("KV cache: can't truncate {} tokens to {}: rows are kept for lengths from {} on",
                           length(), n, truncatable_to());
  }
  marks_.main.Cut(n);
  if (draft_length() > n) marks_.draft.Cut(n);
  reserved_ = n;
  ReleaseBlocks(cache_->BlocksFor(n));
  return Status();
}

Status SequenceState::TruncateDraft(int64_t n) {
  CHECK(n >= 0);
  if (n > draft_length()) {
    return InvalidArgument("KV cache: can't truncate {} draft tokens to {}", draft_length(), n);
  }
  const int64_t lowest = marks_.draft.LowestExact(cache_->layout_.slack_tokens);
  if (n != 0 && n < lowest) {
    return InvalidArgument(
        "KV cache: can't truncate {} draft tokens to {}: rows are kept for lengths from {} on",
        draft_length(), n, lowest);
  }
  marks_.draft.Cut(n);
  return Status();
}

void SequenceState::Reset() {
  marks_ = {};
  reserved_ = 0;
  ReleaseBlocks(/*keep=*/0);
}

Result<SequenceState> SequenceState::Fork() {
  ASSIGN_OR_RETURN(SequenceState fork, cache_->NewSequence());
  reserved_ = length();
  ReleaseBlocks(cache_->BlocksFor(length()));
  for (int64_t i = 0; i < num_blocks_; ++i) {
    cache_->pool_.AddReference(table()[i]);
    fork.table()[i] = table()[i];
  }
  fork.num_blocks_ = num_blocks_;
  fork.PublishBlocks(0, num_blocks_);
  fork.marks_ = marks_;
  fork.reserved_ = reserved_;
  ForEachRingPiece(cache_->layout_, marks_, [&](const StatePiece& piece) {
    cache_->device().Copy(fork.fixed() + piece.offset, fixed() + piece.offset, piece.bytes);
  });
  return fork;
}

}  // namespace foresight
