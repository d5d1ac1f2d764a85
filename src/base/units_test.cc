#include "base/units.h"

#include <gtest/gtest.h>

namespace foresight {
namespace {

TEST(Units, BytesInPowersOfAThousand) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.0 kB");
  EXPECT_EQ(FormatBytes(999'990), "1.0 MB");
  EXPECT_EQ(FormatBytes(159'609'485'896), "159.6 GB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "18.4 EB");
}

TEST(Units, CountsWithThousandsApart) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(159'609'485'896), "159,609,485,896");
}

}  // namespace
}  // namespace foresight
