#include "weights/layout.h"

#include <fmt/format.h>

#include <utility>

#include "base/check.h"

namespace foresight {
namespace {

template <typename T>
T& Present(std::optional<T>& part) {
  return part ? *part : part.emplace();
}

// Appends slots with a common name prefix.
class LayoutBuilder {
 public:
  explicit LayoutBuilder(const ModelConfig& config) : c_(config) {}

  std::vector<WeightSlot> Take() { return std::move(slots_); }

  void Globals(ModelWeights* w) {
    Bf16Matrix(WeightRole::kEmbedding, "embed.weight", c_.vocab_size, c_.hidden_size, &w->embed);
    HyperHead("", &w->hc_head);
    Norm("norm.weight", c_.hidden_size, &w->norm);
    Bf16Matrix(WeightRole::kHead, "head.weight", c_.vocab_size, c_.hidden_size, &w->head);
  }

  void Block(const std::string& prefix, LayerKind kind, bool is_hash, DType expert_dtype, BlockWeights* w) {
    w->kind = kind;
    HyperConnection(prefix + "hc_attn_", &w->hc_attn);
    Norm(prefix + "attn_norm.weight", c_.hidden_size, &w->attn_norm);
    Attention(prefix + "attn.", kind, &w->attn);
    HyperConnection(prefix + "hc_ffn_", &w->hc_ffn);
    Norm(prefix + "ffn_norm.weight", c_.hidden_size, &w->ffn_norm);
    Moe(prefix + "ffn.", is_hash, expert_dtype, &w->ffn);
  }

  void Mtp(DType expert_dtype, MtpWeights* w) {
    const int d = c_.hidden_size;
    Fp8("mtp.0.e_proj", d, d, &w->e_proj);
    Fp8("mtp.0.h_proj", d, d, &w->h_proj);
    Norm("mtp.0.enorm.weight", d, &w->enorm);
    Norm("mtp.0.hnorm.weight", d, &w->hnorm);
    Block("mtp.0.", LayerKind::kSwa, /*is_hash=*/false, expert_dtype, &w->block);
    HyperHead("mtp.0.", &w->hc_head);
    Norm("mtp.0.norm.weight", d, &w->norm);
  }

  void DSpark(const LayoutOptions& options, DSparkWeights* w) {
    const int d = c_.hidden_size;
    const int rank = c_.dspark.markov_rank;
    const size_t num_stages = static_cast<size_t>(options.num_draft_blocks);
    const int64_t num_taps = static_cast<int64_t>(c_.dspark.target_layer_ids.size());
    Fp8("mtp.0.main_proj", d, num_taps * d, &w->main_proj);
    Norm("mtp.0.main_norm.weight", d, &w->main_norm);
    w->stages.resize(num_stages);
    for (size_t i = 0; i < num_stages; ++i) {
      Block(fmt::format("mtp.{}.", i), LayerKind::kSwa, /*is_hash=*/false,
            options.expert_dtypes[c_.layers.size() + i], &w->stages[i]);
    }
    const std::string last = fmt::format("mtp.{}.", num_stages - 1);
    HyperHead(last, &w->hc_head);
    Norm(last + "norm.weight", d, &w->norm);
    w->head.type = c_.dspark.markov_head_type;
    if (rank > 0) MarkovHead(last + "markov_head.", rank, &w->head);
    if (options.has_confidence) {
      Bf16Matrix(WeightRole::kLinear, last + "confidence_head.proj.weight", 1, d + rank, &w->head.confidence);
    }
  }

