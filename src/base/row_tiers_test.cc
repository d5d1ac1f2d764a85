#include "base/row_tiers.h"

#include <gtest/gtest.h>

#include <set>

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
  EXPECT_EQ(tiers.size(), 20u);
  EXPECT_EQ(*tiers.rbegin(), kReplayedRowsMax);
  EXPECT_EQ(RowTier(0), 0);
}

}  // namespace
}  // namespace foresight
