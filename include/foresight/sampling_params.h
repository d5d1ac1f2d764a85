// How a request wants its tokens drawn (serving.md 7.1).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "foresight/ids.h"
#include "foresight/status.h"

namespace foresight {

inline constexpr size_t kStopStringsMax = 16;
inline constexpr size_t kStopStringBytesMax = 1024;
inline constexpr size_t kLogitBiasMax = 1024;  // entries
inline constexpr int kTopLogProbsMax = 20;
// Temperatures below are greedy: the largest logit, the lower id among equal ones.
inline constexpr double kGreedyTemperature = 1e-5;

struct SamplingParams {
  double temperature = 1;                              // [0, 100]
  double top_p = 1;                                    // (0, 1]; 1 = off
  int64_t top_k = 0;                                   // -1 and 0 = off
  double min_p = 0;                                    // [0, 1]; 0 = off
  double repetition_penalty = 1;                       // > 0, over prompt and generated tokens
  double presence_penalty = 0;                         // [-2, 2], over generated tokens
  double frequency_penalty = 0;                        // [-2, 2], over generated tokens
  std::vector<std::pair<TokenId, double>> logit_bias;  // [-100, 100] each; an id once
  std::optional<int64_t> seed;                         // none: a random one
  std::optional<int64_t> max_tokens;                   // >= 1; none: the rest of the context
  std::vector<std::string> stop;                       // UTF-8; refused by models without a tokenizer
  bool include_stop = false;                           // the stop string is part of the text
  std::optional<int> logprobs;                         // 0..20 alternatives beside the drawn token; none: off

  bool greedy() const { return temperature < kGreedyTemperature; }
  // Whether the tokens seen so far change the logits.
  bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }

  // Names everything that is out of range, for a vocabulary of this size (kInvalidArgument).
  Status Validate(int vocab_size) const;
};

// A token beside the drawn one.
struct TokenLogProb {
  TokenId token = 0;
  double logprob = 0;
};

}  // namespace foresight
