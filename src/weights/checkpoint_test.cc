#include "weights/checkpoint.h"

#include <gtest/gtest.h>

#include "weights/test_checkpoint.h"

namespace foresight {
namespace {

using Files = std::map<std::string, std::string>;

constexpr const char* kIndex = "model.safetensors.index.json";

Files Good() {
  static const Files files = TestCheckpoint(TinyAConfig(), 2).Files();
  return files;
}

Status LoadStatus(const Files& files) {
  return LoadModel(InMemory(files)).status();
}

void ExpectRefused(const Files& files, std::string_view words,
                   StatusCode code = StatusCode::kInvalidArgument) {
  const Status status = LoadStatus(files);
  EXPECT_EQ(status.code(), code) << status.ToString();
  EXPECT_NE(status.message().find(words), std::string::npos) << words << "\n" << status.ToString();
}

std::string Replaced(std::string text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  CHECK(at != std::string::npos, "{}", from);
  return text.replace(at, from.size(), to);
}

TEST(Checkpoint, MissingFilesAreNamed) {
  ASSERT_TRUE(LoadStatus(Good()).ok());
  for (const auto& [name, bytes] : Good()) {
    if (name == kIndex) continue;
    Files files = Good();
    files.erase(name);
    ExpectRefused(files, name, StatusCode::kNotFound);
  }
  Files files = Good();
  files.erase(kIndex);
  ExpectRefused(files, "neither model.safetensors.index.json nor model.safetensors", StatusCode::kNotFound);
  ExpectRefused({}, "config.json", StatusCode::kNotFound);
}

TEST(Checkpoint, CutFilesAreRefused) {
  for (const auto& [name, bytes] : Good()) {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{9}, bytes.size() / 2, bytes.size() - 1}) {
      Files files = Good();
      files[name].resize(size);
      const Status status = LoadStatus(files);
      EXPECT_FALSE(status.ok()) << name << " cut to " << size;
      EXPECT_NE(status.message().find(name), std::string::npos) << status.ToString();
    }
  }
}

TEST(Checkpoint, TheIndexMustBeOne) {
  for (const char* index :
       {"", "[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}"}) {
    Files files = Good();
    files[kIndex] = index;
    ExpectRefused(files, kIndex);
  }
}

TEST(Checkpoint, IndexAndShardsMustSayTheSame) {
  Files files = Good();
  files[kIndex] = Replaced(files[kIndex], "\"embed.weight\":", "\"embed.weights\":");
  ExpectRefused(files, "embed.weights: is not in model-00001-of-00002.safetensors");
  files = Good();
  files[kIndex] = Replaced(files[kIndex], "\"embed.weight\":\"model-00001", "\"embed.weight\":\"model-00002");
  ExpectRefused(files, "embed.weight: is in model-00001-of-00002.safetensors, but");
}

TEST(Checkpoint, ShardsLieInTheFolder) {
  for (const char* name : {"../model-00001-of-00002.safetensors", "/etc/passwd",
                           "model.safetensors.index.json", "", "no-such-file.safetensors"}) {
    Files files = Good();
    files[kIndex] = Replaced(files[kIndex], "model-00001-of-00002.safetensors", name);
    EXPECT_FALSE(LoadStatus(files).ok()) << name;
  }
}

TEST(Checkpoint, ATensorMayBeInOneShardOnly) {
  TestCheckpoint checkpoint(TinyAConfig(), 2);
  checkpoint.shards[1].push_back(checkpoint.shards[0].front());
  ExpectRefused(checkpoint.Files(),
                "is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors");
}

TEST(Checkpoint, ScalesThatAreNotNumbers) {
  TestCheckpoint checkpoint(TinyAConfig(), 2);
  checkpoint.Find("layers.0.attn.wkv.scale").bytes[0] = '\xff';
  ExpectRefused(checkpoint.Files(), "tensor layers.0.attn.wkv.scale: value [0, 0] is 255, NaN");
}

TEST(Checkpoint, RoutingTablesNameExperts) {
  for (const char byte : {'\x08', '\xff'}) {  // one too many, and negative
    TestCheckpoint checkpoint(TinyAConfig(), 2);
    std::string& bytes = checkpoint.Find("layers.0.ffn.gate.tid2eid").bytes;
    for (size_t i = 0; i < 8; ++i) bytes[i] = i == 0 || byte < 0 ? byte : '\0';
    ExpectRefused(checkpoint.Files(), "is no expert's number");
  }
}

TEST(Checkpoint, AnEntryThatIsNoFile) {
  const TestFolder folder(Good());
  const std::string shard = folder.path() + "/model-00001-of-00002.safetensors";
  const auto refused = [&](std::string_view words) {
    const Result<ModelFiles> files = OpenModelDirectory(folder.path());
    ASSERT_TRUE(files.ok()) << files.status().ToString();
    const Status status = LoadModel(*files).status();
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find(words), std::string::npos) << status.ToString();
  };
  std::filesystem::remove(shard);
  std::filesystem::create_directory(shard);
  refused("is a directory, not a file");
  std::filesystem::remove(shard);
  std::filesystem::create_symlink(shard, shard);  // leads to itself
  refused("can't open");
}

}  // namespace
}  // namespace foresight
