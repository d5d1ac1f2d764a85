// Draft heads: every tensor counts, and a head from another place must be made for the model.
#include <gtest/gtest.h>

#include "weights/loader.h"
#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

struct HeadShape {
  MarkovHeadType type = MarkovHeadType::kVanilla;
  int rank = 16;
};

void PrintTo(const HeadShape& shape, std::ostream* out) {
  *out << MarkovHeadTypeName(shape.type) << " " << shape.rank;
}

ModelConfig SmallConfig() {
  ModelConfig c = TinyAConfig();
  c.vocab_size = 96;
  c.hidden_size = 128;
  c.num_hidden_layers = 2;
  c.layers = {LayerKind::kSwa, LayerKind::kCsa};
  c.num_hash_layers = 1;
  c.n_routed_experts = 2;
  c.num_draft_layers = 0;
  c.num_nextn_predict_layers = 0;
  return c;
}

ModelConfig DSparkConfigOf(const HeadShape& shape) {
  ModelConfig c = SmallConfig();
  AddDSparkHead(&c, /*num_stages=*/2);
  c.dspark.markov_rank = shape.rank;
  c.dspark.markov_head_type = shape.type;
  return c;
}

bool IsDraft(const TestTensor& tensor) {
  return tensor.name.starts_with("mtp.");
}

// The files of a checkpoint's draft head alone, its own folder's.
std::map<std::string, std::string> DraftFiles(const TestCheckpoint& checkpoint) {
  std::vector<TestTensor> tensors;
  for (const auto& shard : checkpoint.shards) {
    for (const TestTensor& tensor : shard) {
      if (IsDraft(tensor)) tensors.push_back(tensor);
    }
  }
  return {{"config.json", checkpoint.config}, {"model.safetensors", WriteSafetensors(tensors)}};
}

Result<LoadedModel> Load(const std::map<std::string, std::string>& model,
                         const std::map<std::string, std::string>& draft) {
  return LoadModel(InMemory(model), {.draft = InMemory(draft)});
}

class DraftHeads : public testing::TestWithParam<HeadShape> {};

TEST_P(DraftHeads, AreReadBackWhole) {
  const ModelConfig config = DSparkConfigOf(GetParam());
  LoadedModel original = MakeSyntheticModel(config);
  const auto files = TestCheckpoint(config).Files();
  Result<LoadedModel> loaded = LoadModel(InMemory(files), {.checks = ValueChecks::kAll});
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  const DSparkWeights& head = *loaded->weights.dspark;
  EXPECT_EQ(head.stages.size(), 2u);
  EXPECT_EQ(head.head.type, GetParam().type);
  EXPECT_EQ(head.head.rank(), GetParam().rank);
  EXPECT_EQ(static_cast<bool>(head.head.confidence), GetParam().rank > 0);
  const std::vector<TestTensor> want = ListTensors(&original);
  const std::vector<TestTensor> got = ListTensors(&*loaded);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].name, want[i].name);
    EXPECT_EQ(got[i].bytes, want[i].bytes) << want[i].name;
  }
}

TEST_P(DraftHeads, MissNoTensorInSilence) {
  const TestCheckpoint whole(DSparkConfigOf(GetParam()), /*num_shards=*/1);
  std::vector<std::string> names;
  for (const TestTensor& tensor : whole.shards[0]) {
    if (IsDraft(tensor)) names.push_back(tensor.name);
  }
  EXPECT_GT(names.size(), 80u);
  for (const std::string& name : names) {
    TestCheckpoint checkpoint = whole;
    checkpoint.Remove(name);
    const auto files = checkpoint.Files();
    const Status status = LoadModel(InMemory(files)).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << name;
    // Without its first tensor the head is none that is known.
    if (name.starts_with("mtp.0.main_proj.weight")) continue;
    EXPECT_NE(status.message().find(name + ": is missing"), std::string::npos) << status.message();
  }
}

TEST_P(DraftHeads, TakeTheirRankFromTheTensorsWhereTheConfigIsSilent) {
  TestCheckpoint checkpoint(DSparkConfigOf(GetParam()));
  const std::string field = fmt::format(",\"dspark_markov_rank\":{}", GetParam().rank);
  ASSERT_NE(checkpoint.config.find(field), std::string::npos);
  checkpoint.config.erase(checkpoint.config.find(field), field.size());
  const auto files = checkpoint.Files();
  const Result<LoadedModel> loaded = LoadModel(InMemory(files));
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->weights.config.dspark.markov_rank, GetParam().rank);
}

