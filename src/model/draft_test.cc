// DSpark's draft step: its state follows the sequence, whatever happens to it (dspark.md 12: T10, T11, T14).
#include <cmath>

#include "model/draft_fixture.h"

namespace foresight {
namespace {

constexpr int kBlock = 5;

struct Case {
  const char* table;
  Numerics numerics;
};

class DraftTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Result<const KernelTable*> table = FindKernels(GetParam().table);
    if (!table.ok()) GTEST_SKIP() << table.status().ToString();
    table_ = *table;
  }
  bool is_ref() const { return std::string_view(GetParam().table) == "ref"; }
  DraftHost MakeHost(MarkovHeadType type = MarkovHeadType::kVanilla, int threads = 2) {
    return DraftHost(SmallDSparkModel(type).weights, *table_, GetParam().numerics, threads);
  }

  const KernelTable* table_ = nullptr;
  const std::vector<TokenId> tokens_ = RandomTokens(420, 256, 1);
};

std::vector<TokenId> Path(std::span<const TokenId> tokens, int64_t s) {
  return {tokens.begin() + s, tokens.begin() + s + kBlock};
}

// T10: rounds with random verified and accepted lengths, plain steps between them; for a sequence that drafts
// in every round and for one that rarely does.
TEST_P(DraftTest, RingEqualsARebuildAfterEveryRound) {
  DraftHost host = MakeHost();
  std::mt19937 rng(5);
  SequenceState sequence = host.NewSequence();
  SequenceState lazy = host.NewSequence();
  const int64_t end = is_ref() ? 20 : 400;
  int rejections = 0;
  for (int64_t s = 0; s < end;) {
    const DraftRound got = host.Draft(sequence, Path(tokens_, s));
    for (float x : got.corrected_logits) ASSERT_TRUE(std::isfinite(x));
    SequenceState rebuilt = host.Prefill(std::span(tokens_).first(s));
    ASSERT_TRUE(got == host.Draft(rebuilt, Path(tokens_, s))) << "at " << s;
    if (rng() % 12 == 0) {
      ASSERT_TRUE(got == host.Draft(lazy, Path(tokens_, s))) << "lazy at " << s;
    }

    const int verified = static_cast<int>(rng() % (kBlock + 1));  // 0: a plain step
    const int accepted = static_cast<int>(rng() % (verified + 1));
    std::vector<TokenId> rows(tokens_.begin() + s, tokens_.begin() + s + 1 + verified);
    for (int k = accepted + 1; k <= verified; ++k) rows[k] = (rows[k] + 1) % 256;
    s += accepted + 1;
    for (SequenceState* state : {&sequence, &lazy}) {
      host.Step(*state, rows);
      ASSERT_TRUE(state->Truncate(s).ok());
    }
    rejections += accepted < verified;
  }
  EXPECT_GT(rejections, is_ref() ? 0 : 30);
}

// T11.
TEST_P(DraftTest, PrefixHitsForksAndSnapshotsKeepTheContext) {
  DraftHost host = MakeHost(MarkovHeadType::kGated);
  for (int64_t prefix : {1, 31, 32, 33, 127, 128, 129, 300}) {
    if (is_ref() && prefix != 33) continue;
    const int64_t s = prefix + 9;
    SequenceState cold = host.Prefill(std::span(tokens_).first(s));
    const DraftRound want = host.Draft(cold, Path(tokens_, s));
    const auto rest = std::span(tokens_).subspan(prefix, s - prefix);

    // The taps of the second half are still to be taken up, or those of the whole prefix.
    SequenceState original = host.Prefill(std::span(tokens_).first(prefix / 2));
    if (prefix % 2 == 0) host.Draft(original, Path(tokens_, prefix / 2));
    host.Step(original, std::span(tokens_).subspan(prefix / 2, prefix - prefix / 2));
    const Snapshot saved = original.Save();
    Result<SequenceState> fork = original.Fork();
    ASSERT_TRUE(fork.ok());
    host.Step(original, RandomTokens(40, 256, 9));  // another continuation, over the same ring slots
    host.Step(*fork, rest);
    EXPECT_TRUE(host.Draft(*fork, Path(tokens_, s)) == want) << "fork at " << prefix;

    SequenceState restored = host.NewSequence();
    ASSERT_TRUE(restored.Restore(saved).ok());
    host.Step(restored, rest);
    EXPECT_TRUE(host.Draft(restored, Path(tokens_, s)) == want) << "restored at " << prefix;

    ASSERT_TRUE(original.Truncate(prefix).ok());
    host.Step(original, rest);
    EXPECT_TRUE(host.Draft(original, Path(tokens_, s)) == want) << "truncated to " << prefix;
  }
}

