// A step of a device that records steps is padded to a tier of rows. Its logits and what it leaves in the
// sequences' states are, bit for bit, those of the same step without padding, which is that of an observer.
// Padding is none of its rows.

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/row_tiers.h"
#include "model/step_fixture.h"

namespace foresight::row_padding_test {
namespace {

constexpr int kSequences = 4;

class Bystander final : public StepObserver {
 public:
  bool OnExperts(int, std::span<int32_t>) override { return false; }
  void OnPicks(int, std::span<int32_t>) override {}
  void OnBlock(int, std::span<const float>) override {}
};

struct Case {
  std::string device;  // "apart": the machine's memory, as a device of its own
  std::string table;
  Numerics numerics = Numerics::kClean;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.device << ' ' << c.table << (c.numerics == Numerics::kClean ? " clean" : " faithful");
}

class RowPadding : public StepTest<Case> {
 protected:
  void SetUp() override { Open(GetParam().device, GetParam().table); }
  void MakeModel(const ModelConfig& config) {
    StepTest::MakeModel(config, GetParam().numerics, /*max_sequences=*/2 * kSequences);
  }

  // The logits of a step; with an observer it is not padded.
  std::vector<float> Step(std::vector<SequenceState>& states, std::span<const int> rows,
                          const std::vector<TokenId>& tokens, const std::vector<int32_t>& logit_rows,
                          StepObserver* observer) {
    std::vector<SequenceChunk> chunks;
    for (int s = 0; s < kSequences; ++s) {
      if (rows[s] > 0) chunks.push_back({.sequence = &states[s], .num_rows = rows[s]});
    }
    const Result<StepOutputs> out =
        model_->Step({.tokens = tokens, .chunks = chunks, .logit_rows = logit_rows, .observer = observer});
    CHECK(out.ok(), "{}", out.status().ToString());
    return {out->logits.begin(), out->logits.end()};
  }
};

TEST_P(RowPadding, LeavesNoTrace) {
  ModelConfig config = TinyAConfig();
  AddDSparkHead(&config, /*num_stages=*/1);  // steps leave taps
  config.sliding_window = 32;
  ASSERT_NO_FATAL_FAILURE(MakeModel(config));
  std::mt19937_64 rng(7);
  const auto random = [&](int n) { return static_cast<int>(rng() % n); };
  std::vector<SequenceState> padded;
  std::vector<SequenceState> plain;
  for (int s = 0; s < kSequences; ++s) {
    for (auto* states : {&padded, &plain}) {
      Result<SequenceState> state = cache_->NewSequence();
      ASSERT_TRUE(state.ok());
      states->push_back(std::move(*state));
    }
  }
  Bystander bystander;
  const int steps = GetParam().table == "ref" ? 8 : 60;  // slow, and shows the same
  for (int step = 0; step < steps; ++step) {
    int rows[kSequences];
    std::vector<TokenId> tokens;
    for (int s = 0; s < kSequences; ++s) {
      rows[s] = step % 10 == 0 ? 20 : random(8);
      if (s == 0 && rows[s] == 0) rows[s] = 9;
      for (int i = 0; i < rows[s]; ++i) tokens.push_back(random(model_->config().vocab_size));
    }
    std::vector<int32_t> logit_rows;
    for (int32_t i = 0; i < std::ssize(tokens); ++i) {
      if (step % 3 != 0 || random(2) == 0) logit_rows.push_back(i);
    }
    const std::vector<float> got = Step(padded, rows, tokens, logit_rows, nullptr);
    const std::vector<float> want = Step(plain, rows, tokens, logit_rows, &bystander);
    ASSERT_EQ(got.size(), want.size());
    ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0) << "step " << step;
    for (int s = 0; s < kSequences; ++s) {
      ASSERT_EQ(padded[s].Save().bytes, plain[s].Save().bytes) << "step " << step << ", sequence " << s;
      if (rows[s] == 0) continue;
      const int64_t kept = plain[s].length() - random(rows[s]);
      ASSERT_TRUE(padded[s].Truncate(kept).ok());
      ASSERT_TRUE(plain[s].Truncate(kept).ok());
    }
  }
}

TEST_P(RowPadding, IsNoRowForMtp) {
  ASSERT_NO_FATAL_FAILURE(MakeModel(TinyAConfig()));
  const int num_rows = 9;
  ASSERT_GT(RowTier(num_rows), num_rows);
  Result<SequenceState> sequence = cache_->NewSequence();
  ASSERT_TRUE(sequence.ok());
  const std::vector<TokenId> tokens(num_rows, 5);
  const SequenceChunk all[] = {{.sequence = &*sequence, .num_rows = num_rows}};
  ASSERT_TRUE(model_->Step({.tokens = tokens, .chunks = all, .logit_rows = {}}).ok());
  const auto mtp_step = [&](int32_t stream_row) {
    const SequenceChunk one[] = {{.sequence = &*sequence, .num_rows = 1}};
    const int32_t stream_rows[] = {stream_row};
    return model_
        ->MtpStep({.tokens = std::span(tokens).first(1), .chunks = one, .logit_rows = {}}, stream_rows)
        .status()
        .code();
  };
  EXPECT_EQ(mtp_step(num_rows), StatusCode::kInvalidArgument);
  EXPECT_EQ(mtp_step(num_rows - 1), StatusCode::kOk);
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    for (const char* table : {"ref", "cpu-avx2", "cpu-avx512"}) cases.push_back({"apart", table, numerics});
    for (const char* table : {"cuda", "cuda-sm80"}) cases.push_back({"cuda", table, numerics});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(AllTables, RowPadding, testing::ValuesIn(Cases()), [](const auto& param) {
  std::string name = param.param.table + (param.param.numerics == Numerics::kClean ? "_clean" : "_faithful");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace foresight::row_padding_test
