#include <gtest/gtest.h>

#include <initializer_list>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/device_fixture.h"
#include "kernels/draft_plan/draft_plan_fixture.h"

namespace foresight::draft_plan_cuda_test {
namespace {

class DraftPlanCuda : public OnDevice<> {
 protected:
  struct Shape {
    int sequences, drafts_max;
    int steps;
  };
  void CheckPlans(std::initializer_list<Shape> shapes);

  KernelHost host_{1};
};

// To the bit, with ties, hopeless drafts and NaN; up to the most sequences and drafts.
void DraftPlanCuda::CheckPlans(std::initializer_list<Shape> shapes) {
  std::mt19937_64 rng(11);
  for (const Shape& shape : shapes) {
    for (int i = 0; i < shape.steps; ++i) {
      SCOPED_TRACE(testing::Message() << shape.sequences << " of " << shape.drafts_max << ", " << i);
      PlannedStep step = RandomStep(shape.sequences, shape.drafts_max, i % 3 == 0, rng);
      const int padding = i % 4;
      const PlannedRows want = RunPlanRef(host_.context(Numerics::kFaithful), step, padding);
      device_->Clear();
      step.Connect(device_->Upload(step.tokens), device_->Upload(step.logits), device_->Upload(step.margins));
      const auto rows = static_cast<int64_t>(want.tokens.size());
      const auto logits = static_cast<int64_t>(want.logit_rows.size());
      SequenceRows* const views = device_->Upload(step.views);
      TokenId* const tokens = device_->Allocate<TokenId>(rows);
      int64_t* const positions = device_->Allocate<int64_t>(rows);
      int32_t* const logit_rows = device_->Allocate<int32_t>(logits);
      int32_t* const verified = device_->Allocate<int32_t>(step.num_logits);
      table_->plan_drafts(device_->context(Numerics::kFaithful),
                          {.count = step.count,
                           .drafts_max = step.drafts_max,
                           .sequences = {device_->Upload(step.sequences), step.sequences.size()},
                           .scales = device_->Upload(step.scales),
                           .known_tokens = device_->Upload(step.known_tokens),
                           .rows = static_cast<int>(rows),
                           .num_logits = static_cast<int>(logits),
                           .heads_all = step.heads_all,
                           .layers = step.layers,
                           .layer_views = step.layer_views,
                           .views = views,
                           .tokens = tokens,
                           .positions = positions,
                           .logit_rows = logit_rows,
                           .verified = verified});
      ASSERT_EQ(device_->Download(verified, step.num_logits), want.verified);
      ASSERT_EQ(device_->Download(tokens, rows), want.tokens);
      ASSERT_EQ(device_->Download(positions, rows), want.positions);
      ASSERT_EQ(device_->Download(logit_rows, logits), want.logit_rows);
      const std::vector<SequenceRows> got = device_->Download(views, std::ssize(step.views));
      for (size_t v = 0; v < got.size(); ++v) {
        ASSERT_EQ(got[v].first_row, want.views[v].first_row) << v;
        ASSERT_EQ(got[v].num_rows, want.views[v].num_rows) << v;
        ASSERT_EQ(got[v].first_position, want.views[v].first_position) << v;
      }
    }
  }
}

TEST_F(DraftPlanCuda, PlansAreTheDefinitions) {
  CheckPlans({{1, 1, 60},
              {1, 5, 60},
              {2, 5, 60},
              {3, 7, 60},
              {8, 5, 60},
              {31, 5, 60},
              {33, 7, 60},
              {64, 5, 60},
              {256, 7, 8},
              {500, 8, 8},
              {1024, 4, 8}});
}

// What racecheck can follow.
TEST_F(DraftPlanCuda, LittlePlansAreTheDefinitions) {
  CheckPlans({{1, 5, 4}, {3, 7, 4}, {33, 7, 4}, {256, 4, 1}});
}

TEST_F(DraftPlanCuda, DrawsAreWhereTheDefinitionHasThem) {
  constexpr int kVocab = 50;
  std::mt19937_64 rng(12);
  for (const int count : {1, 5, 32, 33, 300, 1024}) {
    SCOPED_TRACE(count);
    std::vector<SampleSequence> sequences;
    std::vector<SampleRow> rows;
    std::vector<int> pending;  // which drafted token; -1: the row's own
    std::vector<int32_t> verified;
    int verified_rows = 0;
    for (int s = 0; s < count; ++s) {
      const auto drafts = static_cast<int32_t>(rng() % 4);
      sequences.push_back({.first_row = static_cast<int32_t>(rows.size()),
                           .num_drafts = drafts,
                           .by_rejection = static_cast<int32_t>(rng() % 2)});
      for (int k = 0; k <= drafts; ++k) {
        rows.push_back({.inverse_temperature = 0.5 * k, .noise = rng(), .sequence = s, .draft = k});
        pending.push_back(rng() % 2 == 0 ? static_cast<int>(rows.size()) : -1);
      }
      verified.push_back(static_cast<int32_t>(rng() % (drafts + 1)));
      verified_rows += 1 + verified.back();
    }
    std::vector<TokenId> drafted(rows.size() + 1);
    for (TokenId& token : drafted) token = static_cast<TokenId>(rng() % 1000);
    const auto pointers = [&](const TokenId* tokens) {
      std::vector<const TokenId*> drafts;
      for (const int i : pending) drafts.push_back(i < 0 ? nullptr : tokens + i);
      return drafts;
    };
    const std::vector<const TokenId*> on_host = pointers(drafted.data());
    std::vector<SampleRow> want_rows(verified_rows);
    std::vector<SampleSequence> want(count);
    std::vector<int32_t> told(count);
    PlaceDrawsArgs args = {.vocab_size = kVocab,
                           .num_rows = verified_rows,
                           .sequences = sequences,
                           .rows = rows.data(),
                           .drafts = on_host.data(),
                           .verified = verified.data(),
                           .placed_rows = want_rows.data(),
                           .placed_sequences = want.data(),
                           .told = told.data()};
    PlaceDrawsRef({}, args);
    EXPECT_EQ(told, verified);

    device_->Clear();
    args.sequences = {device_->Upload(sequences), sequences.size()};
    args.rows = device_->Upload(rows);
    args.drafts = device_->Upload(pointers(device_->Upload(drafted)));
    args.verified = device_->Upload(verified);
    args.placed_rows = device_->Allocate<SampleRow>(verified_rows);
    args.placed_sequences = device_->Allocate<SampleSequence>(count);
    args.told = device_->Allocate<int32_t>(count);
    table_->place_draws(device_->context(Numerics::kFaithful), args);
    EXPECT_EQ(device_->Download(args.told, count), verified);
    const std::vector<SampleRow> got_rows = device_->Download(args.placed_rows, verified_rows);
    for (int r = 0; r < verified_rows; ++r) {
      ASSERT_EQ(got_rows[r].logits, want_rows[r].logits) << r;
      ASSERT_EQ(got_rows[r].noise, want_rows[r].noise) << r;
      ASSERT_EQ(got_rows[r].inverse_temperature, want_rows[r].inverse_temperature) << r;
      ASSERT_EQ(got_rows[r].sequence, want_rows[r].sequence) << r;
      ASSERT_EQ(got_rows[r].draft, want_rows[r].draft) << r;
    }
    const std::vector<SampleSequence> got = device_->Download(args.placed_sequences, count);
    for (int s = 0; s < count; ++s) {
      ASSERT_EQ(got[s].first_row, want[s].first_row) << s;
      ASSERT_EQ(got[s].num_drafts, want[s].num_drafts) << s;
      ASSERT_EQ(got[s].by_rejection, want[s].by_rejection) << s;
    }
  }
}

}  // namespace
}  // namespace foresight::draft_plan_cuda_test