TEST_P(DraftTest, ChunksOfPrefillDontMatter) {
  DraftHost host = MakeHost();
  const int64_t length = is_ref() ? 40 : 390;
  SequenceState whole = host.Prefill(std::span(tokens_).first(length));
  const DraftRound want = host.Draft(whole, Path(tokens_, length));
  for (int chunk : {1, 7, 64, 100, 128}) {
    if (chunk > length) break;
    SequenceState sequence = host.Prefill(std::span(tokens_).first(length), chunk);
    EXPECT_TRUE(host.Draft(sequence, Path(tokens_, length)) == want) << "chunks of " << chunk;
  }
  // A chunk longer than the ring, then back as far as a sequence can go.
  const int64_t back = std::max<int64_t>(length - 60, 5);
  SequenceState cold = host.Prefill(std::span(tokens_).first(back));
  ASSERT_TRUE(whole.Truncate(back).ok());
  EXPECT_TRUE(host.Draft(whole, Path(tokens_, back)) == host.Draft(cold, Path(tokens_, back)));
}

TEST_P(DraftTest, RowsDontDependOnTheBatchOrTheThreads) {
  for (MarkovHeadType type : {MarkovHeadType::kVanilla, MarkovHeadType::kGated, MarkovHeadType::kRnn}) {
    if (is_ref() && type == MarkovHeadType::kGated) continue;  // the definition is slow
    DraftHost host = MakeHost(type, /*threads=*/3);
    DraftHost single = MakeHost(type, /*threads=*/1);
    const std::vector<int64_t> lengths =
        is_ref() ? std::vector<int64_t>{9, 0, 4} : std::vector<int64_t>{33, 0, 7, 60};
    for (int block : {1, 3, kBlock}) {
      if (is_ref() && block != 3) continue;
      std::vector<SequenceState> states;
      std::vector<SequenceState*> sequences;
      std::vector<std::vector<TokenId>> paths;
      for (int64_t length : lengths) {
        states.push_back(host.Prefill(std::span(tokens_).first(length)));
        paths.push_back(Path(tokens_, length));
      }
      for (SequenceState& state : states) sequences.push_back(&state);
      const std::vector<DraftRound> together = host.Draft(sequences, paths, block);
      for (size_t r = 0; r < lengths.size(); ++r) {
        SequenceState alone = single.Prefill(std::span(tokens_).first(lengths[r]), 16);
        EXPECT_TRUE(single.Draft(alone, paths[r], block) == together[r])
            << MarkovHeadTypeName(type) << " block " << block << " sequence " << r;
      }
    }
  }
}

// T14: what is drawn at a position changes nothing before it, and something after it.
TEST_P(DraftTest, PositionsDependOnTheTokensBeforeThemAlone) {
  for (MarkovHeadType type : {MarkovHeadType::kVanilla, MarkovHeadType::kGated, MarkovHeadType::kRnn}) {
    DraftHost host = MakeHost(type);
    SequenceState sequence = host.Prefill(std::span(tokens_).first(10));
    const std::vector<TokenId> path = Path(tokens_, 10);
    const DraftRound want = host.Draft(sequence, path);
    const size_t v = 256;
    for (int changed = 1; changed < kBlock; ++changed) {
      std::vector<TokenId> other = path;
      other[changed] = (other[changed] + 17) % 256;
      const DraftRound got = host.Draft(sequence, other);
      EXPECT_EQ(got.hidden, want.hidden);
      EXPECT_EQ(got.base_logits, want.base_logits);
      for (int k = 0; k < kBlock; ++k) {
        const bool same_logits =
            std::equal(got.corrected_logits.begin() + k * v, got.corrected_logits.begin() + (k + 1) * v,
                       want.corrected_logits.begin() + k * v);
        // A memory of one token, or of all.
        const bool reached = type == MarkovHeadType::kRnn ? k >= changed : k == changed;
        EXPECT_EQ(same_logits, !reached) << MarkovHeadTypeName(type) << " token " << changed << " at " << k;
        EXPECT_EQ(got.confidence[k] == want.confidence[k], k != changed);
      }
    }
  }
}

TEST_P(DraftTest, LeavesTheSequenceAloneAndOutlivesSteps) {
  DraftHost host = MakeHost(MarkovHeadType::kRnn);
  SequenceState sequence = host.Prefill(std::span(tokens_).first(50));
  const std::vector<TokenId> path = Path(tokens_, 50);
  const DraftRound want = host.Draft(sequence, path);
  EXPECT_EQ(sequence.draft_length(), 50);
  // What has been taken up is taken up once, and a block leaves nothing behind.
  const std::vector<std::byte> before = sequence.Save().bytes;
  EXPECT_TRUE(host.Draft(sequence, path) == want);
  EXPECT_EQ(sequence.Save().bytes, before);

  // The same round with a step between block and head, and between positions.
  SequenceState* const sequences[] = {&sequence};
  const Result<DraftBlockOutputs> out =
      host.model().DraftBlock({.sequences = sequences, .anchors = {path.data(), 1}, .block = kBlock});
  ASSERT_TRUE(out.ok());
  for (int k = 0; k < kBlock; ++k) {
    host.Step(sequence, std::span(path).subspan(k, 1));
    const Result<DraftHeadOutputs> head = host.model().DraftHead(k, {&path[k], 1});
    ASSERT_TRUE(head.ok()) << head.status().ToString();
    EXPECT_EQ(head->confidence_logits[0], want.confidence[k]);
  }
  host.Step(sequence, path);
  EXPECT_TRUE(std::equal(out->hidden.begin(), out->hidden.end(), want.hidden.begin()));
  EXPECT_TRUE(std::equal(out->base_logits.begin(), out->base_logits.end(), want.corrected_logits.begin()));
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const char* table : {"ref", "cpu-avx2", "cpu-avx512"}) {
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) cases.push_back({table, numerics});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Tables, DraftTest, testing::ValuesIn(Cases()), [](const auto& param) {
  std::string name = param.param.table;
  std::replace(name.begin(), name.end(), '-', '_');
  return name + (param.param.numerics == Numerics::kClean ? "_clean" : "_faithful");
});

