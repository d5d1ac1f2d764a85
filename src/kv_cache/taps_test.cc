// The taps ring: what has not been taken up by the draft layers goes where the sequence goes.
#include <gtest/gtest.h>

#include <cstring>

#include "kv_cache/pattern_writer.h"

namespace foresight {
namespace {

constexpr int64_t kTapSlack = 24;
constexpr int64_t kSlots = 16 + kTapSlack;  // PatternConfig's window

ModelConfig ConfigWithTaps() {
  ModelConfig config = PatternConfig();
  config.hidden_size = 32;
  config.dspark.block_size = 4;
  config.dspark.target_layer_ids = {0, 2};
  return config;
}

class Taps : public testing::Test {
 protected:
  Taps() : layout_(MakeCacheLayout(ConfigWithTaps(), CacheFormat::kFloat32, kTapSlack)) {
    cache_ = std::move(
        KvCache::Create(layout_,
                        {.budget_bytes = int64_t{1} << 26, .max_sequences = 3, .max_sequence_tokens = 1024})
            .value());
  }
  SequenceState New() { return std::move(cache_->NewSequence().value()); }

  // Steps n tokens; the taps of position p are bytes of value p + `salt`.
  void Step(SequenceState& sequence, int64_t n, int64_t salt = 0) {
    ASSERT_TRUE(sequence.Reserve(n).ok());
    const RingView ring = sequence.Taps().window;
    for (int64_t p = sequence.length(); p < sequence.length() + n; ++p) {
      std::memset(ring[p], static_cast<int>((p + salt) & 0xff), ring.item_bytes);
    }
    sequence.Advance(n);
  }
  void ExpectPending(const SequenceState& sequence, int64_t first) {
    EXPECT_EQ(sequence.pending_taps(), first);
    const RingView ring = sequence.Taps().window;
    for (int64_t p = first; p < sequence.length(); ++p) {
      EXPECT_EQ(static_cast<uint8_t>(*ring[p]), p & 0xff) << "position " << p;
    }
  }

  CacheLayout layout_;
  std::unique_ptr<KvCache> cache_;
};

TEST_F(Taps, HaveARingOfTheHeadsWidth) {
  EXPECT_EQ(layout_.taps.slots, kSlots);
  EXPECT_EQ(layout_.taps.item_bytes, 2 * 32 * 4);
  EXPECT_EQ(MakeCacheLayout(ConfigWithTaps(), CacheFormat::kPacked, kTapSlack).taps.item_bytes, 2 * 32 * 2);
  const CacheLayout without = MakeCacheLayout(PatternConfig(), CacheFormat::kFloat32, kTapSlack);
  EXPECT_EQ(without.taps.slots, 0);
  EXPECT_NE(without.fingerprint, layout_.fingerprint);
  EXPECT_LT(without.fixed_bytes, layout_.fixed_bytes);
}

TEST_F(Taps, ArePendingUntilTheDraftLayersHaveThem) {
  SequenceState sequence = New();
  EXPECT_EQ(sequence.pending_taps(), 0);
  Step(sequence, 10);
  ExpectPending(sequence, 0);
  sequence.AdvanceDraft(10);
  ExpectPending(sequence, 10);
  Step(sequence, 7);
  ExpectPending(sequence, 10);
  ASSERT_TRUE(sequence.Truncate(12).ok());
  ExpectPending(sequence, 10);
  ASSERT_TRUE(sequence.Truncate(9).ok());  // below what was taken up
  ExpectPending(sequence, 9);
  Step(sequence, 100);  // more than the ring holds
  ExpectPending(sequence, 109 - kSlots);
  ASSERT_TRUE(sequence.Truncate(109 - kTapSlack).ok());
  ExpectPending(sequence, 109 - kSlots);  // the window of 16 before the new end, and no more
  EXPECT_EQ(sequence.length() - sequence.pending_taps(), 16);
}

TEST_F(Taps, AreForkedSavedAndRestored) {
  for (const auto& [before, taken, after] :
       {std::tuple{0, 0, 1}, {10, 10, 0}, {10, 10, 5}, {30, 20, 50}, {0, 0, 300}, {250, 250, 39}}) {
    SequenceState original = New();
    Step(original, before);
    original.AdvanceDraft(taken);
    Step(original, after);
    const int64_t first = original.pending_taps();
    const Snapshot saved = original.Save();
    Result<SequenceState> fork = original.Fork();
    ASSERT_TRUE(fork.ok());
    Step(original, 60, /*salt=*/1);  // over the same slots
    ExpectPending(*fork, first);
    ASSERT_TRUE(original.Restore(saved).ok());
    ExpectPending(original, first);
    EXPECT_EQ(original.Save().bytes, saved.bytes);
  }
}

}  // namespace
}  // namespace foresight
