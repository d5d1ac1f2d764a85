#include "kv_cache/prefix_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "kv_cache/pattern_writer.h"

namespace foresight {
namespace {

constexpr int kPrefixes = 4;

class PrefixCacheTest : public testing::Test {
 protected:
  std::vector<TokenId> Tokens(int64_t count, int first) {
    std::vector<TokenId> tokens(count);
    for (int64_t i = 0; i < count; ++i) tokens[i] = static_cast<TokenId>(first * 1000 + i % 997);
    return tokens;
  }
  SequenceState StateOf(int64_t tokens) {
    SequenceState state = *cache_->NewSequence();
    EXPECT_TRUE(state.Reserve(tokens).ok());
    state.Advance(tokens);
    return state;
  }
  void Keep(std::span<const TokenId> tokens, uint64_t salt = 0) {
    ASSERT_TRUE(prefixes_.MakeRoom());
    prefixes_.Insert(salt, tokens, StateOf(std::ssize(tokens)));
  }

  const CacheLayout layout_ = MakeCacheLayout(PatternConfig(), CacheFormat::kFloat32, 24);
  const std::unique_ptr<KvCache> cache_ = std::move(*KvCache::Create(
      layout_, {.budget_bytes = 1 << 28, .max_sequences = kPrefixes + 2, .max_sequence_tokens = 4096}));
  PrefixCache prefixes_{*cache_, kPrefixes};
};

TEST_F(PrefixCacheTest, FindsTheLongestPrefixUnderTheSameSalt) {
  const std::vector<TokenId> tokens = Tokens(1100, 1);
  const std::span<const TokenId> all(tokens);
  Keep(all.first(256));
  Keep(all.first(768));
  Keep(all.first(512), /*salt=*/7);
  ASSERT_NE(prefixes_.Find(0, all), PrefixCache::kNone);
  EXPECT_EQ(prefixes_.tokens(prefixes_.Find(0, all)), 768);
  EXPECT_EQ(prefixes_.tokens(prefixes_.Find(0, all.first(767))), 256);
  EXPECT_EQ(prefixes_.tokens(prefixes_.Find(7, all)), 512);
  EXPECT_EQ(prefixes_.Find(0, all.first(255)), PrefixCache::kNone);
  EXPECT_EQ(prefixes_.Find(1, all), PrefixCache::kNone);
  const SequenceState fork = *prefixes_.Fork(prefixes_.Find(0, all));
  EXPECT_EQ(fork.length(), 768);
  EXPECT_TRUE(prefixes_.Contains(0, all.first(256)));
  EXPECT_FALSE(prefixes_.Contains(0, all.first(512)));
}

TEST_F(PrefixCacheTest, OneDifferentTokenIsAnotherPrefix) {
  std::vector<TokenId> tokens = Tokens(600, 1);
  Keep(std::span(tokens).first(512));
  tokens[300] ^= 1;
  EXPECT_EQ(prefixes_.Find(0, tokens), PrefixCache::kNone);
  EXPECT_EQ(prefixes_.CommonTokens(0, tokens), 256);
  tokens[10] ^= 1;
  EXPECT_EQ(prefixes_.CommonTokens(0, tokens), 0);
}

TEST_F(PrefixCacheTest, TheOneUsedLeastRecentlyGoesFirst) {
  std::vector<std::vector<TokenId>> all;
  for (int i = 0; i < kPrefixes; ++i) {
    all.push_back(Tokens(256, i));
    Keep(all.back());
  }
  EXPECT_NE(prefixes_.Find(0, all[0]), PrefixCache::kNone);
  const std::vector<TokenId> next = Tokens(256, 9);
  Keep(next);
  EXPECT_TRUE(prefixes_.Contains(0, all[0]));
  EXPECT_FALSE(prefixes_.Contains(0, all[1]));
  const int keep = prefixes_.Find(0, all[2]);
  while (prefixes_.EvictOne(keep)) {
  }
  EXPECT_EQ(prefixes_.stats().prefixes, 1);
  EXPECT_TRUE(prefixes_.Contains(0, all[2]));
}

TEST_F(PrefixCacheTest, CountsTheBlocksThatEvictionWouldFree) {
  const std::vector<TokenId> tokens = Tokens(768, 1);
  Keep(std::span(tokens).first(512));
  EXPECT_EQ(prefixes_.EvictableBlocks(), 2);
  {
    const SequenceState user = *prefixes_.Fork(prefixes_.Find(0, tokens));
    EXPECT_EQ(prefixes_.EvictableBlocks(), 0);
  }
  EXPECT_EQ(prefixes_.EvictableBlocks(prefixes_.Find(0, tokens)), 0);
  EXPECT_EQ(prefixes_.EvictableBlocks(), 2);
}

TEST_F(PrefixCacheTest, AgreesWithAPlainTableThroughRandomUse) {
  std::mt19937_64 rng(5);
  std::map<std::vector<TokenId>, int64_t> plain;  // prefix -> last use
  for (int64_t step = 1; step < 2000; ++step) {
    // Few different blocks, so that prefixes branch and meet.
    std::vector<TokenId> tokens;
    for (int block = static_cast<int>(rng() % 3) + 1; block > 0; --block) {
      tokens.insert(tokens.end(), kBlockTokens, static_cast<TokenId>(rng() % 2));
    }
    std::map<std::vector<TokenId>, int64_t>::iterator best = plain.end();
    for (auto it = plain.begin(); it != plain.end(); ++it) {
      if (it->first.size() <= tokens.size() &&
          std::equal(it->first.begin(), it->first.end(), tokens.begin()) &&
          (best == plain.end() || it->first.size() > best->first.size())) {
        best = it;
      }
    }
    const int found = prefixes_.Find(0, tokens);
    ASSERT_EQ(found != PrefixCache::kNone, best != plain.end());
    if (best != plain.end()) {
      ASSERT_EQ(prefixes_.tokens(found), std::ssize(best->first));
      best->second = step;
    }
    if (!prefixes_.Contains(0, tokens)) {
      if (plain.size() == kPrefixes) {
        plain.erase(std::min_element(plain.begin(), plain.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; }));
      }
      Keep(tokens);
      plain[tokens] = step;
    }
    ASSERT_EQ(prefixes_.stats().prefixes, std::ssize(plain));
  }
  prefixes_.Clear();
  EXPECT_EQ(prefixes_.stats().prefixes, 0);
  EXPECT_EQ(cache_->stats().total_bytes, 0);
}

TEST(PrefixCache, ThatKeepsNothing) {
  const CacheLayout layout = MakeCacheLayout(PatternConfig(), CacheFormat::kFloat32, 24);
  const std::unique_ptr<KvCache> cache = std::move(
      *KvCache::Create(layout, {.budget_bytes = 1 << 28, .max_sequences = 1, .max_sequence_tokens = 1024}));
  PrefixCache prefixes(*cache, 0);
  EXPECT_FALSE(prefixes.MakeRoom());
  EXPECT_EQ(prefixes.Find(0, std::vector<TokenId>(300, 1)), PrefixCache::kNone);
  EXPECT_FALSE(prefixes.EvictOne());
}

}  // namespace
}  // namespace foresight
