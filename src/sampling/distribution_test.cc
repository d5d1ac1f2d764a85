#include "sampling/distribution.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

namespace foresight {
namespace {

// The chain of serving.md 7.2 step by step over (token, probability) lists.
std::map<TokenId, double> SlowDistribution(std::span<const float> raw, const SamplingParams& params,
                                           const std::vector<TokenId>& prompt,
                                           const std::vector<TokenId>& generated) {
  std::vector<double> logits(raw.begin(), raw.end());
  for (const auto& [token, bias] : params.logit_bias) logits[token] += bias;
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto in_prompt = std::count(prompt.begin(), prompt.end(), static_cast<TokenId>(i));
    const auto count = std::count(generated.begin(), generated.end(), static_cast<TokenId>(i));
    if (in_prompt + count > 0) {
      logits[i] =
          logits[i] > 0 ? logits[i] / params.repetition_penalty : logits[i] * params.repetition_penalty;
    }
    logits[i] -= params.frequency_penalty * static_cast<double>(count);
    if (count > 0) logits[i] -= params.presence_penalty;
  }
  std::vector<std::pair<double, TokenId>> kept;  // (-probability, id): sorts in the order of the cuts
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double p = std::exp(logits[i] / params.temperature);
    if (p > 0) kept.push_back({-p, static_cast<TokenId>(i)});
  }
  std::sort(kept.begin(), kept.end());
  const double largest = -kept[0].first;
  std::erase_if(kept, [&](const auto& entry) { return -entry.first < params.min_p * largest; });
  if (params.top_k > 0 && params.top_k < static_cast<int64_t>(kept.size())) kept.resize(params.top_k);
  for (const auto& entry : kept) sum -= entry.first;
  double reached = 0;
  size_t n = 0;
  while (n < kept.size() && (params.top_p == 1 || reached < params.top_p * sum)) reached -= kept[n++].first;
  kept.resize(std::max<size_t>(n, 1));
  std::map<TokenId, double> result;
  for (const auto& entry : kept) result[entry.second] = -entry.first / reached;
  return result;
}

std::map<TokenId, double> Probabilities(const Distribution& d) {
  std::map<TokenId, double> result;
  for (TokenId token : d.tokens) result[token] = d.Probability(token);
  return result;
}

std::vector<TokenId> Tokens(const Result<Distribution>& d) {
  return {d->tokens.begin(), d->tokens.end()};
}

TEST(Distribution, EqualsTheSlowChain) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 2);
  for (int round = 0; round < 400; ++round) {
    const int vocab = 2 + static_cast<int>(random() % 60);
    std::vector<float> logits(vocab);
    for (float& logit : logits) logit = normal(random);
    const auto chance = [&] { return static_cast<double>(random() % 1000) / 1000; };
    SamplingParams params;
    params.temperature = 0.3 + chance();
    if (random() % 2) params.top_k = 1 + random() % vocab;
    if (random() % 2) params.top_p = 0.05 + 0.9 * chance();
    if (random() % 2) params.min_p = 0.3 * chance();
    if (random() % 2) params.repetition_penalty = 0.5 + chance();
    if (random() % 2) params.presence_penalty = 2 * chance() - 1;
    if (random() % 2) params.frequency_penalty = 2 * chance() - 1;
    if (random() % 2) params.logit_bias = {{random() % vocab, 3 * chance()}};
    ASSERT_TRUE(params.Validate(vocab).ok());
    std::vector<TokenId> prompt(random() % 10);
    std::vector<TokenId> generated(random() % 10);
    for (TokenId& token : prompt) token = random() % vocab;
    for (TokenId& token : generated) token = random() % vocab;
    TokenCounts counts(vocab);
    counts.AddPrompt(prompt);
    for (TokenId token : generated) counts.AddGenerated(token);
    // Drafts that are taken back leave nothing.
    const TokenId draft = random() % vocab;
    counts.AddGenerated(draft);
    counts.RemoveGenerated(draft);

    DistributionBuilder builder(vocab);
    const Result<Distribution> built = builder.Build(logits, params, &counts);
    ASSERT_TRUE(built.ok());
    const std::map<TokenId, double> got = Probabilities(*built);
    const std::map<TokenId, double> want = SlowDistribution(logits, params, prompt, generated);
    ASSERT_EQ(got.size(), want.size()) << round;
    for (const auto& [token, p] : want) {
      ASSERT_TRUE(got.contains(token)) << round;
      ASSERT_NEAR(got.at(token), p, 1e-6) << round;
    }
  }
}

