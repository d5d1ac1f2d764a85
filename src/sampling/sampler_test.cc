#include "sampling/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace foresight {
namespace {

std::vector<float> Logits(int vocab, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

TEST(Sampler, ASeedGivesTheSameTextInAnyOrder) {
  constexpr int kVocab = 5000;
  SamplingParams params;
  params.seed = -7;
  Sampler one(params, kVocab);
  Sampler other(params, kVocab);
  Sampler choice(params, kVocab, /*choice=*/1);
  std::vector<TokenId> forwards;
  for (int p = 0; p < 50; ++p) forwards.push_back(one.Sample(Logits(kVocab, p), p)->token);
  int different = 0;
  for (int p = 49; p >= 0; --p) {
    EXPECT_EQ(other.Sample(Logits(kVocab, p), p)->token, forwards[p]);
    different += choice.Sample(Logits(kVocab, p), p)->token != forwards[p];
  }
  EXPECT_GT(different, 25);
}

TEST(Sampler, RandomSeedsDifferAndCanBeRepeated) {
  Sampler a(SamplingParams(), 100);
  Sampler b(SamplingParams(), 100);
  EXPECT_NE(a.seed(), b.seed());
  EXPECT_GE(a.seed(), 0);
  EXPECT_LT(a.seed(), int64_t{1} << 53);
  SamplingParams params;
  params.seed = a.seed();
  Sampler again(params, 100);
  for (int p = 0; p < 20; ++p) {
    EXPECT_EQ(a.Sample(Logits(100, p), p)->token, again.Sample(Logits(100, p), p)->token);
  }
}

TEST(Sampler, PenaltiesCountPromptAndGeneratedTokens) {
  SamplingParams params;
  params.temperature = 0;
  params.repetition_penalty = 2;
  Sampler sampler(params, 3);
  const std::vector<float> logits = {4, 3, 2.5f};
  EXPECT_EQ(sampler.Sample(logits, 0)->token, 0);
  sampler.AddPrompt(std::vector<TokenId>{0});
  EXPECT_EQ(sampler.Sample(logits, 1)->token, 1);
  sampler.AddGenerated(1);
  EXPECT_EQ(sampler.Sample(logits, 2)->token, 2);
  sampler.RemoveGenerated(1);
  EXPECT_EQ(sampler.Sample(logits, 2)->token, 1);
}

TEST(Sampler, LogProbsAreOfTheRawModel) {
  SamplingParams params;
  params.temperature = 0;
  params.logit_bias = {{2, 100}};
  params.logprobs = 3;
  Sampler sampler(params, 5);
  const std::vector<float> logits = {1, 3, -1, 3, -INFINITY};
  const SampledToken sampled = sampler.Sample(logits, 0).value();
  EXPECT_EQ(sampled.token, 2);
  const double normalizer = std::log(std::exp(1) + 2 * std::exp(3) + std::exp(-1));
  EXPECT_NEAR(sampled.logprob, -1 - normalizer, 1e-12);
  ASSERT_EQ(sampled.top.size(), 3u);
  EXPECT_EQ(sampled.top[0].token, 1);  // equal values by ascending id
  EXPECT_EQ(sampled.top[1].token, 3);
  EXPECT_EQ(sampled.top[2].token, 0);
  EXPECT_NEAR(sampled.top[0].logprob, 3 - normalizer, 1e-12);
  EXPECT_NEAR(sampled.top[2].logprob, 1 - normalizer, 1e-12);
}

TEST(Sampler, LogProbsOfMaskedTokensAndBadLogits) {
  std::vector<TokenLogProb> top(2);
  EXPECT_EQ(TopLogProbs(std::vector<float>{0, -INFINITY}, 1, top).value(), -INFINITY);
  EXPECT_EQ(top[0].token, 0);
  EXPECT_EQ(top[1].token, 1);
  EXPECT_FALSE(TopLogProbs(std::vector<float>{0, NAN}, 0, top).ok());
  EXPECT_FALSE(TopLogProbs(std::vector<float>{NAN, 0}, 0, top).ok());
  EXPECT_FALSE(TopLogProbs(std::vector<float>{0, INFINITY}, 0, top).ok());
  EXPECT_FALSE(TopLogProbs(std::vector<float>{-INFINITY, -INFINITY}, 0, top).ok());
}

TEST(SamplingParams, ValidateListsEverything) {
  EXPECT_TRUE(SamplingParams().Validate(10).ok());
  SamplingParams bad;
  bad.temperature = NAN;
  bad.top_p = 0;
  bad.top_k = -2;
  bad.min_p = 1.5;
  bad.repetition_penalty = 0;
  bad.presence_penalty = 3;
  bad.frequency_penalty = -3;
  bad.logit_bias = {{10, 0}, {3, 200}, {3, 1}};
  bad.max_tokens = 0;
  bad.stop = {"", "\xff"};
  bad.logprobs = 21;
  const Status status = bad.Validate(10);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  for (const char* part : {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
                           "frequency_penalty", "ids 0..9, got 10", "bias of token 3", "token 3 occurs twice",
                           "max_tokens", "stop[0]", "stop[1]: not UTF-8", "logprobs"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << part << ": " << status.message();
  }
}

TEST(SamplingParams, GenerationConfig) {
  const SamplingParams params =
      ParseGenerationConfig(
          R"({"bos_token_id": 0, "do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20})")
          .value();
  EXPECT_EQ(params.temperature, 0.6);
  EXPECT_EQ(params.top_p, 0.95);
  EXPECT_EQ(params.top_k, 20);
  EXPECT_TRUE(ParseGenerationConfig(R"({"do_sample": false, "temperature": 1})")->greedy());
  EXPECT_EQ(ParseGenerationConfig("{}")->temperature, 1);
  for (const char* bad : {"", "[]", R"({"temperature": "hot"})", R"({"top_p": 2})", R"({"top_k": 1e300})",
                          R"({"do_sample": 1})"}) {
    const Status status = ParseGenerationConfig(bad).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status.message().find("generation_config.json"), std::string::npos);
  }
}

}  // namespace
}  // namespace foresight
