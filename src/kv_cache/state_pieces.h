// Which bytes of a sequence's memory mean something: what a fork copies and a snapshot holds. Internal to
// kv_cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kv_cache/cache_layout.h"

namespace foresight {

// How far a group of layers is, and which ring rows are valid: [furthest - slots, length).
struct LengthMark {
  int64_t length = 0;
  int64_t furthest = 0;

  void Advance(int64_t n) {
    length += n;
    furthest = std::max(furthest, length);
  }
  void Cut(int64_t n) {
    length = n;
    if (n == 0) furthest = 0;
  }
  // The lowest length for which the rings still hold every row, given rings with `slack` rows to spare.
  int64_t LowestExact(int64_t slack) const { return std::max<int64_t>(furthest - slack, 0); }
};

struct StateMarks {
  LengthMark main;
  LengthMark draft;

  // The first position whose taps are in a ring of `slots` and not in the draft layers.
  int64_t PendingTaps(int64_t slots) const {
    return std::min(std::max(draft.length, main.furthest - slots), main.length);
  }
};

// A run of valid bytes: of block `block` of the sequence, or of the fixed part (-1).
struct StatePiece {
  int64_t block = -1;
  int64_t offset = 0;
  int64_t bytes = 0;
};

// The valid rows of every ring, in the order of their positions (two runs when they wrap around).
template <typename Visit>
void ForEachRingPiece(const CacheLayout& layout, const StateMarks& marks, Visit visit) {
  const auto visit_rows = [&visit](const RingLayout& ring, int64_t position, int64_t end) {
    while (ring.slots > 0 && position < end) {
      const int64_t slot = position % ring.slots;
      const int64_t rows = std::min(ring.slots - slot, end - position);
      visit(StatePiece{-1, ring.offset + slot * ring.item_bytes, rows * ring.item_bytes});
      position += rows;
    }
  };
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const LayerCacheLayout& layer = layout.layers[l];
    const LengthMark& mark = static_cast<int>(l) < layout.num_main_layers ? marks.main : marks.draft;
    for (const RingLayout* ring : {&layer.window, &layer.compressor_rows, &layer.index_compressor_rows}) {
      visit_rows(*ring, std::max<int64_t>(mark.furthest - ring->slots, 0), mark.length);
    }
  }
  visit_rows(layout.taps, marks.PendingTaps(layout.taps.slots), marks.main.length);
}

// The complete entries and keys of every block.
template <typename Visit>
void ForEachBlockPiece(const CacheLayout& layout, const StateMarks& marks, Visit visit) {
  for (int64_t begin = 0; begin < marks.main.length; begin += kBlockTokens) {
    const int64_t tokens = std::min(marks.main.length - begin, kBlockTokens);
    for (const LayerCacheLayout& layer : layout.layers) {
      for (const PagedLayout* paged : {&layer.compressed, &layer.index_keys}) {
        const int64_t bytes = tokens / paged->tokens_per_item() * paged->item_bytes;
        if (bytes > 0) visit(StatePiece{begin / kBlockTokens, paged->offset, bytes});
      }
    }
  }
}

}  // namespace foresight
