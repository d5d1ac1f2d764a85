#include "base/progress.h"

#include <gtest/gtest.h>

#include <cstdio>

namespace foresight {
namespace {

TEST(ProgressLine, ShowsTheShareAndNeverOverflows) {
  EXPECT_EQ(ProgressLine("Load", 1, 4, 8), "Load [##......]  25%");
  EXPECT_EQ(ProgressLine("Load", 9, 4, 4), "Load [####] 100%");
  EXPECT_EQ(ProgressLine("Load", 0, 0, 4), "Load [####] 100%");
}

TEST(TerminalProgress, IsSilentWhenTheStreamIsNoTerminal) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  {
    TerminalProgress progress(file);
    progress.Begin("Load", 2);
    for (int i = 0; i <= 2; ++i) progress.Update(i);
  }
  EXPECT_EQ(std::ftell(file), 0);
  std::fclose(file);
}

}  // namespace
}  // namespace foresight
