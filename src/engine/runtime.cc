#include "engine/runtime.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "base/units.h"
#include "model/costs.h"
#include "weights/layout.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

uint64_t StoredBytes(const ModelConfig& config) {
  ModelWeights weights;
  uint64_t bytes = 0;
  for (const WeightSlot& slot : LayOutWeights(config, LayoutFromConfig(config), &weights)) {
    bytes += slot.bytes();
  }
  return bytes;
}

// Hash of shape and first bytes of a matrix: enough to tell two trainings of one shape apart without reading
// the whole model.
uint64_t HashOf(const MatrixView& matrix, uint64_t seed) {
  const size_t bytes = static_cast<size_t>(std::min<int64_t>(matrix.bytes(), 1 << 16));
  const int64_t shape[] = {matrix.rows, matrix.cols};
  return XXH3_64bits_withSeed(matrix.data, bytes, XXH3_64bits_withSeed(shape, sizeof(shape), seed));
}

uint64_t HashOfTarget(const ModelFiles& files, const ModelWeights& weights) {
  uint64_t hash = HashOf(weights.layers.back().attn.wkv, HashOf(weights.head, 0));
  if (const auto config = files.FindText("config.json"); config.ok()) {
    hash = XXH3_64bits_withSeed(config->data(), config->size(), hash);
  }
  return hash;
}

// 0: there is no head. Every part that may be trained for itself counts.
uint64_t HashOfDraft(const ModelWeights& weights) {
  if (weights.mtp) return HashOf(weights.mtp->block.attn.wkv, HashOf(weights.mtp->e_proj, 0));
  if (!weights.dspark) return 0;
  const DSparkWeights& head = *weights.dspark;
  uint64_t hash = 0;
  for (const MatrixView& part : {head.main_proj, head.stages.back().attn.wkv, head.head.w1, head.head.w2,
                                 head.head.proj, head.head.confidence}) {
    hash = HashOf(part, hash);
  }
  return hash;
}

std::string DescribeLayers(const ModelConfig& config) {
  std::string text = fmt::format("{} layers (", config.num_hidden_layers);
  const char* separator = "";
  for (LayerKind kind : {LayerKind::kSwa, LayerKind::kCsa, LayerKind::kHca}) {
    const auto count = std::count(config.layers.begin(), config.layers.end(), kind);
    if (count == 0) continue;
    text += fmt::format("{}{} {}", separator, count, LayerKindName(kind));
    separator = ", ";
  }
  return text + ")";
}

// Longer steps pay on a GPU, whose experts are read once for all of a step's rows: 2,048 give half as many
// tokens again as 512. Running requests wait for them, so in their steps there are fewer.
constexpr int kStepRows = 512;
constexpr int kMixedPrefillRows = 128;
constexpr int kDeviceStepRows = 2048;
constexpr int kDeviceMixedPrefillRows = 512;
constexpr int64_t kStepMemoryPart = 8;  // of what the weights leave

int DeviceStepRows(const ModelConfig& config, ModelOptions options, int64_t available_bytes) {
  options.max_step_rows = kDeviceStepRows;
  while (options.max_step_rows > kStepRows) {
    const PlacementBytes bytes = MemoryOf(config, options);
    if (bytes.steps + bytes.drafts <= available_bytes / kStepMemoryPart) break;
    options.max_step_rows /= 2;
  }
  return options.max_step_rows;
}

}  // namespace

Result<std::unique_ptr<Runtime>> Runtime::Load(const ModelFiles& files, const EngineOptions& options) {
  if (files.empty()) return NotFound("there are no model files to load");
  std::unique_ptr<Runtime> runtime(new Runtime);
  ASSIGN_OR_RETURN(runtime->backend_, OpenBackend(options.device, options.table));
  runtime->machine_ = DescribeMachine();
  runtime->files_ = files;
  ASSIGN_OR_RETURN(runtime->draft_, ChooseDraft(files, options.speculation));
  ASSIGN_OR_RETURN(
      LoadedModel loaded,
      LoadModel(files, {.checks = options.check_all_values ? ValueChecks::kAll : ValueChecks::kQuick,
                        .progress = options.progress,
                        .draft = runtime->draft_.head,
                        .own_draft = runtime->draft_.own_head}));
  if (files.Contains("tokenizer.json")) {
    ASSIGN_OR_RETURN(const std::string_view json, files.FindText("tokenizer.json"));
    Result<Tokenizer> tokenizer = Tokenizer::Load(json);
    if (!tokenizer.ok()) return tokenizer.status().WithContext(files.origin() + ": tokenizer.json");
    if (tokenizer->vocab_size() > loaded.weights.config.vocab_size) {
      return InvalidArgument("{}: tokenizer.json has token ids up to {}, the model's vocabulary ends at {}",
                             files.origin(), tokenizer->vocab_size() - 1, loaded.weights.config.vocab_size);
    }
    runtime->tokenizer_ = std::move(*tokenizer);
  }
  // Mapped pages are not in memory before they are touched.
  const int64_t weights_to_come = static_cast<int64_t>(loaded.report.bytes - loaded.report.copied_bytes);
  RETURN_IF_ERROR(runtime->Start(std::move(loaded), options, weights_to_come));
  return runtime;
}

