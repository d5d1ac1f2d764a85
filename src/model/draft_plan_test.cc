// A step whose drafts the device has chosen leaves, bit for bit, what the same step leaves of which the host
// knows the rows.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "model/step_fixture.h"

namespace foresight {
namespace {

constexpr int kSequences = 9;
constexpr int kDrafts = 4;

class PlannedStep : public StepTest<std::string> {
 protected:
  void SetUp() override {
    const bool apart = GetParam() != "cuda";
    Open(apart ? "apart" : "cuda", apart ? GetParam() : "auto");
    if (IsSkipped()) return;
    ModelConfig config = TinyAConfig();
    AddDSparkHead(&config, /*num_stages=*/1);  // steps leave taps
    config.sliding_window = 32;
    ASSERT_NO_FATAL_FAILURE(MakeModel(config, Numerics::kFaithful, /*max_sequences=*/2 * kSequences));
    Result<DeviceMemory> memory = backend_.device->Allocate(3 * kSequences * kDrafts * 4, "drafts");
    ASSERT_TRUE(memory.ok());
    drafts_ = std::move(*memory);
  }

  template <typename T>
  const T* Upload(const std::vector<T>& values, int place) {
    std::byte* const to = drafts_.data() + int64_t{place} * kSequences * kDrafts * 4;
    backend_.device->Upload(to, values.data(), std::ssize(values) * int64_t{sizeof(T)});
    return reinterpret_cast<const T*>(to);
  }
  template <typename T>
  std::vector<T> Download(const T* from, int64_t count) {
    std::vector<T> values(count);
    EXPECT_TRUE(backend_.device->Download(values.data(), from, count * int64_t{sizeof(T)}).ok());
    return values;
  }

