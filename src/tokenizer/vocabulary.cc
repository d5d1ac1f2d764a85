#include "tokenizer/vocabulary.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <bit>

#include "base/check.h"

namespace foresight {

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
  slots_.assign(std::bit_ceil(2 * indexed_.size() + 2), -1);
  for (TokenId id : indexed_) {
    size_t slot = Slot(Bytes(id));
    if (slots_[slot] != -1)
      return InvalidArgument("ids {} and {} stand for the same bytes", slots_[slot], id);
    slots_[slot] = id;
  }
  return Status();
}

std::optional<TokenId> Vocabulary::FindBytes(std::string_view bytes) const {
  TokenId id = slots_[Slot(bytes)];
  if (id == -1) return std::nullopt;
  return id;
}

// Where `bytes` are, or the free slot where they would be.
size_t Vocabulary::Slot(std::string_view bytes) const {
  size_t mask = slots_.size() - 1;
  size_t slot = XXH3_64bits(bytes.data(), bytes.size()) & mask;
  while (slots_[slot] != -1 && Bytes(slots_[slot]) != bytes) slot = (slot + 1) & mask;
  return slot;
}

}  // namespace foresight
