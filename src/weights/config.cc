#include "weights/config.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cmath>
#include <limits>
#include <optional>

#include "base/json.h"
#include "weights/problems.h"

namespace foresight {
namespace {

namespace json = boost::json;

constexpr int64_t kExpertsInAllMax = int64_t{1} << 17;  // layers x experts; Pro has 23,808
constexpr int64_t kDraftLayersMax = 16;

std::string_view View(const json::string& s) {
  return {s.data(), s.size()};
}

// A short rendering of what came, for messages.
std::string Show(const json::value& value) {
  if (const auto* i = value.if_int64()) return std::to_string(*i);
  if (const auto* u = value.if_uint64()) return std::to_string(*u);
  if (const auto* d = value.if_double()) return fmt::format("{}", *d);
  if (const auto* s = value.if_string()) return fmt::format("\"{}\"", View(*s).substr(0, 60));
  return std::string(JsonKindName(value));
}

// Reads typed fields of an object and notes every one that is missing, of the wrong kind or out of range.
class FieldReader {
 public:
  FieldReader(const json::object& object, std::string path, ProblemList* problems)
      : object_(object), path_(std::move(path)), problems_(*problems) {}

  // A field that is absent or null is none.
  const json::value* Find(std::string_view name) const {
    const json::value* value = object_.if_contains(json::string_view(name.data(), name.size()));
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  template <typename Int>
  void Required(std::string_view name, int64_t min, int64_t max, Int* out) {
    if (Find(name) == nullptr) {
      Missing(name);
    } else {
      Optional(name, min, max, out);
    }
  }
  template <typename Int>
  void Optional(std::string_view name, int64_t min, int64_t max, Int* out) {
    if (const json::value* value = Find(name)) ReadInt(*value, std::string(name), min, max, out);
  }
  void RequiredReal(std::string_view name, double min, double max, double* out) {
    const json::value* value = Find(name);
    if (value == nullptr) return Missing(name);
    const std::optional<double> number = ToReal(*value);
    if (!number || !(*number >= min && *number <= max)) {
      problems_.Add("{}{}: want a number in [{}, {}], got {}", path_, name, min, max, Show(*value));
      return;
    }
    *out = *number;
  }
  template <typename Int>
  std::vector<Int> RequiredInts(std::string_view name, size_t size_max, int64_t min, int64_t max) {
    std::vector<Int> out;
    const json::value* value = Find(name);
    if (value == nullptr) {
      Missing(name);
      return out;
    }
    const json::array* array = value->if_array();
    if (array == nullptr || array->size() > size_max) {
      problems_.Add("{}{}: want an array of at most {} integers, got {}", path_, name, size_max,
                    array ? fmt::format("{} values", array->size()) : Show(*value));
      return out;
    }
    for (size_t i = 0; i < array->size(); ++i) {
      Int number = 0;
      ReadInt((*array)[i], fmt::format("{}[{}]", name, i), min, max, &number);
      out.push_back(number);
    }
    return out;
  }
  // A field that may be left out, but has only one value that this program computes.
  void OnlyText(std::string_view name, std::string_view want) {
    const json::value* value = Find(name);
    if (value == nullptr) return;
    const json::string* text = value->if_string();
    if (text == nullptr || View(*text) != want) Differs(name, fmt::format("\"{}\"", want), *value);
  }
  void OnlyFlag(std::string_view name, bool want) {
    const json::value* value = Find(name);
    if (value == nullptr) return;
    const bool* flag = value->if_bool();
    if (flag == nullptr || *flag != want) Differs(name, want ? "true" : "false", *value);
  }
  void Missing(std::string_view name) { problems_.Add("{}{}: is missing", path_, name); }
  void Differs(std::string_view name, std::string_view want, const json::value& got) {
    problems_.Add("{}{}: this program computes {} alone, got {}", path_, name, want, Show(got));
  }

 private:
  template <typename Int>
  void ReadInt(const json::value& value, const std::string& name, int64_t min, int64_t max, Int* out) {
    const int64_t* number = value.if_int64();
    if (number == nullptr || *number < min || *number > max) {
      problems_.Add("{}{}: want an integer in [{}, {}], got {}", path_, name, min, max, Show(value));
      return;
    }
    *out = static_cast<Int>(*number);
  }
  static std::optional<double> ToReal(const json::value& value) {
    if (const auto* d = value.if_double()) return *d;
    if (const auto* i = value.if_int64()) return static_cast<double>(*i);
    return std::nullopt;
  }

  const json::object& object_;
  std::string path_;
  ProblemList& problems_;
};

// A config of something else is refused before its fields are read: they would all seem wrong.
Status CheckArchitecture(const json::object& object) {
  std::string_view model_type;
  std::string_view architecture;
  if (const json::value* v = object.if_contains("model_type"); v != nullptr && v->is_string()) {
    model_type = View(v->get_string());
  }
  if (const json::value* v = object.if_contains("architectures"); v != nullptr && v->is_array()) {
    const json::array& list = v->get_array();
    if (!list.empty() && list[0].is_string()) architecture = View(list[0].get_string());
  }
  constexpr std::string_view kHint = "this program runs deepseek_v4 (DeepseekV4ForCausalLM) alone";
  if (!model_type.empty() && model_type != "deepseek_v4") {
    return Unimplemented("config.json: model_type {} is not supported; {}", model_type.substr(0, 100), kHint);
  }
  if (!architecture.empty() && architecture != "DeepseekV4ForCausalLM") {
    return Unimplemented("config.json: architecture {} is not supported; {}", architecture.substr(0, 100),
                         kHint);
  }
  if (!model_type.empty() || !architecture.empty()) return Status();
  if (object.contains("n_layers") && object.contains("dim")) {
    return Unimplemented(
        "config.json: these are the names of inference/config.json (dim, n_layers, ...); want the "
        "config.json at the "
        "top of the checkpoint (hidden_size, num_hidden_layers, ...)");
  }
  return InvalidArgument("config.json: neither model_type nor architectures is there; {}", kHint);
}

class ConfigParser {
 public:
  explicit ConfigParser(const json::object& object) : read_(object, "", &problems_) {}

