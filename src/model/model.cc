#include "model/model.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/units.h"
#include "kernels/padding.h"
#include "model/placement.h"
#include "model/rope.h"
#include "model/step_state.h"

namespace foresight {
namespace {

// Address space for one step's activations and kernel scratch; physical memory follows use.
constexpr size_t kStepAddressSpace = size_t{64} << 30;
// Kernels do the same for all counts of entries up to this one.
constexpr int64_t kLeastEntriesMax = 512;

// That the step's plan may put behind chunk i.
int PlannedDrafts(const StepInputs& inputs, size_t i) {
  return inputs.plan.count > 0 ? inputs.plan.chunks[i].count : 0;
}

// Whether `row` is the next one with logits, of which `logits` have been before it.
bool IsNextLogit(const StepInputs& inputs, size_t logits, int64_t row) {
  return logits < inputs.logit_rows.size() && inputs.logit_rows[logits] == row;
}

bool IsEachRow(std::span<const int32_t> logit_rows, int64_t rows) {
  if (std::ssize(logit_rows) != rows) return false;
  for (int64_t i = 0; i < rows; ++i) {
    if (logit_rows[i] != i) return false;
  }
  return true;
}

Arena ArenaOf(const Device* device, std::span<std::byte> memory) {
  return device == nullptr ? Arena(kStepAddressSpace) : Arena(memory);
}

}  // namespace

Status CheckAddressSpace() {
  constexpr auto kBytes = static_cast<int64_t>(6 * kStepAddressSpace);  // of a model and who draws its tokens
  if (HostDevice().Allocate(kBytes, "").ok()) return Status();
  return ResourceExhausted("the system doesn't let this process reserve {} of address space (ulimit -v)",
                           FormatBytes(kBytes));
}

Model::Model(const ModelWeights& weights, const KernelTable& table, ThreadPool& pool,
             const ModelOptions& options)
    : weights_(weights),
      table_(table),
      options_(options),
      cache_layout_(LayoutOf(weights.config, options)),
      arena_(ArenaOf(options.device, options.step_memory)),
      draft_arena_(ArenaOf(options.device, options.draft_memory)),
      staging_(device(), arena_),
      host_outputs_(kStepAddressSpace),
      host_draft_outputs_(kStepAddressSpace),
      ctx_{.device = &device(), .pool = &pool, .scratch = &arena_, .numerics = options.numerics} {
  CHECK(options.max_step_rows > 0);
  replay_scope_ = device().NewReplayScope();
  UploadConstants();
}

void Model::UploadConstants() {
  const auto upload = [this]<typename T>(const std::vector<T>& values) -> const T* {
    T* data = arena_.Allocate<T>(std::ssize(values));
    device().Upload(data, values.data(), std::ssize(values) * static_cast<int64_t>(sizeof(T)));
    return data;
  };
  window_frequencies_ = upload(WindowRopeFrequencies(config()));
  compressed_frequencies_ = upload(CompressedRopeFrequencies(config()));
  const auto add_experts = [&](const BlockWeights& block) {
    const std::vector<ExpertWeights>& experts = block.ffn.experts;
    experts_.emplace_back(device().is_host() ? experts.data() : upload(experts), experts.size());
  };
  for (const BlockWeights& block : weights_.layers) add_experts(block);
  if (weights_.mtp) add_experts(weights_.mtp->block);
  if (weights_.dspark) {
    for (const BlockWeights& stage : weights_.dspark->stages) add_experts(stage);
  }
  verified_ = arena_.Allocate<int32_t>(kPlannedSequencesMax);
  constants_used_ = last_used_ = last_mtp_used_ = arena_.used();
}

Status Model::CheckInputs(const StepInputs& inputs) const {
  const int64_t rows = std::ssize(inputs.tokens);
  if (rows == 0 || rows + inputs.plan.count > options_.max_step_rows) {
    return InvalidArgument("a step takes 1 to {} rows, got {}", options_.max_step_rows,
                           rows + inputs.plan.count);
  }
  int64_t in_chunks = 0;
  for (size_t i = 0; i < inputs.chunks.size(); ++i) {
    const SequenceChunk& chunk = inputs.chunks[i];
    if (chunk.sequence == nullptr || chunk.num_rows <= 0)
      return InvalidArgument("chunk {} of a step is empty", i);
    for (size_t j = 0; j < i; ++j) {
      if (inputs.chunks[j].sequence == chunk.sequence)
        return InvalidArgument("chunks {} and {} share a sequence", j, i);
    }
    in_chunks += chunk.num_rows;
  }
  if (in_chunks != rows)
    return InvalidArgument("the chunks of a step have {} rows, the tokens {}", in_chunks, rows);
  for (TokenId token : inputs.tokens) {
    if (token < 0 || token >= config().vocab_size) {
      return InvalidArgument("token id {} is outside the vocabulary of {}", token, config().vocab_size);
    }
  }
  for (int32_t row : inputs.logit_rows) {
    if (row < 0 || row >= rows) return InvalidArgument("logits asked for row {} of {}", row, rows);
  }
  if (inputs.placed.size() > inputs.logit_rows.size()) {
    return InvalidArgument("{} tokens of the device for {} rows with logits", inputs.placed.size(),
                           inputs.logit_rows.size());
  }
  for (const PlacedToken& placed : inputs.placed) {
    if (placed.row < 0 || placed.row >= rows) {
      return InvalidArgument("a token of the device for row {} of {}", placed.row, rows);
    }
  }
  return Status();
}

Status Model::CheckPlan(const StepInputs& inputs) const {
  const DraftPlan& plan = inputs.plan;
  if (plan.count == 0) return Status();
  if (plan.chunks.size() != inputs.chunks.size() || !inputs.keep_logits || inputs.observer != nullptr ||
      !inputs.placed.empty()) {
    return InvalidArgument(
        "a step with a plan keeps its logits, has drafts for each chunk, no observer and no tokens of the "
        "device");
  }
  size_t logits = 0;
  int64_t last_row = -1;
  int64_t drafts = 0;
  int drafts_max = 0;
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    const ChunkDrafts& chunk = plan.chunks[i];
    last_row += inputs.chunks[i].num_rows;
    const bool has_logits = IsNextLogit(inputs, logits, last_row);
    logits += has_logits ? 1 : 0;
    if (chunk.count < 0 || std::ssize(chunk.scales) != chunk.count || (chunk.count > 0 && !has_logits)) {
      return InvalidArgument("{} drafts with {} scales behind chunk {}, {} logits", chunk.count,
                             chunk.scales.size(), i, has_logits ? "with" : "without");
    }
    drafts += chunk.count;
    drafts_max = std::max(drafts_max, chunk.count);
  }
  if (logits != inputs.logit_rows.size()) {
    return InvalidArgument("a step with a plan has logits for last rows of chunks, in their order");
  }
  if (plan.count < 0 || plan.count > drafts) {
    return InvalidArgument("a plan of {} drafts, there are {}", plan.count, drafts);
  }
  if (std::ssize(plan.chunks) > kPlannedSequencesMax ||
      std::ssize(plan.chunks) * drafts_max > kPlannedDraftsMax) {
    return InvalidArgument("a plan of {} drafts for each of {} sequences: there may be {}, and {} sequences",
                           drafts_max, plan.chunks.size(), kPlannedDraftsMax, kPlannedSequencesMax);
  }
  return Status();
}

