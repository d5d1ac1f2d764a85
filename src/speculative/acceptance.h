// Drafting and verifying tokens so that nothing but speed changes (dspark.md 3; docs/speculation.md).
//
// One round of a sequence whose next token has position s + 1:
//   block.Begin(s + 1)
//   for each draft:  speculator.Draft(draft logits, sampler, block), or block.AppendPoint(token)
//   a planner says how many of them to verify: n (planner.h)
//   the target computes n + 1 rows: of the last token and of the first n drafts
//   speculator.Verify(rows, n, sampler, block) -> 1 to n + 1 tokens
//   the caller keeps them (all, or up to a stop), adds them to the sampler, truncates the caches
#pragma once

#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "sampling/sampler.h"
#include "speculative/chance.h"
#include "speculative/draft_block.h"

namespace foresight {

struct VerifiedTokens {
  int accepted = 0;                      // drafts
  std::span<const SampledToken> tokens;  // [accepted + 1]: those drafts, then the target's own; valid until
                                         // the next Verify
};

// Shared by all sequences of an engine. One thread at a time; allocates in the constructor only.
class Speculator {
 public:
  // `chance` outlives this object.
  Speculator(int vocab_size, int drafts_max, Chance& chance);

  // Draws the next draft of the block from the draft model's logits [vocab_size] for its position and appends
  // it. Depends on the drafts before it, never on later ones. `sampler` is left as it was.
  // Errors: kInternal (NaN or +inf, everything is masked).
  Result<TokenId> Draft(std::span<const float> logits, Sampler& sampler, DraftBlock& block);

  // Judges the first `num_drafts` (0..all) drafts with the target's logits [num_drafts + 1, vocab_size]; row
  // k belongs to the position of draft k. `num_drafts` must not depend on drafts at or behind it (planner.h),
  // unless the rule is coupled.
  // - The distributions are those of plain decoding: penalties count the drafts before a row. A caller that
  //   masks logits (a grammar) does so along the drafts; where a draft is not allowed it is rejected here,
  //   and the rows behind it are not looked at. Never shorten the draft instead: that is biased
  //   (dspark.md 3.3).
  // - `sampler` is left as it was: the caller adds the tokens it keeps, as after Sampler::Sample.
  // - Log-probabilities as Sampler::Sample gives them.
  // Errors: kInternal (bad logits in a row that is looked at).
  Result<VerifiedTokens> Verify(std::span<const float> logits, int num_drafts, Sampler& sampler,
                                const DraftBlock& block);

  // For calibration (dspark.md 4.2): probabilities with which draft k, given that it is reached, would be
  // accepted, for all num_drafts of them, accepted or not. `out` knows the draft; `blind`, unless empty,
  // knows the distributions p and q but not what was drawn from q: sum min(p, q), which is the most that a
  // confidence may know (planner.h). Coupled: 1 where the target's own draw is the draft, else 0, in both.
  Status AcceptanceProbabilities(std::span<const float> logits, int num_drafts, Sampler& sampler,
                                 const DraftBlock& block, std::span<double> out,
                                 std::span<double> blind = {});

 private:
  struct Judgement {
    bool accepted = false;
    TokenId token = 0;  // the draft, or what comes instead of it
  };
  Judgement Judge(const Distribution& p, int k, const Sampler& sampler, const DraftBlock& block);
  // normalise(max(p - q, 0)); p itself when nothing is left.
  Distribution Residual(const Distribution& p, const Distribution& q);

  int vocab_size_;
  Chance& chance_;
  std::vector<SampledToken> verified_;        // capacity drafts_max + 1
  std::vector<TokenLogProb> top_;             // [drafts_max + 1, kTopLogProbsMax]
  std::vector<TokenId> residual_tokens_;      // [vocab_size]
  std::vector<double> residual_log_weights_;  // [vocab_size]
};

}  // namespace foresight
