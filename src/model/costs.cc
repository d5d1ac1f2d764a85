#include "model/costs.h"

#include <algorithm>

namespace foresight {
namespace {

// Visits every weight matrix that one row reads; the head is not one of them.
template <typename Visit>
void VisitRowWeights(const ModelWeights& weights, Visit&& visit) {
  for (const BlockWeights& block : weights.layers) {
    visit(block.hc_attn.fn);
    visit(block.hc_ffn.fn);
    const AttentionWeights& attn = block.attn;
    for (const MatrixView& w : {attn.wq_a, attn.wq_b, attn.wkv, attn.wo_a, attn.wo_b}) visit(w);
    auto compressor = [&](const CompressorWeights& w) {
      visit(w.wkv);
      visit(w.wgate);
    };
    if (attn.compressor) compressor(*attn.compressor);
    if (attn.indexer) {
      visit(attn.indexer->wq_b);
      visit(attn.indexer->weights_proj);
      compressor(attn.indexer->compressor);
    }
    visit(block.ffn.gate);
    auto expert = [&](const ExpertWeights& w) {
      for (const MatrixView& matrix : {w.w1, w.w3, w.w2}) visit(matrix);
    };
    for (int e = 0; e < weights.config.num_experts_per_tok; ++e) expert(block.ffn.experts[e]);
    expert(block.ffn.shared);
  }
  visit(weights.hc_head.fn);
}

}  // namespace

int64_t WeightBytesPerToken(const ModelWeights& weights) {
  int64_t bytes = weights.head.bytes();
  VisitRowWeights(weights, [&](const MatrixView& w) { bytes += w.bytes(); });
  return bytes;
}

std::vector<std::span<const std::byte>> WeightsOfToken(const ModelWeights& weights) {
  std::vector<std::span<const std::byte>> bytes;
  auto add = [&](const MatrixView& w) {
    const size_t data_bytes = static_cast<size_t>(w.rows * w.row_bytes());
    bytes.push_back({w.data, data_bytes});
    if (w.scales != nullptr) {
      bytes.push_back(
          {reinterpret_cast<const std::byte*>(w.scales), static_cast<size_t>(w.bytes()) - data_bytes});
    }
  };
  VisitRowWeights(weights, add);
  add(weights.head);
  return bytes;
}

int64_t MatrixFlopsPerRow(const ModelWeights& weights, bool with_logits) {
  int64_t flops = with_logits ? 2 * weights.head.rows * weights.head.cols : 0;
  VisitRowWeights(weights, [&](const MatrixView& w) {
    // wo_a is block diagonal: each output reads its own group only, and cols is that group's width.
    flops += 2 * w.rows * w.cols;
  });
  return flops;
}

int64_t StepMemoryBytes(const ModelConfig& config, const CacheLayout& layout, int rows) {
  const int64_t heads = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t index_heads = int64_t{config.index_n_heads} * config.index_head_dim;
  const int64_t compressed = 4 * (int64_t{config.head_dim} + config.index_head_dim);
  const int64_t attention = 2 * heads + index_heads + compressed + config.q_lora_rank + config.head_dim +
                            int64_t{config.o_groups} * config.o_lora_rank + config.index_topk;
  const int64_t slots = config.num_experts_per_tok + 1;
  const int64_t moe = config.n_routed_experts +
                      slots * (2 * int64_t{config.moe_intermediate_size} + 2 * int64_t{config.hidden_size});
  const int64_t block = 2 * int64_t{config.hidden_size} + std::max(attention, moe);
  const int64_t streams = int64_t{config.hc_mult} * config.hidden_size;
  const int64_t floats_per_row = streams + std::max<int64_t>(block, config.vocab_size + config.hidden_size);
  const int64_t entries = (int64_t{config.num_hidden_layers} + 1) * layout.entry.bytes();
  // Kernels keep quantised copies of their inputs beside them: half as much again covers it.
  return rows * (floats_per_row * 6 + entries);
}

int64_t DraftMemoryBytes(const ModelConfig& config, int rows) {
  if (config.num_draft_layers == 0) return 0;
  const int64_t state = config.dspark.markov_rank;  // of the RNN head
  return rows * (int64_t{config.hidden_size} + config.vocab_size + state + 64) * int64_t{sizeof(float)};
}

}  // namespace foresight
