#include "model/costs.h"

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

}  // namespace foresight
