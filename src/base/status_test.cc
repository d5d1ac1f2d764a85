#include "base/status.h"

#include <gtest/gtest.h>

namespace foresight {
namespace {

Result<int> Half(int x) {
  if (x % 2 != 0) return InvalidArgument("want an even number, got {}", x);
  return x / 2;
}

Result<int> Quarter(int x) {
  ASSIGN_OR_RETURN(int half, Half(x));
  ASSIGN_OR_RETURN(int quarter, Half(half));
  return quarter;
}

TEST(Status, ResultCarriesValueOrError) {
  EXPECT_EQ(*Quarter(8), 2);
  Result<int> bad = Quarter(6);
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.status().ToString(), "invalid argument: want an even number, got 3");
  EXPECT_EQ(bad.error().WithContext("layer 2").message(), "layer 2: want an even number, got 3");
}

TEST(Status, EveryErrorHasANonZeroExitCode) {
  for (int c = 1; c <= static_cast<int>(StatusCode::kInternal); ++c) {
    EXPECT_NE(ExitCode(static_cast<StatusCode>(c)), 0);
    EXPECT_NE(StatusCodeName(static_cast<StatusCode>(c)), "unknown");
  }
}

}  // namespace
}  // namespace foresight
