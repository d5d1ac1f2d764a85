#include "speculative/speculator_team.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace foresight {
namespace {

constexpr int kVocab = 500;
constexpr int kDrafts = 3;
constexpr int kSequences = 24;

std::vector<float> Logits(int num_rows, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(static_cast<size_t>(num_rows) * kVocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::span<const float> Rows(const std::vector<float>& logits, int first, int rows) {
  return std::span(logits).subspan(static_cast<size_t>(first) * kVocab, static_cast<size_t>(rows) * kVocab);
}

// A sequence of its own way of sampling, begun.
struct Drawing {
  explicit Drawing(int number)
      : params(ParamsOf(number)),
        sampler(params, kVocab),
        block(params, number % 2 == 0 ? AcceptanceRule::kRejection : AcceptanceRule::kCoupled, kVocab,
              kDrafts) {
    block.Begin(100 + number);
  }
  static SamplingParams ParamsOf(int number) {
    SamplingParams params;
    params.seed = number;
    params.temperature = number % 5 * 0.3;
    params.top_p = number % 3 == 0 ? 0.8 : 1;
    params.presence_penalty = number % 4 == 0 ? 0.5 : 0;
    params.logprobs = number % 3;
    return params;
  }
  SamplingParams params;
  Sampler sampler;
  DraftBlock block;
};

std::vector<std::unique_ptr<Drawing>> MakeDrawings() {
  std::vector<std::unique_ptr<Drawing>> drawings;
  for (int s = 0; s < kSequences; ++s) drawings.push_back(std::make_unique<Drawing>(s));
  return drawings;
}

TEST(SpeculatorTeam, DoesWhatOneDoesOneAfterTheOther) {
  KeyedChance chance;
  ThreadPool pool(4);
  SpeculatorTeam team(kVocab, kDrafts, kSequences, chance, pool);
  Speculator one(kVocab, kDrafts, chance);
  const auto together = MakeDrawings();
  const auto apart = MakeDrawings();
  for (int k = 0; k < kDrafts; ++k) {
    const std::vector<float> logits = Logits(kSequences, k);
    std::vector<DraftDraw> draws;
    for (int s = 0; s < kSequences; ++s) {
      draws.push_back(
          {.logits = Rows(logits, s, 1), .sampler = &together[s]->sampler, .block = &together[s]->block});
    }
    ASSERT_TRUE(team.DraftAll(draws).ok());
    for (int s = 0; s < kSequences; ++s) {
      const Result<TokenId> token = one.Draft(Rows(logits, s, 1), apart[s]->sampler, apart[s]->block);
      EXPECT_EQ(draws[s].token, token.value());
    }
  }
  const std::vector<float> target = Logits(kSequences * (kDrafts + 1), 99);
  std::vector<Verification> rounds;
  for (int s = 0; s < kSequences; ++s) {
    const int drafts = s % (kDrafts + 1);
    rounds.push_back({.logits = Rows(target, s * (kDrafts + 1), drafts + 1),
                      .num_drafts = drafts,
                      .sampler = &together[s]->sampler,
                      .block = &together[s]->block});
  }
  team.VerifyAll(rounds);
  for (int s = 0; s < kSequences; ++s) {
    const Result<VerifiedTokens> want =
        one.Verify(rounds[s].logits, rounds[s].num_drafts, apart[s]->sampler, apart[s]->block);
    const Result<VerifiedTokens>& got = team.verdict(s);
    ASSERT_TRUE(want.ok() && got.ok());
    EXPECT_EQ(got->accepted, want->accepted);
    ASSERT_EQ(got->tokens.size(), want->tokens.size());
    for (size_t i = 0; i < want->tokens.size(); ++i) {
      EXPECT_EQ(got->tokens[i].token, want->tokens[i].token);
      EXPECT_EQ(got->tokens[i].logprob, want->tokens[i].logprob);
      ASSERT_EQ(got->tokens[i].top.size(), want->tokens[i].top.size());
      for (size_t t = 0; t < want->tokens[i].top.size(); ++t) {
        EXPECT_EQ(got->tokens[i].top[t].token, want->tokens[i].top[t].token);
      }
    }
  }
}

TEST(SpeculatorTeam, BadLogitsEndTheirSequenceAlone) {
  KeyedChance chance;
  ThreadPool pool(2);
  SpeculatorTeam team(kVocab, kDrafts, kSequences, chance, pool);
  const auto drawings = MakeDrawings();
  std::vector<float> target = Logits(kSequences, 5);
  target[7 * kVocab + 3] = NAN;
  std::vector<Verification> rounds;
  for (int s = 0; s < kSequences; ++s) {
    rounds.push_back({.logits = Rows(target, s, 1),
                      .num_drafts = 0,
                      .sampler = &drawings[s]->sampler,
                      .block = &drawings[s]->block});
  }
  team.VerifyAll(rounds);
  for (int s = 0; s < kSequences; ++s) EXPECT_EQ(team.verdict(s).ok(), s != 7);
}

}  // namespace
}  // namespace foresight