INSTANTIATE_TEST_SUITE_P(Shapes, DraftHeads,
                         testing::Values(HeadShape{MarkovHeadType::kVanilla, 16},
                                         HeadShape{MarkovHeadType::kGated, 8},
                                         HeadShape{MarkovHeadType::kRnn, 8},
                                         HeadShape{MarkovHeadType::kVanilla, 0}));

TEST(DraftHead, OfAnotherShapeThanItsConfigSaysIsRefused) {
  TestCheckpoint vanilla(DSparkConfigOf({}));
  vanilla.config.insert(vanilla.config.size() - 1, R"(,"dspark_markov_head_type":"gated")");
  auto files = vanilla.Files();
  std::string message = LoadModel(InMemory(files)).status().message();
  EXPECT_NE(message.find("mtp.1.markov_head.gate_proj.weight: is missing"), std::string::npos) << message;

  TestCheckpoint stray(DSparkConfigOf({MarkovHeadType::kVanilla, 0}));
  stray.shards[1].push_back({"mtp.1.markov_head.markov_w1.weight", "BF16", {96, 4}, std::string(768, '\0')});
  files = stray.Files();
  message = LoadModel(InMemory(files)).status().message();
  EXPECT_NE(message.find("markov_w1.weight: the model has no place for it"), std::string::npos) << message;

  TestCheckpoint unknown(DSparkConfigOf({}));
  unknown.config.insert(unknown.config.size() - 1, R"(,"dspark_markov_head_type":"lstm")");
  files = unknown.Files();
  message = LoadModel(InMemory(files)).status().message();
  EXPECT_NE(message.find(R"("rnn" alone, got "lstm")"), std::string::npos) << message;
}

TEST(DraftHead, ComesFromAnotherPlace) {
  const TestCheckpoint plain(SmallConfig());
  for (const HeadShape& shape : {HeadShape{}, HeadShape{MarkovHeadType::kRnn, 8}}) {
    const ModelConfig config = DSparkConfigOf(shape);
    LoadedModel original = MakeSyntheticModel(config);
    const auto model = plain.Files();
    const auto draft = DraftFiles(TestCheckpoint(config));
    Result<LoadedModel> loaded = Load(model, draft);
    ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
    EXPECT_EQ(loaded->weights.config.num_draft_layers, 2);
    EXPECT_EQ(loaded->weights.dspark->head.type, shape.type);
    EXPECT_EQ(loaded->report.files, 3);
    const std::vector<TestTensor> want = ListTensors(&original);
    const std::vector<TestTensor> got = ListTensors(&*loaded);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      if (IsDraft(want[i])) {
        EXPECT_EQ(got[i].bytes, want[i].bytes) << want[i].name;
      }
    }
  }
}

TEST(DraftHead, OfTheModelGivesWayToAnotherAndCanBeLeftAlone) {
  ModelConfig with_mtp = SmallConfig();
  with_mtp.num_draft_layers = 1;
  const auto model = TestCheckpoint(with_mtp).Files();
  const auto draft = DraftFiles(TestCheckpoint(DSparkConfigOf({})));
  Result<LoadedModel> loaded = Load(model, draft);
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_TRUE(loaded->weights.dspark.has_value());
  EXPECT_FALSE(loaded->weights.mtp.has_value());
  ASSERT_EQ(loaded->report.ignored.size(), 1u);
  EXPECT_NE(loaded->report.ignored[0].find("own draft head"), std::string::npos);

  loaded = LoadModel(InMemory(model), {.own_draft = false});
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_FALSE(loaded->weights.mtp.has_value());
  EXPECT_EQ(loaded->weights.config.num_draft_layers, 0);
}

