#include "model/costs.h"

namespace foresight {
namespace {

// Visits every weight that one row reads, with how often a row reads one of its kind.
template <typename Visit>
void VisitRowWeights(const ModelWeights& weights, Visit&& visit) {
  const ModelConfig& c = weights.config;
  for (const BlockWeights& block : weights.layers) {
    visit(block.hc_attn.fn, 1);
    visit(block.hc_ffn.fn, 1);
    const AttentionWeights& attn = block.attn;
    for (const MatrixView& w : {attn.wq_a, attn.wq_b, attn.wkv, attn.wo_a, attn.wo_b}) visit(w, 1);
    auto compressor = [&](const CompressorWeights& w) {
      visit(w.wkv, 1);
      visit(w.wgate, 1);
    };
    if (attn.compressor) compressor(*attn.compressor);
    if (attn.indexer) {
      visit(attn.indexer->wq_b, 1);
      visit(attn.indexer->weights_proj, 1);
      compressor(attn.indexer->compressor);
    }
    visit(block.ffn.gate, 1);
    auto expert = [&](const ExpertWeights& w, int count) {
      for (const MatrixView& matrix : {w.w1, w.w3, w.w2}) visit(matrix, count);
    };
    expert(block.ffn.experts.front(), c.num_experts_per_tok);
    expert(block.ffn.shared, 1);
  }
  visit(weights.hc_head.fn, 1);
}

}  // namespace

int64_t WeightBytesPerToken(const ModelWeights& weights) {
  int64_t bytes = weights.head.bytes();
  VisitRowWeights(weights, [&](const MatrixView& w, int count) { bytes += w.bytes() * count; });
  return bytes;
}

int64_t MatrixFlopsPerRow(const ModelWeights& weights, bool with_logits) {
  int64_t flops = with_logits ? 2 * weights.head.rows * weights.head.cols : 0;
  VisitRowWeights(weights, [&](const MatrixView& w, int count) {
    // wo_a is block diagonal: each output reads its own group only, and cols is that group's width.
    flops += 2 * w.rows * w.cols * count;
  });
  return flops;
}

}  // namespace foresight
