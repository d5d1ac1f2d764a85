#include <gtest/gtest.h>

#include <numeric>

#include "kernels/cache_fixture.h"
#include "kernels/draft_plan/draft_plan_fixture.h"

namespace foresight::draft_plan_test {
namespace {

// A prompt's chunk, then three sequences: with survivals of .5, .25 and .125; .5, .5 and .15;
// and no drafts.
TEST(PlanDrafts, LaysOutTheRowsOfAStep) {
  const auto logit = [](double confidence) {
    return static_cast<float>(std::log(confidence / (1 - confidence)));
  };
  PlannedStep step{.drafts_max = 3, .layers = 2, .layer_views = 5, .known = 6, .num_logits = 3};
  step.sequences = {
      {.first_known = 0, .known_rows = 3, .stride = 4},
      {.first_known = 3, .known_rows = 1, .has_logits = 1, .num_drafts = 3, .stride = 4},
      {.first_known = 4, .known_rows = 1, .has_logits = 1, .num_drafts = 3, .first_scale = 3, .stride = 4},
      {.first_known = 5, .known_rows = 1, .has_logits = 1, .stride = 4}};
  step.scales.resize(6);
  step.known_tokens = {10, 11, 12, 20, 30, 40};
  step.tokens = {0, 21, 31, 0, 0, 22, 32, 0, 0, 23, 33, 0};
  step.logits = {0, logit(.5), logit(.5), 0, 0, logit(.5), 50, 0, 0, logit(.5), logit(.3), 0};
  step.margins.assign(12, 0);
  for (int i = 0; i < 10; ++i) {
    step.views.push_back({.first_row = -7, .first_position = 100 * (i % 5 + 1), .cache = {}});
  }
  step.Connect(step.tokens.data(), step.logits.data(), step.margins.data());
  KernelHost host(1);
  const KernelContext ctx = host.context(Numerics::kClean);

  const std::vector<std::vector<int32_t>> verified = {{1, 0, 0}, {1, 1, 0}, {1, 2, 0},
                                                      {2, 2, 0}, {2, 3, 0}, {3, 3, 0}};
  for (step.count = 1; step.count <= 6; ++step.count) {
    EXPECT_EQ(RunPlanRef(ctx, step, 0).verified, verified[step.count - 1]) << step.count;
  }
  step.count = 4;
  const PlannedRows rows = RunPlanRef(ctx, step, /*padding=*/2);
  EXPECT_EQ(rows.tokens, (std::vector<TokenId>{10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 40, 40}));
  EXPECT_EQ(rows.positions,
            (std::vector<int64_t>{100, 101, 102, 200, 201, 202, 300, 301, 302, 400, 400, 400}));
  EXPECT_EQ(rows.logit_rows, (std::vector<int32_t>{3, 4, 5, 6, 7, 8, 9, 9, 9}));
  const int first_rows[] = {0, 3, 6, 9, -7};  // the last one is nobody's
  const int num_rows[] = {3, 3, 3, 1, 0};
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(rows.views[i].first_row, first_rows[i % 5]) << i;
    EXPECT_EQ(rows.views[i].num_rows, num_rows[i % 5]) << i;
  }
}

TEST(PlanDrafts, VerifiesSoManyWhateverTheConfidences) {
  std::mt19937_64 rng(5);
  KernelHost host(1);
  for (int i = 0; i < 200; ++i) {
    const PlannedStep step = RandomStep(1 + static_cast<int>(rng() % 40), 5, i % 2 == 0, rng);
    const PlannedRows rows = RunPlanRef(host.context(Numerics::kClean), step, i % 3);
    EXPECT_EQ(std::accumulate(rows.verified.begin(), rows.verified.end(), 0), step.count);
    const SequenceRows& last = rows.views[step.sequences.size() - 1];
    EXPECT_EQ(last.first_row + last.num_rows, step.known + step.count);
    if (!step.heads_all) continue;
    for (int32_t r = 0; r < std::ssize(rows.logit_rows); ++r) EXPECT_EQ(rows.logit_rows[r], r);
  }
}

TEST(PlaceDraws, MovesRowsTogether) {
  const TokenId pending = 77;
  std::vector<SampleRow> rows(7);
  for (int i = 0; i < 7; ++i)
    rows[i] = {.noise = 100u + i, .sequence = i < 3 ? 0 : i < 4 ? 1 : 2, .draft = i};
  const std::vector<SampleSequence> sequences = {{.first_row = 0, .num_drafts = 2},
                                                 {.first_row = 3},
                                                 {.first_row = 4, .num_drafts = 2, .by_rejection = 1}};
  std::vector<const TokenId*> drafts(7, nullptr);
  drafts[4] = &pending;
  const int32_t verified[] = {0, 0, 1};
  const float logits[4 * 10] = {};
  std::vector<SampleRow> placed_rows(4);
  std::vector<SampleSequence> placed(3);
  int32_t told[3];
  PlaceDrawsRef({}, {.vocab_size = 10,
                     .num_rows = 4,
                     .sequences = sequences,
                     .rows = rows.data(),
                     .drafts = drafts.data(),
                     .verified = verified,
                     .logits = logits,
                     .placed_rows = placed_rows.data(),
                     .placed_sequences = placed.data(),
                     .told = told});
  const uint64_t noise[] = {100, 103, 104, 105};
  const int32_t sequence[] = {0, 1, 2, 2};
  const int32_t draft[] = {0, 3, 77, 5};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(placed_rows[i].noise, noise[i]) << i;
    EXPECT_EQ(placed_rows[i].sequence, sequence[i]) << i;
    EXPECT_EQ(placed_rows[i].draft, draft[i]) << i;
    EXPECT_EQ(placed_rows[i].logits, logits + 10 * i) << i;
  }
  for (int s = 0; s < 3; ++s) {
    EXPECT_EQ(placed[s].first_row, s) << s;
    EXPECT_EQ(placed[s].num_drafts, verified[s]) << s;
    EXPECT_EQ(placed[s].by_rejection, sequences[s].by_rejection) << s;
    EXPECT_EQ(told[s], verified[s]) << s;
  }
}

}  // namespace
}  // namespace foresight::draft_plan_test
