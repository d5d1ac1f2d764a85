#include "weights/loader.h"

#include <gtest/gtest.h>

#include "base/units.h"
#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

// A small model with every kind of layer and the given draft head.
ModelConfig SmallConfig(DraftHead draft) {
  ModelConfig c = TinyAConfig();
  c.vocab_size = 96;
  c.hidden_size = 128;
  c.num_hidden_layers = 3;
  c.layers = {LayerKind::kSwa, LayerKind::kCsa, LayerKind::kHca};
  c.num_hash_layers = 1;
  c.n_routed_experts = 3;
  c.num_draft_layers = draft == DraftHead::kNone ? 0 : draft == DraftHead::kMtp1 ? 1 : 2;
  c.num_nextn_predict_layers = c.num_draft_layers > 0;
  if (draft == DraftHead::kDSpark) c.dspark = {5, 90, {0, 2}, 16};
  return c;
}

void ExpectSameWeights(LoadedModel* a, LoadedModel* b) {
  const std::vector<TestTensor> x = ListTensors(a);
  const std::vector<TestTensor> y = ListTensors(b);
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(x[i].name, y[i].name);
    EXPECT_EQ(x[i].dtype, y[i].dtype) << x[i].name;
    EXPECT_EQ(x[i].shape, y[i].shape) << x[i].name;
    EXPECT_EQ(x[i].bytes, y[i].bytes) << x[i].name;
  }
}

Status StatusOfLoad(const std::map<std::string, std::string>& files) {
  return LoadModel(InMemory(files)).status();
}

TEST(Loader, ReadsBackWhatWasWrittenForEveryDraftHeadAndExpertDtype) {
  for (const DraftHead draft : {DraftHead::kNone, DraftHead::kMtp1, DraftHead::kDSpark}) {
    for (const DType expert_dtype : {DType::kI8, DType::kF8E4M3}) {
      for (const int num_shards : {1, 2}) {
        const ModelConfig config = SmallConfig(draft);
        const SyntheticOptions options{.seed = 7, .expert_dtype = expert_dtype};
        LoadedModel original = MakeSyntheticModel(config, options);
        const auto files = TestCheckpoint(config, num_shards, options).Files();
        Result<LoadedModel> loaded = LoadModel(InMemory(files), {.checks = ValueChecks::kAll});
        ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
        LoadedModel moved = std::move(*loaded);
        EXPECT_EQ(moved.weights.mtp.has_value(), draft == DraftHead::kMtp1);
        EXPECT_EQ(moved.weights.dspark.has_value(), draft == DraftHead::kDSpark);
        EXPECT_EQ(moved.weights.config.num_draft_layers, config.num_draft_layers);
        EXPECT_EQ(moved.report.bytes, original.report.bytes);
        EXPECT_EQ(moved.report.tensors, original.report.tensors);
        EXPECT_EQ(moved.report.files, num_shards);
        EXPECT_EQ(moved.report.copied_bytes, 0u);
        ExpectSameWeights(&original, &moved);
      }
    }
  }
}

TEST(Loader, ReadsADirectoryAndKeepsItMapped) {
  const ModelConfig config = SmallConfig(DraftHead::kMtp1);
  LoadedModel original = MakeSyntheticModel(config);
  Result<LoadedModel> loaded = InvalidArgument("not loaded");
  {
    const TestFolder folder(TestCheckpoint(config).Files());
    Result<ModelFiles> files = OpenModelDirectory(folder.path());
    ASSERT_TRUE(files.ok()) << files.status().ToString();
    loaded = LoadModel(*files);
  }
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  ExpectSameWeights(&original, &*loaded);  // the folder is gone, the mappings are not
}

TEST(Loader, StripsALeadingModelFromNames) {
  TestCheckpoint checkpoint(SmallConfig(DraftHead::kMtp1));
  for (auto& shard : checkpoint.shards) {
    for (TestTensor& t : shard) t.name = "model." + t.name;
  }
  checkpoint.Find("model.head.weight").name = "head.weight";
  const Status status = StatusOfLoad(checkpoint.Files());
  EXPECT_TRUE(status.ok()) << status.ToString();
}

TEST(Loader, TakesTheDraftBlocksFromTheTensorsWhereTheConfigIsSilent) {
  const ModelConfig config = SmallConfig(DraftHead::kMtp1);
  TestCheckpoint checkpoint(config);
  ModelConfig silent = config;
  silent.num_draft_layers = 0;
  checkpoint.config = ConfigJson(silent);
  const auto files = checkpoint.Files();
  Result<LoadedModel> loaded = LoadModel(InMemory(files));
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_TRUE(loaded->weights.mtp.has_value());
  EXPECT_EQ(loaded->weights.config.num_draft_layers, 1);
}

