#include "speculative/speculator_team.h"

#include <utility>

#include "base/check.h"

namespace foresight {

SpeculatorTeam::SpeculatorTeam(int vocab_size, int drafts_max, int sequences_max, Chance& chance,
                               ThreadPool& pool)
    : pool_(pool), verdicts_(sequences_max), draft_errors_(sequences_max) {
  for (int t = 0; t < pool.num_threads(); ++t) {
    speculators_.push_back(std::make_unique<Speculator>(vocab_size, drafts_max, chance));
  }
  for (Verdict& v : verdicts_) {
    v.tokens.reserve(drafts_max + 1);
    v.top.reserve(static_cast<size_t>(drafts_max + 1) * kTopLogProbsMax);
  }
}

Status SpeculatorTeam::DraftAll(std::span<DraftDraw> draws) {
  CHECK(draws.size() <= draft_errors_.size());
  pool_.ParallelFor(std::ssize(draws), [&](int64_t i, int thread) {
    DraftDraw& draw = draws[i];
    const Result<TokenId> token = speculators_[thread]->Draft(draw.logits, *draw.sampler, *draw.block);
    draft_errors_[i] = token.status();
    if (token.ok()) draw.token = *token;
  });
  for (size_t i = 0; i < draws.size(); ++i) RETURN_IF_ERROR(draft_errors_[i]);
  return Status();
}

void SpeculatorTeam::VerifyAll(std::span<const Verification> rounds) {
  CHECK(rounds.size() <= verdicts_.size());
  pool_.ParallelFor(std::ssize(rounds), [&](int64_t i, int thread) {
    const Verification& round = rounds[i];
    verdicts_[i].Keep(
        speculators_[thread]->Verify(round.logits, round.num_drafts, *round.sampler, *round.block));
  });
}

void SpeculatorTeam::Verdict::Keep(Result<VerifiedTokens> made) {
  result = std::move(made);
  if (!result.ok()) return;
  tokens.assign(result->tokens.begin(), result->tokens.end());
  top.clear();
  for (SampledToken& token : tokens) {
    const size_t first = top.size();
    top.insert(top.end(), token.top.begin(), token.top.end());
    token.top = std::span(top).subspan(first);
  }
  result->tokens = tokens;
}

}  // namespace foresight