  DeviceMemory drafts_;
};

TEST_P(PlannedStep, IsTheStepOfWhatWasVerified) {
  std::mt19937_64 rng(7);
  const auto below = [&](int n) { return static_cast<int>(rng() % n); };
  const int vocab_size = model_->config().vocab_size;
  std::vector<SequenceState> planned = NewSequences(kSequences);
  std::vector<SequenceState> plain = NewSequences(kSequences);
  std::vector<ConfidenceScale> scales(kDrafts);
  for (int k = 0; k < kDrafts; ++k) scales[k] = {.temperature = 1 + 0.5 * k, .margin_weight = 0.25};
  const int steps = GetParam() == "ref" ? 6 : 40;
  for (int step = 0; step < steps; ++step) {
    SCOPED_TRACE(step);
    // Chunks of prompts, with and without logits, and single tokens; every third step all of these.
    std::vector<SequenceChunk> chunks, plain_chunks;
    std::vector<ChunkDrafts> drafts;
    std::vector<TokenId> tokens;
    std::vector<int32_t> logit_rows;
    std::vector<TokenId> drafted(kSequences * kDrafts);
    std::vector<float> logits(drafted.size());
    std::vector<float> margins(drafted.size());
    for (size_t i = 0; i < drafted.size(); ++i) {
      drafted[i] = below(vocab_size);
      logits[i] = static_cast<float>(below(9)) / 2;
      margins[i] = static_cast<float>(below(3));
    }
    const DeviceDrafts on_device = {.tokens = Upload(drafted, 0),
                                    .confidence_logits = Upload(logits, 1),
                                    .margins = Upload(margins, 2),
                                    .stride = kSequences};
    int total = 0;
    for (int s = 0; s < kSequences; ++s) {
      const bool decodes = step % 3 == 0 || below(2) == 0;
      const int rows = decodes ? 1 : 1 + below(12);
      for (int i = 0; i < rows; ++i) tokens.push_back(below(vocab_size));
      chunks.push_back({.sequence = &planned[s], .num_rows = rows});
      plain_chunks.push_back({.sequence = &plain[s], .num_rows = rows});
      ChunkDrafts& chunk = drafts.emplace_back();
      if (s > 0 && !decodes && below(2) == 0) continue;
      logit_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
      chunk.count = s == 0 ? kDrafts : below(kDrafts + 1);
      chunk.drafts = on_device;
      chunk.drafts.tokens += s;
      chunk.drafts.confidence_logits += s;
      chunk.drafts.margins = s % 2 == 0 ? nullptr : chunk.drafts.margins + s;
      chunk.scales = std::span(scales).first(chunk.count);
      total += chunk.count;
    }
    const int count = 1 + below(total);
    const Result<StepOutputs> out = model_->Step({.tokens = tokens,
                                                  .chunks = chunks,
                                                  .logit_rows = logit_rows,
                                                  .keep_logits = true,
                                                  .plan = {.count = count, .chunks = drafts}});
    ASSERT_TRUE(out.ok()) << out.status().ToString();
    const std::vector<int32_t> verified = Download(out->device_verified, std::ssize(logit_rows));
    const int64_t num_logits = (std::ssize(logit_rows) + count) * vocab_size;
    const std::vector<float> got = Download(out->device_logits, num_logits);

    std::vector<TokenId> plain_tokens;
    std::vector<int32_t> plain_logit_rows;
    int known = 0;
    for (int s = 0, logit = 0; s < kSequences; ++s) {
      const auto first = tokens.begin() + known;
      plain_tokens.insert(plain_tokens.end(), first, first + chunks[s].num_rows);
      known += chunks[s].num_rows;
      if (logit == std::ssize(logit_rows) || logit_rows[logit] != known - 1) continue;
      const int length = verified[logit++];
      ASSERT_LE(length, drafts[s].count);
      for (int k = 0; k <= length; ++k) {
        plain_logit_rows.push_back(static_cast<int32_t>(plain_tokens.size()) - 1);
        if (k < length) plain_tokens.push_back(drafted[k * kSequences + s]);
      }
      plain_chunks[s].num_rows += length;
      planned[s].Advance(length);
    }
    const Result<StepOutputs> plain_out = model_->Step({.tokens = plain_tokens,
                                                        .chunks = plain_chunks,
                                                        .logit_rows = plain_logit_rows,
                                                        .keep_logits = true});
    ASSERT_TRUE(plain_out.ok()) << plain_out.status().ToString();
    ASSERT_EQ(plain_logit_rows.size(), logit_rows.size() + count);
    const std::vector<float> want = Download(plain_out->device_logits, num_logits);
    ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
    for (int s = 0; s < kSequences; ++s) {
      ASSERT_EQ(planned[s].Save().bytes, plain[s].Save().bytes) << s;
      const int64_t kept = plain[s].length() - below(plain_chunks[s].num_rows);
      ASSERT_TRUE(planned[s].Truncate(kept).ok());
      ASSERT_TRUE(plain[s].Truncate(kept).ok());
    }
  }
}

TEST_P(PlannedStep, RefusesWhatIsNoPlan) {
  const std::vector<TokenId> tokens = {1, 2, 3};
  const SequenceChunk chunks[] = {{.sequence = nullptr, .num_rows = 2}, {.sequence = nullptr, .num_rows = 1}};
  Result<SequenceState> states[] = {cache_->NewSequence(), cache_->NewSequence()};
  SequenceChunk both[] = {chunks[0], chunks[1]};
  for (int i = 0; i < 2; ++i) both[i].sequence = &*states[i];
  const std::vector<ConfidenceScale> scales(kDrafts);
  const auto drafts = [&](int count) {
    return ChunkDrafts{.count = count, .scales = std::span(scales).first(count)};
  };
  const std::vector<ChunkDrafts> good = {drafts(1), drafts(2)};
  const std::vector<ChunkDrafts> unscaled = {drafts(1), {.count = 2}};
  const std::vector<int32_t> logit_rows = {1, 2};
  const auto refuses = [&](const DraftPlan& plan, std::span<const int32_t> rows, bool keep_logits = true) {
    const Status status = model_
                              ->Step({.tokens = tokens,
                                      .chunks = both,
                                      .logit_rows = rows,
                                      .keep_logits = keep_logits,
                                      .plan = plan})
                              .status();
    return status.code() == StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refuses({.count = 4, .chunks = good}, logit_rows));  // there are 3
  EXPECT_TRUE(refuses({.count = -1, .chunks = good}, logit_rows));
  EXPECT_TRUE(refuses({.count = 2, .chunks = std::span(good).first(1)}, logit_rows));
  EXPECT_TRUE(refuses({.count = 2, .chunks = unscaled}, logit_rows));
  EXPECT_TRUE(refuses({.count = 2, .chunks = good}, std::vector<int32_t>{2}));        // drafts without logits
  EXPECT_TRUE(refuses({.count = 2, .chunks = good}, std::vector<int32_t>{0, 1, 2}));  // not the last row
  EXPECT_TRUE(refuses({.count = 2, .chunks = good}, logit_rows, /*keep_logits=*/false));
  for (const Result<SequenceState>& state : states) EXPECT_EQ(state->length(), 0);
}

INSTANTIATE_TEST_SUITE_P(AllTables, PlannedStep, testing::Values("ref", "cpu", "cuda"));

}  // namespace
}  // namespace foresight
