// From logits to the distribution that a token is drawn from, and the draw (serving.md 7.2, 7.3; dspark.md
// 3.4).
//
// Pure functions of (logits, parameters, tokens before, key): the same whatever else is in the batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/rng.h"
#include "base/status.h"
#include "sampling/sampling_params.h"
#include "sampling/token_counts.h"

namespace foresight {

// The tokens that can be drawn, with unnormalised log-weights. A view: valid as long as what it was built
// in.
struct Distribution {
  std::span<const TokenId> tokens;      // ascending, at least one
  std::span<const double> log_weights;  // (processed logit - largest) / temperature: 0 is the most likely

  // log of the sum of exp(log_weights): what normalises them.
  double LogNormalizer() const;
  // Of one token; 0 when it isn't among them. Takes a whole normalisation: for tests and rejection rules.
  double Probability(TokenId token) const;
};

// Holds the scratch memory. One thread at a time; allocates in the constructor only.
class DistributionBuilder {
 public:
  explicit DistributionBuilder(int vocab_size);

  // logit_bias -> repetition, frequency, presence penalties -> / temperature -> min_p -> top_k -> top_p.
  // - logits [vocab_size] f32; -inf masks a token.
  // - `counts`: the tokens before this position; may be null when params has no penalties.
  // - min_p keeps what is at least min_p times as likely as the most likely token.
  // - top_k keeps exactly k, equal logits by ascending id.
  // - top_p keeps the smallest set in descending probability (equal ones by ascending id), normalised over
  //   what is left by then, whose sum reaches top_p.
  // - greedy: the largest processed logit alone, the lowest id among equal ones.
  // The parameters have passed Validate. The result is valid until the next Build.
  // Errors: kInternal (NaN or +inf among the logits, with its id; everything is masked).
  Result<Distribution> Build(std::span<const float> logits, const SamplingParams& params,
                             const TokenCounts* counts);

 private:
  // Keeps the shortest run of candidates, in descending order of the processed logits, whose weights reach
  // target_of(all weights).
  template <typename Weight, typename Target>
  void KeepLargest(std::span<const float> logits, Weight weight, Target target_of);

  int vocab_size_ = 0;
  std::vector<float> logits_;  // processed, when something changes them
  std::vector<TokenId> tokens_;
  std::vector<double> log_weights_;
  std::vector<int32_t> border_;  // candidates among which a cut falls
  size_t num_kept_ = 0;
};

// The Gumbel noise of a token: -log(-log(U)) with U from `noise` at index `token`.
double GumbelNoise(const RandomSequence& noise, TokenId token);

// argmax over the tokens of log-weight + GumbelNoise, the lower id among equal sums: a draw from the
// distribution that depends on the key alone. Two distributions with the same key tend to agree (coupled
// verification).
TokenId SampleToken(const Distribution& distribution, const RandomKey& key);

}  // namespace foresight
