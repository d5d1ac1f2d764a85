#include "engine/calibrate.h"

#include <gtest/gtest.h>

#include "engine/engine_access.h"
#include "engine/speculation.h"
#include "engine/step_profile.h"
#include "engine/test_engine.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

const EngineOptions kOptions{.num_threads = 1, .context_tokens = 512, .max_sequences = 4};

TEST(CalibrateDrafts, GivesATableThatItsOwnModelAndNoOtherTakes) {
  const std::unique_ptr<Runtime> runtime = TestRuntime(kOptions, SmallestDSparkConfig());
  CalibrationOptions options{.prompts = {TestPrompt(20), TestPrompt(30, 5)}, .dataset = "test", .rounds = 40};
  const Result<CalibrationTable> table = CalibrateDrafts(*runtime, options);
  ASSERT_TRUE(table.ok()) << table.status().ToString();
  EXPECT_EQ(table->drafts_max, 5);
  EXPECT_GE(table->regimes.size(), 3u);
  for (const RegimeCalibration& regime : table->regimes) EXPECT_EQ(regime.scales.size(), 5u);
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

// Logits of the first draft of each round.
std::vector<float> FirstLogits(const CalibrationRounds& rounds) {
  std::vector<float> logits;
  for (int64_t n = 0; n < rounds.size(); ++n) logits.push_back(rounds.evidence(n, 0).logit);
  return logits;
}

TEST(CollectRounds, SplitsByPromptAndSeesAllOfThem) {
  const std::unique_ptr<Runtime> runtime = TestRuntime(kOptions, SmallestDSparkConfig());
  const auto collect = [&](std::vector<std::vector<TokenId>> prompts, SamplingRegime regime) {
    CalibrationOptions options{
        .prompts = std::move(prompts), .dataset = "", .rounds = 24, .rounds_per_answer_max = 3};
    Result<CollectedRounds> rounds = CollectRounds(*runtime, options, regime);
    EXPECT_TRUE(rounds.ok()) << rounds.status().ToString();
    return std::move(*rounds);
  };
  const std::vector<TokenId> a = TestPrompt(20), b = TestPrompt(30, 5), c = TestPrompt(25, 8),
                             d = TestPrompt(9);
  const CollectedRounds all = collect({a, b, c, d}, SamplingRegime::kUnit);
  EXPECT_EQ(all.fit.size(), 12);  // 4 prompts, 2 passes, 3 rounds each
  EXPECT_EQ(all.held_out.size(), 12);
  // A prompt's rounds are all in its half: other prompts there don't change what the other half has.
  const CollectedRounds other = collect({d, b, a, d}, SamplingRegime::kUnit);
  EXPECT_EQ(FirstLogits(other.held_out), FirstLogits(all.held_out));
  EXPECT_NE(FirstLogits(other.fit), FirstLogits(all.fit));

  // Greedy answers differ from pass to pass by where they begin, and prompts that are used up end it.
  const std::vector<float> greedy = FirstLogits(collect({a, b, c, d}, SamplingRegime::kGreedy).fit);
  ASSERT_EQ(greedy.size(), 12u);
  EXPECT_NE(std::vector(greedy.begin(), greedy.begin() + 3),
            std::vector(greedy.begin() + 6, greedy.begin() + 9));
  EXPECT_EQ(collect({d, d}, SamplingRegime::kGreedy).fit.size(), 6);
}

TEST(CalibrateDrafts, RefusesDraftersWithoutConfidencesAndSinglePrompts) {
  const std::unique_ptr<Runtime> mtp = TestRuntime(kOptions, SmallestMtpConfig());
  EXPECT_EQ(
      CalibrateDrafts(*mtp, {.prompts = {TestPrompt(20), TestPrompt(21)}, .dataset = ""}).status().code(),
      StatusCode::kInvalidArgument);
  const std::unique_ptr<Runtime> dspark = TestRuntime(kOptions, SmallestDSparkConfig());
  EXPECT_EQ(CalibrateDrafts(*dspark, {.prompts = {TestPrompt(20)}, .dataset = ""}).status().code(),
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

TEST(ProfileSteps, ThoroughOnesTellContextsApartAndWhatTheHostTakes) {
  EngineOptions options = kOptions;
  options.context_tokens = 1536;
  for (const ModelConfig& config : {SmallestDSparkConfig(), SmallestMtpConfig()}) {
    const std::unique_ptr<Runtime> runtime = TestRuntime(options, config);
    // Time enough on any machine.
    const Result<StepCostTable> table =
        ProfileSteps(*runtime, {.max_sequences = 2, .seconds_max = 1e6, .is_thorough = true});
    ASSERT_TRUE(table.ok()) << table.status().ToString();
    std::vector<int64_t> contexts;
    for (const auto& [context, points] : table->verify_ms) contexts.push_back(context);
    EXPECT_EQ(contexts, (std::vector<int64_t>{512, 1536}));
    EXPECT_GT(table->host_ms, 0);
    EXPECT_TRUE(ParseStepCosts(FormatStepCosts(*table)).ok());
    EXPECT_EQ(runtime->cache().stats().total_bytes, 0);
    // Without time for it, the one bucket stands for all.
    const Result<StepCostTable> quick =
        ProfileSteps(*runtime, {.max_sequences = 2, .seconds_max = 0, .is_thorough = true});
    ASSERT_TRUE(quick.ok()) << quick.status().ToString();
    EXPECT_EQ(quick->verify_ms.size(), 1u);
  }
}

TEST(ProfileSteps, ManageWithTheSmallestContext) {
  EngineOptions options = kOptions;
  options.max_sequences = 1;
  options.context_tokens = 2;
  EXPECT_TRUE(EngineAccess::Make(TestRuntime(options, SmallestDSparkConfig()), options).ok());
}

TEST(CalibrateDrafts, IsForTheLengthThatIsAskedFor) {
  EngineOptions options = kOptions;
  options.speculation.drafts_max = 2;
  const std::unique_ptr<Runtime> runtime = TestRuntime(options, SmallestDSparkConfig());
  const Result<CalibrationTable> table = CalibrateDrafts(
      *runtime, {.prompts = {TestPrompt(20), TestPrompt(30, 5)}, .dataset = "test", .rounds = 20});
  ASSERT_TRUE(table.ok()) << table.status().ToString();
  EXPECT_EQ(table->drafts_max, 2);
}

// Heads that differ in nothing but how they judge themselves are two heads.
TEST(Calibration, BelongsToTheConfidenceHeadToo) {
  const LoadedModel made = MakeSyntheticModel(SmallestDSparkConfig(), {.num_threads = 1});
  const auto hash = [&] {
    Result<std::unique_ptr<Runtime>> runtime = Runtime::FromSynthetic(made, kOptions);
    EXPECT_TRUE(runtime.ok()) << runtime.status().ToString();
    return (*runtime)->draft_hash();
  };
  const std::string before = hash();
  EXPECT_EQ(hash(), before);
  auto* const confidence =
      reinterpret_cast<uint8_t*>(const_cast<std::byte*>(made.weights.dspark->head.confidence.data));
  confidence[0] ^= 1;
  EXPECT_NE(hash(), before);
}

}  // namespace
}  // namespace foresight