TEST(Distribution, TiesAtTheCutsGoToLowerIds) {
  const std::vector<float> logits = {1, 2, 2, 1, 2, 0};
  DistributionBuilder builder(6);
  SamplingParams params;
  params.top_k = 2;
  EXPECT_EQ(Tokens(builder.Build(logits, params, nullptr)), (std::vector<TokenId>{1, 2}));
  params.top_k = 4;
  EXPECT_EQ(Tokens(builder.Build(logits, params, nullptr)), (std::vector<TokenId>{0, 1, 2, 4}));
  params.temperature = 0;
  EXPECT_EQ(Tokens(builder.Build(logits, params, nullptr)), (std::vector<TokenId>{1}));
}

// Beside a large logit all small ones have the same log-weight.
TEST(Distribution, CutsGoByTheLogitsThemselves) {
  const std::vector<float> logits = {1e-30f, 5, 2e-30f, -0.0f, 0.0f};
  DistributionBuilder builder(5);
  SamplingParams params;
  params.top_k = 2;
  EXPECT_EQ(Tokens(builder.Build(logits, params, nullptr)), (std::vector<TokenId>{1, 2}));
  params.top_k = 4;
  EXPECT_EQ(Tokens(builder.Build(logits, params, nullptr)), (std::vector<TokenId>{0, 1, 2, 3}));
}

TEST(Distribution, TopPBoundaries) {
  // Four tokens of probability exactly 1/4.
  const std::vector<float> logits = {3, 3, 3, 3};
  DistributionBuilder builder(4);
  SamplingParams params;
  for (const auto& [top_p, kept] : std::vector<std::pair<double, size_t>>{
           {1e-9, 1}, {0.25, 1}, {0.26, 2}, {0.5, 2}, {0.75, 3}, {0.76, 4}, {1, 4}}) {
    params.top_p = top_p;
    EXPECT_EQ(builder.Build(logits, params, nullptr)->tokens.size(), kept) << top_p;
  }
}

TEST(Distribution, MinPOfOneKeepsTheMostLikely) {
  DistributionBuilder builder(4);
  SamplingParams params;
  params.min_p = 1;
  EXPECT_EQ(Tokens(builder.Build(std::vector<float>{1, 5, 5, 4.99f}, params, nullptr)),
            (std::vector<TokenId>{1, 2}));
}

TEST(Distribution, BadLogits) {
  DistributionBuilder builder(3);
  SamplingParams params;
  for (double temperature : {0.0, 1.0}) {
    params.temperature = temperature;
    const Status nan = builder.Build(std::vector<float>{0, NAN, 1}, params, nullptr).status();
    EXPECT_EQ(nan.code(), StatusCode::kInternal);
    EXPECT_NE(nan.message().find("token 1"), std::string::npos) << nan.message();
    EXPECT_FALSE(builder.Build(std::vector<float>{0, INFINITY, 1}, params, nullptr).ok());
    const std::vector<float> masked(3, -INFINITY);
    EXPECT_EQ(builder.Build(masked, params, nullptr).status().code(), StatusCode::kInternal);
    EXPECT_EQ(Tokens(builder.Build(std::vector<float>{-INFINITY, 7, -INFINITY}, params, nullptr)),
              (std::vector<TokenId>{1}));
  }
  // Extreme values stay in range.
  params.temperature = kGreedyTemperature;
  EXPECT_EQ(Tokens(builder.Build(std::vector<float>{-3e38f, 3e38f, 0}, params, nullptr)).size(), 3u);
}

