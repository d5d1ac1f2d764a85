#include "speculative/acceptance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace foresight {
namespace {

constexpr int kVocab = 16;

std::vector<float> Logits(int num_rows, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(static_cast<size_t>(num_rows) * kVocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::span<const float> Row(const std::vector<float>& logits, int row) {
  return std::span(logits).subspan(static_cast<size_t>(row) * kVocab, kVocab);
}

struct Fixture {
  explicit Fixture(SamplingParams p, AcceptanceRule rule, const DraftOptions& options = {})
      : params(std::move(p)), sampler(params, kVocab), block(params, rule, kVocab, 4, options) {}

  SamplingParams params;
  Sampler sampler;
  DraftBlock block;
  KeyedChance chance;
  Speculator speculator{kVocab, 4, chance};
};

SamplingParams Seeded(int64_t seed) {
  SamplingParams params;
  params.seed = seed;
  return params;
}

TEST(Speculator, GreedyAcceptsTheLikeliestTokensByBothRules) {
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    SamplingParams params;
    params.temperature = 0;
    Fixture f(params, rule);
    const std::vector<float> target = Logits(4, 1);
    std::vector<TokenId> best(4);
    for (int row = 0; row < 4; ++row) best[row] = f.sampler.Sample(Row(target, row), row)->token;
    f.block.Begin(0);
    for (int k = 0; k < 2; ++k)
      EXPECT_EQ(f.speculator.Draft(Row(target, k), f.sampler, f.block).value(), best[k]);
    f.block.AppendPoint((best[2] + 1) % kVocab);
    const VerifiedTokens verified = f.speculator.Verify(target, 3, f.sampler, f.block).value();
    EXPECT_EQ(verified.accepted, 2);
    ASSERT_EQ(verified.tokens.size(), 3u);
    for (int k = 0; k < 3; ++k) EXPECT_EQ(verified.tokens[k].token, best[k]);
  }
}

TEST(Speculator, NoDraftIsAPlainStep) {
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    for (int seed = 0; seed < 20; ++seed) {
      Fixture f(Seeded(seed), rule);
      const std::vector<float> target = Logits(1, 2);
      f.block.Begin(17);
      const VerifiedTokens verified = f.speculator.Verify(target, 0, f.sampler, f.block).value();
      EXPECT_EQ(verified.accepted, 0);
      ASSERT_EQ(verified.tokens.size(), 1u);
      EXPECT_EQ(verified.tokens[0].token, f.sampler.Sample(target, 17)->token) << "seed " << seed;
    }
  }
}

TEST(Speculator, EqualDistributionsAcceptEverything) {
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    for (int seed = 0; seed < 50; ++seed) {
      Fixture f(Seeded(seed), rule);
      const std::vector<float> target = Logits(5, seed);
      f.block.Begin(0);
      for (int k = 0; k < 4; ++k) EXPECT_TRUE(f.speculator.Draft(Row(target, k), f.sampler, f.block).ok());
      EXPECT_EQ(f.speculator.Verify(target, 4, f.sampler, f.block)->accepted, 4);
    }
  }
}

TEST(Speculator, ForbiddenDraftsAreRejectedIntoTheResidual) {
  for (int seed = 0; seed < 50; ++seed) {
    Fixture f(Seeded(seed), AcceptanceRule::kRejection);
    std::vector<float> target = Logits(2, seed);
    target[5] = -INFINITY;
    f.block.Begin(0);
    f.block.AppendPoint(5);
    const VerifiedTokens verified = f.speculator.Verify(target, 1, f.sampler, f.block).value();
    EXPECT_EQ(verified.accepted, 0);
    EXPECT_NE(verified.tokens[0].token, 5);
  }
}

TEST(Speculator, LeavesTheSamplerAsItWas) {
  SamplingParams params = Seeded(1);
  params.frequency_penalty = 1;
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    Fixture f(params, rule);
    f.sampler.AddGenerated(2);
    const std::vector<float> target = Logits(5, 4);
    const auto weights = [&] {
      const Distribution p = f.sampler.Process(Row(target, 0)).value();
      return std::vector<double>(p.log_weights.begin(), p.log_weights.end());
    };
    const std::vector<double> before = weights();
    f.block.Begin(1);
    for (int k = 0; k < 4; ++k) EXPECT_TRUE(f.speculator.Draft(Row(target, 0), f.sampler, f.block).ok());
    EXPECT_EQ(weights(), before);
    EXPECT_TRUE(f.speculator.Verify(target, 4, f.sampler, f.block).ok());
    EXPECT_EQ(weights(), before);
    std::vector<double> probabilities(4);
    EXPECT_TRUE(f.speculator.AcceptanceProbabilities(target, 4, f.sampler, f.block, probabilities).ok());
    EXPECT_EQ(weights(), before);
    std::vector<float> bad = target;
    bad[0] = NAN;  // an error, too
    EXPECT_EQ(f.speculator.Verify(bad, 4, f.sampler, f.block).status().code(), StatusCode::kInternal);
    EXPECT_EQ(weights(), before);
  }
}

TEST(Speculator, RowsBehindARejectionAreNotLookedAt) {
  Fixture f(Seeded(1), AcceptanceRule::kRejection);
  std::vector<float> target = Logits(3, 1);
  target[7] = -INFINITY;
  for (int i = kVocab; i < 3 * kVocab; ++i) target[i] = NAN;
  f.block.Begin(0);
  f.block.AppendPoint(7);
  f.block.AppendPoint(1);
  EXPECT_TRUE(f.speculator.Verify(target, 2, f.sampler, f.block).ok());
}

