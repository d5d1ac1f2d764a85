// Speculation in steady state allocates nothing: planning, drafting, judging, prompt look-up.
#include <gtest/gtest.h>

#include <random>

#include "speculative/acceptance.h"
#include "speculative/ngram.h"
#include "speculative/planner.h"
#include "tests/allocation_counter.h"

namespace foresight {
namespace {

constexpr int kRequests = 256;
constexpr int kRoundDrafts = 8;

TEST(SteadyRound, CountingWorks) {
  const int64_t before = Allocations();
  ::operator delete(::operator new(8));  // unlike a new-expression, a call may not be left out
  EXPECT_EQ(Allocations(), before + 1);
}

TEST(SteadyRound, PlanningAllocatesNothing) {
  StepCostTable table;
  table.host_ms = 0.1;
  table.draft_ms = table.draft_first_ms = {{1, 2}, {256, 5}};
  table.verify_ms[1024] = {{1, 10}, {2, 16}, {64, 30}, {512, 80}, {2304, 300}};
  for (const char* planner : {"auto", "static:8", "threshold:0.5", "sync", "lookahead", "async", "global"}) {
    SCOPED_TRACE(planner);
    StepPlanning planning =
        StepPlanning::Create(ParsePlanner(planner).value(),
                             {.slots_max = kRequests, .drafts_max = kRoundDrafts, .rows_max = 2304},
                             StepCosts::Create(table, 2304, kRequests).value())
            .value();
    std::mt19937 random(1);
    std::vector<RequestLoad> load(kRequests);
    std::vector<float> confidences(kRoundDrafts);
    std::vector<int> accepted(kRequests);
    int64_t before = 0;
    for (int step = 0; step < 50; ++step) {
      if (step == 5) before = Allocations();
      for (int r = 0; r < kRequests; ++r) {
        load[r] = {.id = {.slot = r, .generation = uint32_t(step / 20)},
                   .drafts_max = kRoundDrafts,
                   .coupled = true};
      }
      const std::span<const int> depths =
          planning.BeginStep({.requests = load, .other_rows = 0, .context_tokens = 900});
      for (int r = 0; r < kRequests; ++r) {
        for (float& c : confidences) c = static_cast<float>(random() % 1000) / 1000;
        planning.SetConfidences(r, std::span(confidences).first(depths[r]));
      }
      const std::span<const int> plan = planning.Plan();
      for (int r = 0; r < kRequests; ++r) accepted[r] = static_cast<int>(random() % (plan[r] + 1));
      planning.EndStep(accepted, StepTimes{.draft_requests = 1,
                                           .rows = 300,
                                           .context_tokens = 900,
                                           .draft_ms = 3,
                                           .verify_ms = 50,
                                           .host_ms = 0.1});
    }
    EXPECT_EQ(Allocations() - before, 0);
  }
}

TEST(SteadyRound, DraftingAndJudgingAllocatesNothing) {
  constexpr int kVocab = 3000;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits((kRoundDrafts + 1) * kVocab);
  for (float& logit : logits) logit = normal(random);
  SamplingParams params;
  params.seed = 4;
  params.top_p = 0.95;
  params.repetition_penalty = 1.1;
  params.logprobs = 5;
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    KeyedChance chance;
    Speculator speculator(kVocab, kRoundDrafts, chance);
    Sampler sampler(params, kVocab);
    DraftBlock block(params, rule, kVocab, kRoundDrafts);
    int64_t before = 0;
    for (int round = 0; round < 30; ++round) {
      if (round == 2) before = Allocations();
      block.Begin(round * 9);
      for (int k = 0; k < kRoundDrafts; ++k) {
        // Not quite the target's row: some are accepted, some aren't.
        const size_t row = (k + (round + k) % 4 / 3) % kRoundDrafts;
        ASSERT_TRUE(speculator.Draft(std::span(logits).subspan(row * kVocab, kVocab), sampler, block).ok());
      }
      const Result<VerifiedTokens> verified = speculator.Verify(logits, kRoundDrafts, sampler, block);
      ASSERT_TRUE(verified.ok());
      for (const SampledToken& token : verified->tokens) sampler.AddGenerated(token.token);
    }
    EXPECT_EQ(Allocations() - before, 0);
  }
}

TEST(SteadyRound, PromptLookupAllocatesNothing) {
  NgramDrafter drafter(5000);
  std::mt19937 random(1);
  std::vector<TokenId> out(kRoundDrafts);
  const int64_t before = Allocations();
  for (int i = 0; i < 4900; ++i) {
    drafter.Append(static_cast<TokenId>(random() % 20));
    drafter.Propose(out);
    if (i % 7 == 0) drafter.Truncate(drafter.length() - 1);
  }
  EXPECT_EQ(Allocations() - before, 0);
}

}  // namespace
}  // namespace foresight
