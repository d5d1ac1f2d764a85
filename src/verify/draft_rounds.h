// The DSpark rounds of a golden, recomputed. Internal to verify.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "verify/golden.h"

namespace foresight {

// Which rounds, and the tokens along which the sequential head is followed.
struct DraftGolden {
  std::vector<int64_t> anchors;        // [S] prompt positions
  std::vector<int64_t> greedy_tokens;  // [S, block]
  int block = 0;

  int64_t rounds() const { return static_cast<int64_t>(anchors.size()); }
};

// Errors: kInvalidArgument (positions outside the prompt, ids outside the vocabulary, a block that the head
// can't draft).
Result<DraftGolden> ReadDraftGolden(const Golden& golden, const ModelConfig& config, int64_t prompt_tokens);

struct DraftRounds {
  std::vector<float> hidden;             // [S, block, D]
  std::vector<float> base_logits;        // [S, block, V]
  std::vector<float> corrected_logits;   // [S, block, V], given the golden's tokens before
  std::vector<float> confidence_logits;  // [S, block]
  std::vector<int64_t> greedy_tokens;    // [S, block] the largest corrected logit, the lowest id if equal
  std::vector<std::vector<int32_t>> experts;  // [S * stages]: each [block, K]
};

// `sequence` has seen the prompt and can be truncated to any of the anchors; it is cut back to the first one.
// `forced`: take the experts from there.
Result<DraftRounds> RunDraftRounds(Model& model, SequenceState& sequence, std::span<const TokenId> prompt,
                                   const DraftGolden& golden, const DraftRounds* forced);

}  // namespace foresight
