// Test support: a stand-in for the model that fills a sequence's memory with bytes that follow from the
// tokens, and checks that whatever a real model would read is there.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kv_cache/sequence_state.h"

namespace foresight {

inline ModelConfig PatternConfig() {
  ModelConfig config;
  config.head_dim = 96;
  config.qk_rope_head_dim = 32;
  config.index_head_dim = 32;
  config.sliding_window = 16;
  config.layers = {LayerKind::kSwa, LayerKind::kCsa, LayerKind::kHca};
  config.num_hidden_layers = 3;
  config.num_draft_layers = 1;
  return config;
}

// Tokens of a sequence with the bytes that they stand for.
class PatternWriter {
 public:
  explicit PatternWriter(const CacheLayout& layout) : layout_(layout) {}

  // Runs a step of n tokens that begin with `first_token`; the rows of all layers are written.
  Status Step(SequenceState& sequence, int64_t n, uint64_t first_token) {
    RETURN_IF_ERROR(sequence.Reserve(n));
    const int64_t begin = sequence.length();
    tokens_.resize(begin);
    prefixes_.resize(begin);
    for (int64_t i = 0; i < n; ++i) {
      tokens_.push_back(first_token + i);
      prefixes_.push_back(Mix(begin + i == 0 ? 1 : prefixes_.back(), tokens_.back()));
    }
    for (int l = 0; l < layout_.num_main_layers; ++l) {
      ForEachRing(sequence, l, [&](const RingView& ring, int64_t tag) {
        for (int64_t p = std::max(begin, begin + n - ring.slots); p < begin + n; ++p) {
          Fill(ring[p], ring.item_bytes, Mix(tag, prefixes_[p]));
        }
      });
      ForEachPaged(sequence, l, [&](const PagedView& paged, int64_t ratio, int64_t tag) {
        for (int64_t s = begin / ratio; s < (begin + n) / ratio; ++s) {
          Fill(paged[s], paged.item_bytes, Mix(tag, prefixes_[(s + 1) * ratio - 1]));
        }
      });
    }
    sequence.Advance(n);
    return Status();
  }

  // The draft layers take in tokens up to `length`, which the main layers have seen.
  void StepDraft(SequenceState& sequence, int64_t length) {
    const int64_t begin = sequence.draft_length();
    draft_prefixes_.assign(prefixes_.begin(), prefixes_.begin() + length);
    for (int l = layout_.num_main_layers; l < static_cast<int>(layout_.layers.size()); ++l) {
      ForEachRing(sequence, l, [&](const RingView& ring, int64_t tag) {
        for (int64_t p = std::max(begin, length - ring.slots); p < length; ++p) {
          Fill(ring[p], ring.item_bytes, Mix(tag, draft_prefixes_[p]));
        }
      });
    }
    sequence.AdvanceDraft(length - begin);
  }

  // The number of rows and entries that the next position may read and that are wrong.
  int64_t CountWrong(const SequenceState& sequence) const {
    int64_t wrong = 0;
    for (int l = 0; l < static_cast<int>(layout_.layers.size()); ++l) {
      const bool draft = l >= layout_.num_main_layers;
      const int64_t length = draft ? sequence.draft_length() : sequence.length();
      const std::vector<uint64_t>& prefixes = draft ? draft_prefixes_ : prefixes_;
      ForEachRing(sequence, l, [&](const RingView& ring, int64_t tag) {
        const int64_t needed = ring.slots - layout_.slack_tokens;
        for (int64_t p = std::max<int64_t>(0, length - needed); p < length; ++p) {
          wrong += !IsFilled(ring[p], ring.item_bytes, Mix(tag, prefixes[p]));
        }
      });
      ForEachPaged(sequence, l, [&](const PagedView& paged, int64_t ratio, int64_t tag) {
        for (int64_t s = 0; s < length / ratio; ++s) {
          wrong += !IsFilled(paged[s], paged.item_bytes, Mix(tag, prefixes[(s + 1) * ratio - 1]));
        }
      });
    }
    return wrong;
  }

 private:
  static uint64_t Mix(uint64_t a, uint64_t b) {
    uint64_t z = a * 0x9e3779b97f4a7c15 + b + 1;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    return z ^ (z >> 27);
  }
  static void Fill(std::byte* item, int64_t bytes, uint64_t value) {
    for (int64_t i = 0; i < bytes; i += 4) {
      const uint32_t word = static_cast<uint32_t>(value + i);
      std::memcpy(item + i, &word, 4);
    }
  }
  static bool IsFilled(const std::byte* item, int64_t bytes, uint64_t value) {
    for (int64_t i = 0; i < bytes; i += 4) {
      const uint32_t word = static_cast<uint32_t>(value + i);
      if (std::memcmp(item + i, &word, 4) != 0) return false;
    }
    return true;
  }
  template <typename Visit>
  static void ForEachRing(const SequenceState& sequence, int layer, Visit visit) {
    const LayerCacheView view = sequence.View(layer);
    int64_t tag = 8 * layer;
    for (const RingView* ring : {&view.window, &view.compressor_rows, &view.index_compressor_rows}) {
      if (ring->slots > 0) visit(*ring, ++tag);
    }
  }
  template <typename Visit>
  void ForEachPaged(const SequenceState& sequence, int layer, Visit visit) const {
    const LayerCacheView view = sequence.View(layer);
    const int64_t ratio = static_cast<int64_t>(layout_.layers[layer].kind);
    int64_t tag = 8 * layer + 4;
    for (const PagedView* paged : {&view.compressed, &view.index_keys}) {
      if (paged->item_bytes > 0) visit(*paged, ratio, ++tag);
    }
  }

  CacheLayout layout_;
  std::vector<uint64_t> tokens_;
  std::vector<uint64_t> prefixes_;        // of each position: a hash of the tokens up to it
  std::vector<uint64_t> draft_prefixes_;  // what the draft layers have seen
};

}  // namespace foresight
