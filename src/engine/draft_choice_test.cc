#include "engine/draft_choice.h"

#include <gtest/gtest.h>

#include <map>

#include "engine/engine_access.h"
#include "engine/test_engine.h"
#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

// Of config.json files alone: choosing looks at nothing else.
class Folder {
 public:
  Folder& Add(const std::string& folder, const ModelConfig& config) {
    files_[folder + "config.json"] = ConfigJson(config);
    return *this;
  }
  ModelFiles files() const { return InMemory(files_); }

 private:
  std::map<std::string, std::string> files_;
};

ChosenDraft Choose(const Folder& folder, const SpeculationOptions& options) {
  Result<ChosenDraft> chosen = ChooseDraft(folder.files(), options);
  EXPECT_TRUE(chosen.ok()) << chosen.status().ToString();
  return chosen.ok() ? std::move(*chosen) : ChosenDraft{};
}

TEST(ChooseDraft, TakesTheModelsOwnHeadThenTheBestBesideIt) {
  const Folder own = Folder().Add("", SmallestDSparkConfig()).Add("drafts/dspark/", SmallestDSparkConfig());
  EXPECT_EQ(Choose(own, {}).method, DraftMethod::kDSpark);
  EXPECT_TRUE(Choose(own, {}).own_head);

  const Folder beside = Folder()
                            .Add("", SmallestConfig())
                            .Add("drafts/mtp/", SmallestMtpConfig())
                            .Add("drafts/dflash/", SmallestDSparkConfig())
                            .Add("drafts/dspark-rnn/", SmallestDSparkConfig());
  EXPECT_EQ(Choose(beside, {}).name, "dspark-rnn");
  EXPECT_FALSE(Choose(beside, {}).own_head);
  EXPECT_FALSE(Choose(beside, {}).head.empty());
  EXPECT_EQ(Choose(beside, {.draft = DraftChoice::kMtp}).name, "mtp");
  EXPECT_EQ(Choose(beside, {.draft_head = "dflash"}).method, DraftMethod::kDSpark);

  const Folder bare = Folder().Add("", SmallestConfig());
  EXPECT_EQ(Choose(bare, {}).method, DraftMethod::kNone);
  EXPECT_EQ(Choose(bare, {.draft = DraftChoice::kNgram}).method, DraftMethod::kNgram);
  EXPECT_EQ(Choose(own, {.draft = DraftChoice::kNone}).method, DraftMethod::kNone);
}

TEST(ChooseDraft, SaysWhatThereIsNot) {
  const Folder folder = Folder().Add("", SmallestConfig()).Add("drafts/mtp/", SmallestMtpConfig());
  const auto code = [&](const SpeculationOptions& options) {
    return ChooseDraft(folder.files(), options).status().code();
  };
  EXPECT_EQ(code({.draft = DraftChoice::kDSpark}), StatusCode::kNotFound);
  EXPECT_EQ(code({.draft_head = "dspark"}), StatusCode::kNotFound);
  EXPECT_EQ(code({.draft_head = "no/such/directory"}), StatusCode::kNotFound);
  EXPECT_EQ(code({.draft = DraftChoice::kDSpark, .draft_head = "mtp"}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.draft = DraftChoice::kNone, .draft_head = "mtp"}), StatusCode::kInvalidArgument);
}

TEST(ChooseSyntheticDraft, IsTheHeadOfTheConfig) {
  EXPECT_EQ(ChooseSyntheticDraft(SmallestMtpConfig(), {})->method, DraftMethod::kMtp);
  EXPECT_EQ(ChooseSyntheticDraft(SmallestDSparkConfig(), {})->method, DraftMethod::kDSpark);
  EXPECT_EQ(ChooseSyntheticDraft(SmallestConfig(), {})->method, DraftMethod::kNone);
  EXPECT_FALSE(ChooseSyntheticDraft(SmallestMtpConfig(), {.draft = DraftChoice::kDSpark}).ok());
}

TEST(ChooseDraftLength, IsWhatIsAskedForOrWhatTheHeadWasMadeFor) {
  const ModelConfig config = SmallestDSparkConfig();
  const auto length = [&](DraftMethod method, const SpeculationOptions& options) {
    const Result<int> chosen = ChooseDraftLength(method, options, config);
    return chosen.ok() ? *chosen : -1;
  };
  using enum DraftMethod;
  EXPECT_EQ(length(kDSpark, {}), config.dspark.block_size);
  EXPECT_EQ(length(kDSpark, {.drafts_max = 2}), 2);
  EXPECT_EQ(length(kDSpark, {.planner = "static:2"}), config.dspark.block_size);
  EXPECT_EQ(length(kNone, {.planner = "static:9"}), 0);
  // Chains and look-ups become as long as the planner wants them; a block does not.
  EXPECT_EQ(length(kMtp, {.planner = "static:7"}), 7);
  EXPECT_EQ(length(kNgram, {.planner = "static:16"}), 16);
  EXPECT_EQ(length(kDSpark, {.planner = "static:6"}), -1);
  EXPECT_EQ(length(kMtp, {.drafts_max = 2, .planner = "static:3"}), -1);
  EXPECT_EQ(length(kMtp, {.planner = "static:17"}), -1);
}

TEST(ChooseDraftLength, ABlockThatIsLongerThanDraftsMayBeIsRefused) {
  ModelConfig config = SmallestDSparkConfig();
  config.dspark.block_size = kDraftPositionsMax + 4;
  const EngineOptions options{.num_threads = 1, .context_tokens = 256, .max_sequences = 1};
  EXPECT_EQ(EngineAccess::Make(TestRuntime(options, config), options).status().code(),
            StatusCode::kInvalidArgument);
  EngineOptions shorter = options;
  shorter.speculation.drafts_max = kDraftPositionsMax;
  EXPECT_TRUE(EngineAccess::Make(TestRuntime(shorter, config), shorter).ok());
}

}  // namespace
}  // namespace foresight