  Result<ModelConfig> Run() {
    Sizes();
    Schedule();
    Rope();
    Indexer();
    HyperConnections();
    Experts();
    FixedChoices();
    DSpark();
    // Relations between fields make sense only when each is in its range.
    if (problems_.empty()) Relations();
    RETURN_IF_ERROR(problems_.ToStatus("config.json"));
    return c_;
  }

 private:
  static constexpr int64_t kSizeMax = 1 << 20;

  void Sizes() {
    read_.Required("vocab_size", 1, 1 << 24, &c_.vocab_size);
    read_.Required("hidden_size", 32, 1 << 17, &c_.hidden_size);
    read_.Required("num_hidden_layers", 1, 1024, &c_.num_hidden_layers);
    read_.Required("num_attention_heads", 1, 4096, &c_.num_attention_heads);
    int kv_heads = 1;
    read_.Optional("num_key_value_heads", 1, 1, &kv_heads);
    read_.Required("head_dim", 2, 4096, &c_.head_dim);
    read_.Required("qk_rope_head_dim", 2, 4096, &c_.qk_rope_head_dim);
    read_.Required("q_lora_rank", 32, 1 << 16, &c_.q_lora_rank);
    read_.Required("o_groups", 1, 4096, &c_.o_groups);
    read_.Required("o_lora_rank", 1, 1 << 16, &c_.o_lora_rank);
    read_.Required("sliding_window", 1, kSizeMax, &c_.sliding_window);
    read_.Required("max_position_embeddings", 1, int64_t{1} << 30, &c_.max_position_embeddings);
    read_.RequiredReal("rms_norm_eps", 0, 1, &c_.rms_norm_eps);
    read_.Optional("num_nextn_predict_layers", 0, kDraftLayersMax, &c_.num_nextn_predict_layers);
    read_.Required("bos_token_id", 0, std::numeric_limits<TokenId>::max(), &c_.bos_token_id);
    read_.Required("eos_token_id", 0, std::numeric_limits<TokenId>::max(), &c_.eos_token_id);
  }

