// The DeepSeek-V4 forward pass: embedding, blocks of mHC + attention + mHC + MoE, head; and the MTP-1 block
// (model spec section 2). StepInputs -> StepOutputs, by way of one KernelTable.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "base/arena.h"
#include "base/row_tiers.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "device/device.h"
#include "kernels/kernel_table.h"
#include "kv_cache/cache_layout.h"
#include "model/staging.h"
#include "model/step.h"
#include "weights/model_weights.h"

namespace foresight {

struct ModelOptions {
  Numerics numerics = Numerics::kFaithful;
  int max_step_rows = 512;
  int rollback_tokens = 64;  // how far back a sequence can be truncated
  int max_draft_rows = 0;    // of drafts whose logits are kept at a time; there is room for max_step_rows
  // Whose memory weights and caches are in, and of it: memory for the activations of a step, and for what
  // drafts leave behind (none without a draft head). Borrowed. Null: the machine, whose address space is
  // reserved as needed.
  Device* device = nullptr;
  std::span<std::byte> step_memory = {};
  std::span<std::byte> draft_memory = {};
};

// kResourceExhausted where this process may not reserve what a model's steps lie in (`ulimit -v`): address
// space alone, of which pages are taken as they are used.
Status CheckAddressSpace();

// Used by one thread at a time. Weights, table and pool are borrowed and outlive the model.
class Model {
 public:
  Model(const ModelWeights& weights, const KernelTable& table, ThreadPool& pool, const ModelOptions& options);

  // Runs the rows of `inputs` through the model and advances every sequence. Errors: kInvalidArgument (rows
  // over the limit, token out of range, a sequence twice), kResourceExhausted (no cache block); then no
  // sequence has changed.
  Result<StepOutputs> Step(const StepInputs& inputs);

  // The MTP-1 block (model spec 2.11): row t takes streams row `stream_rows[t]` of `source` and tokens[t],
  // the token at the following position, and stands at position draft_length() of its sequence. Advances the
  // sequences' draft part. `logit_rows` as in Step. The logits and streams of a step and of those chained to
  // it stay valid until the next MtpStep from kStep; the logits also through steps between.
  // kUnimplemented when there is no MTP-1 block.
  //
  // After a verification that keeps n tokens: TruncateDraft to the length before it, then one MtpStep over
  // the kept rows (their next tokens are known), then chained ones, one row a sequence, for more drafts.
  Result<StepOutputs> MtpStep(const StepInputs& inputs, std::span<const int32_t> stream_rows,
                              StreamSource source = StreamSource::kStep);

  // The DSpark backbone (dspark.md 1.4): one block of queries [anchor, noise ...] for each sequence at
  // positions length() .. length() + block - 1, which see each other and the last sliding_window context
  // rows.
  //
  // With a DSpark head loaded every Step keeps what those rows are made of, the taps, as a part of the
  // sequence that follows it through truncation, forks and snapshots; a block first makes rows of what has
  // come since the last one. So a sequence that doesn't draft pays for the taps alone, and rejected tokens
  // cost nothing. Of the block itself nothing is stored.
  //
  // Errors: kUnimplemented (no DSpark head), kInvalidArgument (R*block over max_step_rows, block over the
  // config's, token out of range, a sequence twice).
  Result<DraftBlockOutputs> DraftBlock(const DraftBlockInputs& inputs);

  // The sequential head (dspark.md 1.5, 1.6) at position k of the last DraftBlock, k = 0 .. block-1 in order:
  // previous[r] is the anchor for k = 0, then the token drawn at k - 1. The confidence logit of a position
  // depends on the tokens before it alone. Errors: kInvalidArgument (out of order, token out of range).
  Result<DraftHeadOutputs> DraftHead(int k, std::span<const TokenId> previous);

  // A DraftBlock and all of its positions without the host in between: each takes the token drawn at the one
  // before from the device's memory. Doesn't wait. Errors: those of DraftBlock, kInvalidArgument (shapes).
  Result<DrawnTokens> DraftTokens(const DraftTokensInputs& inputs);

