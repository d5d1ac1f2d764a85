// What goes into one forward step and what comes out (design: a step is a ragged batch of rows).
#pragma once

#include <cstdint>
#include <span>

#include "base/confidence.h"
#include "base/ids.h"
#include "kernels/sampling/place_tokens.h"
#include "kernels/sampling/sampling.h"
#include "kv_cache/sequence_state.h"

namespace foresight {

// One sequence's part of a step: its next num_rows tokens, at positions length(), length() + 1, ...
struct SequenceChunk {
  SequenceState* sequence = nullptr;  // borrowed for the step; advanced by it
  int num_rows = 0;
};

// Sees the discrete choices of a step and may replace them; for verification against recorded sets.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  // ids [T, K]: the routed experts of each row. Returns true when it has replaced them (the weights follow).
  virtual bool OnExperts(int layer, std::span<int32_t> ids) = 0;
  // picks [T, topk]: the indexer's picks, ascending, -1 behind the last; may be replaced in place.
  virtual void OnPicks(int layer, std::span<int32_t> picks) = 0;
  // streams [T, m, D] after a block.
  virtual void OnBlock(int layer, std::span<const float> streams) = 0;
};

// The drafts of a sequence as a draft step has left them on the device: draft k at [k * stride].
struct DeviceDrafts {
  const TokenId* tokens = nullptr;
  const float* confidence_logits = nullptr;
  const float* margins = nullptr;  // null: zeros
  int stride = 0;
};

// Drafts that may follow the last row of a chunk.
struct ChunkDrafts {
  int count = 0;
  DeviceDrafts drafts = {};
  std::span<const ConfidenceScale> scales = {};  // [count]
};

// A step that verifies the likeliest drafts of all, which the host doesn't know when it begins
// (kernels/draft_plan).
struct DraftPlan {
  int count = 0;                             // how many; 0: the step has no such plan
  std::span<const ChunkDrafts> chunks = {};  // [chunks]: at least `count` drafts in all
};

struct StepInputs {
  std::span<const TokenId> tokens;        // [T], in [0, V), the chunks' rows one after the other
  std::span<const SequenceChunk> chunks;  // each sequence at most once
  std::span<const int32_t> logit_rows;    // [R] rows whose logits are wanted
  StepObserver* observer = nullptr;
  // Leaves the logits where they are, on a device too, and doesn't wait for them: for Model::Sample. A fault
  // of the device then shows when somebody waits.
  bool keep_logits = false;
  // Rows whose tokens a draft step has drawn on the device and the host doesn't know; `tokens` has any there.
  // At most as many as logit_rows.
  std::span<const PlacedToken> placed = {};
  // The verified drafts' rows come behind those of their chunk, with logits; tokens, chunks and logit_rows
  // are without them, and logit_rows are last rows of chunks. Such a step keeps its logits and advances
  // sequences by what is in `chunks`: by verified drafts, for which it has room, the caller does.
  DraftPlan plan = {};
};

// Valid until the model's next step.
struct StepOutputs {
  std::span<const float> logits = {};    // [R, V]; with keep_logits on a device of its own: empty
  const float* device_logits = nullptr;  // [R, V] in the device's memory
  // With a plan, there as well: how many drafts are verified behind each of logit_rows.
  const int32_t* device_verified = nullptr;
};

// Rows of the last step's logits that are drawn or judged by the device.
struct DrawInputs {
  std::span<const SampleRow> rows = {};
  std::span<const SampleSequence> sequences = {};
  std::span<const PlacedToken> drafts = {};  // of rows whose drafts the host doesn't know yet
  bool normalize = false;
  // Of a step with a plan: its outputs. Sequences are those of its logit_rows, with rows for all of their
  // drafts, whose logits the device finds.
  const StepOutputs* planned = nullptr;
  int num_verified = 0;  // DraftPlan::count
};

// Whose streams an MTP-1 step reads.
enum class StreamSource : uint8_t {
  kStep,     // the last Step's
  kMtpStep,  // the last MtpStep's: chaining (model spec 2.11)
};

// One DSpark round for R sequences (dspark.md 1.1, 1.4). The anchor of a sequence is the token that the
// target emitted last, at position length(), which no step has seen yet.
struct DraftBlockInputs {
  std::span<SequenceState* const> sequences;  // [R], each once; their draft layers catch up
  std::span<const TokenId> anchors;           // [R]
  int block = 0;                              // tokens to draft: 1 .. config.dspark.block_size
  StepObserver* observer = nullptr;           // sees the experts of rows r*block + k
  // What the blocks before have left stays valid: for rounds in several groups. The draft memory has room for
  // ModelOptions::max_draft_rows in all.
  bool keep_outputs = false;
};

// Position k (0-based here: slot k of the block predicts the token at length() + k + 1) of sequence r.
// Valid until the next DraftBlock; the steps between don't touch them. DraftHead may add its bias in place.
struct DraftBlockOutputs {
  // Of a device that the host can't read: empty without an observer.
  std::span<const float> hidden;       // [block, R, D], before the norm: what confidence and heads read
  std::span<const float> base_logits;  // [block, R, V]
};

// Valid as long as the block's outputs.
struct DraftHeadOutputs {
  std::span<const float> logits;             // [R, V]: what position k is drawn from
  std::span<const float> confidence_logits;  // [R]: of the event that position k is accepted if those before
                                             // are; empty when the head has no confidence projection
};

// A draft block and the loop of head and draw over its positions.
struct DraftTokensInputs {
  DraftBlockInputs block;            // without an observer
  int depth = 0;                     // positions to draw: 1 .. block
  std::span<const SampleRow> draws;  // [depth, R]: how each token is drawn; which logits of is filled in
  bool keep_distributions = false;   // they will be judged by rejection
  bool margins = false;              // they are asked for
};

// Of Model::Sample for drafts, in the device's memory: valid as long as the logits of draft steps.
struct SampledDrafts {
  const TokenId* tokens = nullptr;            // [sequences]
  const RowStatistics* statistics = nullptr;  // [rows], with `normalize`
};

// Position k of sequence r at [k * stride + r]. Host memory is filled when the device has been waited for,
// and valid until the next draft block; device memory as long as the block's outputs.
struct DrawnTokens {
  int stride = 0;  // R or more
  std::span<const TokenId> tokens;
  std::span<const int32_t> errors;           // 0 or kSampleError
  std::span<const float> confidence_logits;  // empty when the head has no confidence projection
  std::span<const float> margins;            // of what they were drawn from (LogitMargin); if asked for
  // What the tokens were drawn from, on the device: rows of V floats; statistics with keep_distributions.
  const float* logits = nullptr;
  const RowStatistics* statistics = nullptr;
  // Those above, there.
  const TokenId* device_tokens = nullptr;
  const float* device_confidence_logits = nullptr;
  const float* device_margins = nullptr;
};

}  // namespace foresight
