#include "kv_cache/cache_layout.h"

#include <gtest/gtest.h>

#include "kv_cache/pattern_writer.h"

namespace foresight {
namespace {

// The released shape: layers 0 and 1 SWA, then CSA and HCA by turns (model spec 1.2).
ModelConfig FlashShape() {
  ModelConfig config;
  config.head_dim = 512;
  config.index_head_dim = 128;
  config.num_hidden_layers = 43;
  config.layers.assign(2, LayerKind::kSwa);
  for (int l = 2; l < 43; ++l) config.layers.push_back(l % 2 == 0 ? LayerKind::kCsa : LayerKind::kHca);
  config.num_draft_layers = 3;
  return config;
}

TEST(CacheLayout, FlashBytes) {
  const CacheLayout layout = MakeCacheLayout(FlashShape(), CacheFormat::kPacked);
  EXPECT_EQ(layout.layers.size(), 46u);
  EXPECT_EQ(layout.num_main_layers, 43);
  // 64 entries of 584 bytes and keys of 68 for CSA, 2 entries for HCA (1168 bytes, aligned to 1216).
  EXPECT_EQ(layout.block_bytes, 21 * 64 * (584 + 68) + 20 * 1216);
  EXPECT_DOUBLE_EQ(KvBytesPerToken(layout), 21 * (584 + 68) / 4.0 + 20 * 584 / 128.0);
  const int64_t windows = 46 * (128 + 64) * 584;
  const int64_t csa = 21 * (8 + 64) * (2 * 1024 + 2 * 256) * 4;
  const int64_t hca = 20 * (128 + 64) * (2 * 512) * 4;
  EXPECT_EQ(layout.fixed_bytes, windows + csa + hca);
}

TEST(CacheLayout, SectionsDoNotOverlap) {
  for (CacheFormat format : {CacheFormat::kFloat32, CacheFormat::kPacked}) {
    const CacheLayout layout = MakeCacheLayout(PatternConfig(), format, 5);
    int64_t block_end = 0;
    int64_t fixed_end = 0;
    for (const LayerCacheLayout& layer : layout.layers) {
      for (const PagedLayout* paged : {&layer.compressed, &layer.index_keys}) {
        if (paged->item_bytes == 0) continue;
        EXPECT_GE(paged->offset, block_end);
        EXPECT_EQ(paged->offset % 64, 0);
        EXPECT_EQ(paged->tokens_per_item(), static_cast<int64_t>(layer.kind));
        block_end = paged->offset + paged->item_bytes * paged->per_block;
      }
      for (const RingLayout* ring : {&layer.window, &layer.compressor_rows, &layer.index_compressor_rows}) {
        if (ring->slots == 0) continue;
        EXPECT_GE(ring->offset, fixed_end);
        EXPECT_EQ(ring->offset % 64, 0);
        fixed_end = ring->offset + ring->item_bytes * ring->slots;
      }
    }
    EXPECT_GE(layout.block_bytes, block_end);
    EXPECT_GE(layout.fixed_bytes, fixed_end);
  }
}

TEST(CacheLayout, FingerprintTellsLayoutsApart) {
  const ModelConfig config = PatternConfig();
  const uint64_t fingerprint = MakeCacheLayout(config, CacheFormat::kFloat32).fingerprint;
  EXPECT_EQ(fingerprint, MakeCacheLayout(config, CacheFormat::kFloat32).fingerprint);
  EXPECT_NE(fingerprint, MakeCacheLayout(config, CacheFormat::kPacked).fingerprint);
  EXPECT_NE(fingerprint, MakeCacheLayout(config, CacheFormat::kFloat32, 63).fingerprint);
  ModelConfig other = config;
  std::swap(other.layers[0], other.layers[1]);
  EXPECT_NE(fingerprint, MakeCacheLayout(other, CacheFormat::kFloat32).fingerprint);
  other = config;
  other.index_head_dim = 64;
  EXPECT_NE(fingerprint, MakeCacheLayout(other, CacheFormat::kFloat32).fingerprint);
}

TEST(CacheLayout, WithoutCompressionThereAreNoBlocks) {
  ModelConfig config = PatternConfig();
  config.layers.assign(3, LayerKind::kSwa);
  const CacheLayout layout = MakeCacheLayout(config, CacheFormat::kFloat32);
  EXPECT_EQ(layout.block_bytes, 0);
  EXPECT_EQ(KvBytesPerToken(layout), 0);
}

}  // namespace
}  // namespace foresight
