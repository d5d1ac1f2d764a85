// Draws and verdicts of many sequences, spread over threads: each goes through whole vocabularies, and those
// of different sequences share nothing.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "speculative/acceptance.h"

namespace foresight {

// The next draft of a sequence: Speculator::Draft.
struct DraftDraw {
  std::span<const float> logits;  // [vocab_size]
  Sampler* sampler = nullptr;
  DraftBlock* block = nullptr;
  TokenId token = 0;  // out
};

// The end of a sequence's round: Speculator::Verify.
struct Verification {
  std::span<const float> logits;  // [num_drafts + 1, vocab_size]
  int num_drafts = 0;
  Sampler* sampler = nullptr;
  const DraftBlock* block = nullptr;
};

// One caller at a time; allocates in the constructor only.
class SpeculatorTeam {
 public:
  // `chance` and `pool` outlive this object; `chance` may be asked by several threads at once.
  SpeculatorTeam(int vocab_size, int drafts_max, int sequences_max, Chance& chance, ThreadPool& pool);

  // For one sequence after the other.
  Speculator& one() { return *speculators_.front(); }

  // At most sequences_max, each of another sequence. Errors: of the first draw that has one; then no token is
  // meant to be used.
  Status DraftAll(std::span<DraftDraw> draws);
  // At most sequences_max, each of another sequence; what became of them is in verdict(i).
  void VerifyAll(std::span<const Verification> rounds);
  // Valid until the next VerifyAll.
  const Result<VerifiedTokens>& verdict(int i) const { return verdicts_[i].result; }

 private:
  // A copy that outlives the thread's next sequence.
  struct Verdict {
    Result<VerifiedTokens> result = VerifiedTokens();
    std::vector<SampledToken> tokens;  // capacity drafts_max + 1
    std::vector<TokenLogProb> top;     // capacity (drafts_max + 1) * kTopLogProbsMax
    void Keep(Result<VerifiedTokens> made);
  };

  ThreadPool& pool_;
  std::vector<std::unique_ptr<Speculator>> speculators_;  // by thread
  std::vector<Verdict> verdicts_;                         // [sequences_max]
  std::vector<Status> draft_errors_;                      // [sequences_max]
};

}  // namespace foresight
