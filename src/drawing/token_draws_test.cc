#include "drawing/token_draws.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "device/device_apart.h"
#include "model/draft_fixture.h"
#include "model/placement.h"

namespace foresight {
namespace {

constexpr int kDrafts = 3;
constexpr int kSequences = 12;

// A model that nobody runs, on a device whose memory is the machine's.
class TokenDrawsTest : public testing::Test {
 protected:
  TokenDrawsTest() {
    ModelOptions options{.max_step_rows = 64};
    Result<Placement> placed = PlaceModel(SmallDSparkModel().weights, device_, options);
    CHECK(placed.ok(), "{}", placed.status().message());
    placement_ = std::move(*placed);
    model_.emplace(placement_.weights->weights, RefKernels(), pool_, options);
  }
  std::span<const float> Row(int row) const { return std::span(logits_).subspan(row * kVocab, kVocab); }

  static constexpr int kVocab = 256;
  DeviceApart device_;
  Placement placement_;
  ThreadPool pool_{2};
  std::optional<Model> model_;
  std::vector<float> logits_;
};

std::vector<float> RandomLogits(size_t count) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(count);
  for (float& x : logits) x = normal(rng);
  return logits;
}

// The host draws every third one.
SamplingParams ParamsOf(int i) {
  SamplingParams params;
  params.seed = i;
  params.temperature = 0.5 * (i % 4);
  if (i % 3 == 0) params.top_k = 20;
  if (i % 6 == 0) params.logprobs = 2;
  return params;
}

TEST_F(TokenDrawsTest, PlainDrawsAreTheSamplersWhoeverDrawsThem) {
  logits_ = RandomLogits(kSequences * kVocab);
  logits_[4 * kVocab + 9] = NAN;       // the device's
  logits_[6 * kVocab + 7] = INFINITY;  // the host's
  std::fill_n(logits_.begin() + 7 * kVocab, kVocab, -INFINITY);
  TokenDraws draws(*model_, pool_, kSequences, kSequences, nullptr, nullptr);
  std::vector<Sampler> samplers;
  std::vector<DrawingSequence> sequences;
  for (int i = 0; i < kSequences; ++i) samplers.emplace_back(ParamsOf(i), kVocab);
  for (int i = 0; i < kSequences; ++i) sequences.push_back({.sampler = &samplers[i], .position = 100 + i});
  StepOutputs outputs;
  outputs.device_logits = logits_.data();
  ASSERT_TRUE(draws.Begin(outputs, sequences).ok());
  draws.DrawOnHost();
  for (int i = 0; i < kSequences; ++i) {
    const Result<SampledToken> want = samplers[i].Sample(Row(i), 100 + i);
    const Result<VerifiedTokens> got = draws.Take(i);
    ASSERT_EQ(got.ok(), want.ok()) << i;
    if (!want.ok()) {
      EXPECT_EQ(got.status().message(), want.status().message());
      continue;
    }
    ASSERT_EQ(got->tokens.size(), 1u);
    EXPECT_EQ(got->tokens[0].token, want->token) << i;
    EXPECT_EQ(got->tokens[0].top.size(), want->top.size()) << i;
  }
  EXPECT_FALSE(draws.Take(4).ok() || draws.Take(6).ok() || draws.Take(7).ok());
}

TEST_F(TokenDrawsTest, VerdictsAreTheSpeculatorsWhoeverJudges) {
  KeyedChance chance;
  SpeculatorTeam team(kVocab, kDrafts, kSequences, chance, pool_);
  Speculator one(kVocab, kDrafts, chance);
  TokenDraws draws(*model_, pool_, kSequences, kSequences * (kDrafts + 1), &team, &chance);
  logits_ = RandomLogits(kSequences * (kDrafts + 1) * kVocab);
  std::vector<Sampler> samplers;
  std::vector<DraftBlock> blocks, host_blocks;
  std::vector<DrawingSequence> sequences;
  for (int i = 0; i < kSequences; ++i) {
    const SamplingParams params = ParamsOf(i);
    const AcceptanceRule rule = i % 2 == 0 ? AcceptanceRule::kRejection : AcceptanceRule::kCoupled;
    samplers.emplace_back(params, kVocab);
    blocks.emplace_back(params, rule, kVocab, kDrafts, DraftOptions{.on_device = params.top_k <= 0});
    host_blocks.emplace_back(params, rule, kVocab, kDrafts);
  }
  int row = 0;
  for (int i = 0; i < kSequences; ++i) {
    const int num_drafts = i % (kDrafts + 1);
    for (DraftBlock* block : {&blocks[i], &host_blocks[i]}) block->Begin(50);
    for (int k = 0; k < num_drafts; ++k) {  // what the target likes best
      const auto best = std::max_element(Row(row + k).begin(), Row(row + k).end()) - Row(row + k).begin();
      for (DraftBlock* block : {&blocks[i], &host_blocks[i]}) block->AppendPoint(static_cast<TokenId>(best));
    }
    sequences.push_back(
        {.sampler = &samplers[i], .block = &blocks[i], .position = 50, .num_drafts = num_drafts});
    row += num_drafts + 1;
  }
  StepOutputs outputs;
  outputs.device_logits = logits_.data();
  ASSERT_TRUE(draws.Begin(outputs, sequences).ok());
  draws.DrawOnHost();
  row = 0;
  int accepted = 0;
  for (int i = 0; i < kSequences; ++i) {
    const int num_drafts = sequences[i].num_drafts;
    const Result<VerifiedTokens> want =
        one.Verify(std::span(logits_).subspan(row * kVocab, (num_drafts + 1) * kVocab), num_drafts,
                   samplers[i], host_blocks[i]);
    const Result<VerifiedTokens> got = draws.Take(i);
    ASSERT_TRUE(want.ok() && got.ok());
    ASSERT_EQ(got->accepted, want->accepted) << i;
    for (size_t k = 0; k < want->tokens.size(); ++k) {
      EXPECT_EQ(got->tokens[k].token, want->tokens[k].token) << i;
    }
    accepted += want->accepted;
    row += num_drafts + 1;
  }
  EXPECT_GT(accepted, 3);
}

// Of all drafts' rows, those that a plan has left give what a step without it does.
TEST_F(TokenDrawsTest, PlannedStepsHaveTheTokensOfWhatIsVerified) {
  KeyedChance chance;
  SpeculatorTeam team(kVocab, kDrafts, kSequences, chance, pool_);
  TokenDraws draws(*model_, pool_, kSequences, kSequences * (kDrafts + 1), &team, &chance);
  logits_ = RandomLogits(kSequences * (kDrafts + 1) * kVocab);
  std::vector<Sampler> samplers;
  std::vector<DraftBlock> blocks;
  std::vector<int32_t> verified;
  for (int i = 0; i < kSequences; ++i) {
    SamplingParams params;
    params.seed = i;
    params.temperature = 0.4 * (i % 3);
    const AcceptanceRule rule = i % 2 == 0 ? AcceptanceRule::kRejection : AcceptanceRule::kCoupled;
    samplers.emplace_back(params, kVocab);
    blocks.emplace_back(params, rule, kVocab, kDrafts, DraftOptions{.on_device = true});
    verified.push_back(std::max(i % (kDrafts + 1) - i % 2, 0));
  }
  std::vector<TokenId> drafted;
  drafted.reserve(kSequences * kDrafts);
  std::vector<DrawingSequence> all, kept;
  int row = 0;
  for (int i = 0; i < kSequences; ++i) {
    const int num_drafts = i % (kDrafts + 1);
    blocks[i].Begin(50);
    for (int k = 0; k < num_drafts; ++k) {  // what the target likes best, or would if the row were there
      const auto best = std::max_element(Row(row + k).begin(), Row(row + k).end()) - Row(row + k).begin();
      drafted.push_back(static_cast<TokenId>(best));
      blocks[i].AppendPending(&drafted.back(), {});
    }
    all.push_back({.sampler = &samplers[i], .block = &blocks[i], .position = 50, .num_drafts = num_drafts});
    kept.push_back(all.back());
    kept.back().num_drafts = verified[i];
    row += verified[i] + 1;
  }
  const StepOutputs outputs = {.device_logits = logits_.data(), .device_verified = verified.data()};
  ASSERT_TRUE(draws.Begin(outputs, all, row - kSequences).ok());
  EXPECT_TRUE(std::equal(verified.begin(), verified.end(), draws.verified().begin(), draws.verified().end()));
  for (size_t i = 0, next = 0; i < kSequences; ++i) {
    for (int k = 0; k < all[i].num_drafts; ++k) blocks[i].Settle(k, drafted[next++]);
  }
  std::vector<std::vector<TokenId>> planned(kSequences);
  int accepted = 0;
  for (int i = 0; i < kSequences; ++i) {
    const Result<VerifiedTokens> got = draws.Take(i);
    ASSERT_TRUE(got.ok());
    for (const SampledToken& token : got->tokens) planned[i].push_back(token.token);
    accepted += got->accepted;
  }
  ASSERT_TRUE(draws.Begin(outputs, kept).ok());
  EXPECT_TRUE(draws.verified().empty());
  for (int i = 0; i < kSequences; ++i) {
    const Result<VerifiedTokens> want = draws.Take(i);
    ASSERT_TRUE(want.ok());
    ASSERT_EQ(want->tokens.size(), planned[i].size()) << i;
    for (size_t k = 0; k < planned[i].size(); ++k) EXPECT_EQ(planned[i][k], want->tokens[k].token) << i;
  }
  EXPECT_GT(accepted, 3);
}

}  // namespace
}  // namespace foresight