void Model::ComputeAngles(int rows, const int64_t* positions, std::span<const float* const> frequencies,
                          RopeAngles* angles) {
  const int pairs = config().qk_rope_head_dim / 2;
  AngleTable tables[2];
  for (size_t i = 0; i < frequencies.size(); ++i) {
    float* cos = arena_.Allocate<float>(int64_t{rows} * pairs);
    float* sin = arena_.Allocate<float>(int64_t{rows} * pairs);
    tables[i] = {frequencies[i], cos, sin};
    angles[i] = {cos, sin};
  }
  table_.rope_table(ctx_, {.rows = rows,
                           .pairs = pairs,
                           .positions = positions,
                           .tables = std::span(tables).first(frequencies.size())});
}

int64_t Model::EntriesMax(const StepInputs& inputs) {
  int64_t most = kLeastEntriesMax;
  for (size_t i = 0; i < inputs.chunks.size(); ++i) {
    const SequenceChunk& chunk = inputs.chunks[i];
    const int64_t end = chunk.sequence->length() + chunk.num_rows + PlannedDrafts(inputs, i);
    most = std::max(most, end / kCsaRatio);
  }
  // A power of two: steps of about the same length are then the same to a device.
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(most)));
}

void Model::SetTier(const StepInputs& inputs, StepState& step) {
  const int rows = static_cast<int>(inputs.tokens.size()) + inputs.plan.count;
  const int sequences = static_cast<int>(inputs.chunks.size());
  const int logits = static_cast<int>(inputs.logit_rows.size()) + inputs.plan.count;
  const auto compute_as = [&](const StepTier& tier) {
    step.rows = tier.rows;
    step.num_sequences = static_cast<size_t>(tier.sequences);
    step.num_logits = step.heads_all ? tier.rows : rows == sequences ? logits : RowTier(logits);
  };
  step.heads_all = IsEachRow(inputs.logit_rows, std::ssize(inputs.tokens));
  step.entries_max = EntriesMax(inputs);
  const int rows_max = std::min(kReplayedRowsMax, options_.max_step_rows);
  if (device().is_host() || inputs.observer != nullptr || rows > rows_max) {
    compute_as({rows, sequences});
    step.num_logits = logits;
    return;
  }
  const auto is_recorded = [&](const StepTier& tier) {
    compute_as(tier);
    return device().IsRecorded(ReplayKey(step));
  };
  const auto is_due = [&](const StepTier& tier, int calls) {
    compute_as(tier);
    return device().IsDueForRecording(ReplayKey(step), calls);
  };
  const StepTier own = {rows, sequences};
  const bool is_plain = rows == sequences;
  // Plain steps of which some rows alone want logits are rare.
  if (is_plain && (!step.heads_all || is_recorded(own))) return compute_as(own);
  const StepTier least = LeastStepTier(rows, sequences, rows_max);
  const std::optional<StepTier> recorded = RecordedStepTier(rows, sequences, rows_max, is_recorded);
  if (!recorded) return compute_as(least);
  if (*recorded != least) return compute_as(is_due(least, kCallsAsLarger) ? least : *recorded);
  compute_as(is_plain && own != least && is_due(own, kCallsAsTier) ? own : least);
}