  void Schedule() {
    if (read_.Find("compress_ratios") == nullptr && read_.Find("layer_types") != nullptr) {
      problems_.Add(
          "compress_ratios: is missing; layer_types (the transformers library's form of the schedule) is not "
          "read: take the config.json of the official checkpoint");
      return;
    }
    const size_t num_layers = static_cast<size_t>(c_.num_hidden_layers);
    const std::vector<int> ratios =
        read_.RequiredInts<int>("compress_ratios", 1024 + kDraftLayersMax, 0, 128);
    if (ratios.empty()) return;
    if (ratios.size() < num_layers || ratios.size() > num_layers + kDraftLayersMax) {
      problems_.Add(
          "compress_ratios: want an entry for each of the {} layers and at most {} for draft blocks, got {}",
          num_layers, kDraftLayersMax, ratios.size());
      return;
    }
    for (size_t i = 0; i < ratios.size(); ++i) {
      const bool is_draft = i >= num_layers;
      if (ratios[i] != 0 && (is_draft || (ratios[i] != 4 && ratios[i] != 128))) {
        problems_.Add("compress_ratios[{}]: want {}, got {}", i,
                      is_draft ? "0 (a draft block attends to its window alone)" : "0, 4 or 128", ratios[i]);
      }
      if (!is_draft) c_.layers.push_back(static_cast<LayerKind>(ratios[i]));
    }
    c_.num_draft_layers = static_cast<int>(ratios.size() - num_layers);
  }

  bool HasKind(LayerKind kind) const {
    return std::find(c_.layers.begin(), c_.layers.end(), kind) != c_.layers.end();
  }

  void Rope() {
    read_.RequiredReal("rope_theta", 1.0001, 1e12, &c_.rope_theta);
    if (!HasKind(LayerKind::kCsa) && !HasKind(LayerKind::kHca)) return;
    read_.RequiredReal("compress_rope_theta", 1.0001, 1e12, &c_.compress_rope_theta);
    const json::value* value = read_.Find("rope_scaling");
    if (value == nullptr || !value->is_object()) {
      problems_.Add("rope_scaling: want an object with YaRN's numbers, got {}",
                    value ? JsonKindName(*value) : std::string_view("nothing"));
      return;
    }
    FieldReader scaling(value->get_object(), "rope_scaling.", &problems_);
    scaling.OnlyText("type", "yarn");
    scaling.OnlyText("rope_type", "yarn");
    if (scaling.Find("type") == nullptr && scaling.Find("rope_type") == nullptr) scaling.Missing("type");
    scaling.RequiredReal("factor", 1, 1e6, &c_.rope_scaling.factor);
    scaling.Required("original_max_position_embeddings", 1, int64_t{1} << 40,
                     &c_.rope_scaling.original_max_position_embeddings);
    scaling.RequiredReal("beta_fast", 1e-6, 1e6, &c_.rope_scaling.beta_fast);
    scaling.RequiredReal("beta_slow", 1e-6, 1e6, &c_.rope_scaling.beta_slow);
    if (c_.rope_scaling.beta_fast < c_.rope_scaling.beta_slow) {
      problems_.Add("rope_scaling: beta_fast {} is below beta_slow {}", c_.rope_scaling.beta_fast,
                    c_.rope_scaling.beta_slow);
    }
  }

  void Indexer() {
    if (!HasKind(LayerKind::kCsa)) return;
    read_.Required("index_n_heads", 1, 4096, &c_.index_n_heads);
    read_.Required("index_head_dim", 32, 1024, &c_.index_head_dim);
    read_.Required("index_topk", 1, kSizeMax, &c_.index_topk);
  }

  void HyperConnections() {
    read_.Required("hc_mult", 4, 4, &c_.hc_mult);  // the kernels are written for 4x4 mixing matrices
    read_.Required("hc_sinkhorn_iters", 1, 1000, &c_.hc_sinkhorn_iters);
    read_.RequiredReal("hc_eps", 0, 1, &c_.hc_eps);
  }

  void Experts() {
    read_.Required("n_routed_experts", 1, 1 << 16, &c_.n_routed_experts);
    read_.Required("n_shared_experts", 1, 1, &c_.n_shared_experts);
    read_.Required("num_experts_per_tok", 1, 256, &c_.num_experts_per_tok);
    read_.Required("moe_intermediate_size", 32, 1 << 17, &c_.moe_intermediate_size);
    read_.Required("num_hash_layers", 0, 1024, &c_.num_hash_layers);
    read_.RequiredReal("routed_scaling_factor", 1e-6, 1e6, &c_.routed_scaling_factor);
    read_.RequiredReal("swiglu_limit", 0, 1e6, &c_.swiglu_limit);
  }