  // The table's `sample` for rows whose logits are device memory that is still valid (StepOutputs,
  // DrawnTokens). Doesn't wait: `results` [2, sequences], accepted drafts and then tokens, are there once the
  // device has been waited for; with a plan [3, sequences], at the end how many drafts were verified.
  void Sample(const DrawInputs& inputs, std::span<int32_t> results);
  // The same for drafts, one row a sequence, of which the device keeps what the next draft and their
  // verification take.
  SampledDrafts SampleDrafts(std::span<const SampleRow> rows, std::span<const SampleSequence> sequences,
                             bool normalize, std::span<int32_t> results);

  const ModelWeights& weights() const { return weights_; }
  const ModelConfig& config() const { return weights_.config; }
  const KernelTable& table() const { return table_; }
  Numerics numerics() const { return options_.numerics; }
  int max_step_rows() const { return options_.max_step_rows; }
  Device& device() { return options_.device != nullptr ? *options_.device : host_; }
  // What a KvCache for this model's sequences is made with.
  const CacheLayout& cache_layout() const { return cache_layout_; }
  // Bytes of step memory in use at the peak so far.
  size_t workspace_bytes() const {
    return arena_.high_water() + draft_arena_.high_water() + staging_.host_bytes();
  }

 private:
  struct RopeAngles {
    const float* cos = nullptr;  // [rows, rope/2]
    const float* sin = nullptr;
  };
  // step_state.h
  struct StepState;
  struct ContextRows;
  struct StagedDraft;

  // Puts what every step needs at the bottom of the step memory.
  void UploadConstants();
  Status CheckInputs(const StepInputs& inputs) const;
  Status CheckBlock(const DraftBlockInputs& inputs) const;
  Status CheckPlan(const StepInputs& inputs) const;
  // As what a step of the main layers is computed: its rows, sequences and logits with the padding
  // (SequenceRows) that makes it one of few which a device may have recorded, or one that it has.
  void SetTier(const StepInputs& inputs, StepState& step);
  // The same of draft blocks, whose draws `draft` tells.
  DraftTier TierOfDraft(const DraftBlockInputs& inputs, const StagedDraft& draft);
  // That no row of the step sees more CSA entries.
  static int64_t EntriesMax(const StepInputs& inputs);
  // Stages the rows of a step of step.rows, num_logits and num_sequences, as many as there are or more:
  // tokens, positions, the sequences as layers [first_layer, first_layer + num_layers) see them, and uploads
  // it.
  void Begin(const StepInputs& inputs, int first_layer, int num_layers, StepState& step);
  // Has the device change the staged rows by the step's plan.
  void RunPlan(const StepState& step);
  // From the embedding to the logits of the rows that want them. Errors: what reading for an observer gives.
  Status RunLayers(StepState& step);
  // A draft block: stages what it is made of and, unless null, the draws of its tokens.
  Status StageDraft(const DraftBlockInputs& inputs, const DraftTokensInputs* draws, StagedDraft& draft);
  void StageDraws(const DraftTokensInputs& inputs, StagedDraft& draft);
  // Context, stages and draws.
  void RunDraft(StagedDraft& draft);
  // DSpark's stages: hidden states and logits of a block.
  void RunStages(StepState& step);
  void RunDraws(const StagedDraft& draft);
  // Runs `branch`, beside what comes behind it (Device::Fork) with `forks`.
  template <typename Branch>
  void RunBeside(bool forks, const Branch& branch);
  // Whether the device may record the step, and what tells it from others (Device::Replay).
  static bool IsReplayed(const StepState& step);
  uint64_t ReplayKey(const StepState& step) const;
  uint64_t ReplayKey(const StagedDraft& draft, const DraftTier& tier, int block) const;
  uint64_t ReplayKey(int kind, int64_t rows, int64_t sequences, int64_t outputs, int64_t variant) const;
  void RunSample(const DrawInputs& inputs, int32_t* results, RowStatistics* statistics);
  static bool HasMinP(std::span<const SampleRow> rows);
  static bool HasCuts(std::span<const SampleRow> rows);
  // The step memory behind the last step's streams; where drafts find it again behind steps of up to
  // ReplayedStreams() rows.
  void RewindForDraft();
  int ReplayedStreams() const { return std::min(kReplayedStreamsMax, options_.max_step_rows); }
  // Whether a block's outputs lie where they lay for every block of its shape.
  bool IsBlockReplayed() const;
  // The streams and angles that a step begins with; angles in memory of the caller's scope.
  void Embed(StepState& step);
  void ComputeAngles(StepState& step);
  // Those of one set of frequencies, or of two; the same.
  void ComputeAngles(int rows, const int64_t* positions, std::span<const float* const> frequencies,
                     RopeAngles* angles);
  void RunBlock(const BlockWeights& w, int layer, StepState& step);
  // Mixes the streams into x; and what is pending back into the streams.
  void Mix(const HyperConnectionWeights& hc, const VectorView& norm, StepState& step);
  void MixBack(StepState& step);
  void Attention(const BlockWeights& w, int layer, StepState& step, const float* x, float* out);
  CompressorArgs Compressor(const CompressorWeights& w, LayerKind kind, bool for_indexer, int rows,
                            std::span<const SequenceRows> sequences, const float* a, float* b) const;
  void StoreKeys(const StepState& step);
  void ObservePicks(int layer, const StepState& step, int32_t* picks);
  // Whether the observer has replaced `ids`; then by `forced`.
  bool ObserveExperts(int layer, const StepState& step, const int32_t* ids, int32_t* forced);
  void Moe(const BlockWeights& w, int layer, StepState& step, const float* x, float* out);
  // For inputs->logit_rows: logits [R, V]; hidden [R, D] before the norm, or null. What is pending must have
  // been mixed back and tapped before, unless they are all rows.
  void Head(const HyperHeadWeights& w, const VectorView& norm, StepState& step, float* hidden, float* logits);
  // Which of the DSpark head's taps layer `layer` has; -1: none.
  int TapOf(int layer) const;
  // Where step.pending_tap goes; the next mix stores it with what it mixes back, or StorePendingTap does.
  TapTarget PendingTap(const StepState& step) const;
  void StorePendingTap(StepState& step);
  // `count` floats of device memory as the host reads them.
  Result<std::span<const float>> Read(const float* data, int64_t count, Arena& host);
  // Makes context rows of the pending taps but for the last group of sequences, whose rows are staged for
  // RunContext; if it is all of them, as `tier` says.
  void TakeUpTaps(std::span<SequenceState* const> sequences, const DraftTier& tier, ContextRows& context);
  // The pending rows of `sequences` and padding behind them: as many rows and sequences as `context` says.
  void StageContext(std::span<SequenceState* const> sequences, ContextRows& context);
  void RunContext(const ContextRows& context);