void Model::Begin(const StepInputs& inputs, int first_layer, int num_layers, StepState& step) {
  const bool main = step.kind == StepKind::kMain;
  const int64_t count = std::ssize(inputs.chunks);
  const int own_rows = static_cast<int>(inputs.tokens.size()) + inputs.plan.count;
  const auto padded_count = static_cast<int64_t>(step.num_sequences);
  step.inputs = &inputs;
  step.first_layer = first_layer;
  step.num_layers = num_layers;
  step.entries = arena_.Allocate<std::byte>(num_layers * step.rows * cache_layout_.entry.bytes());
  const auto copy = [this]<typename T>(std::span<const T> values, int count) {
    T* staged = staging_.Allocate<T>(count);
    T* const end = std::copy(values.begin(), values.end(), staged);
    if (!values.empty()) std::fill(end, staged + count, values.back());
    return staged;
  };
  TokenId* const tokens = copy(inputs.tokens, step.rows);
  int32_t* const logit_rows = copy(inputs.logit_rows, step.num_logits);
  if (step.heads_all) std::iota(logit_rows, logit_rows + step.num_logits, 0);
  const TokenId** const placed = staging_.Allocate<const TokenId*>(step.rows);
  std::fill(placed, placed + step.rows, nullptr);
  for (const PlacedToken& token : inputs.placed) placed[token.row] = token.token;
  std::fill(placed + own_rows, placed + step.rows, placed[own_rows - 1]);
  int64_t* const positions = staging_.Allocate<int64_t>(step.rows);
  // The taps' views behind those of the layers.
  const int num_views = num_layers + (main && weights_.dspark ? 1 : 0);
  SequenceRows* const sequences = staging_.Allocate<SequenceRows>(padded_count * num_views);
  SequenceRows* const taps = sequences + padded_count * num_layers;
  std::fill(sequences, sequences + padded_count * num_views, kNobody);
  int row = 0;
  for (int64_t i = 0; i < count; ++i) {
    const SequenceChunk& chunk = inputs.chunks[i];
    const int64_t first = main ? chunk.sequence->length() : chunk.sequence->draft_length();
    const SequenceRows rows = {
        .first_row = row, .num_rows = chunk.num_rows, .first_position = first, .cache = {}};
    for (int layer = 0; layer < num_layers; ++layer) {
      SequenceRows& of_layer = sequences[layer * padded_count + i] = rows;
      of_layer.cache = chunk.sequence->View(first_layer + layer);
    }
    if (main && weights_.dspark) {
      taps[i] = rows;
      taps[i].cache = chunk.sequence->Taps();
    }
    for (int j = 0; j < chunk.num_rows; ++j) positions[row++] = first + j;
  }
  std::fill(positions + row, positions + step.rows, positions[row - 1]);
  staging_.Flush();
  step.tokens = staging_.OnDevice(tokens);
  step.placed = staging_.OnDevice(placed);
  step.logit_rows = staging_.OnDevice(logit_rows);
  step.sequences = staging_.OnDevice(sequences);
  if (main && weights_.dspark) step.taps = {staging_.OnDevice(taps), step.num_sequences};
  step.x = arena_.Allocate<float>(int64_t{step.rows} * config().hidden_size);
  step.y = arena_.Allocate<float>(int64_t{step.rows} * config().hidden_size);
  step.post = arena_.Allocate<float>(int64_t{step.rows} * config().hc_mult);
  step.comb = arena_.Allocate<float>(int64_t{step.rows} * config().hc_mult * config().hc_mult);
  step.positions = staging_.OnDevice(positions);
}