  void FixedChoices() {
    read_.OnlyText("scoring_func", "sqrtsoftplus");
    read_.OnlyText("topk_method", "noaux_tc");
    read_.OnlyText("hidden_act", "silu");
    read_.OnlyFlag("norm_topk_prob", true);
    read_.OnlyFlag("attention_bias", false);
    read_.OnlyFlag("tie_word_embeddings", false);  // every release stores a head of its own
    if (const json::value* value = read_.Find("expert_dtype")) {
      const json::string* text = value->if_string();
      if (text == nullptr || (View(*text) != "fp4" && View(*text) != "fp8")) {
        read_.Differs("expert_dtype", "\"fp4\" and \"fp8\"", *value);
      }
    }
    const json::value* value = read_.Find("quantization_config");
    if (value == nullptr) return;
    if (!value->is_object()) {
      problems_.Add("quantization_config: want an object, got {}", JsonKindName(*value));
      return;
    }
    FieldReader quantization(value->get_object(), "quantization_config.", &problems_);
    quantization.OnlyText("quant_method", "fp8");
    quantization.OnlyText("fmt", "e4m3");
    quantization.OnlyText("scale_fmt", "ue8m0");
    if (quantization.Find("weight_block_size") != nullptr) {
      const std::vector<int> block = quantization.RequiredInts<int>("weight_block_size", 2, 128, 128);
      if (block.size() != 2) problems_.Add("quantization_config.weight_block_size: want [128, 128]");
    }
  }

  void DSpark() {
    if (read_.Find("dspark_block_size") == nullptr) return;
    DSparkConfig& d = c_.dspark;
    read_.Required("dspark_block_size", 1, 64, &d.block_size);
    read_.Required("dspark_noise_token_id", 0, std::numeric_limits<TokenId>::max(), &d.noise_token_id);
    d.markov_rank = DSparkConfig::kRankOfTensors;
    read_.Optional("dspark_markov_rank", 0, 1 << 16, &d.markov_rank);
    d.target_layer_ids = read_.RequiredInts<int>("dspark_target_layer_ids", 64, 0, 1023);
    const json::value* type = read_.Find("dspark_markov_head_type");
    if (type == nullptr) return;
    for (const MarkovHeadType known :
         {MarkovHeadType::kVanilla, MarkovHeadType::kGated, MarkovHeadType::kRnn}) {
      const json::string* text = type->if_string();
      if (text == nullptr || View(*text) != MarkovHeadTypeName(known)) continue;
      d.markov_head_type = known;
      return;
    }
    read_.Differs("dspark_markov_head_type", "\"vanilla\", \"gated\" and \"rnn\"", *type);
  }

  void MultipleOf(std::string_view name, int64_t value, int64_t unit, std::string_view why) {
    if (value % unit != 0) problems_.Add("{}: want a multiple of {} ({}), got {}", name, unit, why, value);
  }
  void TokenInVocabulary(std::string_view name, TokenId id) {
    if (id >= c_.vocab_size) problems_.Add("{}: {} is not in the vocabulary of {}", name, id, c_.vocab_size);
  }