TEST(Speculator, ReportsLogProbabilitiesOfEveryToken) {
  SamplingParams params = Seeded(9);
  params.logprobs = 2;
  Fixture f(params, AcceptanceRule::kCoupled);
  const std::vector<float> target = Logits(4, 11);
  f.block.Begin(5);
  for (int k = 0; k < 3; ++k) EXPECT_TRUE(f.speculator.Draft(Row(target, k), f.sampler, f.block).ok());
  const VerifiedTokens verified = f.speculator.Verify(target, 3, f.sampler, f.block).value();
  ASSERT_EQ(verified.accepted, 3);
  for (int k = 0; k < 4; ++k) {
    const SampledToken plain = f.sampler.Sample(Row(target, k), 5 + k).value();
    EXPECT_EQ(verified.tokens[k].token, plain.token);
    EXPECT_EQ(verified.tokens[k].logprob, plain.logprob);
    ASSERT_EQ(verified.tokens[k].top.size(), 2u);
    for (int i : {0, 1}) EXPECT_EQ(verified.tokens[k].top[i].token, plain.top[i].token);
  }
}

TEST(Speculator, DraftsDependOnEarlierDraftsAlone) {  // T14
  SamplingParams params = Seeded(1);
  params.presence_penalty = 2;
  params.top_p = 0.9;
  const std::vector<float> logits = Logits(1, 3);
  const auto q_behind = [&](TokenId first, TokenId third) {
    Fixture f(params, AcceptanceRule::kRejection);
    f.block.Begin(0);
    f.block.AppendPoint(first);
    EXPECT_TRUE(f.speculator.Draft(logits, f.sampler, f.block).ok());
    f.block.AppendPoint(third);
    const Distribution q = f.block.q(1);
    return std::vector<double>(q.log_weights.begin(), q.log_weights.end());
  };
  EXPECT_EQ(q_behind(4, 5), q_behind(4, 6));
  const TokenId likeliest =
      static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  EXPECT_NE(q_behind(likeliest, 5), q_behind((likeliest + 1) % kVocab, 5));
}

TEST(Speculator, AcceptanceProbabilitiesAreRatios) {
  Fixture f(Seeded(1), AcceptanceRule::kRejection);
  const std::vector<float> draft = Logits(3, 21);
  const std::vector<float> target = Logits(4, 22);
  f.block.Begin(0);
  for (int k = 0; k < 3; ++k) EXPECT_TRUE(f.speculator.Draft(Row(draft, k), f.sampler, f.block).ok());
  std::vector<double> probabilities(3);
  std::vector<double> blind(3);
  EXPECT_TRUE(f.speculator.AcceptanceProbabilities(target, 3, f.sampler, f.block, probabilities, blind).ok());
  for (int k = 0; k < 3; ++k) {
    double overlap = 0;
    for (TokenId token = 0; token < kVocab; ++token) {
      const double of_target = f.sampler.Process(Row(target, k))->Probability(token);
      overlap += std::min(of_target, f.sampler.Process(Row(draft, k))->Probability(token));
    }
    EXPECT_NEAR(blind[k], overlap, 1e-12);
    const TokenId x = f.block.tokens()[k];
    const double p = f.sampler.Process(Row(target, k))->Probability(x);
    const double q = f.sampler.Process(Row(draft, k))->Probability(x);
    EXPECT_NEAR(probabilities[k], std::min(1.0, p / q), 1e-12);
  }
}

TEST(DraftBlock, RoundsGiveFreshDrafts) {
  Fixture f(Seeded(1), AcceptanceRule::kRejection);
  const std::vector<float> logits(kVocab, 0);
  int same = 0;
  TokenId last = -1;
  for (int round = 0; round < 200; ++round) {
    f.block.Begin(0);
    const TokenId token = f.speculator.Draft(logits, f.sampler, f.block).value();
    same += token == last;
    last = token;
  }
  EXPECT_LT(same, 40);
}

TEST(DraftBlock, KeepsTheLikeliestCandidatesOnly) {
  Fixture f(Seeded(1), AcceptanceRule::kRejection,
            {.truncate = true, .penalties = true, .candidates_max = 3});
  f.block.Begin(0);
  EXPECT_TRUE(f.speculator.Draft(Logits(1, 1), f.sampler, f.block).ok());
  EXPECT_EQ(f.block.q(0).tokens.size(), 3u);
}

TEST(AcceptanceRule, FollowsTheRequest) {
  EXPECT_EQ(DefaultAcceptanceRule(SamplingParams()), AcceptanceRule::kRejection);
  EXPECT_EQ(DefaultAcceptanceRule(Seeded(1)), AcceptanceRule::kCoupled);
  SamplingParams greedy;
  greedy.temperature = 0;
  EXPECT_EQ(DefaultAcceptanceRule(greedy), AcceptanceRule::kCoupled);
  for (AcceptanceRule rule : {AcceptanceRule::kRejection, AcceptanceRule::kCoupled}) {
    EXPECT_EQ(ParseAcceptanceRule(AcceptanceRuleName(rule)).value(), rule);
  }
  EXPECT_FALSE(ParseAcceptanceRule("typical").ok());
}

}  // namespace
}  // namespace foresight
