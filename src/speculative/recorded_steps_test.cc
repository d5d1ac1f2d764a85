#include "speculative/recorded_steps.h"

#include <gtest/gtest.h>

namespace foresight {
namespace {

constexpr StepShape kShape{.requests = 4, .drafting = 4, .tokens = 2, .verified = 8, .unread = 8};

TEST(RecordedSteps, WaitForAsMuchGainAsTheirFirstStepsTakeMore) {
  RecordedSteps recorded;
  EXPECT_TRUE(recorded.Allows(kShape, .1));  // nobody knows yet that it takes more
  for (int i = 0; i < 9; ++i) recorded.Count(kShape, /*is_warm_up=*/true, /*more_ms=*/2);
  EXPECT_EQ(recorded.UnrecordedMs(kShape), 0);
  StepShape other = kShape;
  other.requests = 5;  // the same drafts
  EXPECT_DOUBLE_EQ(recorded.UnrecordedMs(other), 1);
  EXPECT_TRUE(recorded.Allows(other, 1.5));  // more than it takes more
  int missed = 0;
  while (missed < 100 && !recorded.Allows(other, .5)) ++missed;
  EXPECT_EQ(missed, 18);
  EXPECT_TRUE(recorded.Allows(other, .5));
  other.tokens = 3;  // these are new, and the target's rows have waited
  EXPECT_DOUBLE_EQ(recorded.UnrecordedMs(other), 2);
  EXPECT_FALSE(recorded.Allows(other, .5));
}

TEST(RecordedSteps, WhatHasBegunIsDone) {
  RecordedSteps recorded;
  StepShape other = kShape;
  other.requests = 5;
  for (int i = 0; i < 9; ++i) recorded.Count(kShape, true, 2);
  while (!recorded.Allows(other, .5)) {
  }
  for (int i = 0; i < 8; ++i) {
    EXPECT_TRUE(recorded.Allows(other, .5));
    recorded.Count(other, true, 1);
  }
  recorded.Count(other, false, 0);
  EXPECT_EQ(recorded.UnrecordedMs(other), 0);
  // The device has lost it: it has to pay once more.
  recorded.Count(other, true, 1);
  EXPECT_GT(recorded.UnrecordedMs(other), 0);
  EXPECT_FALSE(recorded.Allows(other, .5));
}

TEST(RecordedSteps, StepsThatAreNeverRecordedDontWait) {
  RecordedSteps recorded;
  recorded.Count(kShape, true, 10);
  StepShape large = kShape;
  large.requests = 200;
  large.drafting = 200;
  EXPECT_EQ(recorded.UnrecordedMs(large), 0);
  StepShape behind_prompts = kShape;
  behind_prompts.unread = 1000;
  EXPECT_LT(recorded.UnrecordedMs(behind_prompts), recorded.UnrecordedMs(kShape));
}

}  // namespace
}  // namespace foresight
