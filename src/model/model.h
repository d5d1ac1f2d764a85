// The DeepSeek-V4 forward pass: embedding, blocks of mHC + attention + mHC + MoE, head; and the MTP-1 block
// (model spec section 2). StepInputs -> StepOutputs, by way of one KernelTable.
#pragma once

#include <memory>
#include <vector>

#include "base/arena.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "kv_cache/cache_layout.h"
#include "model/step.h"
#include "weights/model_weights.h"

namespace foresight {

struct ModelOptions {
  Numerics numerics = Numerics::kFaithful;
  int max_step_rows = 512;
  int rollback_tokens = 64;  // how far back a sequence can be truncated
};

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

  const ModelWeights& weights() const { return weights_; }
  const ModelConfig& config() const { return weights_.config; }
  const KernelTable& table() const { return table_; }
  Numerics numerics() const { return numerics_; }
  int max_step_rows() const { return max_step_rows_; }
  // What a KvCache for this model's sequences is made with.
  const CacheLayout& cache_layout() const { return cache_layout_; }
  // Bytes of step memory in use at the peak so far.
  size_t workspace_bytes() const { return arena_.high_water() + draft_arena_.high_water(); }

 private:
  struct RopeAngles {
    const float* cos = nullptr;  // [rows, rope/2]
    const float* sin = nullptr;
  };
  struct StepState;  // step_state.h

  Status CheckInputs(const StepInputs& inputs) const;
  Status CheckBlock(const DraftBlockInputs& inputs) const;
  void Begin(const StepInputs& inputs, StepState& step);
  RopeAngles Angles(int rows, const int64_t* positions, const std::vector<float>& frequencies);
  void RunBlock(const BlockWeights& w, int layer, StepState& step);
  void Attention(const BlockWeights& w, int layer, StepState& step, const float* x, float* out);
  void Compress(const CompressorWeights& w, LayerKind kind, bool for_indexer, StepState& step, const float* a,
                float* b);
  void Moe(const BlockWeights& w, int layer, StepState& step, const float* x, float* out);
  // For inputs->logit_rows: logits [R, V]; hidden [R, D] before the norm, or null.
  void Head(const HyperHeadWeights& w, const VectorView& norm, const StepState& step, float* hidden,
            float* logits);
  std::span<const SequenceRows> TapsOf(const StepState& step);
  void TapLayer(int layer, const StepState& step);
  // Makes context rows of the pending taps.
  void TakeUpTaps(std::span<SequenceState* const> sequences);
  void StoreContext(std::span<SequenceState* const> sequences, int rows);

  const ModelWeights& weights_;
  const KernelTable& table_;
  const Numerics numerics_;
  const int max_step_rows_;
  const CacheLayout cache_layout_;
  const std::vector<float> window_frequencies_;
  const std::vector<float> compressed_frequencies_;
  std::vector<SequenceRows> sequences_;  // of the step at hand; kept for its capacity
  Arena arena_;
  Arena draft_arena_;  // outputs of draft steps, which outlive the steps between
  KernelContext ctx_;
  const float* last_streams_ = nullptr;  // [T, m, D] of the last Step
  int last_rows_ = 0;
  size_t last_used_ = 0;                     // the arena up to the end of last_streams_
  const float* last_mtp_streams_ = nullptr;  // of the last MtpStep; none after a Step or DraftBlock
  int last_mtp_rows_ = 0;
  size_t last_mtp_used_ = 0;
  // The last DraftBlock, position by position; block_rows_ 0: there is none.
  int block_rows_ = 0;
  int block_size_ = 0;
  int next_position_ = 0;
  float* block_hidden_ = nullptr;      // [block, R, D]
  float* block_logits_ = nullptr;      // [block, R, V]
  float* block_confidence_ = nullptr;  // [block, R]
  float* block_state_ = nullptr;       // [R, rank] of the RNN head
};

}  // namespace foresight
