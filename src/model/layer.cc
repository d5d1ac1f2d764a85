// One transformer layer (model spec 2.3 to 2.9). Every line that computes is an entry of the kernel table.
//
//   streams [T, 4, D] -> mix -> attention -> mixed back -> mix -> experts -> mixed back -> streams
//
//   attention: x -> qr, kv, compressors' inputs, index weights       one product for all of them
//                -> query's norm, raw key, completed entries
//              qr -> heads' queries; indexer's queries -> picks       CSA layers
//              attention over the window and (picked) entries -> grouped product -> output
//   experts:   x -> router's logits -> routed and shared experts
#include "model/model.h"
#include "model/step_state.h"

namespace foresight {
namespace {

// Of a step, up to which the product of the queries runs beside the indexer's chain of short kernels.
constexpr int kForkedRowsMax = 4;

}  // namespace

// Model spec 2.3. Each sub-layer reads a mix of the streams and is mixed back into all of them, which the
// next one's mix does with its own; MixBack() after the last.
void Model::RunBlock(const BlockWeights& w, int layer, StepState& step) {
  Mix(w.hc_attn, w.attn_norm, step);
  Attention(w, layer, step, step.x, step.y);
  step.is_pending = true;
  Mix(w.hc_ffn, w.ffn_norm, step);
  Moe(w, layer, step, step.x, step.y);
  step.is_pending = true;
}

void Model::Mix(const HyperConnectionWeights& hc, const VectorView& norm, StepState& step) {
  table_.hyper_connection_pre(ctx_, {.rows = step.rows,
                                     .m = config().hc_mult,
                                     .dim = config().hidden_size,
                                     .streams = step.streams,
                                     .back = step.Pending(),
                                     .tap = PendingTap(step),
                                     .fn = hc.fn,
                                     .base = hc.base,
                                     .scale = hc.scale,
                                     .norm = norm,
                                     .sinkhorn_iters = config().hc_sinkhorn_iters,
                                     .hc_eps = static_cast<float>(config().hc_eps),
                                     .norm_eps = static_cast<float>(config().rms_norm_eps),
                                     .x = step.x,
                                     .post = step.post,
                                     .comb = step.comb});
  step.is_pending = false;
  step.pending_tap = -1;
}

void Model::MixBack(StepState& step) {
  if (!step.is_pending) return;
  table_.hyper_connection_post(ctx_, {.rows = step.rows,
                                      .m = config().hc_mult,
                                      .dim = config().hidden_size,
                                      .back = step.Pending(),
                                      .streams = step.streams});
  step.is_pending = false;
}

// Model spec 2.4 to 2.8; x is the normed input [T, D].
void Model::Attention(const BlockWeights& w, int layer, StepState& step, const float* x, float* out) {
  ArenaScope scope(arena_);
  const ModelConfig& c = config();
  const AttentionWeights& attn = w.attn;
  const int64_t rows = step.rows;
  const float eps = static_cast<float>(c.rms_norm_eps);
  const EntryLayout& layout = cache_layout_.entry;
  const std::span<const SequenceRows> sequences = step.Sequences(layer);
  auto buffer = [&](int64_t width) { return arena_.Allocate<float>(rows * width); };

  // Everything that is projected from x, in one call.
  LinearTarget targets[8];
  int num_targets = 0;
  auto project = [&](const MatrixView& weight, LinearNumerics numerics) {
    float* y = buffer(weight.rows);
    targets[num_targets++] = {.w = weight, .out = y, .numerics = numerics};
    return y;
  };
  const int64_t head_values = rows * c.num_attention_heads * c.head_dim;
  auto of_heads = [&]() -> ActivationBuffer {
    if (table_.packs_heads && ctx_.faithful()) return arena_.Allocate<bf16>(head_values);
    return arena_.Allocate<float>(head_values);
  };
  float* qr = project(attn.wq_a, LinearNumerics::kProjection);
  float* kv = project(attn.wkv, LinearNumerics::kProjection);
  float *a = nullptr, *b = nullptr, *index_a = nullptr, *index_b = nullptr, *index_w = nullptr;
  if (attn.compressor) {
    a = project(attn.compressor->wkv, LinearNumerics::kFloat32);
    b = project(attn.compressor->wgate, LinearNumerics::kFloat32);
  }
  if (attn.indexer) {
    index_a = project(attn.indexer->compressor.wkv, LinearNumerics::kFloat32);
    index_b = project(attn.indexer->compressor.wgate, LinearNumerics::kFloat32);
    index_w = project(attn.indexer->weights_proj, LinearNumerics::kProjection);
  }
  table_.linear(ctx_, {.rows = step.rows, .x = x, .targets = {targets, static_cast<size_t>(num_targets)}});

  // Entries completed by this step's tokens are visible to them (model spec 2.12), so compress before
  // looking.
  const float* const cos = step.angles(w.kind).cos;
  const float* const sin = step.angles(w.kind).sin;
  std::byte* entries = step.Entries(layer, layout);
  AttentionInputsArgs inputs;
  inputs.query = {
      .rows = step.rows, .dim = c.q_lora_rank, .x = qr, .weight = attn.q_norm, .eps = eps, .out = qr};
  const KeyArgs key = {.rows = step.rows,
                       .layout = layout,
                       .kv = kv,
                       .norm = attn.kv_norm,
                       .eps = eps,
                       .cos = cos,
                       .sin = sin,
                       .entries = entries};
  inputs.keys = {&key, 1};
  if (attn.compressor) {
    inputs.compressor =
        Compressor(*attn.compressor, w.kind, /*for_indexer=*/false, step.rows, sequences, a, b);
  }
  if (attn.indexer) {
    inputs.index_compressor = Compressor(attn.indexer->compressor, w.kind, /*for_indexer=*/true, step.rows,
                                         sequences, index_a, index_b);
  }
  table_.attention_inputs(ctx_, inputs);

  // The compressed query qr gives the heads' queries and the indexer's.
  num_targets = 0;
  const ActivationBuffer q = of_heads();
  targets[num_targets++] = {.w = attn.wq_b, .out = q};
  float* index_q = attn.indexer ? project(attn.indexer->wq_b, LinearNumerics::kProjection) : nullptr;
  int32_t* picks = attn.indexer ? arena_.Allocate<int32_t>(rows * c.index_topk) : nullptr;
  const auto multiply = [&](int first, int count) {
    table_.linear(ctx_,
                  {.rows = step.rows, .x = qr, .targets = {targets + first, static_cast<size_t>(count)}});
  };
  const auto pick = [&] {
    table_.indexer(ctx_, {.sequences = sequences,
                          .rows = step.rows,
                          .entries_max = step.entries_max,
                          .heads = c.index_n_heads,
                          .rope_dim = c.qk_rope_head_dim,
                          .topk = c.index_topk,
                          .key = cache_layout_.index_key,
                          .iq = index_q,
                          .w = index_w,
                          .cos = cos,
                          .sin = sin,
                          .picks = picks});
  };
  const bool forks =
      attn.indexer && !device().is_host() && step.rows <= kForkedRowsMax && step.inputs->observer == nullptr;
  if (forks) {
    ArenaHold hold(arena_);
    // The picks take longer: their chain goes on where launches may begin early.
    device().Fork([&] { multiply(0, 1); });
    multiply(1, 1);
    pick();
    device().Join();
  } else {
    multiply(0, num_targets);
    if (attn.indexer) pick();
    if (attn.indexer && step.inputs->observer != nullptr) ObservePicks(layer, step, picks);
  }

  if (step.has_branch) device().Join();
  step.has_branch = false;
  const ActivationBuffer heads_out = of_heads();
  table_.attention(ctx_, {.sequences = sequences,
                          .rows = step.rows,
                          .entries_max = w.kind == LayerKind::kHca
                                             ? step.entries_max * kCsaRatio / static_cast<int64_t>(w.kind)
                                             : step.entries_max,
                          .heads = c.num_attention_heads,
                          .window = c.sliding_window,
                          .layout = layout,
                          .raw = step.kind == StepKind::kDraftBlock ? RawKeys::kBlock : RawKeys::kWindow,
                          .compressed = w.kind == LayerKind::kSwa   ? CompressedKeys::kNone
                                        : w.kind == LayerKind::kCsa ? CompressedKeys::kPicked
                                                                    : CompressedKeys::kAll,
                          .ratio = static_cast<int>(w.kind),
                          .topk = c.index_topk,
                          .q = q,
                          .query_eps = eps,
                          .entries = entries,
                          .sink = attn.attn_sink,
                          .picks = picks,
                          .cos = cos,
                          .sin = sin,
                          .out = heads_out});

  float* low_rank = buffer(attn.wo_a.rows);
  table_.grouped_linear(
      ctx_, {.rows = step.rows, .groups = c.o_groups, .x = heads_out, .w = attn.wo_a, .out = low_rank});
  const LinearTarget output[] = {{.w = attn.wo_b, .out = out}};
  table_.linear(ctx_, {.rows = step.rows, .x = low_rank, .targets = output});
}

CompressorArgs Model::Compressor(const CompressorWeights& w, LayerKind kind, bool for_indexer, int rows,
                                 std::span<const SequenceRows> sequences, const float* a, float* b) const {
  const ModelConfig& c = config();
  return {.sequences = sequences,
          .rows = rows,
          .ratio = static_cast<int>(kind),
          .for_indexer = for_indexer,
          .entry = cache_layout_.entry,
          .index_key = cache_layout_.index_key,
          .dim = for_indexer ? c.index_head_dim : c.head_dim,
          .rope_dim = c.qk_rope_head_dim,
          .a = a,
          .b = b,
          .ape = w.ape,
          .norm = w.norm,
          .norm_eps = static_cast<float>(c.rms_norm_eps),
          .frequencies = compressed_frequencies_};
}

// Once for all layers of a step: attention needs the rings as they were before it.
void Model::StoreKeys(const StepState& step) {
  table_.store_keys(ctx_, {.layers = step.num_layers,
                           .rows = step.rows,
                           .sequences = {step.sequences, step.num_layers * step.num_sequences},
                           .entries = step.entries});
}

// Model spec 2.9.
void Model::Moe(const BlockWeights& w, int layer, StepState& step, const float* x, float* out) {
  ArenaScope scope(arena_);
  const ModelConfig& c = config();
  const int64_t slots = int64_t{step.rows} * c.num_experts_per_tok;
  float* logits = arena_.Allocate<float>(int64_t{step.rows} * c.n_routed_experts);
  int32_t* ids = arena_.Allocate<int32_t>(slots);
  float* weights = arena_.Allocate<float>(slots);
  const LinearTarget gate[] = {{.w = w.ffn.gate, .out = logits, .numerics = LinearNumerics::kFloat32}};
  table_.linear(ctx_, {.rows = step.rows, .x = x, .targets = gate});
  RouterArgs router{.rows = step.rows,
                    .num_experts = c.n_routed_experts,
                    .experts_per_token = c.num_experts_per_tok,
                    .scaling = static_cast<float>(c.routed_scaling_factor),
                    .logits = logits,
                    .bias = w.ffn.gate_bias,
                    .tid2eid = w.ffn.tid2eid,
                    .tokens = step.tokens,
                    .ids = ids,
                    .weights = weights};
  if (step.inputs->observer != nullptr) {
    table_.router(ctx_, router);
    int32_t* forced = arena_.Allocate<int32_t>(slots);
    if (ObserveExperts(layer, step, ids, forced)) router.forced_ids = forced;
  }
  table_.moe(ctx_, {.rows = step.rows,
                    .dim = c.hidden_size,
                    .intermediate = c.moe_intermediate_size,
                    .experts_per_token = c.num_experts_per_tok,
                    .swiglu_limit = static_cast<float>(c.swiglu_limit),
                    .experts = experts_[layer],
                    .expert_dtype = w.ffn.experts[0].w1.dtype,
                    .shared = w.ffn.shared,
                    .x = x,
                    .ids = ids,
                    .weights = weights,
                    .router = &router,
                    .out = out});
}

// A fault of the device shows in what the step reads last.
void Model::ObservePicks(int layer, const StepState& step, int32_t* picks) {
  std::vector<int32_t> values(static_cast<size_t>(step.rows) * config().index_topk);
  const int64_t bytes = std::ssize(values) * static_cast<int64_t>(sizeof(int32_t));
  if (!device().Download(values.data(), picks, bytes).ok()) return;
  step.inputs->observer->OnPicks(layer, values);
  device().Upload(picks, values.data(), bytes);
}

bool Model::ObserveExperts(int layer, const StepState& step, const int32_t* ids, int32_t* forced) {
  std::vector<int32_t> values(static_cast<size_t>(step.rows) * config().num_experts_per_tok);
  const int64_t bytes = std::ssize(values) * static_cast<int64_t>(sizeof(int32_t));
  if (!device().Download(values.data(), ids, bytes).ok()) return false;
  if (!step.inputs->observer->OnExperts(layer, values)) return false;
  device().Upload(forced, values.data(), bytes);
  return true;
}

}  // namespace foresight