// In memory that the step's layers take behind it: steps with and without a plan have one recording.
void Model::RunPlan(const StepState& step) {
  ArenaScope scope(arena_);
  const StepInputs& inputs = *step.inputs;
  const int64_t count = std::ssize(inputs.chunks);
  PlannedSequence* const sequences = staging_.Allocate<PlannedSequence>(count);
  TokenId* const tokens = staging_.Allocate<TokenId>(std::ssize(inputs.tokens));
  std::copy(inputs.tokens.begin(), inputs.tokens.end(), tokens);
  int32_t row = 0;
  int32_t drafts = 0;
  int drafts_max = 0;
  size_t logits = 0;
  for (int64_t i = 0; i < count; ++i) {
    const ChunkDrafts& chunk = inputs.plan.chunks[i];
    const int32_t rows = inputs.chunks[i].num_rows;
    const bool has_logits = IsNextLogit(inputs, logits, row + rows - 1);
    sequences[i] = {.first_known = row,
                    .known_rows = rows,
                    .has_logits = has_logits ? 1 : 0,
                    .num_drafts = chunk.count,
                    .first_scale = drafts,
                    .stride = chunk.drafts.stride,
                    .tokens = chunk.drafts.tokens,
                    .logits = chunk.drafts.confidence_logits,
                    .margins = chunk.drafts.margins};
    logits += has_logits ? 1 : 0;
    row += rows;
    drafts += chunk.count;
    drafts_max = std::max(drafts_max, chunk.count);
  }
  ConfidenceScale* const scales = staging_.Allocate<ConfidenceScale>(drafts);
  for (int64_t i = 0; i < count; ++i) {
    std::copy(inputs.plan.chunks[i].scales.begin(), inputs.plan.chunks[i].scales.end(),
              scales + sequences[i].first_scale);
  }
  staging_.Flush();
  table_.plan_drafts(ctx_, {.count = inputs.plan.count,
                            .drafts_max = drafts_max,
                            .sequences = {staging_.OnDevice(sequences), inputs.chunks.size()},
                            .scales = staging_.OnDevice(scales),
                            .known_tokens = staging_.OnDevice(tokens),
                            .rows = step.rows,
                            .num_logits = step.num_logits,
                            .heads_all = step.heads_all,
                            .layers = step.num_layers + (step.taps.empty() ? 0 : 1),
                            .layer_views = static_cast<int64_t>(step.num_sequences),
                            .views = step.sequences,
                            .tokens = step.tokens,
                            .positions = step.positions,
                            .logit_rows = step.logit_rows,
                            .verified = verified_});
}

