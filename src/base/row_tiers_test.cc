#include "base/row_tiers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <set>
#include <vector>

namespace foresight {
namespace {

TEST(RowTiers, AreFewAndPadLittle) {
  std::set<int> tiers;
  for (int rows = 1; rows <= kReplayedRowsMax; ++rows) {
    const int tier = RowTier(rows);
    EXPECT_GE(tier, rows);
    EXPECT_LE(tier - rows, 1 + rows / 5) << rows;
    EXPECT_EQ(RowTier(tier), tier) << rows;
    tiers.insert(tier);
  }
  EXPECT_EQ(tiers.size(), 28u);
  EXPECT_EQ(*tiers.rbegin(), kReplayedRowsMax);
  EXPECT_EQ(RowTier(0), 0);
}

TEST(StepTiers, HoldTheStep) {
  EXPECT_EQ(LeastStepTier(9, 9), (StepTier{10, 10}));  // one row each
  EXPECT_EQ(LeastStepTier(10, 9), (StepTier{10, 16}));
  EXPECT_EQ(LeastStepTier(17, 3), (StepTier{20, 4}));
  EXPECT_EQ(LeastStepTier(17, 3, /*rows_max=*/18), (StepTier{18, 4}));
  for (int sequences = 1; sequences <= kReplayedRowsMax; ++sequences) {
    for (int rows = sequences; rows <= kReplayedRowsMax; ++rows) {
      int last = 0;
      // None is recorded: all are asked for.
      EXPECT_FALSE(RecordedStepTier(rows, sequences, kReplayedRowsMax, [&](const StepTier& tier) {
        EXPECT_GE(tier.rows, std::max(rows, last));
        EXPECT_TRUE(tier.rows == RowTier(rows) || 3 * tier.rows <= 4 * rows);
        EXPECT_GE(tier.sequences, sequences);
        EXPECT_TRUE(rows != sequences || tier.rows == tier.sequences);
        EXPECT_TRUE(last > 0 || tier == LeastStepTier(rows, sequences));
        last = tier.rows;
        return false;
      }));
      EXPECT_GE(last, rows);
    }
  }
}

TEST(StepTiers, AreTheFirstThatIsRecorded) {
  const auto among = [](std::vector<StepTier> recorded) {
    return [recorded](const StepTier& tier) {
      return std::find(recorded.begin(), recorded.end(), tier) != recorded.end();
    };
  };
  EXPECT_EQ(RecordedStepTier(11, 11, 64, among({{12, 12}, {16, 16}})), (StepTier{12, 12}));
  EXPECT_EQ(RecordedStepTier(11, 11, 64, among({{12, 16}, {14, 14}, {20, 20}})), (StepTier{14, 14}));
  EXPECT_EQ(RecordedStepTier(11, 11, 64, among({{16, 16}})), std::nullopt);
  EXPECT_EQ(RecordedStepTier(19, 3, 64, among({{20, 64}, {24, 4}})), (StepTier{20, 64}));
  EXPECT_EQ(RecordedStepTier(19, 3, 64, among({{20, 2}, {24, 8}})), (StepTier{24, 8}));
  EXPECT_EQ(RecordedStepTier(19, 3, /*rows_max=*/20, among({{24, 8}})), std::nullopt);
}

TEST(DraftTiers, HoldTheDrafts) {
  EXPECT_EQ(LeastDraftTier(9, 5, 20), (DraftTier{10, 32}));
  EXPECT_EQ(LeastDraftTier(11, 5, 0), (DraftTier{12, 0}));
  EXPECT_EQ(LeastDraftTier(17, 7, 3), (DraftTier{17, 8}));  // twenty would be too many rows to be recorded
  for (int size = 1; size <= 7; ++size) {
    for (int blocks = 1; blocks * size <= kReplayedRowsMax; ++blocks) {
      for (int unread : {0, 1, 9, 64, 256}) {
        bool is_first = true;
        EXPECT_FALSE(RecordedDraftTier(blocks, size, unread, [&](const DraftTier& tier) {
          EXPECT_GE(tier.blocks, blocks);
          EXPECT_LE(tier.blocks * size, kReplayedRowsMax);
          EXPECT_GE(tier.unread, unread);
          EXPECT_EQ(tier.unread == 0, unread == 0);
          EXPECT_TRUE(!is_first || tier == LeastDraftTier(blocks, size, unread));
          is_first = false;
          return false;
        }));
        EXPECT_FALSE(is_first);
      }
    }
  }
  const auto one = [](DraftTier tier) { return [tier](const DraftTier& other) { return other == tier; }; };
  EXPECT_EQ(RecordedDraftTier(9, 3, 20, one({12, 128})), (DraftTier{12, 128}));
  EXPECT_EQ(RecordedDraftTier(9, 3, 20, one({14, 32})), std::nullopt);
}

}  // namespace
}  // namespace foresight
