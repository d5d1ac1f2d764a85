// The kernels' definition of draws and verdicts holds to those of the host: the same tokens for the same
// random numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "device/device_apart.h"
#include "drawing/device_draws.h"
#include "kernels/kernel_table.h"
#include "sampling/sampler.h"
#include "speculative/acceptance.h"

namespace foresight {
namespace {

std::vector<float> RandomLogits(int vocab_size, double spread, std::mt19937_64& rng) {
  std::normal_distribution<float> normal(0, static_cast<float>(spread));
  std::vector<float> logits(vocab_size);
  for (float& x : logits) x = normal(rng);
  if (rng() % 4 == 0) {
    for (float& x : logits) x = std::round(x);  // many are equal
  }
  if (rng() % 4 == 0) {
    for (size_t v = 1; v < logits.size(); v += 2) logits[v] = -INFINITY;
  }
  return logits;
}

SamplingParams RandomParams(std::mt19937_64& rng) {
  constexpr double kTemperatures[] = {0, 0.05, 0.7, 1, 1.3, 50};
  SamplingParams params;
  params.temperature = kTemperatures[rng() % 6];
  if (rng() % 3 == 0) params.min_p = 0.01;
  constexpr double kTopPs[] = {1e-9, 0.5, 0.9, 0.95, 0.999};
  if (rng() % 2 == 0) params.top_p = kTopPs[rng() % 5];
  constexpr int64_t kTopKs[] = {-1, 1, 3, 40, int64_t{1} << 40};
  if (rng() % 2 == 0) params.top_k = kTopKs[rng() % 5];
  params.seed = static_cast<int64_t>(rng() % 100000);
  return params;
}

TEST(SampleLaw, DrawsAreTheSamplers) {
  std::mt19937_64 rng(1);
  for (const int vocab_size : {1, 7, 300, 2000}) {
    for (int i = 0; i < 800; ++i) {
      const std::vector<float> logits = RandomLogits(vocab_size, 3, rng);
      Sampler sampler(RandomParams(rng), vocab_size, /*choice=*/i % 3);
      const int64_t position = static_cast<int64_t>(rng() % 1000);
      const Result<SampledToken> want = sampler.Sample(logits, position);
      ASSERT_TRUE(want.ok());
      SampleRow row = DeviceDraw(sampler.params(), sampler.Key(position, RandomStream::kCoupled, 0));
      row.logits = logits.data();
      const SampleSequence sequence;
      int32_t accepted = -1;
      TokenId token = -1;
      RefKernels().sample({}, {.num_rows = 1,
                               .num_sequences = 1,
                               .vocab_size = vocab_size,
                               .rows = &row,
                               .sequences = &sequence,
                               .accepted = &accepted,
                               .tokens = &token});
      EXPECT_EQ(accepted, 0);
      ASSERT_EQ(token, want->token) << "temperature " << sampler.params().temperature << ", top_p "
                                    << sampler.params().top_p << ", top_k " << sampler.params().top_k;
    }
  }
}

// Drafts by either rule, drawn from rows that resemble the target's, chosen, or with given probabilities.
TEST(SampleLaw, VerdictsAreTheSpeculators) {
  constexpr int kDrafts = 4;
  std::mt19937_64 rng(2);
  KeyedChance chance;
  int64_t total = 0, rejected = 0;
  for (const int vocab_size : {2, 30, 700}) {
    Speculator speculator(vocab_size, kDrafts, chance);
    for (int i = 0; i < 500; ++i) {
      Sampler sampler(RandomParams(rng), vocab_size);
      const AcceptanceRule rule = i % 2 == 0 ? AcceptanceRule::kRejection : AcceptanceRule::kCoupled;
      DraftBlock block(sampler.params(), rule, vocab_size, kDrafts, {.candidates_max = vocab_size});
      for (int round = 0; round <= i % 3; ++round) block.Begin(100 + i);
      const int num_drafts = static_cast<int>(rng() % (kDrafts + 1));
      std::vector<std::vector<float>> p, q;
      std::vector<bool> chosen;
      std::vector<RowStatistics> statistics(kDrafts);
      for (int k = 0; k <= num_drafts; ++k) {
        p.push_back(RandomLogits(vocab_size, 2, rng));
        if (k == num_drafts) break;
        q.push_back(p.back());
        for (float& x : q.back()) x += std::normal_distribution<float>(0, 0.7f)(rng);
        chosen.push_back(rng() % 5 == 0);
        SampleRow draw = DeviceDraw(sampler.params(), DraftKey(sampler, block, k));
        if (chosen[k]) {
          block.AppendPoint(static_cast<TokenId>(rng() % vocab_size));
          continue;
        }
        const Result<TokenId> draft = speculator.Draft(q[k], sampler, block);
        ASSERT_TRUE(draft.ok());
        draw.logits = q[k].data();
        const SampleSequence alone;
        int32_t accepted = -1;
        TokenId token = -1;
        RefKernels().sample({}, {.num_rows = 1,
                                 .num_sequences = 1,
                                 .vocab_size = vocab_size,
                                 .normalize = true,
                                 .rows = &draw,
                                 .sequences = &alone,
                                 .accepted = &accepted,
                                 .tokens = &token,
                                 .statistics = &statistics[k]});
        ASSERT_EQ(token, *draft);
      }
      std::vector<float> rows;
      for (const auto& row : p) rows.insert(rows.end(), row.begin(), row.end());
      const Result<VerifiedTokens> want = speculator.Verify(rows, num_drafts, sampler, block);
      ASSERT_TRUE(want.ok());

      const bool rejection = rule == AcceptanceRule::kRejection;
      std::vector<SampleRow> judges;
      for (int k = 0; k <= num_drafts; ++k) {
        const int64_t position = block.position() + k;
        SampleRow row = DeviceDraw(sampler.params(), sampler.Key(position, RandomStream::kCoupled, 0));
        row.logits = p[k].data();
        if (k < num_drafts) {
          row.draft = block.tokens()[k];
          row.acceptance_noise =
              RandomSequence(sampler.Key(position, RandomStream::kAccept, block.round())).Uniform(0);
          if (!chosen[k]) {
            row.draft_logits = q[k].data();
            row.draft_statistics = &statistics[k];
          }
        }
        judges.push_back(row);
      }
      const SampleSequence sequence = {.num_drafts = num_drafts,
                                       .by_rejection = rejection && !sampler.params().greedy()};
      int32_t accepted = -1;
      TokenId token = -1;
      RefKernels().sample({}, {.num_rows = num_drafts + 1,
                               .num_sequences = 1,
                               .vocab_size = vocab_size,
                               .normalize = true,
                               .rows = judges.data(),
                               .sequences = &sequence,
                               .accepted = &accepted,
                               .tokens = &token});
      ASSERT_EQ(accepted, want->accepted) << AcceptanceRuleName(rule) << ", round " << i;
      ASSERT_EQ(token, want->tokens[accepted].token) << AcceptanceRuleName(rule) << ", round " << i;
      total += num_drafts;
      rejected += accepted < num_drafts ? 1 : 0;
    }
  }
  EXPECT_GT(rejected, 300);
  EXPECT_GT(total, 2000);
}

TEST(SampleLaw, TheDeviceDrawsWhatNeedsNoCounts) {
  const DeviceApart device;
  const SamplingParams plain;
  EXPECT_TRUE(IsDrawnByDevice(plain, device));
  EXPECT_FALSE(IsDrawnByDevice(plain, HostDevice()));
  const auto with = [&](auto set) {
    SamplingParams params;
    set(params);
    return IsDrawnByDevice(params, device);
  };
  EXPECT_TRUE(with([](SamplingParams& p) { p.temperature = 0; }));
  EXPECT_TRUE(with([](SamplingParams& p) { p.min_p = 0.1; }));
  EXPECT_TRUE(with([](SamplingParams& p) { p.seed = 3; }));
  EXPECT_TRUE(with([](SamplingParams& p) { p.top_k = 5; }));
  EXPECT_TRUE(with([](SamplingParams& p) { p.top_p = 0.9; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.frequency_penalty = 0.1; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.logit_bias = {{1, 1}}; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.logprobs = 0; }));
}

}  // namespace
}  // namespace foresight