void Model::ComputeAngles(StepState& step) {
  const float* const frequencies[] = {window_frequencies_, compressed_frequencies_};
  RopeAngles angles[2];
  const size_t count = step.kind == StepKind::kMain ? 2 : 1;
  ComputeAngles(step.rows, step.positions, std::span(frequencies).first(count), angles);
  step.window = angles[0];
  step.compressed = angles[1];
}

Result<std::span<const float>> Model::Read(const float* data, int64_t count, Arena& host) {
  if (device().is_host()) return std::span(data, static_cast<size_t>(count));
  float* values = host.Allocate<float>(count);
  RETURN_IF_ERROR(device().Download(values, data, count * static_cast<int64_t>(sizeof(float))));
  return std::span<const float>(values, static_cast<size_t>(count));
}

Result<StepOutputs> Model::Step(const StepInputs& inputs) {
  RETURN_IF_ERROR(CheckInputs(inputs));
  RETURN_IF_ERROR(CheckPlan(inputs));
  for (size_t i = 0; i < inputs.chunks.size(); ++i) {
    const SequenceChunk& chunk = inputs.chunks[i];
    const Status reserved = chunk.sequence->Reserve(chunk.num_rows + PlannedDrafts(inputs, i));
    if (reserved.ok()) continue;
    for (size_t j = 0; j < i; ++j) {
      SequenceState& sequence = *inputs.chunks[j].sequence;
      RETURN_IF_ERROR(sequence.Truncate(sequence.length()));  // gives the reservation back
    }
    return reserved;
  }
  arena_.Rewind(constants_used_);
  staging_.Restart();
  host_outputs_.Rewind(0);
  StepState step;
  const int64_t row_floats = int64_t{config().hc_mult} * config().hidden_size;
  last_rows_ = static_cast<int>(inputs.tokens.size()) + inputs.plan.count;
  SetTier(inputs, step);
  last_padded_rows_ = step.rows;
  step.streams = arena_.Allocate<float>(last_padded_rows_ * row_floats);
  last_streams_ = step.streams;
  last_used_ = arena_.used();
  last_mtp_rows_ = 0;
  Begin(inputs, /*first_layer=*/0, config().num_hidden_layers, step);

  step.logits = arena_.Allocate<float>(int64_t{step.num_logits} * config().vocab_size);
  if (inputs.plan.count > 0) RunPlan(step);
  if (IsReplayed(step)) {
    device().Replay(ReplayKey(step), [this, &step] { CHECK(RunLayers(step).ok()); });
  } else {
    RETURN_IF_ERROR(RunLayers(step));
  }
  StepOutputs outputs{.device_logits = step.logits, .device_verified = verified_};
  if (device().is_host() || !inputs.keep_logits) {
    const int64_t logits = std::ssize(inputs.logit_rows) + inputs.plan.count;
    ASSIGN_OR_RETURN(outputs.logits, Read(step.logits, logits * config().vocab_size, host_outputs_));
  }
  for (const SequenceChunk& chunk : inputs.chunks) chunk.sequence->Advance(chunk.num_rows);
  return outputs;
}

bool Model::HasMinP(std::span<const SampleRow> rows) {
  return std::any_of(rows.begin(), rows.end(),
                     [](const SampleRow& row) { return row.lowest_log_weight > -DBL_MAX; });
}

