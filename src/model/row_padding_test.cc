// A step of a device that records steps is padded to tiers of rows and sequences. Its logits and what it
// leaves in the sequences' states are, bit for bit, those of the same step without padding, which is that of
// an observer. Padding is none of its rows. Draft blocks are padded likewise; those of one sequence aren't.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/row_tiers.h"
#include "model/step_fixture.h"

namespace foresight::row_padding_test {
namespace {

constexpr int kSequences = 11;

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
  std::vector<SequenceState> padded = NewSequences(kSequences);
  std::vector<SequenceState> plain = NewSequences(kSequences);
  Bystander bystander;
  const int steps = GetParam().table == "ref" ? 8 : 60;  // slow, and shows the same
  for (int step = 0; step < steps; ++step) {
    int rows[kSequences];
    std::vector<TokenId> tokens;
    for (int s = 0; s < kSequences; ++s) {
      rows[s] = step % 10 == 0 ? (s < 4 ? 20 : 0) : step % 2 == 0 ? random(2) : random(8);
      if (s == 0 && rows[s] == 0) rows[s] = step % 2 == 0 ? 1 : 9;
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

// What a sequence's drafts are.
struct Drafts {
  std::vector<TokenId> tokens;
  std::vector<float> confidence_logits;
  std::vector<float> margins;
  std::vector<float> logits;

  bool operator==(const Drafts&) const = default;
};

TEST_P(RowPadding, DraftsAreThoseOfEachSequenceAlone) {
  ModelConfig config = TinyAConfig();
  AddDSparkHead(&config, /*num_stages=*/2);
  config.dspark.markov_head_type = MarkovHeadType::kRnn;  // the one with a state
  config.sliding_window = 32;
  ASSERT_NO_FATAL_FAILURE(MakeModel(config));
  const int64_t v = config.vocab_size;
  std::mt19937_64 rng(8);
  const auto random = [&](int n) { return static_cast<int>(rng() % n); };
  std::vector<SequenceState> together = NewSequences(kSequences);
  std::vector<SequenceState> alone = NewSequences(kSequences);
  const auto draft = [&](std::span<SequenceState> states, const std::vector<TokenId>& anchors, int block,
                         int depth, std::span<const SampleRow> draws) {
    std::vector<SequenceState*> sequences;
    for (SequenceState& state : states) sequences.push_back(&state);
    const Result<DrawnTokens> drawn =
        model_->DraftTokens({.block = {.sequences = sequences, .anchors = anchors, .block = block},
                             .depth = depth,
                             .draws = draws,
                             .keep_distributions = true,
                             .margins = true});
    CHECK(drawn.ok(), "{}", drawn.status().ToString());
    std::vector<float> logits(static_cast<size_t>(depth * drawn->stride * v));
    CHECK(backend_.device->Download(logits.data(), drawn->logits, std::ssize(logits) * 4).ok());
    std::vector<Drafts> drafts(states.size());
    for (size_t r = 0; r < states.size(); ++r) {
      for (int k = 0; k < depth; ++k) {
        const size_t i = static_cast<size_t>(k) * drawn->stride + r;
        EXPECT_EQ(drawn->errors[i], 0);
        drafts[r].tokens.push_back(drawn->tokens[i]);
        drafts[r].confidence_logits.push_back(drawn->confidence_logits[i]);
        drafts[r].margins.push_back(drawn->margins[i]);
        const auto row = logits.begin() + static_cast<int64_t>(i) * v;
        drafts[r].logits.insert(drafts[r].logits.end(), row, row + v);
      }
    }
    return drafts;
  };
  const int rounds = GetParam().table == "ref" ? 2 : 40;  // a device that records them does so meanwhile
  for (int round = 0; round < rounds; ++round) {
    SCOPED_TRACE(round);
    int rows[kSequences];
    std::vector<TokenId> tokens;
    for (int& count : rows) {
      count = round == 0 ? 4 : 1 + random(4);
      for (int i = 0; i < count; ++i) tokens.push_back(random(config.vocab_size));
    }
    Step(together, rows, tokens, {}, nullptr);
    Step(alone, rows, tokens, {}, nullptr);
    const int count = 9 + random(kSequences - 8);
    const int block = round % 3 == 0 ? 2 : 5;
    const int depth = 1 + random(2);
    std::vector<TokenId> anchors;
    std::vector<SampleRow> draws;
    for (int s = 0; s < count; ++s) anchors.push_back(random(config.vocab_size));
    for (int i = 0; i < depth * count; ++i) {
      draws.push_back({.inverse_temperature = i % count % 3 == 0 ? 0.0 : 1.25, .noise = rng()});
    }
    const std::vector<Drafts> got = draft(std::span(together).first(count), anchors, block, depth, draws);
    for (int s = 0; s < count; ++s) {
      std::vector<SampleRow> own;
      for (int k = 0; k < depth; ++k) own.push_back(draws[k * count + s]);
      const std::vector<Drafts> want = draft(std::span(alone).subspan(s, 1), {anchors[s]}, block, depth, own);
      ASSERT_TRUE(got[s] == want[0]) << s;
      ASSERT_EQ(together[s].Save().bytes, alone[s].Save().bytes) << s;
    }

    // The same, drawn by the host.
    std::vector<SequenceState*> sequences;
    for (int s = 0; s < count; ++s) sequences.push_back(&together[s]);
    ASSERT_TRUE(model_->DraftBlock({.sequences = sequences, .anchors = anchors, .block = block}).ok());
    std::vector<TokenId> previous = anchors;
    for (int k = 0; k < depth; ++k) {
      const Result<DraftHeadOutputs> head = model_->DraftHead(k, previous);
      ASSERT_TRUE(head.ok());
      ASSERT_EQ(std::ssize(head->logits), count * v);
      ASSERT_EQ(std::ssize(head->confidence_logits), count);
      for (int s = 0; s < count; ++s) {
        EXPECT_EQ(head->confidence_logits[s], got[s].confidence_logits[k]);
        EXPECT_TRUE(std::equal(got[s].logits.begin() + k * v, got[s].logits.begin() + (k + 1) * v,
                               head->logits.begin() + s * v));
        previous[s] = got[s].tokens[k];
      }
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