Result<std::unique_ptr<Runtime>> Runtime::Synthesize(const ModelConfig& config,
                                                     const EngineOptions& options) {
  const uint64_t bytes = StoredBytes(config);
  const int64_t available = DescribeMachine().available_bytes;
  if (static_cast<int64_t>(bytes) > available) {
    return ResourceExhausted("random weights of this shape take {}; available are {}", FormatBytes(bytes),
                             FormatBytes(available));
  }
  RETURN_IF_ERROR(ChooseSyntheticDraft(config, options.speculation).status());
  RETURN_IF_ERROR(OpenBackend(options.device, options.table).status());
  if (options.progress != nullptr) options.progress->Begin("Making random weights", 1);
  const LoadedModel made = MakeSyntheticModel(config, {.num_threads = options.num_threads});
  if (options.progress != nullptr) options.progress->End();
  return FromSynthetic(made, options);
}

Result<std::unique_ptr<Runtime>> Runtime::FromSynthetic(const LoadedModel& made,
                                                        const EngineOptions& options) {
  ASSIGN_OR_RETURN(Backend backend, OpenBackend(options.device, options.table));
  return FromSynthetic(made, options, std::move(backend));
}

Result<std::unique_ptr<Runtime>> Runtime::FromSynthetic(const LoadedModel& made, const EngineOptions& options,
                                                        Backend backend,
                                                        std::shared_ptr<const DeviceWeights> placed) {
  std::unique_ptr<Runtime> runtime(new Runtime);
  runtime->backend_ = std::move(backend);
  runtime->machine_ = DescribeMachine();
  ASSIGN_OR_RETURN(runtime->draft_, ChooseSyntheticDraft(made.weights.config, options.speculation));
  // They are in memory already: what is available is without them.
  LoadedModel shared;
  shared.weights = made.weights;
  shared.report = made.report;
  shared.arena = made.arena;
  RETURN_IF_ERROR(runtime->Start(std::move(shared), options, /*weights_to_come=*/0, std::move(placed)));
  return runtime;
}

Status Runtime::Start(LoadedModel loaded, const EngineOptions& options, int64_t weights_to_come,
                      std::shared_ptr<const DeviceWeights> placed) {
  RETURN_IF_ERROR(CheckAddressSpace());
  loaded_ = std::move(loaded);
  ASSIGN_OR_RETURN(drafts_max_, ChooseDraftLength(draft_.method, options.speculation, config()));
  pool_ = std::make_unique<ThreadPool>(options.num_threads > 0 ? options.num_threads : machine_.processors);
  ModelOptions model_options{.numerics = options.numerics,
                             .max_draft_rows = options.max_sequences * drafts_max_};
  available_bytes_ = machine_.available_bytes;
  Device* const device = backend_.device.get();
  if (device != nullptr) {
    available_bytes_ = device->AvailableBytes();
    weights_to_come = placed != nullptr ? 0 : static_cast<int64_t>(loaded_.report.bytes);
  }
  step_rows_max_ = options.step_rows_max;
  if (step_rows_max_ == 0) {
    step_rows_max_ = device == nullptr
                         ? kStepRows
                         : DeviceStepRows(config(), model_options, available_bytes_ - weights_to_come);
    step_rows_max_ = std::max(step_rows_max_, options.max_sequences);
  }
  mixed_prefill_rows_max_ = options.mixed_prefill_rows_max;
  if (mixed_prefill_rows_max_ == 0) {
    mixed_prefill_rows_max_ = device == nullptr ? kMixedPrefillRows : kDeviceMixedPrefillRows;
  }
  model_options.max_step_rows = step_rows_max_;
  // The machine's memory follows use; a device's is taken at the start.
  const CacheLayout layout = LayoutOf(config(), model_options);
  const PlacementBytes memory =
      device != nullptr ? MemoryOf(config(), model_options)
                        : PlacementBytes{.steps = StepMemoryBytes(config(), layout, step_rows_max_),
                                         .drafts = DraftMemoryBytes(config(), model_options.max_draft_rows)};
  // Refused before anything is taken.
  ASSIGN_OR_RETURN(plan_, PlanMemory(config(), layout,
                                     {.weights_bytes = weights_to_come,
                                      .context_tokens = options.context_tokens,
                                      .cache_bytes_max = options.cache_bytes_max,
                                      .max_sequences = options.max_sequences,
                                      .kept_prefixes_max = options.kept_prefixes_max,
                                      .step_bytes = memory.steps,
                                      .draft_bytes = memory.drafts},
                                     available_bytes_));
  if (device != nullptr) {
    ASSIGN_OR_RETURN(placement_, PlaceModel(loaded_.weights, *device, model_options, std::move(placed)));
  }
  model_ = std::make_unique<Model>(device != nullptr ? placement_.weights->weights : loaded_.weights,
                                   *backend_.kernels, *pool_, model_options);
  const uint64_t target = HashOfTarget(files_, loaded_.weights);
  const uint64_t draft = HashOfDraft(loaded_.weights);
  target_hash_ = fmt::format("{:016x}", target);
  if (draft != 0) draft_hash_ = fmt::format("{:016x}", draft);
  // States of one model, numerics and draft head, whose layers are part of them.
  const uint64_t parts[] = {target, draft, static_cast<uint64_t>(options.numerics)};
  plan_.cache.device = device;
  plan_.cache.model_identity = XXH3_64bits(parts, sizeof(parts));
  ASSIGN_OR_RETURN(cache_, KvCache::Create(model_->cache_layout(), plan_.cache));
  context_tokens_ = std::min(plan_.cache.max_sequence_tokens, cache_->AvailableTokens());
  return Status();
}

