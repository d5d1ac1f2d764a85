#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "kv_cache/pattern_writer.h"
#include "kv_cache/sequence_state.h"

namespace foresight {
namespace {

constexpr KvCacheOptions kOptions = {
    .budget_bytes = 1 << 30, .max_sequences = 3, .max_sequence_tokens = 2000, .model_identity = 42};

// Fields of the record at the end of a saved state (snapshot.cc).
enum RecordField {
  kLayout,
  kModel,
  kLength,
  kFurthest,
  kDraftLength,
  kDraftFurthest,
  kVersion,
  kMagic,
  kHash
};
constexpr size_t kRecordBytes = 72;

// The snapshot with one field of its record changed, and the hash made to fit.
Snapshot WithField(Snapshot snapshot, RecordField field, int64_t value) {
  std::byte* record = snapshot.bytes.data() + snapshot.bytes.size() - kRecordBytes;
  std::memcpy(record + 8 * field, &value, 8);
  const uint64_t hash = XXH3_64bits(snapshot.bytes.data(), snapshot.bytes.size() - 8);
  std::memcpy(record + 8 * kHash, &hash, 8);
  return snapshot;
}

class SnapshotTest : public testing::Test {
 protected:
  SnapshotTest()
      : layout_(MakeCacheLayout(PatternConfig(), CacheFormat::kFloat32, 24)),
        cache_(std::move(KvCache::Create(layout_, kOptions).value())),
        source_(std::move(cache_->NewSequence().value())),
        target_(std::move(cache_->NewSequence().value())),
        source_writer_(layout_),
        target_writer_(layout_) {}

  // The target, which holds 100 tokens of its own, refuses and keeps them.
  void ExpectRefused(const Snapshot& snapshot, StatusCode code = StatusCode::kDataLoss) {
    const Status status = target_.Restore(snapshot);
    ASSERT_EQ(status.code(), code) << status.message();
    ASSERT_EQ(target_.length(), 100);
    ASSERT_EQ(target_writer_.CountWrong(target_), 0);
  }