 private:
  void MarkovHead(const std::string& prefix, int rank, SequentialHeadWeights* w) {
    Bf16Matrix(WeightRole::kLinear, prefix + "markov_w1.weight", c_.vocab_size, rank, &w->w1);
    Bf16Matrix(WeightRole::kLinear, prefix + "markov_w2.weight", c_.vocab_size, rank, &w->w2);
    if (w->type == MarkovHeadType::kVanilla) return;
    const bool is_gated = w->type == MarkovHeadType::kGated;
    const std::string name = prefix + (is_gated ? "gate_proj" : "joint_proj");
    const int64_t out = is_gated ? rank : 3 * rank;
    const int64_t in = c_.hidden_size + (is_gated ? rank : 2 * rank);
    Bf16Matrix(WeightRole::kLinear, name + ".weight", out, in, &w->proj);
    Add(WeightRole::kLinear, {name + ".bias", DType::kBF16, {out}}, {}, &w->bias);
  }

  void Attention(const std::string& prefix, LayerKind kind, AttentionWeights* w) {
    const int64_t d = c_.hidden_size;
    const int64_t heads_dim = static_cast<int64_t>(c_.num_attention_heads) * c_.head_dim;
    const int64_t groups_rank = static_cast<int64_t>(c_.o_groups) * c_.o_lora_rank;
    Fp8(prefix + "wq_a", c_.q_lora_rank, d, &w->wq_a);
    Norm(prefix + "q_norm.weight", c_.q_lora_rank, &w->q_norm);
    Fp8(prefix + "wq_b", heads_dim, c_.q_lora_rank, &w->wq_b);
    Fp8(prefix + "wkv", c_.head_dim, d, &w->wkv);
    Norm(prefix + "kv_norm.weight", c_.head_dim, &w->kv_norm);
    F32Vector(WeightRole::kSink, prefix + "attn_sink", c_.num_attention_heads, &w->attn_sink);
    Fp8(prefix + "wo_a", groups_rank, heads_dim / c_.o_groups, &w->wo_a);
    Fp8(prefix + "wo_b", d, groups_rank, &w->wo_b);
    if (kind == LayerKind::kSwa) return;
    Compressor(prefix + "compressor.", kind, c_.head_dim, &Present(w->compressor));
    if (kind == LayerKind::kHca) return;
    IndexerWeights& indexer = Present(w->indexer);
    Fp8(prefix + "indexer.wq_b", static_cast<int64_t>(c_.index_n_heads) * c_.index_head_dim, c_.q_lora_rank,
        &indexer.wq_b);
    Bf16Matrix(WeightRole::kLinear, prefix + "indexer.weights_proj.weight", c_.index_n_heads, d,
               &indexer.weights_proj);
    Compressor(prefix + "indexer.compressor.", kind, c_.index_head_dim, &indexer.compressor);
  }

  void Compressor(const std::string& prefix, LayerKind kind, int64_t width, CompressorWeights* w) {
    // CSA pools the window before with the first half of the doubled projection (model spec 2.5).
    const int64_t out = kind == LayerKind::kCsa ? 2 * width : width;
    F32Matrix(WeightRole::kApe, prefix + "ape", static_cast<int64_t>(kind), out, &w->ape);
    Bf16Matrix(WeightRole::kLinear, prefix + "wkv.weight", out, c_.hidden_size, &w->wkv);
    Bf16Matrix(WeightRole::kLinear, prefix + "wgate.weight", out, c_.hidden_size, &w->wgate);
    Norm(prefix + "norm.weight", width, &w->norm);
  }

  void Moe(const std::string& prefix, bool is_hash, DType expert_dtype, MoeWeights* w) {
    const int num_experts = c_.n_routed_experts;
    Bf16Matrix(WeightRole::kLinear, prefix + "gate.weight", num_experts, c_.hidden_size, &w->gate);
    if (is_hash) {
      Add(WeightRole::kRoutingTable,
          {prefix + "gate.tid2eid", DType::kI64, {c_.vocab_size, c_.num_experts_per_tok}}, {}, &w->tid2eid);
    } else {
      F32Vector(WeightRole::kRoutingBias, prefix + "gate.bias", num_experts, &w->gate_bias);
    }
    w->experts.resize(static_cast<size_t>(num_experts));
    for (int e = 0; e < num_experts; ++e) {
      Expert(fmt::format("{}experts.{}.", prefix, e), expert_dtype, &w->experts[static_cast<size_t>(e)]);
    }
    Expert(prefix + "shared_experts.", DType::kF8E4M3, &w->shared);
  }

