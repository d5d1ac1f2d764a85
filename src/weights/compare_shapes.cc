#include "weights/compare_shapes.h"

#include <fmt/ranges.h>

namespace foresight {

void CompareShapes(const ModelConfig& model, const ModelConfig& draft, ProblemList* problems) {
  const auto compare = [&](std::string_view name, const auto& want, const auto& got) {
    if (want != got) problems->Add("{}: the model has {}, the draft head's config {}", name, want, got);
  };
  const auto ratios = [](const ModelConfig& c) {
    std::vector<int> list;
    for (const LayerKind kind : c.layers) list.push_back(static_cast<int>(kind));
    return fmt::format("{}", list);
  };
#define FORESIGHT_COMPARE(field) compare(#field, model.field, draft.field)
  FORESIGHT_COMPARE(vocab_size);
  FORESIGHT_COMPARE(hidden_size);
  FORESIGHT_COMPARE(num_hidden_layers);
  FORESIGHT_COMPARE(num_attention_heads);
  FORESIGHT_COMPARE(head_dim);
  FORESIGHT_COMPARE(qk_rope_head_dim);
  FORESIGHT_COMPARE(q_lora_rank);
  FORESIGHT_COMPARE(o_groups);
  FORESIGHT_COMPARE(o_lora_rank);
  FORESIGHT_COMPARE(sliding_window);
  compare("compress_ratios", ratios(model), ratios(draft));
  FORESIGHT_COMPARE(rope_theta);
  FORESIGHT_COMPARE(compress_rope_theta);
  FORESIGHT_COMPARE(rope_scaling.factor);
  FORESIGHT_COMPARE(rope_scaling.original_max_position_embeddings);
  FORESIGHT_COMPARE(rope_scaling.beta_fast);
  FORESIGHT_COMPARE(rope_scaling.beta_slow);
  FORESIGHT_COMPARE(index_n_heads);
  FORESIGHT_COMPARE(index_head_dim);
  FORESIGHT_COMPARE(index_topk);
  FORESIGHT_COMPARE(hc_mult);
  FORESIGHT_COMPARE(hc_sinkhorn_iters);
  FORESIGHT_COMPARE(hc_eps);
  FORESIGHT_COMPARE(rms_norm_eps);
  FORESIGHT_COMPARE(n_routed_experts);
  FORESIGHT_COMPARE(num_experts_per_tok);
  FORESIGHT_COMPARE(moe_intermediate_size);
  FORESIGHT_COMPARE(num_hash_layers);
  FORESIGHT_COMPARE(routed_scaling_factor);
  FORESIGHT_COMPARE(swiglu_limit);
#undef FORESIGHT_COMPARE
}

}  // namespace foresight