bool Model::HasCuts(std::span<const SampleRow> rows) {
  return std::any_of(rows.begin(), rows.end(),
                     [](const SampleRow& row) { return row.top_k > 0 || row.top_p < 1; });
}

void Model::Sample(const DrawInputs& inputs, std::span<int32_t> results) {
  if (inputs.sequences.empty()) return;
  CHECK(results.size() == (inputs.planned != nullptr ? 3 : 2) * inputs.sequences.size());
  ArenaScope scope(arena_);
  int32_t* const out = arena_.Allocate<int32_t>(std::ssize(results));
  RunSample(inputs, out, /*statistics=*/nullptr);
  device().Fetch(results.data(), out, std::ssize(results) * static_cast<int64_t>(sizeof(int32_t)));
}

SampledDrafts Model::SampleDrafts(std::span<const SampleRow> rows, std::span<const SampleSequence> sequences,
                                  bool normalize, std::span<int32_t> results) {
  if (sequences.empty()) return {};
  CHECK(results.size() == 2 * sequences.size() && rows.size() == sequences.size());
  ArenaScope scope(arena_);
  int32_t* const out = draft_arena_.Allocate<int32_t>(std::ssize(results));
  RowStatistics* const statistics =
      normalize ? draft_arena_.Allocate<RowStatistics>(std::ssize(rows)) : nullptr;
  RunSample({.rows = rows, .sequences = sequences, .normalize = normalize}, out, statistics);
  device().Fetch(results.data(), out, std::ssize(results) * static_cast<int64_t>(sizeof(int32_t)));
  return {.tokens = out + sequences.size(), .statistics = statistics};
}

void Model::RunSample(const DrawInputs& inputs, int32_t* results, RowStatistics* statistics) {
  const int64_t count = std::ssize(inputs.sequences);
  staging_.Restart();
  SampleRow* const rows = staging_.Allocate<SampleRow>(std::ssize(inputs.rows));
  SampleSequence* const sequences = staging_.Allocate<SampleSequence>(count);
  std::copy(inputs.rows.begin(), inputs.rows.end(), rows);
  std::copy(inputs.sequences.begin(), inputs.sequences.end(), sequences);
  SampleArgs args = {.num_rows = static_cast<int>(inputs.rows.size()),
                     .num_sequences = static_cast<int>(count),
                     .vocab_size = config().vocab_size,
                     .normalize = inputs.normalize,
                     .has_min_p = HasMinP(inputs.rows),
                     .has_cuts = HasCuts(inputs.rows),
                     .accepted = results,
                     .tokens = results + count,
                     .statistics = statistics};
  if (inputs.planned == nullptr) {
    PlacedToken* const drafts = staging_.Allocate<PlacedToken>(std::ssize(inputs.drafts));
    std::copy(inputs.drafts.begin(), inputs.drafts.end(), drafts);
    staging_.Flush();
    args.rows = staging_.OnDevice(rows);
    args.sequences = staging_.OnDevice(sequences);
    if (!inputs.drafts.empty()) {
      table_.place_tokens(ctx_, {.tokens = {staging_.OnDevice(drafts), inputs.drafts.size()},
                                 .to = &staging_.OnDevice(rows)->draft,
                                 .stride = sizeof(SampleRow)});
    }
  } else {
    const TokenId** const drafts = staging_.Allocate<const TokenId*>(std::ssize(inputs.rows));
    std::fill(drafts, drafts + inputs.rows.size(), nullptr);
    for (const PlacedToken& draft : inputs.drafts) drafts[draft.row] = draft.token;
    staging_.Flush();
    args.num_rows = static_cast<int>(count) + inputs.num_verified;
    SampleRow* const placed_rows = arena_.Allocate<SampleRow>(args.num_rows);
    SampleSequence* const placed_sequences = arena_.Allocate<SampleSequence>(count);
    args.rows = placed_rows;
    args.sequences = placed_sequences;
    table_.place_draws(ctx_, {.vocab_size = config().vocab_size,
                              .num_rows = args.num_rows,
                              .sequences = {staging_.OnDevice(sequences), inputs.sequences.size()},
                              .rows = staging_.OnDevice(rows),
                              .drafts = staging_.OnDevice(drafts),
                              .verified = inputs.planned->device_verified,
                              .logits = inputs.planned->device_logits,
                              .placed_rows = placed_rows,
                              .placed_sequences = placed_sequences,
                              .told = results + 2 * count});
  }
  table_.sample(ctx_, args);
}

