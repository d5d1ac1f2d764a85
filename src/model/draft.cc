// The draft heads: MTP-1 (model spec 2.11) and DSpark (dspark.md 1 and 2).
#include <algorithm>
#include <functional>
#include <numeric>

#include "base/row_tiers.h"
#include "kernels/padding.h"
#include "model/model.h"
#include "model/step_state.h"

namespace foresight {
namespace {

// Of a drawn token: error, token, confidence and margin.
constexpr int64_t kDrawnBytes = sizeof(int32_t) + sizeof(TokenId) + 2 * sizeof(float);

}  // namespace

Result<StepOutputs> Model::MtpStep(const StepInputs& inputs, std::span<const int32_t> stream_rows,
                                   StreamSource source) {
  if (!weights_.mtp.has_value()) return Unimplemented("this checkpoint has no MTP-1 block");
  const MtpWeights& mtp = *weights_.mtp;
  RETURN_IF_ERROR(CheckInputs(inputs));
  if (stream_rows.size() != inputs.tokens.size()) {
    return InvalidArgument("{} stream rows for {} tokens", stream_rows.size(), inputs.tokens.size());
  }
  const bool chained = source == StreamSource::kMtpStep;
  const float* source_streams = chained ? last_mtp_streams_ : last_streams_;
  const int source_rows = chained ? last_mtp_rows_ : last_rows_;
  for (int32_t row : stream_rows) {
    if (row < 0 || row >= source_rows)
      return InvalidArgument("stream row {} of {} step of {}", row, chained ? "an MTP-1" : "a", source_rows);
  }
  // A chain keeps what it is made of.
  arena_.Rewind(chained ? last_mtp_used_ : last_used_);
  if (!chained) {
    draft_arena_.Rewind(0);
    host_draft_outputs_.Rewind(0);
  }
  staging_.Restart();
  block_rows_ = 0;
  const int m = config().hc_mult;
  const int64_t dim = config().hidden_size;
  const int64_t rows = static_cast<int64_t>(inputs.tokens.size());
  StepState step;
  step.kind = StepKind::kMtp;
  step.rows = static_cast<int>(rows);
  step.num_logits = static_cast<int>(inputs.logit_rows.size());
  step.num_sequences = inputs.chunks.size();
  step.streams = arena_.Allocate<float>(rows * m * dim);
  const size_t used = arena_.used();
  float* const post = staging_.Allocate<float>(rows * m);
  float* const comb = staging_.Allocate<float>(rows * m * m);
  std::fill(post, post + rows * m, 1.0f);
  for (int64_t i = 0; i < rows * m * m; ++i) comb[i] = i % (m * m) % (m + 1) == 0 ? 1.0f : 0.0f;  // identity
  Begin(inputs, /*first_layer=*/config().num_hidden_layers, /*num_layers=*/1, step);
  ComputeAngles(step);
  {
    // z_j = e_proj RMSNorm(embed(next)) + h_proj RMSNorm(h_j), the first term the same for every stream.
    ArenaScope scope(arena_);
    const float eps = static_cast<float>(config().rms_norm_eps);
    float* embedded = arena_.Allocate<float>(rows * dim);
    float* e = arena_.Allocate<float>(rows * dim);
    float* h = arena_.Allocate<float>(rows * m * dim);
    table_.embed(ctx_, {.rows = step.rows,
                        .m = 1,
                        .tokens = step.tokens,
                        .placed = step.placed,
                        .placed_in = step.tokens,
                        .embed = weights_.embed,
                        .streams = embedded});
    table_.rms_norm(ctx_, {.rows = step.rows,
                           .dim = static_cast<int>(dim),
                           .x = embedded,
                           .weight = mtp.enorm,
                           .eps = eps,
                           .out = embedded});
    for (int64_t t = 0; t < rows;) {  // runs of neighbours at once
      int64_t end = t + 1;
      while (end < rows && stream_rows[end] == stream_rows[end - 1] + 1) ++end;
      device().Copy(h + t * m * dim, source_streams + stream_rows[t] * m * dim,
                    (end - t) * m * dim * static_cast<int64_t>(sizeof(float)));
      t = end;
    }
    table_.rms_norm(ctx_, {.rows = step.rows * m,
                           .dim = static_cast<int>(dim),
                           .x = h,
                           .weight = mtp.hnorm,
                           .eps = eps,
                           .out = h});
    const LinearTarget e_target[] = {{.w = mtp.e_proj, .out = e}};
    const LinearTarget h_target[] = {{.w = mtp.h_proj, .out = step.streams}};
    table_.linear(ctx_, {.rows = step.rows, .x = embedded, .targets = e_target});
    table_.linear(ctx_, {.rows = step.rows * m, .x = h, .targets = h_target});
    table_.hyper_connection_post(ctx_, {.rows = step.rows,
                                        .m = m,
                                        .dim = static_cast<int>(dim),
                                        .back = {e, staging_.OnDevice(post), staging_.OnDevice(comb)},
                                        .streams = step.streams});
  }
  RunBlock(mtp.block, config().num_hidden_layers, step);
  StoreKeys(step);
  MixBack(step);
  float* logits = draft_arena_.Allocate<float>(std::ssize(inputs.logit_rows) * config().vocab_size);
  Head(mtp.hc_head, mtp.norm, step, /*hidden=*/nullptr, logits);
  StepOutputs outputs{.device_logits = logits};
  if (device().is_host() || !inputs.keep_logits) {
    ASSIGN_OR_RETURN(outputs.logits,
                     Read(logits, std::ssize(inputs.logit_rows) * config().vocab_size, host_draft_outputs_));
  }
  for (const SequenceChunk& chunk : inputs.chunks) chunk.sequence->AdvanceDraft(chunk.num_rows);
  last_mtp_streams_ = step.streams;
  last_mtp_rows_ = step.rows;
  last_mtp_used_ = used;
  return outputs;
}

int Model::TapOf(int layer) const {
  const std::vector<int>& taps = config().dspark.target_layer_ids;
  const auto tap = std::find(taps.begin(), taps.end(), layer);
  return tap == taps.end() ? -1 : static_cast<int>(tap - taps.begin());
}

TapTarget Model::PendingTap(const StepState& step) const {
  if (step.pending_tap < 0) return {};
  return {.sequences = step.taps, .offset = int64_t{step.pending_tap} * config().hidden_size};
}

void Model::StorePendingTap(StepState& step) {
  if (step.pending_tap < 0) return;
  const TapTarget tap = PendingTap(step);
  table_.store_tap(ctx_, {.sequences = tap.sequences,
                          .m = config().hc_mult,
                          .dim = config().hidden_size,
                          .offset = tap.offset,
                          .streams = step.streams});
  step.pending_tap = -1;
}

DraftTier Model::TierOfDraft(const DraftBlockInputs& inputs, const StagedDraft& draft) {
  const int count = static_cast<int>(inputs.sequences.size());
  int64_t unread = 0;
  for (const SequenceState* sequence : inputs.sequences) {
    unread += sequence->length() - sequence->pending_taps();
  }
  const DraftTier own = {count, static_cast<int>(unread)};
  const int unread_max = std::min(kReplayedUnreadMax, options_.max_step_rows);
  if (device().is_host() || inputs.observer != nullptr || inputs.keep_outputs || unread > unread_max)
    return own;
  const auto fits = [&](const DraftTier& tier) {
    return tier.blocks * inputs.block <= options_.max_step_rows && tier.unread <= unread_max;
  };
  const DraftTier least = LeastDraftTier(own.blocks, inputs.block, own.unread);
  if (!fits(least)) return own;
  const std::optional<DraftTier> recorded =
      RecordedDraftTier(own.blocks, inputs.block, own.unread, [&](const DraftTier& tier) {
        return fits(tier) && device().IsRecorded(ReplayKey(draft, tier, inputs.block));
      });
  const bool takes_other = recorded && *recorded != least &&
                           !device().IsDueForRecording(ReplayKey(draft, least, inputs.block), kCallsAsLarger);
  return takes_other ? *recorded : least;
}

uint64_t Model::ReplayKey(const StagedDraft& draft, const DraftTier& tier, int block) const {
  const int flags = draft.keep_distributions + 2 * draft.has_min_p + 4 * draft.margins + 8 * draft.has_cuts;
  return ReplayKey(kReplayedDraft, int64_t{tier.blocks} * block, tier.blocks, draft.depth,
                   std::bit_width(static_cast<unsigned>(tier.unread)) * 16 + flags);
}

void Model::TakeUpTaps(std::span<SequenceState* const> sequences, const DraftTier& tier,
                       ContextRows& context) {
  // In groups whose rows the step memory is made for; the rings' rows of one sequence always are one.
  for (size_t begin = 0; begin < sequences.size();) {
    size_t end = begin;
    int64_t rows = 0;
    while (end < sequences.size()) {
      const int64_t more = sequences[end]->length() - sequences[end]->pending_taps();
      if (end > begin && rows + more > options_.max_step_rows) break;
      rows += more;
      ++end;
    }
    if (context.rows > 0) {  // another group
      ArenaScope scope(arena_);
      staging_.Flush();
      RunContext(context);
    }
    const bool is_all = end - begin == sequences.size();
    context.rows = is_all ? tier.unread : static_cast<int>(rows);
    context.num_sequences = is_all ? tier.blocks : static_cast<int64_t>(end - begin);
    StageContext(sequences.subspan(begin, end - begin), context);
    begin = end;
  }
  for (SequenceState* sequence : sequences) {
    sequence->AdvanceDraft(sequence->length() - sequence->draft_length());
  }
}

void Model::StageContext(std::span<SequenceState* const> sequences, ContextRows& context) {
  if (context.rows == 0) return;
  const int64_t num_stages = std::ssize(weights_.dspark->stages);
  context.sequences = staging_.Allocate<SequenceRows>(context.num_sequences * (1 + num_stages));
  std::fill(context.sequences, context.sequences + context.num_sequences * (1 + num_stages), kNobody);
  context.positions = staging_.Allocate<int64_t>(context.rows);
  std::fill(context.positions, context.positions + context.rows, 0);
  int row = 0;
  for (int64_t i = 0; i < std::ssize(sequences); ++i) {
    const int64_t first = sequences[i]->pending_taps();
    const int count = static_cast<int>(sequences[i]->length() - first);
    const SequenceRows pending = {
        .first_row = row, .num_rows = count, .first_position = first, .cache = sequences[i]->Taps()};
    context.sequences[i] = pending;
    for (int64_t stage = 0; stage < num_stages; ++stage) {
      SequenceRows& of_stage = context.sequences[(1 + stage) * context.num_sequences + i];
      of_stage = pending;
      of_stage.cache = sequences[i]->View(config().num_hidden_layers + static_cast<int>(stage));
    }
    std::iota(context.positions + row, context.positions + row + count, first);
    row += count;
  }
}

// dspark.md 1.4 (main_x, kvc), 2.1: one key per position and stage, in the stage's ring.
void Model::RunContext(const ContextRows& context) {
  const ModelConfig& c = config();
  const DSparkWeights& w = *weights_.dspark;
  const float eps = static_cast<float>(c.rms_norm_eps);
  const int rows = context.rows;
  const int64_t num_stages = std::ssize(w.stages);
  const size_t num_sequences = static_cast<size_t>(context.num_sequences);
  const SequenceRows* const pending = staging_.OnDevice(context.sequences);
  RopeAngles angles;
  ComputeAngles(rows, staging_.OnDevice(context.positions), {&window_frequencies_, 1}, &angles);
  const int64_t width = w.main_proj.cols;
  float* taps = arena_.Allocate<float>(rows * width);
  table_.load_taps(ctx_, {.sequences = {pending, num_sequences}, .width = width, .out = taps});

  float* main_x = arena_.Allocate<float>(int64_t{rows} * c.hidden_size);
  const LinearTarget main[] = {{.w = w.main_proj, .out = main_x}};
  table_.linear(ctx_, {.rows = rows, .x = taps, .targets = main});
  table_.rms_norm(
      ctx_,
      {.rows = rows, .dim = c.hidden_size, .x = main_x, .weight = w.main_norm, .eps = eps, .out = main_x});

  const EntryLayout& layout = cache_layout_.entry;
  std::byte* entries = arena_.Allocate<std::byte>(num_stages * rows * layout.bytes());
  for (int64_t i = 0; i < num_stages; ++i) {
    float* kv = arena_.Allocate<float>(int64_t{rows} * c.head_dim);
    context.projections[i] = {.w = w.stages[i].attn.wkv, .out = kv};
    context.keys[i] = {.rows = rows,
                       .layout = layout,
                       .kv = kv,
                       .norm = w.stages[i].attn.kv_norm,
                       .eps = eps,
                       .cos = angles.cos,
                       .sin = angles.sin,
                       .entries = entries + i * rows * layout.bytes()};
  }
  table_.linear(
      ctx_, {.rows = rows, .x = main_x, .targets = {context.projections, static_cast<size_t>(num_stages)}});
  table_.attention_inputs(ctx_, {.keys = {context.keys, static_cast<size_t>(num_stages)}});
  table_.store_keys(ctx_, {.layers = static_cast<int>(num_stages),
                           .rows = rows,
                           .sequences = {pending + num_sequences, num_stages * num_sequences},
                           .entries = entries});
}

Status Model::CheckBlock(const DraftBlockInputs& inputs) const {
  const int64_t count = std::ssize(inputs.sequences);
  if (inputs.block < 1 || inputs.block > config().dspark.block_size) {
    return InvalidArgument("a draft block has 1 to {} tokens, got {}", config().dspark.block_size,
                           inputs.block);
  }
  if (std::ssize(inputs.anchors) != count) {
    return InvalidArgument("{} anchors for {} sequences", inputs.anchors.size(), count);
  }
  for (int64_t r = 0; r < count; ++r) {
    if (inputs.sequences[r] == nullptr) return InvalidArgument("sequence {} of a draft block is null", r);
  }
  return Status();
}

Status Model::StageDraft(const DraftBlockInputs& inputs, const DraftTokensInputs* draws, StagedDraft& draft) {
  if (!weights_.dspark) return Unimplemented("this model has no DSpark head");
  RETURN_IF_ERROR(CheckBlock(inputs));
  const DSparkWeights& w = *weights_.dspark;
  const ModelConfig& c = config();
  const int block = inputs.block;
  const int count = static_cast<int>(inputs.sequences.size());
  if (draws != nullptr) {
    draft.depth = draws->depth;
    draft.keep_distributions = draws->keep_distributions;
    draft.has_min_p = HasMinP(draws->draws);
    draft.has_cuts = HasCuts(draws->draws);
    draft.margins = draws->margins;
  }
  const DraftTier tier = TierOfDraft(inputs, draft);
  const int padded = tier.blocks;
  const int64_t own_rows = int64_t{count} * block;
  const int64_t rows = int64_t{padded} * block;

  RewindForDraft();
  staging_.Restart();
  last_mtp_rows_ = 0;
  TokenId* tokens = staging_.Allocate<TokenId>(own_rows);
  SequenceChunk* chunks = staging_.Allocate<SequenceChunk>(count);
  int32_t* head_rows = staging_.Allocate<int32_t>(rows);
  StepInputs* const step_inputs = staging_.Allocate<StepInputs>(1);
  draft.context.projections = staging_.Allocate<LinearTarget>(std::ssize(w.stages));
  draft.context.keys = staging_.Allocate<KeyArgs>(std::ssize(w.stages));
  // The block's rows as a step: the anchor, then noise, for each sequence; logits position by position.
  std::fill(tokens, tokens + own_rows, c.dspark.noise_token_id);
  for (int r = 0; r < count; ++r) {
    tokens[r * block] = inputs.anchors[r];
    chunks[r] = {.sequence = inputs.sequences[r], .num_rows = block};
  }
  *step_inputs = {.tokens = {tokens, static_cast<size_t>(own_rows)},
                  .chunks = {chunks, static_cast<size_t>(count)},
                  .logit_rows = {},
                  .observer = inputs.observer};
  RETURN_IF_ERROR(CheckInputs(*step_inputs));
  for (int r = 0; r < padded; ++r) {
    for (int k = 0; k < block; ++k) head_rows[k * padded + r] = r * block + k;
  }
  step_inputs->logit_rows = {head_rows, static_cast<size_t>(rows)};
  staging_.KeepOnHost();

  if (!inputs.keep_outputs) {
    draft_arena_.Rewind(0);
    host_draft_outputs_.Rewind(0);
  }
  is_first_block_ = draft_arena_.used() == 0;
  block_count_ = count;
  block_rows_ = padded;
  block_size_ = block;
  next_position_ = 0;
  StepState& step = draft.step;
  block_hidden_ = step.hidden = draft_arena_.Allocate<float>(rows * c.hidden_size);
  block_logits_ = step.logits = draft_arena_.Allocate<float>(rows * c.vocab_size);
  block_confidence_ = draft_arena_.Allocate<float>(rows);
  block_state_ = nullptr;
  if (w.head.type == MarkovHeadType::kRnn) {
    block_state_ = draft_arena_.Allocate<float>(padded * w.head.rank());
    device().Zero(block_state_, padded * w.head.rank() * static_cast<int64_t>(sizeof(float)));
  }

  TakeUpTaps(inputs.sequences, tier, draft.context);
  if (draws != nullptr) StageDraws(*draws, draft);
  draft.forks = !device().is_host() && inputs.observer == nullptr && rows <= kReplayedRowsMax &&
                draft.context.rows <= kReplayedUnreadMax;
  step.kind = StepKind::kDraftBlock;
  step.rows = step.num_logits = static_cast<int>(rows);
  step.num_sequences = static_cast<size_t>(padded);
  step.streams = arena_.Allocate<float>(rows * c.hc_mult * c.hidden_size);
  Begin(*step_inputs, c.num_hidden_layers, static_cast<int>(w.stages.size()), step);
  step.heads_all = true;
  const bool is_tier = tier == LeastDraftTier(tier.blocks, block, tier.unread);
  if (is_tier && tier.unread <= kReplayedUnreadMax && IsReplayed(step) && IsBlockReplayed()) {
    draft.key = ReplayKey(draft, tier, block);
  }
  return Status();
}

void Model::StageDraws(const DraftTokensInputs& inputs, StagedDraft& draft) {
  const int64_t count = block_rows_;
  const int64_t drawn = inputs.depth * count;
  draft.anchors = staging_.Allocate<TokenId>(count);
  draft.sequences = staging_.Allocate<SampleSequence>(count);
  draft.draws = staging_.Allocate<SampleRow>(drawn);
  std::fill(draft.anchors, draft.anchors + count, inputs.block.anchors.back());
  std::copy(inputs.block.anchors.begin(), inputs.block.anchors.end(), draft.anchors);
  for (int32_t r = 0; r < count; ++r) draft.sequences[r] = {.first_row = r};
  for (int64_t i = 0; i < drawn; ++i) {
    const int64_t r = i % count;
    draft.draws[i] = inputs.draws[i / count * block_count_ + std::min<int64_t>(r, block_count_ - 1)];
    draft.draws[i].logits = block_logits_ + i * config().vocab_size;
    draft.draws[i].sequence = static_cast<int32_t>(r);
  }
  // Side by side, for one download.
  draft.errors = reinterpret_cast<int32_t*>(draft_arena_.Allocate<std::byte>(drawn * kDrawnBytes));
  draft.tokens = draft.errors + drawn;
  draft.confidences = reinterpret_cast<float*>(draft.tokens + drawn);
  draft.margins_out = draft.confidences + drawn;
  draft.statistics = draft_arena_.Allocate<RowStatistics>(drawn);
}

void Model::RunDraft(StagedDraft& draft) {
  StepState& step = draft.step;
  const ContextRows& context = draft.context;
  const auto launches = [&] {
    ArenaScope scope(arena_);
    Embed(step);
    // Behind the first launches, which a recording would otherwise begin behind the branch's own.
    if (context.rows > 0) {
      RunBeside(draft.forks, [&] { RunContext(context); });
      step.has_branch = draft.forks;
    }
    RunStages(step);
    RunDraws(draft);
  };
  if (draft.key) {
    device().Replay(*draft.key, std::ref(launches));
  } else {
    launches();
  }
  RewindForDraft();  // what it leaves isn't there
}

Result<DraftBlockOutputs> Model::DraftBlock(const DraftBlockInputs& inputs) {
  StagedDraft draft;
  RETURN_IF_ERROR(StageDraft(inputs, /*draws=*/nullptr, draft));
  RunDraft(draft);
  if (!device().is_host() && inputs.observer == nullptr) return DraftBlockOutputs{};
  const int64_t rows = draft.step.rows;  // no padding: an observer looks on, or the host computes
  ASSIGN_OR_RETURN(const auto hidden, Read(block_hidden_, rows * config().hidden_size, host_draft_outputs_));
  ASSIGN_OR_RETURN(const auto logits, Read(block_logits_, rows * config().vocab_size, host_draft_outputs_));
  return DraftBlockOutputs{.hidden = hidden, .base_logits = logits};
}

void Model::RewindForDraft() {
  arena_.Rewind(last_used_);
  const int more = ReplayedStreams() - last_padded_rows_;
  if (more > 0) arena_.Allocate<float>(more * int64_t{config().hc_mult} * config().hidden_size);
}

bool Model::IsBlockReplayed() const {
  return is_first_block_ && block_rows_ <= kReplayedRowsMax && last_padded_rows_ <= ReplayedStreams();
}

template <typename Branch>
void Model::RunBeside(bool forks, const Branch& branch) {
  if (!forks) {
    ArenaScope scope(arena_);
    return branch();
  }
  device().Fork([this, &branch] {
    ArenaKeep keep(arena_);
    branch();
  });
}

void Model::RunStages(StepState& step) {
  const DSparkWeights& w = *weights_.dspark;
  for (size_t i = 0; i < w.stages.size(); ++i) {
    RunBlock(w.stages[i], config().num_hidden_layers + static_cast<int>(i), step);
  }
  Head(w.hc_head, w.norm, step, step.hidden, step.logits);
}

Result<DraftHeadOutputs> Model::DraftHead(int k, std::span<const TokenId> previous) {
  if (block_rows_ == 0) return InvalidArgument("there is no draft block");
  if (k != next_position_ || k >= block_size_) {
    return InvalidArgument("position {} of a draft block of {}, expected {}", k, block_size_, next_position_);
  }
  if (std::ssize(previous) != block_count_) {
    return InvalidArgument("{} tokens for {} draft blocks", previous.size(), block_count_);
  }
  const ModelConfig& c = config();
  for (TokenId token : previous) {
    if (token < 0 || token >= c.vocab_size) {
      return InvalidArgument("token id {} is outside the vocabulary of {}", token, c.vocab_size);
    }
  }
  const SequentialHeadWeights& w = weights_.dspark->head;
  ArenaScope scope(arena_);
  staging_.Restart();
  TokenId* const tokens = staging_.Allocate<TokenId>(block_rows_);
  std::fill(tokens, tokens + block_rows_, previous.back());
  std::copy(previous.begin(), previous.end(), tokens);
  staging_.Flush();
  const int64_t first = int64_t{k} * block_rows_;
  float* logits = block_logits_ + first * c.vocab_size;
  float* confidence = block_confidence_ + first;
  const auto launches = [&] {
    table_.sequential_head(ctx_, {.rows = block_rows_,
                                  .dim = c.hidden_size,
                                  .weights = &w,
                                  .previous = staging_.OnDevice(tokens),
                                  .hidden = block_hidden_ + first * c.hidden_size,
                                  .state = block_state_,
                                  .logits = logits,
                                  .confidence = confidence});
  };
  if (IsBlockReplayed()) {
    device().Replay(ReplayKey(kReplayedDraftHead, block_size_, block_rows_, k, 0), std::ref(launches));
  } else {
    launches();
  }
  ++next_position_;
  const int num_confidences = w.confidence ? block_count_ : 0;
  std::span<const float> confidences(confidence, static_cast<size_t>(num_confidences));
  if (!device().is_host()) {  // arrives with the logits
    float* values = host_draft_outputs_.Allocate<float>(num_confidences);
    device().Fetch(values, confidence, num_confidences * static_cast<int64_t>(sizeof(float)));
    confidences = {values, static_cast<size_t>(num_confidences)};
  }
  ASSIGN_OR_RETURN(const auto read, Read(logits, int64_t{block_count_} * c.vocab_size, host_draft_outputs_));
  return DraftHeadOutputs{.logits = read, .confidence_logits = confidences};
}

void Model::RunDraws(const StagedDraft& draft) {
  if (draft.depth == 0) return;
  const ModelConfig& c = config();
  const SequentialHeadWeights& w = weights_.dspark->head;
  const int64_t count = block_rows_;
  const int depth = draft.depth;
  const auto find_confidences = [&](int first, int end, const TokenId* previous) {
    if (!w.confidence || first == end) return;
    table_.sequential_head(ctx_, {.rows = (end - first) * block_rows_,
                                  .dim = c.hidden_size,
                                  .weights = &w,
                                  .previous = previous,
                                  .hidden = block_hidden_ + first * count * c.hidden_size,
                                  .confidence = draft.confidences + first * count});
  };
  const TokenId* const anchors = staging_.OnDevice(draft.anchors);
  for (int k = 0; k < depth; ++k) {
    const int64_t first = k * count;
    table_.sequential_head(ctx_, {.rows = block_rows_,
                                  .dim = c.hidden_size,
                                  .weights = &w,
                                  .previous = k == 0 ? anchors : draft.tokens + first - count,
                                  .hidden = block_hidden_ + first * c.hidden_size,
                                  .state = block_state_,
                                  .logits = block_logits_ + first * c.vocab_size});
    if (k == depth - 1) {  // no draw waits for them
      RunBeside(draft.forks, [&] {
        find_confidences(0, 1, anchors);
        find_confidences(1, depth, draft.tokens);
        if (!draft.margins) return;
        table_.logit_margins(ctx_, {.rows = static_cast<int>(depth * count),
                                    .vocab_size = c.vocab_size,
                                    .logits = block_logits_,
                                    .out = draft.margins_out});
      });
    }
    table_.sample(ctx_, {.num_rows = block_rows_,
                         .num_sequences = block_rows_,
                         .vocab_size = c.vocab_size,
                         .normalize = draft.keep_distributions,
                         .has_min_p = draft.has_min_p,
                         .has_cuts = draft.has_cuts,
                         .rows = staging_.OnDevice(draft.draws) + first,
                         .sequences = staging_.OnDevice(draft.sequences),
                         .accepted = draft.errors + first,
                         .tokens = draft.tokens + first,
                         .statistics = draft.keep_distributions ? draft.statistics + first : nullptr});
  }
  if (draft.forks) device().Join();
}

Result<DrawnTokens> Model::DraftTokens(const DraftTokensInputs& inputs) {
  const int64_t count = std::ssize(inputs.block.sequences);
  if (inputs.depth < 1 || inputs.depth > inputs.block.block ||
      std::ssize(inputs.draws) != inputs.depth * count) {
    return InvalidArgument("{} draws and a depth of {} for {} draft blocks of {}", inputs.draws.size(),
                           inputs.depth, count, inputs.block.block);
  }
  StagedDraft draft;
  RETURN_IF_ERROR(StageDraft(inputs.block, &inputs, draft));
  RunDraft(draft);
  next_position_ = block_size_;
  const int64_t drawn = int64_t{inputs.depth} * block_rows_;
  std::byte* const read = host_draft_outputs_.Allocate<std::byte>(drawn * kDrawnBytes);
  device().Fetch(read, draft.errors, drawn * kDrawnBytes);
  const auto part = [&]<typename T>(const T* of, int64_t values) {
    const std::ptrdiff_t offset =
        reinterpret_cast<const std::byte*>(of) - reinterpret_cast<std::byte*>(draft.errors);
    return std::span(reinterpret_cast<const T*>(read + offset), static_cast<size_t>(values));
  };
  return DrawnTokens{
      .stride = block_rows_,
      .tokens = part(draft.tokens, drawn),
      .errors = part(draft.errors, drawn),
      .confidence_logits = part(draft.confidences, weights_.dspark->head.confidence ? drawn : 0),
      .margins = part(draft.margins_out, inputs.margins ? drawn : 0),
      .logits = block_logits_,
      .statistics = inputs.keep_distributions ? draft.statistics : nullptr,
      .device_tokens = draft.tokens,
      .device_confidence_logits = weights_.dspark->head.confidence ? draft.confidences : nullptr,
      .device_margins = inputs.margins ? draft.margins_out : nullptr};
}

}  // namespace foresight
