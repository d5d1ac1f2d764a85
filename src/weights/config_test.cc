#include "weights/config.h"

#include <gtest/gtest.h>

#include <string>

#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

// The config with the value of one field replaced; `value` is JSON, "" removes the field.
std::string WithField(const std::string& name, const std::string& value) {
  std::string json = ConfigJson(TinyAConfig());
  const size_t begin = json.find("\"" + name + "\":");
  CHECK(begin != std::string::npos, "{}", name);
  size_t end = begin + name.size() + 3;
  int depth = 0;
  while (depth > 0 || (json[end] != ',' && json[end] != '}')) {
    depth += json[end] == '[' || json[end] == '{';
    depth -= json[end] == ']' || json[end] == '}';
    ++end;
  }
  if (value.empty()) return json.erase(begin, end - begin + 1);
  return json.replace(begin, end - begin, "\"" + name + "\":" + value);
}

void ExpectRefused(const std::string& json, std::string_view words,
                   StatusCode code = StatusCode::kInvalidArgument) {
  const Status status = ParseModelConfig(json).status();
  EXPECT_EQ(status.code(), code) << status.ToString();
  EXPECT_NE(status.message().find("config.json: "), std::string::npos) << status.ToString();
  EXPECT_NE(status.message().find(words), std::string::npos) << words << "\n" << status.ToString();
}

TEST(Config, ReadsBackWhatWasWritten) {
  for (const ModelConfig& want : {TinyAConfig(), TinyBConfig(), FlashConfig(), ProConfig()}) {
    const Result<ModelConfig> config = ParseModelConfig(ConfigJson(want));
    ASSERT_TRUE(config.ok()) << config.status().ToString();
    EXPECT_EQ(ConfigJson(*config), ConfigJson(want));
  }
}

