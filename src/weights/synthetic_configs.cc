// The configs by name of synthetic.h: the released shapes and the small test models.
#include <charconv>
#include <vector>

#include "weights/synthetic.h"

namespace foresight {
namespace {

// What Flash and Pro have in common (model spec 1.1).
ModelConfig ReleasedConfig() {
  ModelConfig c;
  c.vocab_size = 129280;
  c.head_dim = 512;
  c.qk_rope_head_dim = 64;
  c.o_lora_rank = 1024;
  c.sliding_window = 128;
  c.max_position_embeddings = 1048576;
  c.index_n_heads = 64;
  c.index_head_dim = 128;
  c.num_experts_per_tok = 6;
  c.num_hash_layers = 3;
  c.swiglu_limit = 10;
  return c;
}

void KeepFirst(int num_layers, int num_experts, ModelConfig* c) {
  CHECK(num_layers >= 1 && num_layers <= c->num_hidden_layers, "{} layers of {}", num_layers,
        c->num_hidden_layers);
  CHECK(num_experts >= 0 && num_experts <= c->n_routed_experts, "{} experts of {}", num_experts,
        c->n_routed_experts);
  c->num_hidden_layers = num_layers;
  c->layers.resize(static_cast<size_t>(num_layers));
  c->num_hash_layers = std::min(c->num_hash_layers, num_layers);
  if (num_experts == 0) return;
  c->n_routed_experts = num_experts;
  c->num_experts_per_tok = std::min(c->num_experts_per_tok, num_experts);
}

}  // namespace

ModelConfig FlashConfig(int num_layers, int num_experts) {
  ModelConfig c = ReleasedConfig();
  c.hidden_size = 4096;
  c.num_hidden_layers = 43;
  c.num_attention_heads = 64;
  c.q_lora_rank = 1024;
  c.o_groups = 8;
  c.index_topk = 512;
  c.n_routed_experts = 256;
  c.moe_intermediate_size = 2048;
  c.routed_scaling_factor = 1.5;
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    c.layers.push_back(i < 2 ? LayerKind::kSwa : i % 2 == 0 ? LayerKind::kCsa : LayerKind::kHca);
  }
  KeepFirst(num_layers, num_experts, &c);
  return c;
}

ModelConfig ProConfig(int num_layers, int num_experts) {
  ModelConfig c = ReleasedConfig();
  c.hidden_size = 7168;
  c.num_hidden_layers = 61;
  c.num_attention_heads = 128;
  c.q_lora_rank = 1536;
  c.o_groups = 16;
  c.index_topk = 1024;
  c.n_routed_experts = 384;
  c.moe_intermediate_size = 3072;
  c.routed_scaling_factor = 2.5;
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    c.layers.push_back(i >= 2 && i % 2 == 0 ? LayerKind::kCsa : LayerKind::kHca);
  }
  KeepFirst(num_layers, num_experts, &c);
  return c;
}

ModelConfig TinyAConfig() {
  constexpr LayerKind kSwa = LayerKind::kSwa, kCsa = LayerKind::kCsa, kHca = LayerKind::kHca;
  ModelConfig c;
  c.vocab_size = 512;
  c.hidden_size = 256;
  c.num_hidden_layers = 8;
  c.layers = {kSwa, kHca, kCsa, kHca, kCsa, kSwa, kCsa, kHca};
  c.num_draft_layers = 1;
  c.num_nextn_predict_layers = 1;
  c.num_hash_layers = 3;
  c.num_attention_heads = 4;
  c.head_dim = 128;
  c.q_lora_rank = 128;
  c.o_groups = 2;
  c.o_lora_rank = 128;
  c.sliding_window = 128;
  c.rope_scaling.original_max_position_embeddings = 256;
  c.max_position_embeddings = 4096;
  c.index_n_heads = 4;
  c.index_head_dim = 128;
  c.index_topk = 8;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 128;
  c.routed_scaling_factor = 1.5;
  c.swiglu_limit = 10;
  return c;
}