TEST(DraftBlockOfTheBaseline, HasNeitherBiasNorConfidence) {
  const LoadedModel model = MakeSyntheticModel(SmallDSparkConfig(MarkovHeadType::kVanilla, 0), {});
  DraftHost host(model.weights, RefKernels(), Numerics::kClean);
  SequenceState sequence = host.Prefill(RandomTokens(9, 256, 2));
  const DraftRound round = host.Draft(sequence, RandomTokens(kBlock, 256, 3));
  EXPECT_EQ(round.corrected_logits, round.base_logits);
  EXPECT_TRUE(round.confidence.empty());
}

// Tokens that come from the device's memory are as good as those that the host knows.
TEST(PlacedTokens, StandForTokens) {
  DraftHost host(SmallDSparkModel().weights, *BestCpuKernels().value(), Numerics::kFaithful);
  const std::vector<TokenId> path = RandomTokens(4, 256, 7);
  const auto logits = [&](std::vector<TokenId> tokens, std::span<const PlacedToken> placed) {
    SequenceState sequence = host.Prefill(RandomTokens(9, 256, 2));
    const SequenceChunk chunks[] = {{.sequence = &sequence, .num_rows = 4}};
    const int32_t rows[] = {1, 2, 3};
    const Result<StepOutputs> out =
        host.model().Step({.tokens = tokens, .chunks = chunks, .logit_rows = rows, .placed = placed});
    return out.ok() ? std::vector<float>(out->logits.begin(), out->logits.end()) : std::vector<float>();
  };
  const PlacedToken placed[] = {{.token = &path[3], .row = 3}, {.token = &path[1], .row = 1}};
  const std::vector<float> want = logits(path, {});
  EXPECT_FALSE(want.empty());
  EXPECT_EQ(logits({path[0], 0, path[2], 0}, placed), want);

  const PlacedToken outside[] = {{.token = path.data(), .row = 4}};
  EXPECT_TRUE(logits(path, outside).empty());
  const std::vector<PlacedToken> too_many(4, placed[0]);
  EXPECT_TRUE(logits(path, too_many).empty());
}

TEST(DraftErrors, AreValues) {
  DraftHost host(SmallDSparkModel().weights, RefKernels(), Numerics::kClean);
  Model& model = host.model();
  SequenceState a = host.Prefill(RandomTokens(5, 256, 2));
  SequenceState b = host.Prefill(RandomTokens(3, 256, 2));
  const auto status = [&](std::vector<SequenceState*> sequences, std::vector<TokenId> anchors, int block) {
    return model.DraftBlock({.sequences = sequences, .anchors = anchors, .block = block}).status();
  };
  const TokenId one[] = {1};
  EXPECT_EQ(model.DraftHead(0, one).status().message(), "there is no draft block");
  for (const Status& s : {status({&a}, {1}, 0), status({&a}, {1}, 6), status({&a}, {256}, 5),
                          status({&a}, {-1}, 5), status({&a, &b}, {1}, 5), status({&a, &a}, {1, 2}, 5),
                          status({nullptr}, {1}, 5), status({}, {}, 5)}) {
    EXPECT_EQ(s.code(), StatusCode::kInvalidArgument) << s.ToString();
  }
  ASSERT_TRUE(status({&a}, {1}, 2).ok());
  EXPECT_EQ(model.DraftHead(1, one).status().code(), StatusCode::kInvalidArgument);  // out of order
  const TokenId outside[] = {256};
  EXPECT_EQ(model.DraftHead(0, outside).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(model.DraftHead(0, one).ok());
  EXPECT_EQ(model.DraftHead(0, one).status().code(), StatusCode::kInvalidArgument);  // twice
  EXPECT_TRUE(model.DraftHead(1, one).ok());
  EXPECT_EQ(model.DraftHead(2, one).status().code(), StatusCode::kInvalidArgument);  // behind the last

  const LoadedModel plain = MakeSyntheticModel(TinyAConfig(), {});
  DraftHost without(plain.weights, RefKernels(), Numerics::kClean);
  SequenceState sequence = without.NewSequence();
  SequenceState* const sequences[] = {&sequence};
  EXPECT_EQ(without.model().DraftBlock({.sequences = sequences, .anchors = one, .block = 1}).status().code(),
            StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace foresight