TEST(Config, RefusesOtherModelsByName) {
  ExpectRefused(WithField("model_type", "\"deepseek_v41\""), "model_type deepseek_v41 is not supported",
                StatusCode::kUnimplemented);
  ExpectRefused(WithField("architectures", "[\"LlamaForCausalLM\"]"), "architecture LlamaForCausalLM",
                StatusCode::kUnimplemented);
  ExpectRefused(R"({"dim": 4096, "n_layers": 43})", "inference/config.json", StatusCode::kUnimplemented);
  ExpectRefused("{}", "neither model_type nor architectures");
  for (const char* bad : {"", "[]", "null", "{", "{\"a\":", "\xff", "{\"model_type\": \"deepseek_v4\"} x"}) {
    EXPECT_EQ(ParseModelConfig(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Config, RefusesFieldsThatAreMissingOrOfAnotherKind) {
  for (const char* name : {"vocab_size",
                           "hidden_size",
                           "num_hidden_layers",
                           "num_attention_heads",
                           "head_dim",
                           "qk_rope_head_dim",
                           "q_lora_rank",
                           "o_groups",
                           "o_lora_rank",
                           "sliding_window",
                           "compress_ratios",
                           "rope_theta",
                           "compress_rope_theta",
                           "rope_scaling",
                           "max_position_embeddings",
                           "index_n_heads",
                           "index_head_dim",
                           "index_topk",
                           "hc_mult",
                           "hc_sinkhorn_iters",
                           "hc_eps",
                           "rms_norm_eps",
                           "n_routed_experts",
                           "n_shared_experts",
                           "num_experts_per_tok",
                           "moe_intermediate_size",
                           "num_hash_layers",
                           "routed_scaling_factor",
                           "swiglu_limit",
                           "bos_token_id"}) {
    ExpectRefused(WithField(name, ""), name);
    ExpectRefused(WithField(name, "\"many\""), name);
    ExpectRefused(WithField(name, "{}"), name);
    ExpectRefused(WithField(name, "-1"), name);
    ExpectRefused(WithField(name, "1e300"), name);
    ExpectRefused(WithField(name, "[[]]"), name);
  }
}

TEST(Config, RefusesAbsurdSizes) {
  for (const char* name :
       {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "q_lora_rank",
        "o_groups", "o_lora_rank", "sliding_window", "index_n_heads", "index_head_dim", "index_topk",
        "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"}) {
    ExpectRefused(WithField(name, "0"), name);
    ExpectRefused(WithField(name, "2147483647"), name);
    ExpectRefused(WithField(name, "9223372036854775807"), name);
    ExpectRefused(WithField(name, "18446744073709551615"), name);
  }
  ExpectRefused(WithField("n_routed_experts", "60000"), "8 x 60000 is more than 131072 experts");
  std::string json = WithField("num_attention_heads", "4096");
  const size_t at = json.find("\"head_dim\":128");
  json.replace(at, 14, "\"head_dim\":512");
  ExpectRefused(json, "4096 x 512 is more than");
}

// Each of these would run into a kernel that was not written for it.
TEST(Config, RefusesShapesThatNoKernelHas) {
  ExpectRefused(WithField("hidden_size", "250"), "hidden_size: want a multiple of 32");
  ExpectRefused(WithField("moe_intermediate_size", "100"), "moe_intermediate_size: want a multiple of 32");
  ExpectRefused(WithField("q_lora_rank", "100"), "q_lora_rank: want a multiple of 32");
  ExpectRefused(WithField("o_lora_rank", "96"), "o_lora_rank: want a multiple of 128");
  ExpectRefused(WithField("o_groups", "3"), "num_attention_heads: want a multiple of 3");
  ExpectRefused(WithField("qk_rope_head_dim", "63"), "qk_rope_head_dim: want a multiple of 2");
  ExpectRefused(WithField("head_dim", "64"), "head_dim: want more than qk_rope_head_dim (64), got 64");
  ExpectRefused(WithField("head_dim", "112"), "head_dim: want a multiple of 32");
  ExpectRefused(WithField("head_dim", "160"), "head_dim - qk_rope_head_dim: want a multiple of 64");
  ExpectRefused(WithField("index_head_dim", "96"), "index_head_dim: want a power of two");
  ExpectRefused(WithField("index_head_dim", "32"), "index_head_dim: want at least qk_rope_head_dim (64)");
  ExpectRefused(WithField("hc_mult", "2"), "hc_mult");
}

TEST(Config, RefusesContradictions) {
  ExpectRefused(WithField("num_experts_per_tok", "9"),
                "num_experts_per_tok: 9 is more than the 8 routed experts");
  ExpectRefused(WithField("num_hash_layers", "9"), "num_hash_layers: 9 is more than the 8 layers");
  ExpectRefused(WithField("bos_token_id", "512"), "bos_token_id: 512 is not in the vocabulary of 512");
  ExpectRefused(WithField("compress_ratios", "[0,4]"),
                "compress_ratios: want an entry for each of the 8 layers");
  ExpectRefused(WithField("compress_ratios", "[0,0,0,0,0,0,0,3]"),
                "compress_ratios[7]: want 0, 4 or 128, got 3");
  ExpectRefused(WithField("compress_ratios", "[0,0,0,0,0,0,0,0,4]"),
                "compress_ratios[8]: want 0 (a draft block");
  ExpectRefused(WithField("rope_scaling", "{\"type\":\"linear\",\"factor\":2}"), "rope_scaling.type");
  ExpectRefused(WithField("hidden_act", "\"gelu\""), "hidden_act: this program computes \"silu\" alone");
  ExpectRefused(WithField("tie_word_embeddings", "true"), "tie_word_embeddings");
}

TEST(Config, ListsAllProblemsAtOnce) {
  std::string json = WithField("vocab_size", "\"x\"");
  const size_t at = json.find("\"hc_mult\":4");
  json.replace(at, 11, "\"hc_mult\":5");
  ExpectRefused(json, "2 problems");
}

TEST(Config, LimitsDepth) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  ExpectRefused("{\"model_type\":\"deepseek_v4\",\"x\":" + deep + "}", "nested levels");
}

}  // namespace
}  // namespace foresight