// Chi-square of draws over positions against the distribution; 99.9 % quantiles.
TEST(SampleToken, DrawsFollowTheDistribution) {
  constexpr int kVocab = 8;
  constexpr int kDraws = 200'000;
  constexpr int kPairs = kDraws / 2;
  std::vector<float> logits = {0.5f, -1, 2, 0, 1.5f, -2, -INFINITY, 1};
  SamplingParams params;
  params.temperature = 1.3;
  DistributionBuilder builder(kVocab);
  const Distribution d = builder.Build(logits, params, nullptr).value();
  for (RandomStream stream : {RandomStream::kCoupled, RandomStream::kDraft}) {
    std::vector<double> counts(kVocab, 0);
    std::vector<double> pairs(kVocab * kVocab, 0);
    TokenId last = 0;
    for (int p = 0; p < kDraws; ++p) {
      const TokenId token = SampleToken(d, {.seed = 5, .position = p, .stream = stream});
      counts[token] += 1;
      if (p % 2 == 1) pairs[last * kVocab + token] += 1;
      last = token;
    }
    EXPECT_EQ(counts[6], 0);
    double chi = 0;
    double chi_pairs = 0;
    for (TokenId a : d.tokens) {
      const double want = kDraws * d.Probability(a);
      chi += (counts[a] - want) * (counts[a] - want) / want;
      for (TokenId b : d.tokens) {
        const double pair = kPairs * d.Probability(a) * d.Probability(b);
        const double got = pairs[a * kVocab + b];
        chi_pairs += (got - pair) * (got - pair) / pair;
      }
    }
    EXPECT_LT(chi, 22.46);        // 6 degrees of freedom
    EXPECT_LT(chi_pairs, 84.04);  // 48
  }
}

// The limits leave out only what can't win.
TEST(SampleToken, EqualsThePlainArgmax) {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    const int vocab = 3000;
    std::normal_distribution<float> normal(0, 0.1f + static_cast<float>(round % 12));
    std::vector<float> logits(vocab);
    for (float& logit : logits) logit = normal(random);
    DistributionBuilder builder(vocab);
    const Distribution d = builder.Build(logits, SamplingParams(), nullptr).value();
    const RandomKey key = {.seed = round, .position = 17};
    const RandomSequence noise(key);
    TokenId want = 0;
    double best = -INFINITY;
    for (size_t i = 0; i < d.tokens.size(); ++i) {
      const double sum = d.log_weights[i] + GumbelNoise(noise, d.tokens[i]);
      if (sum > best) {
        best = sum;
        want = d.tokens[i];
      }
    }
    ASSERT_EQ(SampleToken(d, key), want) << round;
  }
}

// A draft that is close to the target draws the same token most of the time, and exactly when they are equal.
TEST(SampleToken, SameNoiseCouplesDistributions) {
  const std::vector<float> target = {std::log(.5f), std::log(.3f), std::log(.2f)};
  const std::vector<float> draft = {std::log(.2f), std::log(.3f), std::log(.5f)};
  DistributionBuilder a(3);
  DistributionBuilder b(3);
  const Distribution p = a.Build(target, SamplingParams(), nullptr).value();
  const Distribution q = b.Build(draft, SamplingParams(), nullptr).value();
  int equal = 0;
  constexpr int kDraws = 100'000;
  for (int position = 0; position < kDraws; ++position) {
    const RandomKey key = {.seed = 3, .position = position};
    equal += SampleToken(p, key) == SampleToken(q, key);
  }
  EXPECT_NEAR(equal / double{kDraws}, .631, .006);  // dspark.md 3.4
}

TEST(RandomSequence, KeysDiffer) {
  const RandomKey base = {.seed = 1, .position = 2};
  std::vector<RandomKey> keys(6, base);
  keys[1].seed = 2;
  keys[2].position = 1;
  keys[3].choice = 1;
  keys[4].stream = RandomStream::kAccept;
  keys[5].round = 1;
  std::vector<uint64_t> values;
  for (const RandomKey& key : keys) values.push_back(RandomSequence(key)[0]);
  std::sort(values.begin(), values.end());
  EXPECT_EQ(std::adjacent_find(values.begin(), values.end()), values.end());
  EXPECT_EQ(RandomSequence(base)[7], RandomSequence(base)[7]);
}

}  // namespace
}  // namespace foresight
