#include "engine/calibrate.h"

#include <gtest/gtest.h>

#include "engine/speculation.h"
#include "engine/step_profile.h"
#include "engine/test_engine.h"

namespace foresight {
namespace {

constexpr EngineOptions kOptions{.num_threads = 1, .context_tokens = 512, .max_sequences = 4};

TEST(CalibrateDrafts, GivesATableThatItsOwnModelAndNoOtherTakes) {
  const std::unique_ptr<Runtime> runtime = TestRuntime(kOptions, SmallestDSparkConfig());
  CalibrationOptions options{.prompts = {TestPrompt(20), TestPrompt(30, 5)}, .dataset = "test", .rounds = 40};
  options.answer_tokens_max = 40;
  const Result<CalibrationTable> table = CalibrateDrafts(*runtime, options);
  ASSERT_TRUE(table.ok()) << table.status().ToString();
  EXPECT_EQ(table->drafts_max, 5);
  EXPECT_GE(table->regimes.size(), 3u);
  for (const RegimeCalibration& regime : table->regimes) EXPECT_EQ(regime.temperatures.size(), 5u);
  EXPECT_EQ(runtime->cache().stats().total_bytes, 0);
  const Result<CalibrationTable> read = ParseCalibration(FormatCalibration(*table));
  ASSERT_TRUE(read.ok()) << read.status().ToString();

  const auto create = [&](Runtime& r) {
    return Speculation::Create({.planner = "static:5"}, r, {.max_sequences = 4, .step_rows_max = 64},
                               std::nullopt, *read)
        .status();
  };
  EXPECT_TRUE(create(*runtime).ok());
  ModelConfig other = SmallestDSparkConfig();
  other.vocab_size = 320;
  EXPECT_EQ(create(*TestRuntime(kOptions, other)).code(), StatusCode::kInvalidArgument);
}

TEST(CalibrateDrafts, RefusesDraftersWithoutConfidencesAndNoPrompts) {
  const std::unique_ptr<Runtime> mtp = TestRuntime(kOptions, SmallestMtpConfig());
  EXPECT_EQ(CalibrateDrafts(*mtp, {.prompts = {TestPrompt(20)}, .dataset = ""}).status().code(),
            StatusCode::kInvalidArgument);
  const std::unique_ptr<Runtime> dspark = TestRuntime(kOptions, SmallestDSparkConfig());
  EXPECT_EQ(CalibrateDrafts(*dspark, {.prompts = {}, .dataset = ""}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(ProfileSteps, MeasuresAllDraftersAndLeavesNothingBehind) {
  for (const ModelConfig& config : {SmallestDSparkConfig(), SmallestMtpConfig()}) {
    const std::unique_ptr<Runtime> runtime = TestRuntime(kOptions, config);
    const Result<StepCostTable> table = ProfileSteps(*runtime, {.max_sequences = 4, .seconds_max = 0.2});
    ASSERT_TRUE(table.ok()) << table.status().ToString();
    EXPECT_GE(table->verify_ms.begin()->second.size(), 3u);
    EXPECT_EQ(table->draft_ms.size(), 3u);  // 1, 2, 4 sequences
    EXPECT_TRUE(
        CheckStepCosts(*table, runtime->models_name(), runtime->build_name(), table->drafts_max).ok());
    EXPECT_EQ(runtime->cache().stats().total_bytes, 0);
  }
}

}  // namespace
}  // namespace foresight