  void Expert(const std::string& prefix, DType dtype, ExpertWeights* w) {
    const int64_t inner = c_.moe_intermediate_size;
    Quantized(prefix + "w1", dtype, inner, c_.hidden_size, &w->w1);
    Quantized(prefix + "w3", dtype, inner, c_.hidden_size, &w->w3);
    Quantized(prefix + "w2", dtype, c_.hidden_size, inner, &w->w2);
  }

  void HyperConnection(const std::string& prefix, HyperConnectionWeights* w) {
    const int64_t m = c_.hc_mult;
    F32Matrix(WeightRole::kHcFn, prefix + "fn", m * (2 + m), m * c_.hidden_size, &w->fn);
    F32Vector(WeightRole::kHcBase, prefix + "base", m * (2 + m), &w->base);
    F32Vector(WeightRole::kHcScale, prefix + "scale", 3, &w->scale);
  }

  void HyperHead(const std::string& prefix, HyperHeadWeights* w) {
    const int64_t m = c_.hc_mult;
    F32Matrix(WeightRole::kHcFn, prefix + "hc_head_fn", m, m * c_.hidden_size, &w->fn);
    F32Vector(WeightRole::kHcBase, prefix + "hc_head_base", m, &w->base);
    F32Vector(WeightRole::kHcScale, prefix + "hc_head_scale", 1, &w->scale);
  }

  void Norm(std::string name, int64_t size, VectorView* w) {
    Add(WeightRole::kNorm, {std::move(name), DType::kBF16, {size}}, {}, w);
  }
  void F32Vector(WeightRole role, std::string name, int64_t size, VectorView* w) {
    Add(role, {std::move(name), DType::kF32, {size}}, {}, w);
  }
  void F32Matrix(WeightRole role, std::string name, int64_t rows, int64_t cols, MatrixView* w) {
    Add(role, {std::move(name), DType::kF32, {rows, cols}}, {}, w);
  }
  void Bf16Matrix(WeightRole role, std::string name, int64_t rows, int64_t cols, MatrixView* w) {
    Add(role, {std::move(name), DType::kBF16, {rows, cols}}, {}, w);
  }
  void Fp8(const std::string& name, int64_t rows, int64_t cols, MatrixView* w) {
    Quantized(name, DType::kF8E4M3, rows, cols, w);
  }
  void Quantized(const std::string& name, DType dtype, int64_t rows, int64_t cols, MatrixView* w) {
    TensorSpec tensor{name + ".weight", dtype, {rows, cols}};
    TensorSpec scale{name + ".scale", DType::kF8E8M0, {(rows + 127) / 128, (cols + 127) / 128}};
    if (dtype == DType::kI8) {
      tensor.shape[1] = cols / 2;
      scale.shape = {rows, cols / 32};
    }
    Add(WeightRole::kLinear, std::move(tensor), std::move(scale), w);
  }
  template <typename Target>
  void Add(WeightRole role, TensorSpec tensor, std::optional<TensorSpec> scale, Target* target) {
    slots_.push_back({role, std::move(tensor), std::move(scale), target});
  }

