// What a sequence keeps of every layer, and where: byte sizes and offsets, decided once from the
// configuration.
//
// A sequence has two kinds of memory (model spec 4.1):
// - blocks of 256 tokens, one contiguous chunk each: for each CSA layer 64 compressed entries and 64 index
//   keys, for each HCA layer 2 entries. They grow with the sequence and are shared between forks.
// - a fixed part: for each layer a ring of raw keys, and a ring of rows for each compressor; with a DSpark
//   head a ring of what it taps. Its size doesn't depend on the length.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/cache_view.h"
#include "weights/config.h"

namespace foresight {

// The allocation unit in tokens; a multiple of every compression ratio.
inline constexpr int64_t kBlockTokens = 256;

// Items of one layer within a block. item_bytes 0: the layer has none.
struct PagedLayout {
  int64_t offset = 0;
  int64_t item_bytes = 0;
  int64_t per_block = 1;

  int64_t tokens_per_item() const { return kBlockTokens / per_block; }
};

// A ring of rows by position within the fixed part. slots 0: the layer has none.
struct RingLayout {
  int64_t offset = 0;
  int64_t item_bytes = 0;
  int64_t slots = 0;
};

struct LayerCacheLayout {
  LayerKind kind = LayerKind::kSwa;
  RingLayout window;           // all kinds: sliding_window + slack raw keys
  PagedLayout compressed;      // CSA, HCA
  PagedLayout index_keys;      // CSA
  RingLayout compressor_rows;  // CSA: 8 + slack rows of a[2n], b[2n] f32; HCA: 128 + slack rows of a[n], b[n]
  RingLayout index_compressor_rows;  // CSA: 8 + slack rows of a[2n], b[2n] f32, n = index_head_dim
};

struct CacheLayout {
  EntryLayout entry;         // raw and compressed keys
  IndexKeyLayout index_key;  // CSA
  int64_t slack_tokens = 0;  // how far back a sequence can be truncated exactly
  int num_main_layers = 0;
  std::vector<LayerCacheLayout> layers;  // the main layers, then the draft layers (all SWA)
  // DSpark: sliding_window + slack rows of num_taps*D values (float32, packed: bf16), of which the draft
  // layers' rows are made when somebody drafts.
  RingLayout taps;
  int64_t block_bytes = 0;  // 0 when every layer is SWA: no blocks are needed then
  int64_t fixed_bytes = 0;
  // Tells layouts apart: two equal ones give the same bytes the same meaning. Covers the shape of the cache,
  // not the weights that filled it.
  uint64_t fingerprint = 0;
};

// `slack_tokens` (0 or more) rows of every ring beyond what the model needs: the longest verification that
// can be taken back. Sections are aligned to 64 bytes.
CacheLayout MakeCacheLayout(const ModelConfig& config, CacheFormat format, int64_t slack_tokens = 64);

// Bytes that one more token costs in the long run, alignment left out: what blocks store, divided by tokens.
double KvBytesPerToken(const CacheLayout& layout);

}  // namespace foresight