TEST(DraftHead, OfAnotherModelIsRefusedWithAllDifferences) {
  const auto model = TestCheckpoint(SmallConfig()).Files();
  ModelConfig other = DSparkConfigOf({});
  other.vocab_size = 97;
  other.sliding_window = 64;
  other.layers = {LayerKind::kCsa, LayerKind::kSwa};
  other.swiglu_limit = 7;
  const Status status = Load(model, DraftFiles(TestCheckpoint(other))).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  for (const char* part :
       {"is of another model than test: 4 problems",
        "vocab_size: the model has 96, the draft head's config 97", "sliding_window: the model has 128",
        "compress_ratios: the model has [0, 4], the draft head's config [4, 0]",
        "swiglu_limit: the model has 10"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << part << "\n" << status.message();
  }
}

TEST(DraftHead, FolderHoldsNothingButTheHead) {
  const auto model = TestCheckpoint(SmallConfig()).Files();
  TestCheckpoint checkpoint(DSparkConfigOf({}), /*num_shards=*/1);
  const auto whole = checkpoint.Files();
  std::string message = Load(model, whole).status().message();
  EXPECT_NE(message.find("norm.weight: a draft head has tensors mtp.* alone"), std::string::npos) << message;

  auto draft = DraftFiles(checkpoint);
  draft["model.safetensors"] = WriteSafetensors({});
  message = Load(model, draft).status().message();
  EXPECT_NE(message.find("there are no tensors"), std::string::npos) << message;
}

TEST(DraftHead, LiesBesideTheModel) {
  auto files = TestCheckpoint(SmallConfig()).Files();
  for (const auto& [name, shape] :
       {std::pair{"plain", HeadShape{}}, {"gated", HeadShape{MarkovHeadType::kGated, 8}}}) {
    for (auto& [file, bytes] : DraftFiles(TestCheckpoint(DSparkConfigOf(shape)))) {
      files[fmt::format("drafts/{}/{}", name, file)] = bytes;
    }
  }
  const TestFolder folder(files);
  const Result<ModelFiles> on_disk = OpenModelDirectory(folder.path());
  ASSERT_TRUE(on_disk.ok()) << on_disk.status().ToString();
  for (const ModelFiles& opened : {*on_disk, InMemory(files)}) {
    EXPECT_EQ(opened.DraftNames(), (std::vector<std::string>{"gated", "plain"}));
    const Result<ModelFiles> draft = opened.Draft("gated");
    ASSERT_TRUE(draft.ok()) << draft.status().ToString();
    EXPECT_EQ(draft->Names(), (std::vector<std::string>{"config.json", "model.safetensors"}));
    const Result<LoadedModel> loaded = LoadModel(opened, {.draft = *draft});
    ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
    EXPECT_EQ(loaded->weights.dspark->head.type, MarkovHeadType::kGated);
    const Status missing = opened.Draft("rnn").status();
    EXPECT_EQ(missing.code(), StatusCode::kNotFound);
    EXPECT_NE(missing.message().find("there are gated, plain"), std::string::npos) << missing.message();
  }
}

TEST(DraftHead, IsMadeForSyntheticModelsOnDemand) {
  const Result<ModelConfig> three = ParseSyntheticSpec("flash:4+dspark");
  ASSERT_TRUE(three.ok()) << three.status().ToString();
  EXPECT_EQ(three->num_draft_layers, 3);
  EXPECT_EQ(three->dspark.block_size, 5);
  EXPECT_EQ(three->dspark.noise_token_id, 128799);
  EXPECT_EQ(three->dspark.markov_rank, 256);
  EXPECT_EQ(three->dspark.target_layer_ids, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(ParseSyntheticSpec("pro:2+dspark:1")->dspark.markov_rank, 512);
  EXPECT_EQ(ParseSyntheticSpec("pro:2+dspark:1")->dspark.target_layer_ids, (std::vector<int>{0, 1}));
  EXPECT_EQ(ParseSyntheticSpec("flash:2+mtp")->num_draft_layers, 1);
  EXPECT_TRUE(MakeSyntheticModel(*ParseSyntheticSpec("tiny-a+dspark:2")).weights.dspark.has_value());
  for (const char* wrong : {"flash:2+", "flash:2+eagle", "flash:2+dspark:0", "flash:2+dspark:17",
                            "flash:2+dspark:x", "flash:44", "flash:2+mtp:1"}) {
    EXPECT_EQ(ParseSyntheticSpec(wrong).status().code(), StatusCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace foresight
