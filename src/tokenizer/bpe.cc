#include "tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <optional>
#include <string>

#include "base/check.h"

namespace foresight {
namespace {

// Up to this many bytes, looking through all pairs for the best one is faster than keeping a queue.
constexpr size_t kScanLengthMax = 0;

uint64_t Pair(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// The high bits of a product depend on all bits of its factor (2^64 / golden ratio).
uint64_t Hash(uint64_t x) {
  return x * 0x9e3779b97f4a7c15;
}

uint64_t Hash(const std::array<char, 16>& key) {
  uint64_t halves[2];
  std::memcpy(halves, key.data(), sizeof(halves));
  return Hash(Hash(halves[0]) ^ halves[1]) >> 32;
}

}  // namespace

Result<Bpe> Bpe::Build(const Vocabulary& vocabulary, std::span<const Merge> merges, bool whole_first) {
  Bpe bpe;
  bpe.vocabulary_ = &vocabulary;
  bpe.whole_first_ = whole_first;
  for (int byte = 0; byte < 256; ++byte) {
    char c = static_cast<char>(byte);
    std::optional<TokenId> id = vocabulary.FindBytes({&c, 1});
    if (!id)
      return InvalidArgument("want an entry for each of the 256 bytes, none came for byte 0x{:02x}", byte);
    bpe.id_of_byte_[byte] = *id;
  }

  size_t num_slots = std::bit_ceil(2 * merges.size() + 2);
  bpe.slots_.resize(num_slots);
  bpe.shift_ = 64 - std::countr_zero(num_slots);
  bpe.merged_.reserve(merges.size());
  std::string joined;
  for (auto [left, right] : merges) {
    joined.assign(vocabulary.Bytes(left));
    joined += vocabulary.Bytes(right);
    std::optional<TokenId> id = vocabulary.FindBytes(joined);
    if (!id)
      return InvalidArgument("merge {} of ids {} and {} makes no entry", bpe.merged_.size(), left, right);
    Slot& slot = bpe.slots_[bpe.FindSlot(Pair(left, right))];
    if (slot.pair != kNoPair) {
      return InvalidArgument("merges {} and {} join the same pair, ids {} and {}", slot.rank,
                             bpe.merged_.size(), left, right);
    }
    slot = {Pair(left, right), static_cast<uint32_t>(bpe.merged_.size())};
    bpe.merged_.push_back(*id);
  }

  return bpe;
}

Bpe::Scratch::Scratch(size_t text_bytes)
    : cache(std::bit_ceil(std::clamp<size_t>(text_bytes / 8, 16, 4096))) {}

void Bpe::Encode(std::string_view piece, Scratch* scratch, std::vector<TokenId>* ids) const {
  DCHECK(piece.size() < UINT32_MAX);
  if (piece.size() > Scratch::kCachedBytesMax) {
    EncodeUncached(piece, scratch);
    ids->insert(ids->end(), scratch->ids.begin(), scratch->ids.end());
    return;
  }
  std::array<char, Scratch::kCachedBytesMax + 1> key{};
  std::memcpy(key.data(), piece.data(), piece.size());
  key.back() = static_cast<char>(piece.size());
  Scratch::CachedPiece& cached = scratch->cache[Hash(key) & (scratch->cache.size() - 1)];
  if (cached.key != key) {
    EncodeUncached(piece, scratch);
    if (scratch->ids.size() > Scratch::kCachedIdsMax) {
      ids->insert(ids->end(), scratch->ids.begin(), scratch->ids.end());
      return;
    }
    cached.key = key;
    cached.num_ids = static_cast<uint32_t>(scratch->ids.size());
    std::copy(scratch->ids.begin(), scratch->ids.end(), cached.ids);
  }
  ids->insert(ids->end(), cached.ids, cached.ids + cached.num_ids);
}

// Leaves the ids of the piece in scratch->ids.
void Bpe::EncodeUncached(std::string_view piece, Scratch* scratch) const {
  if (whole_first_) {
    if (std::optional<TokenId> id = vocabulary_->FindBytes(piece)) {
      scratch->ids.assign(1, *id);
      return;
    }
  }
  scratch->ids.clear();
  scratch->ranks.clear();
  for (char c : piece) scratch->ids.push_back(id_of_byte_[static_cast<uint8_t>(c)]);
  // ranks[i] is the rank of the pair that starts at i; the last id starts none.
  for (size_t i = 0; i + 1 < piece.size(); ++i)
    scratch->ranks.push_back(Rank(scratch->ids[i], scratch->ids[i + 1]));
  scratch->ranks.push_back(kNoRank);
  if (piece.size() <= kScanLengthMax) {
    MergeByScan(scratch);
  } else {
    MergeByQueue(scratch);
  }
}

void Bpe::MergeByScan(Scratch* scratch) const {
  TokenId* ids = scratch->ids.data();
  uint32_t* ranks = scratch->ranks.data();
  size_t size = scratch->ids.size();
  while (size > 1) {
    uint32_t rank = kNoRank;
    for (size_t i = 0; i + 1 < size; ++i)
      rank = std::min(rank, ranks[i]);  // in two steps, because this one vectorises
    if (rank == kNoRank) break;
    size_t place = std::find(ranks, ranks + size, rank) - ranks;
    ids[place] = merged_[rank];
    --size;
    std::copy(ids + place + 2, ids + size + 1, ids + place + 1);
    std::copy(ranks + place + 1, ranks + size + 1, ranks + place);
    if (place > 0) ranks[place - 1] = Rank(ids[place - 1], ids[place]);
    if (place + 1 < size) ranks[place] = Rank(ids[place], ids[place + 1]);
  }
  scratch->ids.resize(size);
}

// The same with a linked list of ids and a queue of pairs. An entry of the queue is stale, and skipped, when
// the pair at its place has another rank by now: a rank names one pair.
void Bpe::MergeByQueue(Scratch* scratch) const {
  std::vector<TokenId>& ids = scratch->ids;
  std::vector<uint32_t>& ranks = scratch->ranks;
  std::vector<uint32_t>& next = scratch->next;
  std::vector<uint32_t>& previous = scratch->previous;
  std::vector<uint64_t>& queue = scratch->queue;  // rank and place; the smallest first
  const uint32_t size = static_cast<uint32_t>(ids.size());

  next.resize(size);
  previous.resize(size);
  queue.clear();
  for (uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;  // of the first: never read
    if (ranks[i] != kNoRank) queue.push_back(static_cast<uint64_t>(ranks[i]) << 32 | i);
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  auto update = [&](uint32_t place) {
    ranks[place] = next[place] < size ? Rank(ids[place], ids[next[place]]) : kNoRank;
    if (ranks[place] == kNoRank) return;
    queue.push_back(static_cast<uint64_t>(ranks[place]) << 32 | place);
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    uint32_t rank = static_cast<uint32_t>(queue.back() >> 32), place = static_cast<uint32_t>(queue.back());
    queue.pop_back();
    if (ranks[place] != rank) continue;
    uint32_t gone = next[place];
    ids[place] = merged_[rank];
    ranks[gone] = kNoRank;
    next[place] = next[gone];
    if (next[place] < size) previous[next[place]] = place;
    if (place > 0) update(previous[place]);
    update(place);
  }

  size_t num_left = 0;
  for (uint32_t i = 0; i < size; i = next[i]) ids[num_left++] = ids[i];
  ids.resize(num_left);
}

uint32_t Bpe::Rank(TokenId left, TokenId right) const {
  const Slot& slot = slots_[FindSlot(Pair(left, right))];
  return slot.pair == kNoPair ? kNoRank : slot.rank;
}

// Where the pair is, or the free slot where it would be.
size_t Bpe::FindSlot(uint64_t pair) const {
  size_t slot = Hash(pair) >> shift_;
  while (slots_[slot].pair != pair && slots_[slot].pair != kNoPair) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

}  // namespace foresight
