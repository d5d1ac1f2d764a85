// The model's configuration, as config.json of the official checkpoints states it (model spec 1.1),
// validated.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "kernels/sequential_head/sequential_head.h"

namespace foresight {

// What a layer attends to beyond its raw sliding window; the value is the compression ratio (model spec 1.2).
enum class LayerKind : int {
  kSwa = 0,    // the window alone
  kCsa = 4,    // compressed sparse attention: the lightning indexer picks entries of 4 tokens
  kHca = 128,  // heavily compressed attention: every entry of 128 tokens
};

std::string_view LayerKindName(LayerKind kind);  // "SWA", "CSA", "HCA"

struct RopeScaling {  // YaRN, for CSA and HCA layers only (model spec 1.3)
  double factor = 16;
  int64_t original_max_position_embeddings = 65536;
  double beta_fast = 32;
  double beta_slow = 1;
};

std::string_view MarkovHeadTypeName(MarkovHeadType type);  // "vanilla", "gated", "rnn"

struct DSparkConfig {  // the refresh releases' draft head (dspark.md 6.1); present when dspark_block_size is
  int block_size = 0;
  TokenId noise_token_id = 0;
  std::vector<int> target_layer_ids;
  // 0: no Markov head, every position is drafted on its own (the DFlash-like baseline). kRankOfTensors: the
  // config leaves it to the tensors; the loader puts in what they have.
  int markov_rank = 0;
  MarkovHeadType markov_head_type = MarkovHeadType::kVanilla;

  static constexpr int kRankOfTensors = -1;
};

struct ModelConfig {
  int vocab_size = 0;
  int hidden_size = 0;                  // D
  int num_hidden_layers = 0;            // L, draft blocks not counted
  int num_attention_heads = 0;          // H
  int head_dim = 0;                     // d, rotary part included
  int qk_rope_head_dim = 64;            // dr, the last dims of a head
  int q_lora_rank = 0;                  // R
  int o_groups = 0;                     // g
  int o_lora_rank = 0;                  // G, per group
  int sliding_window = 128;             // W, self included
  std::vector<LayerKind> layers;        // [num_hidden_layers]
  int num_draft_layers = 0;             // further entries of compress_ratios: the blocks under mtp.*
  double rope_theta = 10000;            // SWA layers and draft blocks
  double compress_rope_theta = 160000;  // CSA and HCA layers
  RopeScaling rope_scaling;
  int64_t max_position_embeddings = 0;
  int index_n_heads = 0;
  int index_head_dim = 0;
  int index_topk = 0;
  int hc_mult = 4;  // m, residual streams
  int hc_sinkhorn_iters = 20;
  double hc_eps = 1e-6;
  double rms_norm_eps = 1e-6;
  int n_routed_experts = 0;  // E
  int n_shared_experts = 1;
  int num_experts_per_tok = 0;    // K
  int moe_intermediate_size = 0;  // I
  int num_hash_layers = 0;        // the first layers route by token id
  double routed_scaling_factor = 1;
  double swiglu_limit = 0;  // 0: no clamp
  int num_nextn_predict_layers = 0;
  TokenId bos_token_id = 0;
  TokenId eos_token_id = 1;
  DSparkConfig dspark;

  bool has_dspark() const { return dspark.block_size > 0; }
  int nope_dim() const { return head_dim - qk_rope_head_dim; }
};

// Parses and validates config.json. Every problem found is listed in one message. `deepseek_v41` and other
// architectures are refused by name (kUnimplemented).
Result<ModelConfig> ParseModelConfig(std::string_view json);

}  // namespace foresight
