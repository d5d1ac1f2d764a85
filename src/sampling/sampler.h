// The draws of one sequence: parameters, seed and the tokens so far.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "base/ids.h"
#include "base/status.h"
#include "sampling/distribution.h"
#include "sampling/log_probs.h"
#include "sampling/sampling_params.h"
#include "sampling/token_counts.h"

namespace foresight {

struct SampledToken {
  TokenId token = 0;
  // With params.logprobs: of the raw model distribution (serving.md 8).
  double logprob = 0;
  std::span<const TokenLogProb> top;  // [params.logprobs], valid until the next Sample
};

// One thread at a time; allocates in the constructor only.
class Sampler {
 public:
  // `params` has passed Validate(vocab_size). Draws a random seed when it has none. `choice` tells the
  // answers of one request apart.
  Sampler(const SamplingParams& params, int vocab_size, int choice = 0);

  // The seed in use: the same one gives the same text.
  int64_t seed() const { return seed_; }
  const SamplingParams& params() const { return params_; }

  // Tokens that the penalties count: call them for every token of the sequence, in order.
  void AddPrompt(std::span<const TokenId> tokens);
  void AddGenerated(TokenId token);
  // Takes back generated tokens, the last ones first (rejected drafts).
  void RemoveGenerated(TokenId token);

  // Draws the token of absolute position `position` from the logits [vocab_size] of the row before it.
  // Changes nothing: the drawn token counts once it is added. Errors: kInternal (NaN or +inf, everything is
  // masked).
  Result<SampledToken> Sample(std::span<const float> logits, int64_t position);
  // What Sample draws from; valid until the next call.
  Result<Distribution> Process(std::span<const float> logits) { return Process(logits, params_); }
  // The same with other parameters (those of a draft), which have penalties only if the sampler's have. The
  // tokens so far count.
  Result<Distribution> Process(std::span<const float> logits, const SamplingParams& params);
  // Names the random numbers of a position: Sample uses those of kCoupled and round 0.
  RandomKey Key(int64_t position, RandomStream stream, int64_t round) const;
  // A drawn token as the user gets it: with params.logprobs, its log-probability and the alternatives, which
  // are written to top [params.logprobs]. Errors as Sample.
  Result<SampledToken> Report(std::span<const float> logits, TokenId token,
                              std::span<TokenLogProb> top) const;

 private:
  SamplingParams params_;
  int64_t seed_ = 0;
  int choice_ = 0;
  std::optional<TokenCounts> counts_;  // when there are penalties
  DistributionBuilder builder_;
  std::array<TokenLogProb, kTopLogProbsMax> top_;
};

}  // namespace foresight
