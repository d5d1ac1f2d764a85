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
  EXPECT_LT(history.MeanConfidence(old, 0), .5);
  EXPECT_GT(history.MeanConfidence(fresh, 0), .5);
  EXPECT_EQ(history.StaleConfidence(fresh, 0), history.MeanConfidence(fresh, 0));
  EXPECT_GT(history.AcceptanceRate(fresh, 0), history.AcceptanceRate(old, 0));
  history.RecordConfidences(fresh, Confidences{1});
  EXPECT_GT(history.MeanConfidence(fresh, 0), .5);
  EXPECT_GT(history.MeanConfidence(old, 0), .5);  // no longer its own
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