  const ModelConfig& c_;
  std::vector<WeightSlot> slots_;
};

}  // namespace

std::string_view DraftHeadName(DraftHead head) {
  switch (head) {
    case DraftHead::kNone:
      return "none";
    case DraftHead::kMtp1:
      return "MTP-1";
    case DraftHead::kDSpark:
      return "DSpark";
  }
  return "?";
}

LayoutOptions LayoutFromConfig(const ModelConfig& config, DType expert_dtype) {
  LayoutOptions options;
  options.num_draft_blocks = config.num_draft_layers;
  if (config.has_dspark() && config.num_draft_layers > 0) {
    options.draft = DraftHead::kDSpark;
    options.has_confidence = config.dspark.markov_rank > 0;
  } else if (config.num_draft_layers == 1) {
    options.draft = DraftHead::kMtp1;
  } else {
    options.num_draft_blocks = 0;
  }
  options.expert_dtypes.assign(config.layers.size() + static_cast<size_t>(options.num_draft_blocks),
                               expert_dtype);
  return options;
}

uint64_t TensorSpec::bytes() const {
  uint64_t count = DTypeBytes(dtype);
  for (const int64_t size : shape) count *= static_cast<uint64_t>(size);
  return count;
}

void WeightSlot::Bind(const std::byte* data, const std::byte* scales) const {
  if (const auto* matrix = std::get_if<MatrixView*>(&target)) {
    const int64_t cols = tensor.dtype == DType::kI8 ? 2 * tensor.shape[1] : tensor.shape[1];
    **matrix = {tensor.dtype, tensor.shape[0], cols, data, reinterpret_cast<const uint8_t*>(scales)};
  } else if (const auto* vector = std::get_if<VectorView*>(&target)) {
    **vector = {tensor.dtype, tensor.shape[0], data};
  } else {
    *std::get<const int64_t**>(target) = reinterpret_cast<const int64_t*>(data);
  }
}

const std::byte* WeightSlot::data() const {
  if (const auto* matrix = std::get_if<MatrixView*>(&target)) return (*matrix)->data;
  if (const auto* vector = std::get_if<VectorView*>(&target)) return (*vector)->data;
  return reinterpret_cast<const std::byte*>(*std::get<const int64_t**>(target));
}

const std::byte* WeightSlot::scales() const {
  const auto* matrix = std::get_if<MatrixView*>(&target);
  return matrix ? reinterpret_cast<const std::byte*>((*matrix)->scales) : nullptr;
}

std::vector<WeightSlot> LayOutWeights(const ModelConfig& config, const LayoutOptions& options,
                                      ModelWeights* weights) {
  const size_t num_layers = config.layers.size();
  CHECK(options.expert_dtypes.size() == num_layers + static_cast<size_t>(options.num_draft_blocks));
  weights->config = config;
  LayoutBuilder builder(config);
  builder.Globals(weights);
  weights->layers.resize(num_layers);
  for (size_t i = 0; i < num_layers; ++i) {
    builder.Block(fmt::format("layers.{}.", i), config.layers[i],
                  /*is_hash=*/static_cast<int>(i) < config.num_hash_layers, options.expert_dtypes[i],
                  &weights->layers[i]);
  }
  if (options.draft == DraftHead::kMtp1)
    builder.Mtp(options.expert_dtypes[num_layers], &Present(weights->mtp));
  if (options.draft == DraftHead::kDSpark) builder.DSpark(options, &Present(weights->dspark));
  return builder.Take();
}

std::vector<WeightSlot> ListWeights(ModelWeights* weights) {
  LayoutOptions options;
  const std::vector<BlockWeights>* draft = nullptr;
  if (weights->mtp) options = {.draft = DraftHead::kMtp1, .num_draft_blocks = 1, .expert_dtypes = {}};
  if (weights->dspark) {
    draft = &weights->dspark->stages;
    options = {.draft = DraftHead::kDSpark,
               .num_draft_blocks = static_cast<int>(draft->size()),
               .has_confidence = static_cast<bool>(weights->dspark->head.confidence),
               .expert_dtypes = {}};
  }
  const auto add = [&](const BlockWeights& block) {
    options.expert_dtypes.push_back(block.ffn.experts[0].w1.dtype);
  };
  for (const BlockWeights& block : weights->layers) add(block);
  if (weights->mtp) add(weights->mtp->block);
  for (int i = 0; draft && i < options.num_draft_blocks; ++i) add((*draft)[static_cast<size_t>(i)]);
  return LayOutWeights(weights->config, options, weights);
}

}  // namespace foresight
