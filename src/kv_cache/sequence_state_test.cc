#include "kv_cache/sequence_state.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>
#include <vector>

#include "kv_cache/pattern_writer.h"

namespace foresight {
namespace {

constexpr int64_t kSlack = 24;

CacheLayout TestLayout() {
  return MakeCacheLayout(PatternConfig(), CacheFormat::kFloat32, kSlack);
}

// A cache with room for exactly `blocks` blocks beside the fixed parts.
std::unique_ptr<KvCache> MakeCache(const CacheLayout& layout, int64_t blocks, int max_sequences,
                                   int64_t tokens_max = 4096) {
  KvCacheOptions options;
  options.max_sequences = max_sequences;
  options.max_sequence_tokens = tokens_max;
  options.budget_bytes = int64_t{1} << 40;
  const int64_t sequence_bytes = KvCache::Create(layout, options).value()->stats().sequence_bytes;
  options.budget_bytes = blocks * layout.block_bytes + max_sequences * sequence_bytes;
  return std::move(KvCache::Create(layout, options).value());
}

struct Timeline {
  SequenceState state;
  PatternWriter writer;
};

// The blocks that the sequences hold, each counted once.
int64_t CountBlocks(const std::vector<Timeline>& timelines) {
  std::set<const std::byte*> blocks;
  for (const Timeline& t : timelines) {
    const PagedView entries = t.state.View(1).compressed;
    for (int64_t i = 0; i * kBlockTokens < t.state.reserved_length(); ++i) blocks.insert(entries.blocks[i]);
  }
  return static_cast<int64_t>(blocks.size());
}

// Random lives of up to five sequences that fork, are cut back, saved and restored: everything that the next
// position reads is right in all of them, and no block is lost.
TEST(SequenceState, RandomOperationsKeepEveryTimeline) {
  const CacheLayout layout = TestLayout();
  for (uint32_t seed = 0; seed < 8; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
    const std::unique_ptr<KvCache> cache = MakeCache(layout, 14, 5);
    std::vector<Timeline> timelines;
    int refused = 0;
    for (int step = 0; step < 250; ++step) {
      if (timelines.empty() || (timelines.size() < 5 && below(30) == 0)) {
        timelines.push_back({std::move(cache->NewSequence().value()), PatternWriter(layout)});
      }
      const size_t chosen = below(timelines.size());
      Timeline& t = timelines[chosen];
      const int64_t length = t.state.length();
      switch (below(8)) {
        case 0:
        case 1:
        case 2: {
          const int64_t n = below(8) == 0 ? below(500) : below(40);
          const Status status = t.writer.Step(t.state, n, random());
          if (!status.ok()) {
            ASSERT_EQ(status.code(), StatusCode::kResourceExhausted);
            ASSERT_EQ(t.state.length(), length);
            ++refused;
          }
          break;
        }
        case 3: {
          const int64_t lowest = t.state.truncatable_to();
          ASSERT_TRUE(t.state.Truncate(lowest + below(length - lowest + 1)).ok());
          break;
        }
        case 4:
          if (length > t.state.draft_length()) {
            t.writer.StepDraft(t.state, t.state.draft_length() + below(length - t.state.draft_length()) + 1);
          }
          break;
        case 5: {
          if (timelines.size() == 5) {
            ASSERT_EQ(t.state.Fork().status().code(), StatusCode::kResourceExhausted);
            break;
          }
          Timeline fork = {std::move(t.state.Fork().value()), t.writer};
          timelines.push_back(std::move(fork));
          break;
        }
        case 6: {
          const Snapshot snapshot = t.state.Save();
          Timeline& target = timelines[below(timelines.size())];
          const Status status = target.state.Restore(snapshot);
          if (status.ok()) {
            target.writer = PatternWriter(t.writer);
          } else {
            ASSERT_EQ(status.code(), StatusCode::kResourceExhausted);
            ++refused;
          }
          break;
        }
        case 7:
          if (below(4) == 0) timelines.erase(timelines.begin() + chosen);
          break;
      }
      for (const Timeline& each : timelines)
        ASSERT_EQ(each.writer.CountWrong(each.state), 0) << seed << " " << step;
      const CacheStats stats = cache->stats();
      ASSERT_EQ(stats.blocks_in_use, CountBlocks(timelines)) << seed << " " << step;
      ASSERT_EQ(stats.sequences, static_cast<int64_t>(timelines.size()));
      ASSERT_EQ(stats.total_bytes,
                stats.blocks_in_use * layout.block_bytes + stats.sequences * stats.sequence_bytes);
      ASSERT_LE(stats.total_bytes, stats.resident_bytes);
      ASSERT_LE(stats.resident_bytes, cache->options().budget_bytes);
    }
    timelines.clear();
    EXPECT_EQ(cache->stats().total_bytes, 0);
  }
}

TEST(SequenceState, ForksShareBlocksUntilOneWrites) {
  const CacheLayout layout = TestLayout();
  const std::unique_ptr<KvCache> cache = MakeCache(layout, 10, 2);
  Timeline parent = {std::move(cache->NewSequence().value()), PatternWriter(layout)};
  ASSERT_TRUE(parent.writer.Step(parent.state, 600, 1).ok());
  ASSERT_EQ(cache->stats().blocks_in_use, 3);
  Timeline fork = {std::move(parent.state.Fork().value()), parent.writer};
  EXPECT_EQ(cache->stats().blocks_in_use, 3);
  ASSERT_TRUE(fork.writer.Step(fork.state, 40, 1000).ok());
  EXPECT_EQ(cache->stats().blocks_in_use, 4);
  ASSERT_TRUE(parent.writer.Step(parent.state, 40, 2000).ok());
  EXPECT_EQ(cache->stats().blocks_in_use, 4);  // the parent's last block is its own again
  EXPECT_EQ(parent.writer.CountWrong(parent.state), 0);
  EXPECT_EQ(fork.writer.CountWrong(fork.state), 0);
  fork.state.Reset();
  EXPECT_EQ(cache->stats().blocks_in_use, 3);
  EXPECT_EQ(parent.writer.CountWrong(parent.state), 0);
}

TEST(SequenceState, EveryRejectionIsTakenBackExactly) {
  const CacheLayout layout = TestLayout();
  const std::unique_ptr<KvCache> cache = MakeCache(layout, 10, 1);
  for (int64_t start : {1, 3, 15, 16, 17, 126, 127, 128, 250, 255, 256, 257}) {
    Timeline t = {std::move(cache->NewSequence().value()), PatternWriter(layout)};
    ASSERT_TRUE(t.writer.Step(t.state, start, 7).ok());
    for (int64_t drafted = 1; drafted <= kSlack; drafted += 5) {
      for (int64_t accepted = 0; accepted <= drafted; accepted += 3) {
        const int64_t length = t.state.length();
        ASSERT_TRUE(t.writer.Step(t.state, drafted, 100 * drafted + accepted).ok());
        ASSERT_TRUE(t.state.Truncate(length + accepted).ok());
        ASSERT_EQ(t.state.length(), length + accepted);
        ASSERT_EQ(t.writer.CountWrong(t.state), 0) << start << " " << drafted << " " << accepted;
      }
    }
  }
}

TEST(SequenceState, TruncateRefusesWhatTheRingsHaveLost) {
  const CacheLayout layout = TestLayout();
  const std::unique_ptr<KvCache> cache = MakeCache(layout, 10, 1);
  Timeline t = {std::move(cache->NewSequence().value()), PatternWriter(layout)};
  ASSERT_TRUE(t.writer.Step(t.state, 300, 1).ok());
  t.writer.StepDraft(t.state, 300);
  EXPECT_EQ(t.state.truncatable_to(), 300 - kSlack);
  const Status low = t.state.Truncate(300 - kSlack - 1);
  EXPECT_EQ(low.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(low.message().find("from 276 on"), std::string::npos) << low.message();
  EXPECT_EQ(t.state.Truncate(301).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(t.state.length(), 300);
  EXPECT_EQ(t.state.draft_length(), 300);
  ASSERT_TRUE(t.state.Truncate(276).ok());
  EXPECT_EQ(t.state.draft_length(), 276);
  // What was overwritten stays lost, whatever the length is now.
  EXPECT_EQ(t.state.Truncate(275).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(t.state.TruncateDraft(275).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(t.writer.CountWrong(t.state), 0);
  ASSERT_TRUE(t.state.Truncate(0).ok());
  EXPECT_EQ(cache->stats().blocks_in_use, 0);
  ASSERT_TRUE(t.writer.Step(t.state, 20, 5).ok());
  EXPECT_EQ(t.state.truncatable_to(), 0);
}

TEST(SequenceState, DraftLayersAheadLimitTheTarget) {
  const CacheLayout layout = TestLayout();
  const std::unique_ptr<KvCache> cache = MakeCache(layout, 10, 1);
  SequenceState state = std::move(cache->NewSequence().value());
  ASSERT_TRUE(state.Reserve(100).ok());
  state.Advance(100);
  state.AdvanceDraft(110);
  EXPECT_EQ(state.truncatable_to(), 110 - kSlack);
  ASSERT_TRUE(state.TruncateDraft(99).ok());
  ASSERT_TRUE(state.Truncate(99).ok());
  EXPECT_EQ(state.draft_length(), 99);
  // Draft layers that are far behind don't limit it.
  state.Reset();
  ASSERT_TRUE(state.Reserve(100).ok());
  state.Advance(100);
  state.AdvanceDraft(50);
  EXPECT_EQ(state.truncatable_to(), 100 - kSlack);
  ASSERT_TRUE(state.Truncate(80).ok());
  EXPECT_EQ(state.draft_length(), 50);
}

TEST(SequenceState, ExhaustionChangesNothing) {
  const CacheLayout layout = TestLayout();
  const std::unique_ptr<KvCache> cache = MakeCache(layout, 4, 3, /*tokens_max=*/700);
  EXPECT_EQ(cache->AvailableTokens(), 4 * kBlockTokens);
  Timeline a = {std::move(cache->NewSequence().value()), PatternWriter(layout)};
  Timeline b = {std::move(cache->NewSequence().value()), PatternWriter(layout)};
  ASSERT_TRUE(a.writer.Step(a.state, 600, 1).ok());
  ASSERT_TRUE(b.writer.Step(b.state, 250, 2).ok());
  const CacheStats before = cache->stats();
  EXPECT_EQ(cache->AvailableTokens(), 0);

  EXPECT_EQ(b.state.Reserve(7).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(a.state.Reserve(101).code(), StatusCode::kResourceExhausted);  // more than 700 tokens
  EXPECT_TRUE(a.state.Reserve(100).ok());
  // A fork costs no block, but its first write into the shared one does.
  Timeline fork = {std::move(b.state.Fork().value()), b.writer};
  EXPECT_EQ(fork.state.Reserve(1).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(b.state.Reserve(1).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->NewSequence().status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(fork.state.Restore(a.state.Save()).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->stats().blocks_in_use, before.blocks_in_use);
  for (const Timeline* t : {&a, &b, &fork}) EXPECT_EQ(t->writer.CountWrong(t->state), 0);
  a.state.Reset();
  EXPECT_TRUE(fork.writer.Step(fork.state, 7, 3).ok());
  EXPECT_EQ(b.writer.CountWrong(b.state), 0);
}

TEST(SequenceState, LayersWithoutBlocksNeedNone) {
  ModelConfig config = PatternConfig();
  config.layers.assign(3, LayerKind::kSwa);
  const CacheLayout layout = MakeCacheLayout(config, CacheFormat::kPacked, kSlack);
  const std::unique_ptr<KvCache> cache = MakeCache(layout, 0, 1);
  Timeline t = {std::move(cache->NewSequence().value()), PatternWriter(layout)};
  ASSERT_TRUE(t.writer.Step(t.state, 1000, 1).ok());
  ASSERT_TRUE(t.state.Restore(t.state.Save()).ok());
  EXPECT_EQ(t.writer.CountWrong(t.state), 0);
  EXPECT_EQ(cache->stats().blocks_in_use, 0);
}

TEST(SequenceState, LimitsAreChecked) {
  const CacheLayout layout = TestLayout();
  const auto code = [&](const KvCacheOptions& options) {
    return KvCache::Create(layout, options).status().code();
  };
  const KvCacheOptions good = {.budget_bytes = 1 << 30, .max_sequences = 2, .max_sequence_tokens = 1000};
  EXPECT_EQ(code(good), StatusCode::kOk);
  for (const KvCacheOptions& bad :
       {KvCacheOptions{.budget_bytes = 1 << 30, .max_sequences = 0, .max_sequence_tokens = 1000},
        KvCacheOptions{.budget_bytes = 1 << 30, .max_sequences = 2, .max_sequence_tokens = 0},
        KvCacheOptions{.budget_bytes = 1 << 30, .max_sequences = 2, .max_sequence_tokens = int64_t{1} << 60},
        KvCacheOptions{.budget_bytes = -1, .max_sequences = 2, .max_sequence_tokens = 1000},
        KvCacheOptions{
            .budget_bytes = layout.block_bytes, .max_sequences = 2, .max_sequence_tokens = 1000}}) {
    EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace foresight
