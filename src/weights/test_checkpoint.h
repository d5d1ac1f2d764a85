// For tests: a valid checkpoint of any config as bytes in memory, to be damaged at will.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "weights/layout.h"
#include "weights/model_files.h"
#include "weights/synthetic.h"

namespace foresight {

struct TestTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// The stored tensors of a model.
inline std::vector<TestTensor> ListTensors(LoadedModel* model) {
  std::vector<TestTensor> tensors;
  const auto add = [&](const TensorSpec& spec, const std::byte* data) {
    tensors.push_back({spec.name, std::string(DTypeName(spec.dtype)), spec.shape,
                       std::string(reinterpret_cast<const char*>(data), spec.bytes())});
  };
  for (const WeightSlot& slot : ListWeights(&model->weights)) {
    add(slot.tensor, slot.data());
    if (slot.scale) add(*slot.scale, slot.scales());
  }
  return tensors;
}

// 8 bytes of length, the header, the data.
inline std::string SafetensorsFile(std::string_view header, std::string_view data) {
  std::string file(8, '\0');
  const uint64_t size = header.size();
  std::memcpy(file.data(), &size, 8);
  return file.append(header).append(data);
}

// Wide elements first, as the format's own library writes them, so that all are aligned.
inline std::string WriteSafetensors(std::vector<TestTensor> tensors) {
  const auto width = [](const TestTensor& t) {
    return t.dtype == "I64" ? 8 : t.dtype == "F32" ? 4 : t.dtype == "BF16" ? 2 : 1;
  };
  std::stable_sort(tensors.begin(), tensors.end(),
                   [&](const TestTensor& a, const TestTensor& b) { return width(a) > width(b); });
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
  std::string data;
  for (const TestTensor& t : tensors) {
    header += fmt::format(",\"{}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", t.name,
                          t.dtype, fmt::join(t.shape, ","), data.size(), data.size() + t.bytes.size());
    data += t.bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return SafetensorsFile(header, data);
}

// config.json of a config, in the official form.
inline std::string ConfigJson(const ModelConfig& c) {
  std::vector<int> ratios;
  for (const LayerKind kind : c.layers) ratios.push_back(static_cast<int>(kind));
  ratios.resize(ratios.size() + static_cast<size_t>(c.num_draft_layers), 0);
  std::string json = fmt::format(
      R"({{"architectures":["DeepseekV4ForCausalLM"],"model_type":"deepseek_v4","vocab_size":{},"hidden_size":{},)"
      R"("num_hidden_layers":{},"num_attention_heads":{},"num_key_value_heads":1,"head_dim":{},"qk_rope_head_dim":{},)"
      R"("q_lora_rank":{},"o_groups":{},"o_lora_rank":{},"sliding_window":{},"compress_ratios":[{}],"rope_theta":{},)"
      R"("compress_rope_theta":{},"rope_scaling":{{"type":"yarn","factor":{},"original_max_position_embeddings":{},)"
      R"("beta_fast":{},"beta_slow":{}}},"max_position_embeddings":{},"index_n_heads":{},"index_head_dim":{},)"
      R"("index_topk":{},"hc_mult":{},"hc_sinkhorn_iters":{},"hc_eps":{},"rms_norm_eps":{},"n_routed_experts":{},)"
      R"("n_shared_experts":{},"num_experts_per_tok":{},"moe_intermediate_size":{},"num_hash_layers":{},)"
      R"("scoring_func":"sqrtsoftplus","topk_method":"noaux_tc","norm_topk_prob":true,"routed_scaling_factor":{},)"
      R"("swiglu_limit":{},"hidden_act":"silu","num_nextn_predict_layers":{},"tie_word_embeddings":false,)"
      R"("attention_bias":false,"bos_token_id":{},"eos_token_id":{},"torch_dtype":"bfloat16")",
      c.vocab_size, c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.head_dim, c.qk_rope_head_dim,
      c.q_lora_rank, c.o_groups, c.o_lora_rank, c.sliding_window, fmt::join(ratios, ","), c.rope_theta,
      c.compress_rope_theta, c.rope_scaling.factor, c.rope_scaling.original_max_position_embeddings,
      c.rope_scaling.beta_fast, c.rope_scaling.beta_slow, c.max_position_embeddings, c.index_n_heads,
      c.index_head_dim, c.index_topk, c.hc_mult, c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps,
      c.n_routed_experts, c.n_shared_experts, c.num_experts_per_tok, c.moe_intermediate_size,
      c.num_hash_layers, c.routed_scaling_factor, c.swiglu_limit, c.num_nextn_predict_layers, c.bos_token_id,
      c.eos_token_id);
  if (c.has_dspark()) {
    json +=
        fmt::format(R"(,"dspark_block_size":{},"dspark_noise_token_id":{},"dspark_target_layer_ids":[{}],)"
                    R"("dspark_markov_rank":{})",
                    c.dspark.block_size, c.dspark.noise_token_id, fmt::join(c.dspark.target_layer_ids, ","),
                    c.dspark.markov_rank);
    if (c.dspark.markov_head_type != MarkovHeadType::kVanilla) {
      json +=
          fmt::format(R"(,"dspark_markov_head_type":"{}")", MarkovHeadTypeName(c.dspark.markov_head_type));
    }
  }
  return json + "}";
}

// A checkpoint whose parts tests change before they ask for its files.
struct TestCheckpoint {
  std::string config;
  std::vector<std::vector<TestTensor>> shards;  // one: model.safetensors; more: shards with an index

  explicit TestCheckpoint(const ModelConfig& c, int num_shards = 2, const SyntheticOptions& options = {})
      : config(ConfigJson(c)) {
    LoadedModel model = MakeSyntheticModel(c, options);
    std::vector<TestTensor> tensors = ListTensors(&model);
    shards.resize(static_cast<size_t>(num_shards));
    for (size_t i = 0; i < tensors.size(); ++i) {
      shards[i * shards.size() / tensors.size()].push_back(std::move(tensors[i]));
    }
  }

  static std::string ShardName(size_t i, size_t count) {
    return fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, count);
  }

  TestTensor& Find(std::string_view name) {
    for (auto& shard : shards) {
      for (TestTensor& t : shard) {
        if (t.name == name) return t;
      }
    }
    CHECK(false, "the test checkpoint has no tensor {}", name);
  }
  void Remove(std::string_view name) {
    Find(name);
    for (auto& shard : shards) std::erase_if(shard, [&](const TestTensor& t) { return t.name == name; });
  }

  // File name -> bytes.
  std::map<std::string, std::string> Files() const {
    std::map<std::string, std::string> files = {{"config.json", config}};
    if (shards.size() == 1) {
      files["model.safetensors"] = WriteSafetensors(shards[0]);
      return files;
    }
    std::string map;
    for (size_t i = 0; i < shards.size(); ++i) {
      files[ShardName(i, shards.size())] = WriteSafetensors(shards[i]);
      for (const TestTensor& t : shards[i]) {
        map += fmt::format("{}\"{}\":\"{}\"", map.empty() ? "" : ",", t.name, ShardName(i, shards.size()));
      }
    }
    files["model.safetensors.index.json"] = fmt::format("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", map);
    return files;
  }
};

// Views of `files`, which outlives them.
inline ModelFiles InMemory(const std::map<std::string, std::string>& files) {
  std::vector<std::pair<std::string, std::span<const std::byte>>> list;
  for (const auto& [name, bytes] : files) list.emplace_back(name, std::as_bytes(std::span(bytes)));
  return ModelFiles("test", list);
}

// Writes files into a new folder, which is removed at the end.
class TestFolder {
 public:
  explicit TestFolder(const std::map<std::string, std::string>& files) {
    std::string pattern = (std::filesystem::temp_directory_path() / "foresight_XXXXXX").string();
    CHECK(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
    for (const auto& [name, bytes] : files) {
      const std::filesystem::path file = path_ + "/" + name;
      std::filesystem::create_directories(file.parent_path());
      std::ofstream(file, std::ios::binary) << bytes;
    }
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace foresight
