// Every golden directory at hand, through every table: those of the repository always, larger ones where they
// are.

#include <gtest/gtest.h>

#include <filesystem>

#include "verify/verify.h"

namespace foresight {
namespace {

struct Case {
  std::string directory;
  std::string table;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.directory << " " << c.table;
}

class GoldenTest : public testing::TestWithParam<Case> {};

void Verify(const Case& c, const VerifyExtent& extent) {
  if (!std::filesystem::exists(c.directory)) GTEST_SKIP() << c.directory << " is not here";
  Result<Backend> backend = OpenBackend(c.table.starts_with("cuda") ? "cuda" : "cpu", c.table);
  if (!backend.ok()) GTEST_SKIP() << backend.status().ToString();
  Result<ModelFiles> files = OpenModelDirectory(c.directory);
  ASSERT_TRUE(files.ok()) << files.status().ToString();
  Result<LoadedModel> model = LoadModel(*files);
  ASSERT_TRUE(model.ok()) << model.status().ToString();
  ThreadPool pool(2);
  Result<VerifyReport> report = VerifyGolden(*model, *backend, pool, extent);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_TRUE(report->passed) << ReportToText(*report);
  EXPECT_EQ(report->table, c.table);
}

TEST_P(GoldenTest, WithinTolerances) {
  Verify(GetParam(), {});
}

// Just more positions than a window has, and more entries than are picked: what racecheck can follow.
TEST_P(GoldenTest, LittleIsWithinTolerances) {
  Verify(GetParam(), {.positions = 34, .greedy_tokens = 0});
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const char* directory : {"tests/golden/nano-a", "tests/golden/nano-s", "../shared/golden/mini-b",
                                "../shared/golden/wide-c", "../shared/golden/spark-a"}) {
    for (const char* table : {"ref", "cpu-avx2", "cpu-avx512", "cuda", "cuda-sm80"})
      cases.push_back({directory, table});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Directories, GoldenTest, testing::ValuesIn(Cases()), [](const auto& param) {
  std::string name =
      std::filesystem::path(param.param.directory).filename().string() + "_" + param.param.table;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace foresight
