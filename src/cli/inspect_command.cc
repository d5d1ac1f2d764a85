#include <fmt/format.h>

#include <cstdio>
#include <map>

#include "base/json.h"
#include "base/units.h"
#include "cli/command.h"
#include "cli/model_flags.h"
#include "engine/engine_access.h"
#include "engine/machine.h"
#include "kv_cache/cache_layout.h"
#include "weights/layout.h"

namespace foresight {
namespace {

struct InspectFlags {
  std::string directory;
  bool json = false;
};

// "layers 2,4,6" as "2..6 step 2" is less than it saves; runs of equal kinds and of alternating pairs are
// what occurs.
std::string DescribeSchedule(const std::vector<LayerKind>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size();) {
    size_t same = i + 1;
    while (same < layers.size() && layers[same] == layers[i]) ++same;
    size_t alternating = i + 2;
    while (alternating < layers.size() && layers[alternating] == layers[alternating - 2]) ++alternating;
    text += text.empty() ? "" : "; ";
    if (same - i == 1 && alternating - i > 3 && alternating <= layers.size()) {
      text += fmt::format("{}..{} {} and {} in turn", i, alternating - 1, LayerKindName(layers[i]),
                          LayerKindName(layers[i + 1]));
      i = alternating;
    } else {
      text += same - i == 1 ? fmt::format("{} {}", i, LayerKindName(layers[i]))
                            : fmt::format("{}..{} {}", i, same - 1, LayerKindName(layers[i]));
      i = same;
    }
  }
  return text;
}

// "layers.12.ffn.experts.3.w1.weight" belongs to "routed experts".
std::string GroupOf(const std::string& name) {
  if (name.starts_with("mtp.")) return "draft head";
  for (const auto& [part, group] : {std::pair{".ffn.experts.", "routed experts"},
                                    {".ffn.shared_experts.", "shared experts"},
                                    {".ffn.gate.", "router"},
                                    {".attn.indexer.", "indexer"},
                                    {".attn.compressor.", "compressor"},
                                    {".attn.", "attention"},
                                    {"hc_", "hyper-connections"},
                                    {"norm", "norms"},
                                    {"embed.", "embedding"},
                                    {"head.", "LM head"}}) {
    if (name.find(part) != std::string::npos) return group;
  }
  return "other";
}

struct Tally {
  int64_t tensors = 0;
  uint64_t bytes = 0;