TEST(Loader, RunsWithoutTheDraftHeadThatTheConfigMentions) {
  for (const DraftHead draft : {DraftHead::kMtp1, DraftHead::kDSpark}) {
    TestCheckpoint checkpoint(SmallConfig(draft));
    for (auto& shard : checkpoint.shards) {
      std::erase_if(shard, [](const TestTensor& t) { return t.name.substr(0, 4) == "mtp."; });
    }
    const auto files = checkpoint.Files();
    Result<LoadedModel> loaded = LoadModel(InMemory(files));
    ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
    EXPECT_EQ(loaded->weights.config.num_draft_layers, 0);
    EXPECT_FALSE(loaded->weights.config.has_dspark());
  }
}

TEST(Loader, CopiesMisalignedTensorsAndSaysSo) {
  const ModelConfig config = SmallConfig(DraftHead::kNone);
  LoadedModel original = MakeSyntheticModel(config);
  auto files = TestCheckpoint(config, 1).Files();
  std::string& file = files["model.safetensors"];
  // One more blank after the header moves all data to odd addresses.
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  ++header_bytes;
  std::memcpy(file.data(), &header_bytes, 8);
  file.insert(8 + header_bytes - 1, " ");
  Result<LoadedModel> loaded = LoadModel(InMemory(files));
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  ExpectSameWeights(&original, &*loaded);
  uint64_t wide_bytes = 0;
  for (const TestTensor& t : ListTensors(&original)) {
    if (t.dtype == "F32" || t.dtype == "BF16" || t.dtype == "I64") wide_bytes += t.bytes.size();
  }
  EXPECT_EQ(loaded->report.copied_bytes, wide_bytes);
  EXPECT_NE(loaded->report.ToString().find("misaligned"), std::string::npos);
}

TEST(Loader, IgnoresOnlyTheDraftBlocksOwnEmbeddingAndHead) {
  TestCheckpoint checkpoint(SmallConfig(DraftHead::kMtp1));
  checkpoint.shards[1].push_back({"mtp.0.head.weight", "BF16", {1, 2}, std::string(4, '\0')});
  checkpoint.shards[1].push_back({"mtp.0.emb.tok_emb.weight", "BF16", {1, 2}, std::string(4, '\0')});
  const auto files = checkpoint.Files();
  Result<LoadedModel> loaded = LoadModel(InMemory(files));
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->report.ignored,
            (std::vector<std::string>{"mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"}));

  checkpoint.shards[1].push_back({"layers.0.attn.emb.weight", "BF16", {1, 2}, std::string(4, '\0')});
  const Status status = StatusOfLoad(checkpoint.Files());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("layers.0.attn.emb.weight: the model has no place for it"),
            std::string::npos);
}

TEST(Loader, ListsAllProblemsAtOnceAndCountsTheRest) {
  TestCheckpoint checkpoint(SmallConfig(DraftHead::kMtp1));
  checkpoint.Remove("layers.0.attn.wq_a.scale");
  checkpoint.Find("layers.1.attn.wkv.weight").dtype = "I8";
  checkpoint.Find("norm.weight").shape = {2, 64};
  checkpoint.Find("layers.2.attn.attn_sink").bytes.replace(4, 4, "\x00\x00\xc0\x7f", 4);  // NaN
  const Status status = StatusOfLoad(checkpoint.Files());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  for (const char* part :
       {"4 problems", "layers.0.attn.wq_a.scale: is missing; want F8_E8M0 [1, 1]",
        "layers.1.attn.wkv.weight: want F8_E4M3 [128, 128], got I8 [128, 128] (in model-0000",
        "norm.weight: want BF16 [128], got BF16 [2, 64]",
        "layers.2.attn.attn_sink: value [1] is not finite"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << part << "\n" << status.message();
  }

  for (auto& shard : checkpoint.shards) {
    std::erase_if(shard, [](const TestTensor& t) { return t.name.find(".ffn.") != std::string::npos; });
  }
  const std::string message = StatusOfLoad(checkpoint.Files()).message();
  EXPECT_NE(message.find("\n  ... and "), std::string::npos);
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 51);
}

// The repository's goldens, and the larger ones when they are at hand.
TEST(Loader, LoadsTheGoldens) {
  int num_loaded = 0;
  for (const char* root : {"tests/golden", "../shared/golden"}) {
    if (!std::filesystem::is_directory(root)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(root)) {
      if (!std::filesystem::exists(entry.path() / "config.json")) continue;
      Result<ModelFiles> files = OpenModelDirectory(entry.path().string());
      ASSERT_TRUE(files.ok()) << files.status().ToString();
      Result<LoadedModel> loaded = LoadModel(*files, {.checks = ValueChecks::kAll});
      ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
      const bool is_dspark = loaded->weights.config.has_dspark();
      EXPECT_EQ(loaded->weights.dspark.has_value(), is_dspark) << entry.path();
      EXPECT_EQ(loaded->weights.mtp.has_value(), !is_dspark) << entry.path();
      EXPECT_EQ(loaded->report.copied_bytes, 0u);
      ++num_loaded;
    }
  }
  EXPECT_GE(num_loaded, 2);
}

}  // namespace
}  // namespace foresight