std::string Runtime::build_name() const {
  return fmt::format("{}, {}, {} numerics, {}, {} threads", FORESIGHT_VERSION, model_->table().name,
                     model_->numerics() == Numerics::kFaithful ? "faithful" : "clean", device_name(),
                     pool_->num_threads());
}

std::string Runtime::version() {
  return FORESIGHT_VERSION;
}

std::string Runtime::device_name() const {
  return backend_.device == nullptr ? machine_.processor : std::string(backend_.device->name());
}

std::string Runtime::StartUpReport() {
  const ModelConfig& c = config();
  const LoadReport& load = loaded_.report;
  const CacheLayout& layout = model_->cache_layout();
  const bool packed = layout.entry.format == CacheFormat::kPacked;
  std::string text =
      fmt::format("model    {}: {} in {} tensors, {} in {:.2f} s\n",
                  is_synthetic() ? "synthetic (random weights)" : files_.origin(), FormatBytes(load.bytes),
                  load.tensors, is_synthetic() ? "made" : "loaded", load.seconds);
  for (const std::string& name : load.ignored) text += fmt::format("         ignored: {}\n", name);
  text += fmt::format("shape    {}, hidden {}, {} heads of {}, {} of {} experts, vocabulary {}\n",
                      DescribeLayers(c), c.hidden_size, c.num_attention_heads, c.head_dim,
                      c.num_experts_per_tok, c.n_routed_experts, c.vocab_size);
  text += fmt::format("drafts   {}{}\n", DraftMethodName(draft_.method),
                      draft_.name.empty() ? "" : fmt::format(", head: {}", draft_.name));
  if (tokenizer_) text += fmt::format("text     {}\n", tokenizer_->Description());
  text += fmt::format("kernels  {}: {}; on {}; {} numerics; {} thread{}\n", model_->table().name,
                      model_->table().description, device().name(),
                      model_->numerics() == Numerics::kFaithful ? "faithful" : "clean", pool_->num_threads(),
                      pool_->num_threads() == 1 ? "" : "s");
  text +=
      fmt::format("cache    {} entries of {} B, {:.1f} B per token and {} per sequence; context {} tokens\n",
                  packed ? "packed FP8" : "float32", layout.entry.bytes(), KvBytesPerToken(layout),
                  FormatBytes(layout.fixed_bytes), FormatCount(context_tokens()));
  text += fmt::format("memory   {}; available at the start {}\n", plan_.ToString(),
                      FormatBytes(available_bytes_));
  return text;
}

int64_t Runtime::AccountedBytes() const {
  return static_cast<int64_t>(loaded_.report.bytes) + cache_->stats().resident_bytes +
         static_cast<int64_t>(model_->workspace_bytes());
}

}  // namespace foresight
