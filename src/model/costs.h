// What a row costs in bytes and operations: the denominators of every speed that is reported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kv_cache/cache_layout.h"
#include "weights/model_weights.h"

namespace foresight {

// Bytes of weights that one decoded token reads at batch 1: everything but the embedding table, norms and
// other small vectors, draft heads, and the experts that are not selected.
int64_t WeightBytesPerToken(const ModelWeights& weights);
// Where such bytes lie: what a plain read must read to be compared with. Every layer's first experts stand
// for the selected ones.
std::vector<std::span<const std::byte>> WeightsOfToken(const ModelWeights& weights);

// Floating-point operations of one row's matrix products with weights (2 per multiply-add), its logits
// counted or not; attention over the cache is not in it.
int64_t MatrixFlopsPerRow(const ModelWeights& weights, bool with_logits);

// Bytes of activations and kernel scratch of a step of `rows` rows, all of which want logits: what the
// model's buffers add up to, rounded up for the kernels' own scratch.
int64_t StepMemoryBytes(const ModelConfig& config, const CacheLayout& layout, int rows);
// Bytes of what drafts of `rows` rows leave behind for their verification: logits above all. 0 without a
// draft head.
int64_t DraftMemoryBytes(const ModelConfig& config, int rows);

}  // namespace foresight