  static constexpr int kReplayedStreamsMax = 256;

  HostDevice host_;
  const ModelWeights& weights_;
  const KernelTable& table_;
  const ModelOptions options_;
  const CacheLayout cache_layout_;
  const float* window_frequencies_ = nullptr;      // [rope/2], of the device
  const float* compressed_frequencies_ = nullptr;  // likewise
  int32_t* verified_ = nullptr;                    // StepOutputs::device_verified
  // [main layers, draft blocks]: the block's experts, where kernels find them.
  std::vector<std::span<const ExpertWeights>> experts_;
  Arena arena_;
  Arena draft_arena_;  // outputs of draft steps, which outlive the steps between
  uint64_t replay_scope_ = 0;
  size_t constants_used_ = 0;  // the arena up to the end of what is never given back
  Staging staging_;
  Arena host_outputs_;        // what was read of a step
  Arena host_draft_outputs_;  // of draft steps
  KernelContext ctx_;
  const float* last_streams_ = nullptr;      // [T, m, D] of the last Step
  int last_rows_ = 0;                        // that were asked for
  int last_padded_rows_ = 0;                 // T: with padding, behind which the next memory lies
  size_t last_used_ = 0;                     // the arena up to the end of last_streams_
  const float* last_mtp_streams_ = nullptr;  // of the last MtpStep; none after a Step or DraftBlock
  int last_mtp_rows_ = 0;
  size_t last_mtp_used_ = 0;
  // The last DraftBlock, position by position; block_rows_ 0: there is none.
  int block_count_ = 0;  // of sequences
  int block_rows_ = 0;   // R: with padding
  int block_size_ = 0;
  int next_position_ = 0;
  bool is_first_block_ = true;         // nothing is kept before it
  float* block_hidden_ = nullptr;      // [block, R, D]
  float* block_logits_ = nullptr;      // [block, R, V]
  float* block_confidence_ = nullptr;  // [block, R]
  float* block_state_ = nullptr;       // [R, rank] of the RNN head
};

}  // namespace foresight