ModelConfig TinyBConfig() {
  constexpr LayerKind kSwa = LayerKind::kSwa, kCsa = LayerKind::kCsa, kHca = LayerKind::kHca;
  ModelConfig c = TinyAConfig();
  c.num_hidden_layers = 6;
  c.layers = {kSwa, kSwa, kCsa, kHca, kCsa, kHca};
  c.num_attention_heads = 16;
  c.head_dim = 512;
  return c;
}

void AddDSparkHead(ModelConfig* config, int num_stages) {
  constexpr int kTaps = 3;
  config->num_draft_layers = num_stages;
  config->num_nextn_predict_layers = 1;  // as the releases have it, whatever the number of stages
  config->dspark = {};
  config->dspark.block_size = 5;
  config->dspark.noise_token_id = std::min(128799, config->vocab_size - 1);
  // Flash 256, Pro 512; small models in proportion.
  config->dspark.markov_rank = config->hidden_size > 4096 ? 512 : config->hidden_size / 16;
  const int first = std::max(0, config->num_hidden_layers - kTaps);
  for (int i = first; i < config->num_hidden_layers; ++i) config->dspark.target_layer_ids.push_back(i);
}

namespace {

// The number behind a colon, 1 to `max`; `otherwise` when there is no colon.
Result<int> NumberAfterColon(std::string_view spec, std::string_view part, int max, int otherwise) {
  const size_t colon = part.find(':');
  if (colon == std::string_view::npos) return otherwise;
  const std::string_view digits = part.substr(colon + 1);
  int number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size() || number < 1 || number > max) {
    return InvalidArgument("synthetic model {}: want 1 to {} behind {}:, got \"{}\"", spec, max,
                           part.substr(0, colon), digits);
  }
  return number;
}

Result<ModelConfig> ParseTarget(std::string_view spec, std::string_view target, int num_experts) {
  const std::string_view name = target.substr(0, target.find(':'));
  if (name == "tiny-a" || name == "tiny-b") {
    if (name != target) return InvalidArgument("synthetic model {}: {} has one size", spec, name);
    if (num_experts != 0) return InvalidArgument("synthetic model {}: the number of experts is fixed", spec);
    return name == "tiny-a" ? TinyAConfig() : TinyBConfig();
  }
  if (name != "flash" && name != "pro") {
    return InvalidArgument("synthetic model {}: want flash:LAYERS, pro:LAYERS, tiny-a or tiny-b", spec);
  }
  const ModelConfig whole = name == "flash" ? FlashConfig() : ProConfig();
  ASSIGN_OR_RETURN(const int num_layers,
                   NumberAfterColon(spec, target, whole.num_hidden_layers, whole.num_hidden_layers));
  if (num_experts < 0 || num_experts > whole.n_routed_experts) {
    return InvalidArgument("synthetic model {}: want at most {} experts, got {}", spec,
                           whole.n_routed_experts, num_experts);
  }
  return name == "flash" ? FlashConfig(num_layers, num_experts) : ProConfig(num_layers, num_experts);
}

}  // namespace

Result<ModelConfig> ParseSyntheticSpec(std::string_view spec, int num_experts) {
  const size_t plus = spec.find('+');
  ASSIGN_OR_RETURN(ModelConfig config, ParseTarget(spec, spec.substr(0, plus), num_experts));
  if (plus == std::string_view::npos) return config;
  const std::string_view head = spec.substr(plus + 1);
  if (head.substr(0, head.find(':')) == "dspark") {
    ASSIGN_OR_RETURN(const int num_stages, NumberAfterColon(spec, head, /*max=*/16, /*otherwise=*/3));
    AddDSparkHead(&config, num_stages);
  } else if (head == "mtp") {
    config.num_draft_layers = 1;
    config.num_nextn_predict_layers = 1;
  } else {
    return InvalidArgument("synthetic model {}: want +dspark, +dspark:STAGES or +mtp, got +{}", spec, head);
  }
  return config;
}

}  // namespace foresight