  void Add(const TensorSpec& tensor) {
    ++tensors;
    bytes += tensor.bytes();
  }
};

struct Inventory {
  std::map<std::string, Tally> groups;
  std::map<std::string, Tally> dtypes;
  Tally total;
};

Inventory TakeInventory(ModelWeights* weights) {
  Inventory inventory;
  for (const WeightSlot& slot : ListWeights(weights)) {
    auto add = [&](const TensorSpec& tensor) {
      inventory.groups[GroupOf(slot.tensor.name)].Add(tensor);
      inventory.dtypes[std::string(DTypeName(tensor.dtype))].Add(tensor);
      inventory.total.Add(tensor);
    };
    add(slot.tensor);
    if (slot.scale) add(*slot.scale);
  }
  return inventory;
}

// A draft head: the model's own, or one that lies beside it in drafts/<name>/.
struct HeadSummary {
  std::string name;  // "own" for the first
  DraftHead kind = DraftHead::kNone;
  int stages = 0;
  DSparkConfig dspark;
  bool has_confidence = false;
  Tally tally;
};

HeadSummary Summarise(std::string name, ModelWeights* weights) {
  HeadSummary head{.name = std::move(name), .dspark = weights->config.dspark, .tally = {}};
  if (weights->mtp) head.kind = DraftHead::kMtp1;
  if (weights->dspark) {
    head.kind = DraftHead::kDSpark;
    head.has_confidence = static_cast<bool>(weights->dspark->head.confidence);
  }
  head.stages = weights->config.num_draft_layers;
  for (const WeightSlot& slot : ListWeights(weights)) {
    if (!slot.tensor.name.starts_with("mtp.")) continue;
    head.tally.Add(slot.tensor);
    if (slot.scale) head.tally.Add(*slot.scale);
  }
  return head;
}

// Every head is loaded, so that a damaged one is found here.
Result<std::vector<HeadSummary>> ListHeads(LoadedModel* model) {
  std::vector<HeadSummary> heads;
  heads.push_back(Summarise("own", &model->weights));
  for (const std::string& name : model->files.DraftNames()) {
    ASSIGN_OR_RETURN(const ModelFiles draft, model->files.Draft(name));
    ASSIGN_OR_RETURN(LoadedModel with, LoadModel(model->files, {.draft = draft}));
    heads.push_back(Summarise(name, &with.weights));
  }
  return heads;
}

std::string MarkovText(const HeadSummary& head) {
  if (head.dspark.markov_rank == 0) return "no Markov head";
  return fmt::format("{} Markov head of rank {}", MarkovHeadTypeName(head.dspark.markov_head_type),
                     head.dspark.markov_rank);
}

std::string HeadToText(const HeadSummary& head) {
  if (head.kind == DraftHead::kNone) return "none";
  std::string text(DraftHeadName(head.kind));
  if (head.kind == DraftHead::kDSpark) {
    text += fmt::format(", {} stage{}, block of {}, taps on layers {}; {}; {}", head.stages,
                        head.stages == 1 ? "" : "s", head.dspark.block_size,
                        fmt::join(head.dspark.target_layer_ids, ", "), MarkovText(head),
                        head.has_confidence ? "confidence" : "no confidence");
  }
  return text + fmt::format("; {} in {} tensors", FormatBytes(head.tally.bytes), head.tally.tensors);
}

std::string HeadToJson(const HeadSummary& head) {
  std::string text =
      fmt::format("{{\"name\": {}, \"kind\": \"{}\", \"tensors\": {}, \"bytes\": {}", JsonString(head.name),
                  DraftHeadName(head.kind), head.tally.tensors, head.tally.bytes);
  if (head.kind == DraftHead::kDSpark) {
    text += fmt::format(
        ", \"stages\": {}, \"block_size\": {}, \"target_layer_ids\": [{}], \"markov_rank\": {}, "
        "\"markov_head_type\": \"{}\", \"confidence\": {}",
        head.stages, head.dspark.block_size, fmt::join(head.dspark.target_layer_ids, ", "),
        head.dspark.markov_rank, MarkovHeadTypeName(head.dspark.markov_head_type), head.has_confidence);
  }
  return text + "}";
}

struct CacheCosts {
  double per_token = 0;
  int64_t per_sequence = 0;  // rings, whatever the length
};

CacheCosts CostsOf(const ModelConfig& config, CacheFormat format) {
  const CacheLayout layout = MakeCacheLayout(config, format);
  return {KvBytesPerToken(layout), layout.fixed_bytes};
}

constexpr int64_t kMillion = int64_t{1} << 20;  // tokens

void PrintText(const LoadedModel& model, const Inventory& inventory, const std::vector<HeadSummary>& heads) {
  const ModelConfig& c = model.weights.config;
  fmt::print("{}\n", model.files.origin());
  fmt::print("  layers      {}: {}{}\n", c.num_hidden_layers, DescribeSchedule(c.layers),
             c.num_hash_layers > 0 ? fmt::format("; the first {} route by hash", c.num_hash_layers) : "");
  fmt::print("  draft head  {}\n", HeadToText(heads[0]));
  for (size_t i = 1; i < heads.size(); ++i) {
    fmt::print("  drafts/{}  {}\n", heads[i].name, HeadToText(heads[i]));
  }
  fmt::print(
      "  hidden      {} in {} streams; {} heads of {} ({} rotary); q rank {}; {} output groups of rank {}\n",
      c.hidden_size, c.hc_mult, c.num_attention_heads, c.head_dim, c.qk_rope_head_dim, c.q_lora_rank,
      c.o_groups, c.o_lora_rank);
  fmt::print("  attention   window {}; indexer {} heads of {}, top {}\n", c.sliding_window, c.index_n_heads,
             c.index_head_dim, c.index_topk);
  fmt::print("  experts     {} of {} and {} shared, intermediate {}, scaling {}, clamp {}\n",
             c.num_experts_per_tok, c.n_routed_experts, c.n_shared_experts, c.moe_intermediate_size,
             c.routed_scaling_factor, c.swiglu_limit);
  fmt::print("  positions   {}; RoPE {} and {} with YaRN factor {} over {}\n",
             FormatCount(c.max_position_embeddings), c.rope_theta, c.compress_rope_theta,
             c.rope_scaling.factor, c.rope_scaling.original_max_position_embeddings);
  fmt::print("  vocabulary  {}; begin {}, end {}\n", c.vocab_size, c.bos_token_id, c.eos_token_id);
  fmt::print("tensors       {} with {}\n", FormatCount(inventory.total.tensors),
             FormatBytes(inventory.total.bytes));
  for (const auto& [name, tally] : inventory.groups) {
    fmt::print("  {:18}{:>9}  {:>10}\n", name, FormatCount(tally.tensors), FormatBytes(tally.bytes));
  }
  for (const auto& [name, tally] : inventory.dtypes) {
    fmt::print("  {:18}{:>9}  {:>10}\n", name, FormatCount(tally.tensors), FormatBytes(tally.bytes));
  }
  for (const std::string& name : model.report.ignored) fmt::print("  ignored: {}\n", name);
  for (const auto& [name, format] :
       {std::pair{"faithful", CacheFormat::kPacked}, {"clean", CacheFormat::kFloat32}}) {
    const CacheCosts costs = CostsOf(c, format);
    fmt::print("cache, {:8} {:.1f} B per token, {} per 1M tokens, {} per sequence whatever its length\n",
               name, costs.per_token, FormatBytes(static_cast<uint64_t>(costs.per_token * kMillion)),
               FormatBytes(costs.per_sequence));
  }
  const Machine machine = DescribeMachine();
  const CacheCosts costs = CostsOf(c, CacheFormat::kPacked);
  const int64_t need =
      static_cast<int64_t>(inventory.total.bytes + costs.per_token * c.max_position_embeddings) +
      costs.per_sequence;
  const auto kernels = BestCpuKernels();
  fmt::print("machine       {}, {} processors, {} of memory ({} available), kernels {}\n", machine.processor,
             machine.processors, FormatBytes(machine.memory_bytes), FormatBytes(machine.available_bytes),
             kernels.ok() ? (*kernels)->name : "none");
  fmt::print("needs         {} for the weights and one full context: {}\n", FormatBytes(need),
             need <= machine.available_bytes
                 ? "it fits"
                 : "more than is available; mapped weights would be read from the disk again and again");
}

void PrintJson(const LoadedModel& model, const Inventory& inventory, const std::vector<HeadSummary>& heads) {
  const ModelConfig& c = model.weights.config;
  const Machine machine = DescribeMachine();
  auto tallies = [](const std::map<std::string, Tally>& map) {
    std::string text;
    for (const auto& [name, t] : map) {
      text += fmt::format("{}\n    \"{}\": {{\"tensors\": {}, \"bytes\": {}}}", text.empty() ? "" : ",", name,
                          t.tensors, t.bytes);
    }
    return text;
  };
  std::vector<int> ratios;
  for (LayerKind kind : c.layers) ratios.push_back(static_cast<int>(kind));
  const CacheCosts packed = CostsOf(c, CacheFormat::kPacked);
  const CacheCosts clean = CostsOf(c, CacheFormat::kFloat32);
  fmt::print(
      "{{\n  \"layers\": {}, \"compress_ratios\": [{}], \"num_hash_layers\": {}, \"draft_head\": \"{}\",\n",
      c.num_hidden_layers, fmt::join(ratios, ", "), c.num_hash_layers,
      DraftHeadName(model.weights.mtp      ? DraftHead::kMtp1
                    : model.weights.dspark ? DraftHead::kDSpark
                                           : DraftHead::kNone));
  fmt::print("  \"draft_heads\": [");
  for (size_t i = 0; i < heads.size(); ++i) {
    fmt::print("{}\n    {}", i == 0 ? "" : ",", HeadToJson(heads[i]));
  }
  fmt::print("\n  ],\n");
  fmt::print(
      "  \"hidden_size\": {}, \"heads\": {}, \"head_dim\": {}, \"experts\": {}, \"experts_per_token\": {}, "
      "\"vocab_size\": {},\n",
      c.hidden_size, c.num_attention_heads, c.head_dim, c.n_routed_experts, c.num_experts_per_tok,
      c.vocab_size);
  fmt::print("  \"tensors\": {}, \"bytes\": {},\n  \"groups\": {{{}\n  }},\n  \"dtypes\": {{{}\n  }},\n",
             inventory.total.tensors, inventory.total.bytes, tallies(inventory.groups),
             tallies(inventory.dtypes));
  fmt::print("  \"kv_bytes_per_token\": {{\"faithful\": {:.3f}, \"clean\": {:.3f}}},\n", packed.per_token,
             clean.per_token);
  fmt::print("  \"kv_bytes_per_1m_tokens\": {{\"faithful\": {:.0f}, \"clean\": {:.0f}}},\n",
             packed.per_token * kMillion, clean.per_token * kMillion);
  fmt::print("  \"kv_bytes_per_sequence\": {{\"faithful\": {}, \"clean\": {}}},\n", packed.per_sequence,
             clean.per_sequence);
  fmt::print("  \"machine\": {{\"processors\": {}, \"memory_bytes\": {}, \"available_bytes\": {}}}\n}}\n",
             machine.processors, machine.memory_bytes, machine.available_bytes);
}

Status Inspect(const InspectFlags& flags) {
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(flags.directory));
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(files));
  const Inventory inventory = TakeInventory(&model.weights);
  ASSIGN_OR_RETURN(const std::vector<HeadSummary> heads, ListHeads(&model));
  if (flags.json) {
    PrintJson(model, inventory, heads);
  } else {
    PrintText(model, inventory, heads);
  }
  return Status();
}

}  // namespace

void AddInspectCommand(Command& app, Status* result) {
  auto flags = std::make_shared<InspectFlags>();
  Command command = app.AddCommand(
      "inspect",
      "Check a checkpoint and print its configuration, tensors, cache costs and what this machine needs");
  command.Add("directory", flags->directory, "Checkpoint directory (default: the embedded model)");
  command.AddSwitch("--json", flags->json, "Print JSON");
  command.OnRun([flags, result] { *result = Inspect(*flags); });
}

}  // namespace foresight
