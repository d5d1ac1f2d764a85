#include "speculative/history.h"

#include <gtest/gtest.h>

#include <vector>

namespace foresight {
namespace {

using Confidences = std::vector<float>;

TEST(SpeculationHistory, AveragesTheRequestsOwnConfidences) {
  SpeculationHistory history(2, 2);
  const RequestId id{.slot = 1, .generation = 3};
  const double prior = history.MeanConfidence(id, 0);
  EXPECT_GT(prior, 0.5);
  for (int i = 0; i < 100; ++i) {
    history.BeginStep();
    history.RecordConfidences(id, Confidences{.25f, .75f});
  }
  EXPECT_NEAR(history.MeanConfidence(id, 0), .25, .01);
  EXPECT_NEAR(history.MeanConfidence(id, 1), .75, .01);
  // Others begin with what holds for all.
  EXPECT_LT(history.MeanConfidence({.slot = 0, .generation = 1}, 0), prior);
}

TEST(SpeculationHistory, ANewTenantOfASlotStartsAfresh) {
  SpeculationHistory history(1, 1);
  const RequestId old{.slot = 0, .generation = 1};
  const RequestId fresh{.slot = 0, .generation = 2};
  for (int i = 0; i < 5; ++i) {
    history.BeginStep();
    history.RecordConfidences(old, Confidences{0});
    history.RecordOutcome(old, 1, 0);
  }
  const double own = history.MeanConfidence(old, 0);
  const double of_all = history.MeanConfidence(fresh, 0);
  EXPECT_NE(own, of_all);
  EXPECT_EQ(history.StaleConfidence(fresh, 0), of_all);
  EXPECT_NE(history.AcceptanceRate(fresh, 0), history.AcceptanceRate(old, 0));
  history.RecordConfidences(fresh, Confidences{1});
  EXPECT_GT(history.MeanConfidence(fresh, 0), of_all);
  EXPECT_GT(history.MeanConfidence(old, 0), of_all);  // no longer its own
}

// A guess is left as soon as there are rounds, what was measured much later.
TEST(SpeculationHistory, LeavesWhatWasExpected) {
  const RequestId id{.slot = 0, .generation = 1};
  const RequestId other{.slot = 1, .generation = 1};
  for (bool is_measured : {false, true}) {
    SpeculationHistory history(2, 2);
    if (is_measured) history.Expect(Confidences{.8f, .8f});
    const double before = history.MeanConfidence(other, 0);
    EXPECT_EQ(history.AcceptanceRate(other, 0), before);
    for (int i = 0; i < 32; ++i) {
      history.BeginStep();
      history.RecordConfidences(id, Confidences{.4f});
      history.RecordOutcome(id, 2, 0);
    }
    EXPECT_EQ(history.MeanConfidence(other, 1), before);  // nobody has got there
    EXPECT_EQ(history.AcceptanceRate(other, 1), before);
    EXPECT_EQ(history.MeanConfidence(other, 0) < .5, !is_measured);
    EXPECT_EQ(history.AcceptanceRate(other, 0) < .2, !is_measured);
    EXPECT_LT(history.MeanConfidence(other, 0), before);
    for (int i = 0; i < 4000; ++i) history.RecordConfidences(id, Confidences{.4f});
    EXPECT_NEAR(history.MeanConfidence(other, 0), .4, .001);
  }
}

TEST(SpeculationHistory, StaleMeansTwoStepsOld) {
  SpeculationHistory history(1, 1);
  const RequestId id;
  for (int step = 1; step <= 6; ++step) {
    history.BeginStep();
    // Before this step's drafts: the newest of those recorded in step - 2 or earlier.
    if (step >= 3) {
      EXPECT_FLOAT_EQ(history.StaleConfidence(id, 0), 0.1f * static_cast<float>(step - 2));
    }
    history.RecordConfidences(id, Confidences{0.1f * static_cast<float>(step)});
  }
  for (int i = 0; i < 5; ++i) history.BeginStep();  // plain steps
  EXPECT_FLOAT_EQ(history.StaleConfidence(id, 0), 0.6f);
}

TEST(SpeculationHistory, CountsDraftsThatWereReached) {
  SpeculationHistory history(1, 4);
  const RequestId id;
  const double prior = history.AcceptanceRate(id, 2);
  for (int i = 0; i < 200; ++i) {
    history.BeginStep();
    history.RecordOutcome(id, 4, 1);  // 0 accepted, 1 rejected, 2 and 3 not reached
  }
  EXPECT_GT(history.AcceptanceRate(id, 0), .99);
  EXPECT_LT(history.AcceptanceRate(id, 1), .01);
  EXPECT_EQ(history.AcceptanceRate(id, 2), prior);
  EXPECT_EQ(history.AcceptanceRate(id, 3), prior);
}

}  // namespace
}  // namespace foresight
