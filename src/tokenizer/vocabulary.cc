#include "tokenizer/vocabulary.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace foresight {
namespace {

uint64_t Hash(std::string_view bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace

Status Vocabulary::Add(TokenId id, std::string_view bytes) {
  RETURN_IF_ERROR(AddAside(id, bytes));
  indexed_.push_back(id);
  return Status();
}

Status Vocabulary::AddAside(TokenId id, std::string_view bytes) {
  CHECK(slots_.empty());
  if (id < 0 || id > kIdMax) return InvalidArgument("id {} is outside 0..{}", id, kIdMax);
  if (bytes.empty()) return InvalidArgument("the entry with id {} is empty", id);
  if (Contains(id)) return InvalidArgument("id {} is given twice", id);
  if (static_cast<size_t>(id) >= entries_.size()) entries_.resize(id + 1);
  entries_[id] = {static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(bytes.size())};
  bytes_ += bytes;
  if (bytes_.size() > UINT32_MAX) return ResourceExhausted("the entries take more than 4 GiB");
  return Status();
}

Status Vocabulary::BuildIndex() {
  slots_.resize(std::bit_ceil(2 * indexed_.size() + 2));
  for (TokenId id : indexed_) {
    std::string_view bytes = Bytes(id);
    uint64_t hash = Hash(bytes);
    Slot& slot = slots_[FindSlot(bytes, hash)];
    if (slot.id != -1) return InvalidArgument("ids {} and {} stand for the same bytes", slot.id, id);
    slot = {id, static_cast<uint32_t>(hash)};
    indexed_bytes_max_ = std::max(indexed_bytes_max_, bytes.size());
  }
  return Status();
}

std::optional<TokenId> Vocabulary::FindBytes(std::string_view bytes) const {
  if (bytes.size() > indexed_bytes_max_) return std::nullopt;
  TokenId id = slots_[FindSlot(bytes, Hash(bytes))].id;
  if (id == -1) return std::nullopt;
  return id;
}

// Where `bytes` are, or the free slot where they would be. The place comes from the high half of the hash.
size_t Vocabulary::FindSlot(std::string_view bytes, uint64_t hash) const {
  size_t mask = slots_.size() - 1;
  size_t at = hash >> 32 & mask;
  while (slots_[at].id != -1 &&
         !(slots_[at].hash == static_cast<uint32_t>(hash) && Bytes(slots_[at].id) == bytes)) {
    at = (at + 1) & mask;
  }
  return at;
}

}  // namespace foresight
