#include "scheduler/preemption.h"

#include <gtest/gtest.h>

namespace foresight {
namespace {

TEST(IsWorthSaving, ComparesCopiesWithComputingAndHasALimit) {
  // A token takes as long as copying 1000 bytes.
  const PreemptionCosts costs{.token_seconds = 0.001, .bytes_per_second = 1e6, .saved_bytes_max = 100'000};
  EXPECT_TRUE(IsWorthSaving(/*tokens=*/100, /*state_bytes=*/40'000, /*saved_bytes=*/0, costs));
  EXPECT_FALSE(IsWorthSaving(100, 50'000, 0, costs));
  EXPECT_TRUE(IsWorthSaving(100, 40'000, 60'000, costs));
  EXPECT_FALSE(IsWorthSaving(100, 40'000, 60'001, costs));
  EXPECT_FALSE(
      IsWorthSaving(1000, 10, 0, {.token_seconds = 1, .bytes_per_second = 1e9, .saved_bytes_max = 0}));
}

}  // namespace
}  // namespace foresight
