#include "kv_cache/cache_layout.h"

#include <xxhash.h>

#include "base/check.h"

namespace foresight {
namespace {

constexpr int64_t kAlignment = 64;

int64_t Align(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Hands out aligned sections one behind the other.
struct Sections {
  int64_t end = 0;

  int64_t Add(int64_t bytes) {
    const int64_t offset = end;
    end = Align(end + bytes);
    return offset;
  }
  RingLayout Ring(int64_t item_bytes, int64_t slots) { return {Add(item_bytes * slots), item_bytes, slots}; }
  PagedLayout Paged(int64_t item_bytes, int64_t ratio) {
    const int64_t per_block = kBlockTokens / ratio;
    return {Add(item_bytes * per_block), item_bytes, per_block};
  }
};

// The rows that a compressor of ratio r may still need: the open window, and before it the previous one when
// windows overlap (r = 4, c = 2 halves of the channels).
RingLayout CompressorRing(Sections& fixed, LayerKind kind, int64_t dim, int64_t slack_tokens) {
  const int64_t overlap = kind == LayerKind::kCsa ? 2 : 1;
  const int64_t row_bytes = int64_t{2} * overlap * dim * int64_t{sizeof(float)};
  return fixed.Ring(row_bytes, overlap * static_cast<int64_t>(kind) + slack_tokens);
}

uint64_t Fingerprint(const CacheLayout& layout) {
  std::vector<int64_t> numbers = {static_cast<int64_t>(layout.entry.format),
                                  layout.entry.dim,
                                  layout.entry.rope_dim,
                                  layout.index_key.dim,
                                  layout.slack_tokens,
                                  layout.num_main_layers,
                                  static_cast<int64_t>(layout.layers.size())};
  for (const LayerCacheLayout& layer : layout.layers) {
    numbers.insert(numbers.end(),
                   {static_cast<int64_t>(layer.kind), layer.window.item_bytes, layer.window.slots});
  }
  numbers.push_back(layout.taps.item_bytes);
  return XXH3_64bits(numbers.data(), numbers.size() * sizeof(numbers[0]));
}

}  // namespace

CacheLayout MakeCacheLayout(const ModelConfig& config, CacheFormat format, int64_t slack_tokens) {
  CHECK(slack_tokens >= 0);
  CHECK(static_cast<int>(config.layers.size()) == config.num_hidden_layers);
  CacheLayout layout;
  layout.entry = {format, config.head_dim, config.qk_rope_head_dim};
  layout.index_key = {format, config.index_head_dim};
  layout.slack_tokens = slack_tokens;
  layout.num_main_layers = config.num_hidden_layers;
  std::vector<LayerKind> kinds = config.layers;
  kinds.resize(kinds.size() + config.num_draft_layers, LayerKind::kSwa);

  Sections block;
  Sections fixed;
  for (LayerKind kind : kinds) {
    LayerCacheLayout layer;
    layer.kind = kind;
    layer.window = fixed.Ring(layout.entry.bytes(), config.sliding_window + slack_tokens);
    if (kind != LayerKind::kSwa) {
      layer.compressed = block.Paged(layout.entry.bytes(), static_cast<int64_t>(kind));
      layer.compressor_rows = CompressorRing(fixed, kind, config.head_dim, slack_tokens);
    }
    if (kind == LayerKind::kCsa) {
      layer.index_keys = block.Paged(layout.index_key.bytes(), static_cast<int64_t>(kind));
      layer.index_compressor_rows = CompressorRing(fixed, kind, config.index_head_dim, slack_tokens);
    }
    layout.layers.push_back(layer);
  }
  if (config.has_dspark()) {
    const int64_t values = std::ssize(config.dspark.target_layer_ids) * config.hidden_size;
    layout.taps =
        fixed.Ring(values * (format == CacheFormat::kFloat32 ? 4 : 2), config.sliding_window + slack_tokens);
  }
  layout.block_bytes = block.end;
  layout.fixed_bytes = fixed.end;
  layout.fingerprint = Fingerprint(layout);
  return layout;
}

double KvBytesPerToken(const CacheLayout& layout) {
  int64_t bytes = 0;  // of a block
  for (const LayerCacheLayout& layer : layout.layers) {
    bytes += layer.compressed.item_bytes * layer.compressed.per_block;
    bytes += layer.index_keys.item_bytes * layer.index_keys.per_block;
  }
  return static_cast<double>(bytes) / kBlockTokens;
}

}  // namespace foresight