  void Relations() {
    constexpr std::string_view kScaleBlock = "the columns of one MXFP4 scale";
    MultipleOf("hidden_size", c_.hidden_size, 32, kScaleBlock);
    MultipleOf("moe_intermediate_size", c_.moe_intermediate_size, 32, kScaleBlock);
    MultipleOf("q_lora_rank", c_.q_lora_rank, 32, "the kernels' step");
    MultipleOf("o_lora_rank", c_.o_lora_rank, c_.o_groups > 1 ? 128 : 32,
               c_.o_groups > 1 ? "FP8 scale blocks must not cross groups" : "the kernels' step");
    MultipleOf("num_attention_heads", c_.num_attention_heads, c_.o_groups, "o_groups");
    MultipleOf("qk_rope_head_dim", c_.qk_rope_head_dim, 2, "pairs are rotated");
    if (c_.head_dim <= c_.qk_rope_head_dim) {
      problems_.Add("head_dim: want more than qk_rope_head_dim ({}), got {}", c_.qk_rope_head_dim,
                    c_.head_dim);
    } else {
      MultipleOf("head_dim - qk_rope_head_dim", c_.nope_dim(), 64, "the FP8 blocks of a cache entry");
    }
    MultipleOf("head_dim", c_.head_dim, 32, "the kernels' step");
    if (HasKind(LayerKind::kCsa)) {
      if ((c_.index_head_dim & (c_.index_head_dim - 1)) != 0) {
        problems_.Add("index_head_dim: want a power of two (Hadamard rotation), got {}", c_.index_head_dim);
      }
      if (c_.index_head_dim < c_.qk_rope_head_dim) {
        problems_.Add("index_head_dim: want at least qk_rope_head_dim ({}), got {}", c_.qk_rope_head_dim,
                      c_.index_head_dim);
      }
    }
    if (c_.num_experts_per_tok > c_.n_routed_experts) {
      problems_.Add("num_experts_per_tok: {} is more than the {} routed experts", c_.num_experts_per_tok,
                    c_.n_routed_experts);
    }
    if (c_.num_hash_layers > c_.num_hidden_layers) {
      problems_.Add("num_hash_layers: {} is more than the {} layers", c_.num_hash_layers,
                    c_.num_hidden_layers);
    }
    if (static_cast<int64_t>(c_.num_hidden_layers) * c_.n_routed_experts > kExpertsInAllMax) {
      problems_.Add("num_hidden_layers x n_routed_experts: {} x {} is more than {} experts",
                    c_.num_hidden_layers, c_.n_routed_experts, kExpertsInAllMax);
    }
    if (static_cast<int64_t>(c_.num_attention_heads) * c_.head_dim > kSizeMax) {
      problems_.Add("num_attention_heads x head_dim: {} x {} is more than {}", c_.num_attention_heads,
                    c_.head_dim, kSizeMax);
    }
    TokenInVocabulary("bos_token_id", c_.bos_token_id);
    TokenInVocabulary("eos_token_id", c_.eos_token_id);
    if (!c_.has_dspark()) return;
    TokenInVocabulary("dspark_noise_token_id", c_.dspark.noise_token_id);
    if (c_.dspark.markov_rank == 0 && c_.dspark.markov_head_type != MarkovHeadType::kVanilla) {
      problems_.Add("dspark_markov_head_type: {} needs a dspark_markov_rank above 0",
                    MarkovHeadTypeName(c_.dspark.markov_head_type));
    }
    const std::vector<int>& taps = c_.dspark.target_layer_ids;
    if (taps.empty()) problems_.Add("dspark_target_layer_ids: want at least one layer");
    for (size_t i = 0; i < taps.size(); ++i) {
      if (taps[i] >= c_.num_hidden_layers || (i > 0 && taps[i] <= taps[i - 1])) {
        problems_.Add("dspark_target_layer_ids[{}]: want rising layers below {}, got {}", i,
                      c_.num_hidden_layers, taps[i]);
      }
    }
  }

  ProblemList problems_;
  FieldReader read_;
  ModelConfig c_;
};

}  // namespace

std::string_view LayerKindName(LayerKind kind) {
  switch (kind) {
    case LayerKind::kSwa:
      return "SWA";
    case LayerKind::kCsa:
      return "CSA";
    case LayerKind::kHca:
      return "HCA";
  }
  return "?";
}

std::string_view MarkovHeadTypeName(MarkovHeadType type) {
  switch (type) {
    case MarkovHeadType::kVanilla:
      return "vanilla";
    case MarkovHeadType::kGated:
      return "gated";
    case MarkovHeadType::kRnn:
      return "rnn";
  }
  return "?";
}

Result<ModelConfig> ParseModelConfig(std::string_view text) {
  Result<json::value> value = ParseJson(text);
  if (!value.ok()) return value.error().WithContext("config.json");
  const json::object* object = value->if_object();
  if (object == nullptr) return InvalidArgument("config.json: want an object, got {}", JsonKindName(*value));
  RETURN_IF_ERROR(CheckArchitecture(*object));
  return ConfigParser(*object).Run();
}

}  // namespace foresight
