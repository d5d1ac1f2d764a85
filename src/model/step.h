// What goes into one forward step and what comes out (design: a step is a ragged batch of rows).
#pragma once

#include <cstdint>
#include <span>

#include "base/ids.h"
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

struct StepInputs {
  std::span<const TokenId> tokens;        // [T], in [0, V), the chunks' rows one after the other
  std::span<const SequenceChunk> chunks;  // each sequence at most once
  std::span<const int32_t> logit_rows;    // [R] rows whose logits are wanted
  StepObserver* observer = nullptr;
};

// Valid until the model's next step.
struct StepOutputs {
  std::span<const float> logits;   // [R, V]
  std::span<const float> streams;  // [T, m, D] after the last block: what draft heads read
};

}  // namespace foresight
