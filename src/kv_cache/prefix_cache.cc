#include "kv_cache/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace foresight {
namespace {

std::span<const TokenId> Block(std::span<const TokenId> tokens, int64_t i) {
  return tokens.subspan(i * kBlockTokens, kBlockTokens);
}

uint64_t Chain(uint64_t hash, std::span<const TokenId> block) {
  return XXH3_64bits_withSeed(block.data(), block.size_bytes(), hash);
}

}  // namespace

PrefixCache::PrefixCache(KvCache& cache, int prefixes_max) : cache_(cache), entries_(prefixes_max) {
  CHECK(prefixes_max >= 0);
  states_.reserve(prefixes_max);
  if (prefixes_max > 0) AddNodes();  // keeping the first prefixes allocates nothing
}

void PrefixCache::AddNodes() {
  const int first = static_cast<int>(chunks_.size()) * kChunkNodes;
  chunks_.push_back(std::make_unique<Node[]>(kChunkNodes));
  free_nodes_.reserve(first + kChunkNodes);
  for (int i = kChunkNodes - 1; i >= 0; --i) free_nodes_.push_back(first + i);
}

int PrefixCache::Child(int parent, uint64_t hash, std::span<const TokenId> block) const {
  for (int i = parent == kNone ? first_block_ : node(parent).first_child; i != kNone;
       i = node(i).next_sibling) {
    if (node(i).hash == hash && std::equal(block.begin(), block.end(), node(i).tokens.begin())) return i;
  }
  return kNone;
}

template <typename Visit>
int64_t PrefixCache::Walk(uint64_t salt, std::span<const TokenId> tokens, Visit visit) const {
  const int64_t blocks = std::ssize(tokens) / kBlockTokens;
  uint64_t hash = salt;
  int at = kNone;
  for (int64_t i = 0; i < blocks; ++i) {
    const std::span<const TokenId> block = Block(tokens, i);
    hash = Chain(hash, block);
    at = Child(at, hash, block);
    if (at == kNone) return i;
    visit(at);
  }
  return blocks;
}

int PrefixCache::Find(uint64_t salt, std::span<const TokenId> tokens) {
  int found = kNone;
  Walk(salt, tokens, [&](int i) {
    if (node(i).entry != kNone) found = node(i).entry;
  });
  ++lookups_;
  if (found == kNone) return kNone;
  ++hits_;
  entries_[found].last_use = ++clock_;
  return found;
}

int64_t PrefixCache::CommonTokens(uint64_t salt, std::span<const TokenId> tokens) const {
  return Walk(salt, tokens, [](int) {}) * kBlockTokens;
}

bool PrefixCache::Contains(uint64_t salt, std::span<const TokenId> tokens) const {
  int last = kNone;
  const int64_t blocks = Walk(salt, tokens, [&](int i) { last = i; });
  return last != kNone && blocks * kBlockTokens == std::ssize(tokens) && node(last).entry != kNone;
}

bool PrefixCache::MakeRoom() {
  if (entries_.empty()) return false;
  const bool full =
      std::all_of(entries_.begin(), entries_.end(), [](const Entry& e) { return e.state.has_value(); });
  return !full || EvictOne();
}

int PrefixCache::NewNode() {
  if (free_nodes_.empty()) AddNodes();
  const int i = free_nodes_.back();
  free_nodes_.pop_back();
  return i;
}

void PrefixCache::Insert(uint64_t salt, std::span<const TokenId> tokens, SequenceState state) {
  CHECK(state.length() == std::ssize(tokens) && !tokens.empty() && tokens.size() % kBlockTokens == 0,
        "{} tokens, a state of {}", tokens.size(), state.length());
  uint64_t hash = salt;
  int at = kNone;
  for (int64_t i = 0; i < std::ssize(tokens) / kBlockTokens; ++i) {
    const std::span<const TokenId> block = Block(tokens, i);
    hash = Chain(hash, block);
    int child = Child(at, hash, block);
    if (child == kNone) {
      child = NewNode();
      int& first = at == kNone ? first_block_ : node(at).first_child;
      Node& n = node(child);
      n.hash = hash;
      n.parent = at;
      n.first_child = kNone;
      n.next_sibling = first;
      n.entry = kNone;
      std::copy(block.begin(), block.end(), n.tokens.begin());
      first = child;
    }
    at = child;
  }
  CHECK(node(at).entry == kNone, "the prefix is kept already");
  const auto entry = std::find_if(entries_.begin(), entries_.end(), [](const Entry& e) { return !e.state; });
  CHECK(entry != entries_.end(), "MakeRoom first");
  entry->state.emplace(std::move(state));
  entry->node = at;
  entry->last_use = ++clock_;
  node(at).entry = static_cast<int>(entry - entries_.begin());
}

void PrefixCache::Remove(int entry) {
  Entry& e = entries_[entry];
  e.state.reset();
  int at = std::exchange(e.node, kNone);
  node(at).entry = kNone;
  // Blocks that lead to no prefix any more.
  while (at != kNone && node(at).entry == kNone && node(at).first_child == kNone) {
    const int parent = node(at).parent;
    int* link = parent == kNone ? &first_block_ : &node(parent).first_child;
    while (*link != at) link = &node(*link).next_sibling;
    *link = node(at).next_sibling;
    free_nodes_.push_back(at);
    at = parent;
  }
}

bool PrefixCache::EvictOne(int keep) {
  int oldest = kNone;
  for (int i = 0; i < static_cast<int>(entries_.size()); ++i) {
    if (!entries_[i].state || i == keep) continue;
    if (oldest == kNone || entries_[i].last_use < entries_[oldest].last_use) oldest = i;
  }
  if (oldest == kNone) return false;
  Remove(oldest);
  ++evictions_;
  return true;
}

void PrefixCache::Clear() {
  for (int i = 0; i < static_cast<int>(entries_.size()); ++i) {
    if (entries_[i].state) Remove(i);
  }
}

int64_t PrefixCache::EvictableBlocks(int keep) {
  states_.clear();
  for (int i = 0; i < static_cast<int>(entries_.size()); ++i) {
    if (entries_[i].state && i != keep) states_.push_back(&*entries_[i].state);
  }
  return cache_.BlocksHeldOnlyBy(states_);
}

PrefixCacheStats PrefixCache::stats() const {
  PrefixCacheStats stats{.lookups = lookups_, .hits = hits_, .evictions = evictions_};
  for (const Entry& e : entries_) {
    if (!e.state) continue;
    ++stats.prefixes;
    stats.tokens += e.state->length();
  }
  stats.index_bytes = std::ssize(chunks_) * kChunkNodes * int64_t{sizeof(Node)};
  return stats;
}

}  // namespace foresight