bool Model::IsReplayed(const StepState& step) {
  // The key doesn't tell whose logits are wanted, but that they are everybody's.
  return step.inputs->observer == nullptr && step.rows <= kReplayedRowsMax &&
         (step.heads_all || step.num_logits != step.rows);
}

uint64_t Model::ReplayKey(const StepState& step) const {
  return ReplayKey(static_cast<int>(step.kind), step.rows, static_cast<int64_t>(step.num_sequences),
                   step.num_logits, std::bit_width(static_cast<uint64_t>(step.entries_max)));
}

uint64_t Model::ReplayKey(int kind, int64_t rows, int64_t sequences, int64_t outputs, int64_t variant) const {
  uint64_t key = replay_scope_;
  const auto add = [&key](int64_t value, int bits) {
    CHECK(value >= 0 && value >> bits == 0);
    key = key << bits | static_cast<uint64_t>(value);
  };
  add(kind, 3);
  add(rows, 8);
  add(sequences, 8);
  add(outputs, 8);
  add(variant, 8);
  return key;
}

void Model::Embed(StepState& step) {
  ComputeAngles(step);
  table_.embed(ctx_, {.rows = step.rows,
                      .m = config().hc_mult,
                      .tokens = step.tokens,
                      .placed = step.placed,
                      .placed_in = step.tokens,
                      .embed = weights_.embed,
                      .streams = step.streams});
}

Status Model::RunLayers(StepState& step) {
  ArenaScope scope(arena_);
  const int64_t row_floats = int64_t{config().hc_mult} * config().hidden_size;
  Embed(step);
  for (int layer = 0; layer < config().num_hidden_layers; ++layer) {
    RunBlock(weights_.layers[layer], layer, step);
    if (weights_.dspark) step.pending_tap = TapOf(layer);
    if (step.inputs->observer != nullptr) {
      MixBack(step);
      ASSIGN_OR_RETURN(const auto streams, Read(step.streams, step.rows * row_floats, host_outputs_));
      step.inputs->observer->OnBlock(layer, streams);
    }
  }
  StoreKeys(step);
  if (!step.heads_all) {
    MixBack(step);
    StorePendingTap(step);
  }
  Head(weights_.hc_head, weights_.norm, step, /*hidden=*/nullptr, step.logits);
  return Status();
}

// Model spec 2.10, for the rows that want logits.
void Model::Head(const HyperHeadWeights& w, const VectorView& norm, StepState& step, float* hidden,
                 float* logits) {
  const ModelConfig& c = config();
  const int rows = step.num_logits;
  if (rows == 0) return;
  ArenaScope scope(arena_);
  float* normed = arena_.Allocate<float>(int64_t{rows} * c.hidden_size);
  table_.hyper_head(ctx_, {.rows = rows,
                           .m = c.hc_mult,
                           .dim = c.hidden_size,
                           .streams = step.streams,
                           .back = step.Pending(),
                           .tap = PendingTap(step),
                           .row_ids = step.logit_rows,
                           .fn = w.fn,
                           .base = w.base,
                           .scale = w.scale,
                           .norm = norm,
                           .hc_eps = static_cast<float>(c.hc_eps),
                           .norm_eps = static_cast<float>(c.rms_norm_eps),
                           .hidden = hidden,
                           .out = normed});
  step.is_pending = false;
  step.pending_tap = -1;
  const LinearTarget head[] = {{.w = weights_.head, .out = logits, .numerics = LinearNumerics::kFloat32}};
  table_.linear(ctx_, {.rows = rows, .x = normed, .targets = head});
}

}  // namespace foresight