  CacheLayout layout_;
  std::unique_ptr<KvCache> cache_;
  SequenceState source_;
  SequenceState target_;
  PatternWriter source_writer_;
  PatternWriter target_writer_;
};

TEST_F(SnapshotTest, RestoresAtEveryPosition) {
  std::vector<int64_t> lengths = {0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 500, 512, 513};
  for (int64_t n = 120; n <= 140; ++n) lengths.push_back(n);
  for (int64_t n = 250; n <= 260; ++n) lengths.push_back(n);
  for (int64_t length : lengths) {
    source_.Reset();
    ASSERT_TRUE(source_writer_.Step(source_, length / 2, 1).ok());
    source_writer_.StepDraft(source_, length / 2);
    ASSERT_TRUE(source_writer_.Step(source_, length - length / 2, 5000).ok());
    const Snapshot snapshot = source_.Save();
    ASSERT_TRUE(target_writer_.Step(target_, 333, 9).ok());  // something else was there
    ASSERT_TRUE(target_.Restore(snapshot).ok());
    ASSERT_EQ(target_.length(), length);
    ASSERT_EQ(target_.draft_length(), length / 2);
    ASSERT_EQ(target_.truncatable_to(), source_.truncatable_to());
    ASSERT_EQ(target_.Save().bytes, snapshot.bytes);
    PatternWriter writer = source_writer_;
    ASSERT_EQ(writer.CountWrong(target_), 0) << length;
    // It goes on, and back, as the original would.
    ASSERT_TRUE(target_.Truncate(target_.truncatable_to()).ok());
    ASSERT_TRUE(writer.Step(target_, 150, 7).ok());
    ASSERT_EQ(writer.CountWrong(target_), 0) << length;
    ASSERT_EQ(source_writer_.CountWrong(source_), 0) << length;
    target_.Reset();
  }
}

TEST_F(SnapshotTest, EqualContentGivesEqualBytes) {
  ASSERT_TRUE(source_writer_.Step(source_, 290, 1).ok());
  // The same tokens after another history of the memory, and in other steps.
  ASSERT_TRUE(target_writer_.Step(target_, 700, 77).ok());
  target_.Reset();
  for (int64_t begin = 0; begin < 290; begin += 29)
    ASSERT_TRUE(target_writer_.Step(target_, 29, 1 + begin).ok());
  EXPECT_EQ(source_.Save().bytes, target_.Save().bytes);
}

TEST_F(SnapshotTest, EveryDamageIsFound) {
  ASSERT_TRUE(source_writer_.Step(source_, 37, 1).ok());
  ASSERT_TRUE(target_writer_.Step(target_, 100, 9).ok());
  const Snapshot good = source_.Save();
  const size_t size = good.bytes.size();
  const auto near_end = [&](size_t i) { return i + 2 * kRecordBytes > size; };
  for (size_t i = 0; i < size; i += near_end(i) ? 1 : 997) {
    Snapshot damaged = good;
    damaged.bytes[i] ^= std::byte{1} << (i % 8);
    ExpectRefused(damaged);
    Snapshot cut = good;
    cut.bytes.resize(i);
    ExpectRefused(cut);
  }
  for (size_t extra : {1, 8, 72}) {
    Snapshot longer = good;
    longer.bytes.resize(size + extra);
    ExpectRefused(longer);
  }
  Snapshot missing_front = good;
  missing_front.bytes.erase(missing_front.bytes.begin());
  ExpectRefused(missing_front);
  EXPECT_TRUE(target_.Restore(good).ok());
}

TEST_F(SnapshotTest, RecordsThatContradictThemselvesAreRefused) {
  ASSERT_TRUE(source_writer_.Step(source_, 137, 1).ok());
  ASSERT_TRUE(target_writer_.Step(target_, 100, 9).ok());
  const Snapshot good = source_.Save();
  ASSERT_EQ(WithField(good, kLength, 137).bytes, good.bytes);
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
  ExpectRefused(WithField(good, kLayout, 1), kInvalid);
  ExpectRefused(WithField(good, kModel, 43), kInvalid);
  ExpectRefused(WithField(good, kVersion, 2), kInvalid);
  for (int64_t wild :
       {int64_t{-1}, int64_t{0}, int64_t{112}, int64_t{138}, int64_t{2001}, INT64_MAX, INT64_MIN}) {
    ExpectRefused(WithField(good, kLength, wild), kInvalid);
    ExpectRefused(WithField(WithField(good, kDraftLength, wild), kDraftFurthest, wild + (wild == 0)),
                  wild == 112 || wild == 138 || wild == 2001 ? StatusCode::kDataLoss : kInvalid);
  }
  ExpectRefused(WithField(good, kFurthest, 2001), kInvalid);
  ExpectRefused(WithField(good, kFurthest, 162), kInvalid);
  ExpectRefused(WithField(good, kFurthest, 161));                           // fewer rows than are there
  ExpectRefused(WithField(WithField(good, kLength, 136), kFurthest, 136));  // the same
  EXPECT_TRUE(target_.Restore(good).ok());
}

TEST_F(SnapshotTest, OtherModelsAndLayoutsAreRefused) {
  ASSERT_TRUE(target_writer_.Step(target_, 100, 9).ok());
  const auto save_elsewhere = [](const CacheLayout& layout, const KvCacheOptions& options) {
    const std::unique_ptr<KvCache> cache = std::move(KvCache::Create(layout, options).value());
    SequenceState state = std::move(cache->NewSequence().value());
    PatternWriter writer(layout);
    EXPECT_TRUE(writer.Step(state, 60, 1).ok());
    return state.Save();
  };
  KvCacheOptions other = kOptions;
  other.model_identity = 41;
  ExpectRefused(save_elsewhere(layout_, other), StatusCode::kInvalidArgument);
  ExpectRefused(save_elsewhere(MakeCacheLayout(PatternConfig(), CacheFormat::kFloat32, 25), kOptions),
                StatusCode::kInvalidArgument);
  ExpectRefused(save_elsewhere(MakeCacheLayout(PatternConfig(), CacheFormat::kPacked, 24), kOptions),
                StatusCode::kInvalidArgument);
}

TEST_F(SnapshotTest, Files) {
  namespace fs = std::filesystem;
  std::string folder = (fs::path(testing::TempDir()) / "foresight_state_XXXXXX").string();
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/state";
  ASSERT_TRUE(target_writer_.Step(target_, 100, 9).ok());
  EXPECT_EQ(target_.RestoreFromFile(path).code(), StatusCode::kNotFound);
  for (int64_t n : {300, 5}) {  // the second save replaces the first
    source_.Reset();
    ASSERT_TRUE(source_writer_.Step(source_, n, 1).ok());
    const Status saved = source_.SaveToFile(path);
    ASSERT_TRUE(saved.ok()) << saved.message();
    EXPECT_EQ(fs::file_size(path), source_.Save().bytes.size());
    ASSERT_TRUE(target_.RestoreFromFile(path).ok());
    EXPECT_EQ(target_.length(), n);
    EXPECT_EQ(source_writer_.CountWrong(target_), 0);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);  // nothing temporary
  fs::resize_file(path, fs::file_size(path) - 1);
  const Status cut = target_.RestoreFromFile(path);
  EXPECT_EQ(cut.code(), StatusCode::kDataLoss);
  EXPECT_NE(cut.message().find(path), std::string::npos) << cut.message();
  EXPECT_EQ(target_.length(), 5);
  EXPECT_EQ(source_.SaveToFile(folder + "/missing/state").code(), StatusCode::kInvalidArgument);
  fs::create_directory(folder + "/taken");
  EXPECT_FALSE(source_.SaveToFile(folder + "/taken").ok());
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 2);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace foresight
