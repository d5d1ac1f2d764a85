// Row purity (ARCHITECTURE.md): whatever the schedule, the logits of a row are the bits that the sequence
// gives on its own.
//
// A baseline run feeds each sequence alone, token by token. Random schedules then mix sequences, cut prefills
// into random chunks, feed wrong tokens and take them back, save and restore, fork and go on in the fork;
// every logits row must equal the baseline's bit for bit. With a DSpark head, rounds of random blocks for
// random sets of sequences are drafted between the steps, and must equal those of the sequence alone.
//
// Long prompts in steps of up to two thousand rows give the bits of short steps. And a step that is repeated
// gives the same bits every time: on a device with recordings, its replays.
//
//   purity_test --schedules=200 --repeats=10000 --seed=7

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kv_cache/sequence_state.h"
#include "model/placement.h"
#include "model/step_fixture.h"
#include "tests/test_main.h"
#include "weights/loader.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

int g_schedules = 8;
int g_repeats = 10;
uint64_t g_seed = 1;

constexpr int kSequences = 3;
constexpr int kMaxRows = 96;
constexpr int kLongRows = 2048;
constexpr int kBlocks[] = {2, 5};  // tokens drafted in a round

struct Case {
  std::string model;  // "nano-a", "nano-s", "tiny-a", "tiny-b", "tiny-rnn"
  std::string table;
  Numerics numerics = Numerics::kClean;
  int tokens = 0;  // of the longest sequence
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.model << ' ' << c.table << (c.numerics == Numerics::kClean ? " clean" : " faithful");
}

const LoadedModel& TestModel(const std::string& name) {
  static auto* models = new std::map<std::string, std::unique_ptr<LoadedModel>>;
  std::unique_ptr<LoadedModel>& model = (*models)[name];
  if (model == nullptr) {
    if (name.starts_with("nano")) {
      Result<ModelFiles> files = OpenModelDirectory("tests/golden/" + name);
      CHECK(files.ok(), "{}", files.status().ToString());
      Result<LoadedModel> loaded = LoadModel(*files);
      CHECK(loaded.ok(), "{}", loaded.status().ToString());
      model = std::make_unique<LoadedModel>(std::move(*loaded));
    } else {
      ModelConfig config = name == "tiny-b" ? TinyBConfig() : TinyAConfig();
      if (name == "tiny-rnn") {
        AddDSparkHead(&config, /*num_stages=*/2);
        config.dspark.markov_head_type = MarkovHeadType::kRnn;
        config.sliding_window = 32;
      }
      model = std::make_unique<LoadedModel>(MakeSyntheticModel(config));
    }
  }
  return *model;
}

class PurityTest : public testing::TestWithParam<Case> {
 protected:
  explicit PurityTest(int rows_max = kMaxRows) : rows_max_(rows_max) {}
  void SetUp() override {
    const std::string& table = GetParam().table;
    Result<Backend> backend = OpenBackend(table.starts_with("cuda") ? "cuda" : "cpu", table);
    if (!backend.ok()) GTEST_SKIP() << backend.status().ToString();
    backend_ = std::move(*backend);
    const ModelWeights* weights = &TestModel(GetParam().model).weights;
    ModelOptions options{.numerics = GetParam().numerics, .max_step_rows = rows_max_};
    if (backend_.device != nullptr) {
      Result<Placement> placement = PlaceModel(*weights, *backend_.device, options);
      ASSERT_TRUE(placement.ok()) << placement.status().ToString();
      placement_ = std::move(*placement);
      weights = &placement_.weights->weights;
    }
    model_ = std::make_unique<Model>(*weights, *backend_.kernels, pool_, options);
    Result<std::unique_ptr<KvCache>> cache =
        KvCache::Create(model_->cache_layout(), {.device = backend_.device.get(),
                                                 .budget_bytes = int64_t{1} << 30,
                                                 .max_sequences = 3 * kSequences,
                                                 .max_sequence_tokens = 4096});
    ASSERT_TRUE(cache.ok()) << cache.status().ToString();
    cache_ = std::move(*cache);
  }

  SequenceState NewSequence() {
    Result<SequenceState> s = cache_->NewSequence();
    CHECK(s.ok(), "{}", s.status().ToString());
    return std::move(*s);
  }

  // Steps the chunks with logits for every row; returns [T][V].
  std::vector<std::vector<float>> Step(const std::vector<SequenceChunk>& chunks,
                                       const std::vector<TokenId>& tokens) {
    std::vector<int32_t> rows(tokens.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
    Result<StepOutputs> out = model_->Step({.tokens = tokens, .chunks = chunks, .logit_rows = rows});
    CHECK(out.ok(), "{}", out.status().ToString());
    const int v = model_->config().vocab_size;
    std::vector<std::vector<float>> logits;
    for (size_t i = 0; i < rows.size(); ++i) {
      logits.emplace_back(out->logits.begin() + i * v, out->logits.begin() + (i + 1) * v);
    }
    return logits;
  }

  // One DSpark round of `block` positions for the sequences, along their own tokens: a hash of all outputs of
  // each. Where a sequence's tokens end, token 0 follows.
  std::vector<uint64_t> Draft(const std::vector<int>& who, std::vector<SequenceState*> states, int block) {
    std::vector<TokenId> previous(who.size());
    const auto token = [&](size_t i, int k) {
      const int64_t p = states[i]->length() + k;
      const std::vector<TokenId>& tokens = tokens_[who[i]];
      return p < std::ssize(tokens) ? tokens[p] : 0;
    };
    std::vector<uint64_t> hashes(who.size(), 0);
    const auto add = [&](std::span<const float> rows) {  // [who, width]
      const size_t width = rows.size() / who.size();
      for (size_t i = 0; i < who.size(); ++i) {
        for (float x : rows.subspan(i * width, width)) {
          CHECK(std::isfinite(x));
          uint32_t bits;
          std::memcpy(&bits, &x, 4);
          hashes[i] = (hashes[i] ^ bits) * 0x9e3779b97f4a7c15u;
        }
      }
    };
    for (size_t i = 0; i < who.size(); ++i) previous[i] = token(i, 0);
    const Result<DraftBlockOutputs> out =
        model_->DraftBlock({.sequences = states, .anchors = previous, .block = block});
    CHECK(out.ok(), "{}", out.status().ToString());
    for (int k = 0; k < block; ++k) {
      const size_t hidden = out->hidden.size() / block;
      add(out->hidden.subspan(k * hidden, hidden));
      for (size_t i = 0; i < who.size(); ++i) previous[i] = token(i, k);
      const Result<DraftHeadOutputs> head = model_->DraftHead(k, previous);
      CHECK(head.ok(), "{}", head.status().ToString());
      add(head->logits);
      add(head->confidence_logits);
    }
    return hashes;
  }
  bool has_dspark() const { return model_->weights().dspark.has_value(); }

  void MakeBaseline(std::mt19937_64& rng) {
    for (int s = 0; s < kSequences; ++s) {
      const int count = s == 0 ? GetParam().tokens : 3 + static_cast<int>(rng() % GetParam().tokens);
      std::vector<TokenId> tokens(count);
      for (TokenId& t : tokens) t = static_cast<TokenId>(rng() % model_->config().vocab_size);
      SequenceState state = NewSequence();
      std::vector<std::vector<float>> logits;
      tokens_.push_back(tokens);
      drafts_.emplace_back();
      for (TokenId t : tokens) {
        if (has_dspark()) {
          drafts_.back().emplace_back();
          for (int block : kBlocks) drafts_.back().back().push_back(Draft({s}, {&state}, block)[0]);
        }
        logits.push_back(Step({{.sequence = &state, .num_rows = 1}}, {t}).front());
        for (float x : logits.back()) ASSERT_TRUE(std::isfinite(x));
      }
      baseline_.push_back(std::move(logits));
    }
  }

  void RunSchedule(uint64_t seed);
  // Drafts for some of the sequences and compares.
  void DraftSome(std::vector<SequenceState>& states, std::mt19937_64& rng);

  const int rows_max_;  // of a step
  Backend backend_;
  Placement placement_;  // with a device of its own
  ThreadPool pool_{2};
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvCache> cache_;
  std::vector<std::vector<TokenId>> tokens_;                // [sequence][position]
  std::vector<std::vector<std::vector<float>>> baseline_;   // [sequence][position][V]
  std::vector<std::vector<std::vector<uint64_t>>> drafts_;  // [sequence][length][of kBlocks]
};

void PurityTest::DraftSome(std::vector<SequenceState>& states, std::mt19937_64& rng) {
  const size_t b = rng() % std::size(kBlocks);
  std::vector<int> who;
  std::vector<SequenceState*> chosen;
  for (int s = 0; s < kSequences; ++s) {
    if (rng() % 3 == 0 || states[s].length() == std::ssize(tokens_[s])) continue;
    who.push_back(s);
    chosen.push_back(&states[s]);
  }
  if (who.empty()) return;
  const std::vector<uint64_t> got = Draft(who, chosen, kBlocks[b]);
  for (size_t i = 0; i < who.size(); ++i) {
    ASSERT_EQ(got[i], drafts_[who[i]][chosen[i]->length()][b])
        << "drafts of " << kBlocks[b] << ", sequence " << who[i] << ", length " << chosen[i]->length();
  }
}

void PurityTest::RunSchedule(uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<SequenceState> states;
  for (int s = 0; s < kSequences; ++s) states.push_back(NewSequence());
  auto left = [&](int s) { return static_cast<int64_t>(tokens_[s].size()) - states[s].length(); };
  auto done = [&] { return left(0) == 0 && left(1) == 0 && left(2) == 0; };
  // Most schedules run in large chunks, some crawl.
  const int chunk_limit = rng() % 3 == 0 ? 4 : kMaxRows / kSequences;

  while (!done()) {
    std::vector<SequenceChunk> chunks;
    std::vector<TokenId> tokens;
    std::vector<std::pair<int, int64_t>> rows;  // sequence, position; -1 for a wrong token's row
    std::vector<std::pair<int, int64_t>> take_back;
    std::vector<int> order = {0, 1, 2};
    std::shuffle(order.begin(), order.end(), rng);
    for (int s : order) {
      if (left(s) == 0 || rng() % 4 == 0) continue;
      const int64_t start = states[s].length();
      const int64_t room = kMaxRows - std::ssize(tokens);
      const int64_t good = 1 + static_cast<int64_t>(rng() % std::min<int64_t>({left(s), chunk_limit, room}));
      const int64_t wrong = rng() % 3 == 0 ? static_cast<int64_t>(rng() % 8) : 0;  // a rejected draft
      for (int64_t i = 0; i < good; ++i) {
        tokens.push_back(tokens_[s][start + i]);
        rows.emplace_back(s, start + i);
      }
      for (int64_t i = 0; i < wrong && static_cast<int>(tokens.size()) < kMaxRows; ++i) {
        tokens.push_back(static_cast<TokenId>(rng() % model_->config().vocab_size));
        rows.emplace_back(-1, 0);
      }
      const int count = static_cast<int>(tokens.size()) - [&] {
        int before = 0;
        for (const SequenceChunk& c : chunks) before += c.num_rows;
        return before;
      }();
      chunks.push_back({.sequence = &states[s], .num_rows = count});
      if (count > good) take_back.emplace_back(s, start + good);
      if (static_cast<int>(tokens.size()) > kMaxRows - 12) break;
    }
    if (chunks.empty()) continue;
    const std::vector<std::vector<float>> logits = Step(chunks, tokens);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto [s, position] = rows[i];
      if (s < 0) continue;
      const std::vector<float>& want = baseline_[s][position];
      ASSERT_EQ(std::memcmp(logits[i].data(), want.data(), want.size() * sizeof(float)), 0)
          << "schedule " << seed << ", sequence " << s << ", position " << position;
    }
    for (const auto& [s, length] : take_back) ASSERT_TRUE(states[s].Truncate(length).ok());
    if (has_dspark() && rng() % 2 == 0) {
      DraftSome(states, rng);
      if (HasFatalFailure()) return;
    }

    const int s = static_cast<int>(rng() % kSequences);
    switch (rng() % 8) {
      case 0: {  // accepted tokens can be taken back too
        const int64_t to = std::max<int64_t>(states[s].truncatable_to(),
                                             states[s].length() - 1 - static_cast<int64_t>(rng() % 20));
        ASSERT_TRUE(states[s].Truncate(std::clamp<int64_t>(to, 0, states[s].length())).ok());
        break;
      }
      case 1: {  // preemption
        const Snapshot saved = states[s].Save();
        states[s] = NewSequence();
        ASSERT_TRUE(states[s].Restore(saved).ok());
        break;
      }
      case 2: {  // the sequence goes on in its fork, after the original wrote something else
        Result<SequenceState> fork = states[s].Fork();
        ASSERT_TRUE(fork.ok());
        std::vector<TokenId> garbage(1 + rng() % 9);
        for (TokenId& t : garbage) t = static_cast<TokenId>(rng() % model_->config().vocab_size);
        Step({{.sequence = &states[s], .num_rows = static_cast<int>(garbage.size())}}, garbage);
        states[s] = std::move(*fork);
        break;
      }
      default:
        break;
    }
  }
}

TEST_P(PurityTest, OutputsDoNotDependOnTheSchedule) {
  std::mt19937_64 rng(g_seed);
  MakeBaseline(rng);
  if (HasFatalFailure()) return;
  // The reference is the slow definition: fewer schedules show the same.
  const int schedules = GetParam().table == "ref" ? (g_schedules + 3) / 4 : g_schedules;
  for (int i = 0; i < schedules; ++i) {
    RunSchedule(g_seed * 1000003 + i);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(cache_->stats().sequences, 0);
  EXPECT_EQ(cache_->stats().blocks_in_use, 0);
}

TEST_P(PurityTest, RepeatsGiveTheSameBits) {
  std::mt19937_64 rng(g_seed);
  constexpr int kRows[kSequences] = {1, 3, 2};
  std::vector<SequenceState> states;
  std::vector<SequenceChunk> chunks;
  std::vector<TokenId> tokens;
  for (int s = 0; s < kSequences; ++s) states.push_back(NewSequence());
  for (int s = 0; s < kSequences; ++s) {
    std::vector<TokenId>& text = tokens_.emplace_back(GetParam().tokens / (s + 1) + 8);
    for (TokenId& t : text) t = static_cast<TokenId>(rng() % model_->config().vocab_size);
    for (int64_t before = std::ssize(text) - 8; states[s].length() < before;) {
      const auto count = static_cast<int>(std::min<int64_t>(kMaxRows, before - states[s].length()));
      const auto from = text.begin() + states[s].length();
      Step({{.sequence = &states[s], .num_rows = count}}, {from, from + count});
    }
    chunks.push_back({.sequence = &states[s], .num_rows = kRows[s]});
    tokens.insert(tokens.end(), text.end() - 8, text.end() - 8 + kRows[s]);
  }
  std::vector<std::vector<float>> first;
  std::vector<uint64_t> first_drafts;
  const int repeats = GetParam().table == "ref" ? (g_repeats + 19) / 20 : g_repeats;
  for (int i = 0; i <= repeats; ++i) {
    const std::vector<std::vector<float>> logits = Step(chunks, tokens);
    for (int s = 0; s < kSequences; ++s) {
      ASSERT_TRUE(states[s].Truncate(states[s].length() - kRows[s]).ok());
    }
    std::vector<uint64_t> drafts;
    if (has_dspark()) drafts = Draft({0, 1, 2}, {&states[0], &states[1], &states[2]}, kBlocks[1]);
    if (i == 0) {
      first = logits;
      first_drafts = drafts;
      continue;
    }
    for (size_t row = 0; row < logits.size(); ++row) {
      ASSERT_EQ(std::memcmp(logits[row].data(), first[row].data(), first[row].size() * sizeof(float)), 0)
          << "repeat " << i << ", row " << row;
    }
    ASSERT_EQ(drafts, first_drafts) << "repeat " << i;
  }
}

class LongStepsPurityTest : public PurityTest {
 protected:
  LongStepsPurityTest() : PurityTest(kLongRows) {}
};

TEST_P(LongStepsPurityTest, GiveTheBitsOfShortOnes) {
  std::mt19937_64 rng(g_seed);
  for (const int count : {GetParam().tokens, 400}) {
    std::vector<TokenId>& tokens = tokens_.emplace_back(count);
    for (TokenId& t : tokens) t = static_cast<TokenId>(rng() % model_->config().vocab_size);
    SequenceState state = NewSequence();
    std::vector<std::vector<float>>& baseline = baseline_.emplace_back();
    while (state.length() < count) {
      const int rows = std::min<int>(1 + static_cast<int>(rng() % kMaxRows), count - state.length());
      const auto from = tokens.begin() + state.length();
      for (auto& row : Step({{.sequence = &state, .num_rows = rows}}, {from, from + rows})) {
        baseline.push_back(std::move(row));
      }
    }
  }
  // Of the long sequence and of the short one beside it: around the sizes at which a GPU takes other kernels.
  const std::vector<std::vector<std::pair<int, int>>> schedules = {
      {{kLongRows, 0}, {kLongRows, 0}}, {{129, 1}, {513, 70}, {1027, 1}, {3, 300}, {kLongRows - 8, 8}}};
  for (size_t i = 0; i < schedules.size(); ++i) {
    std::vector<SequenceState> states;
    for (int s = 0; s < 2; ++s) states.push_back(NewSequence());
    for (const auto& [of_long, of_short] : schedules[i]) {
      std::vector<SequenceChunk> chunks;
      std::vector<TokenId> tokens;
      std::vector<std::pair<int, int64_t>> rows;  // sequence, position
      for (const auto& [s, wanted] : {std::pair(0, of_long), std::pair(1, of_short)}) {
        const int64_t start = states[s].length();
        const int count = std::min<int>(wanted, static_cast<int>(std::ssize(tokens_[s]) - start));
        if (count == 0) continue;
        chunks.push_back({.sequence = &states[s], .num_rows = count});
        tokens.insert(tokens.end(), tokens_[s].begin() + start, tokens_[s].begin() + start + count);
        for (int64_t row = 0; row < count; ++row) rows.emplace_back(s, start + row);
      }
      if (chunks.empty()) break;
      const std::vector<std::vector<float>> logits = Step(chunks, tokens);
      for (size_t row = 0; row < rows.size(); ++row) {
        const auto [s, position] = rows[row];
        const std::vector<float>& want = baseline_[s][position];
        ASSERT_EQ(std::memcmp(logits[row].data(), want.data(), want.size() * sizeof(float)), 0)
            << "schedule " << i << ", sequence " << s << ", position " << position;
      }
    }
    EXPECT_EQ(states[0].length(), GetParam().tokens);
  }
}

// Flash's own shapes on a GPU, four layers: sequences in steps of random company, from one row to as many as
// an engine takes. Most have some rows of each expert, where what a ring of copies is given back too soon
// showed in one step of three hundred.
class ReleasedShapesPurityTest : public StepTest<const char*> {
 protected:
  static constexpr int kLong = 4;
  static constexpr int kShort = 24;
  static constexpr int kLongTokens = 3000;
  static constexpr int kShortTokens = 200;
  static constexpr int64_t kDeviceBytes = int64_t{20} << 30;  // weights, steps and caches

  void SetUp() override {
    Open("cuda", GetParam());
    if (IsSkipped()) return;
    if (const int64_t available = backend_.device->AvailableBytes(); available < kDeviceBytes) {
      GTEST_SKIP() << available << " bytes are free on the device, of " << kDeviceBytes;
    }
    const Result<ModelConfig> config = ParseSyntheticSpec("flash:4");
    ASSERT_TRUE(config.ok());
    MakeModel(*config, Numerics::kFaithful, kLong + kShort, kLongRows);
  }

  static bool IsCompared(int64_t position) { return position % 8 == 0; }

  // Hashes of the logits of the rows that are compared, in order.
  std::vector<uint64_t> Step(const std::vector<SequenceChunk>& chunks, const std::vector<TokenId>& tokens) {
    std::vector<int32_t> rows;
    int32_t row = 0;
    for (const SequenceChunk& chunk : chunks) {
      for (int i = 0; i < chunk.num_rows; ++i, ++row) {
        if (IsCompared(chunk.sequence->length() + i)) rows.push_back(row);
      }
    }
    Result<StepOutputs> out = model_->Step({.tokens = tokens, .chunks = chunks, .logit_rows = rows});
    CHECK(out.ok(), "{}", out.status().ToString());
    const size_t vocab = model_->config().vocab_size;
    std::vector<uint64_t> hashes(rows.size());
    pool_.ParallelFor(static_cast<int64_t>(rows.size()), [&](int64_t i, int) {
      uint64_t hash = 0;
      for (float x : out->logits.subspan(i * vocab, vocab)) {
        hash = (hash ^ std::bit_cast<uint32_t>(x)) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
      }
      hashes[i] = hash;
    });
    return hashes;
  }
  SequenceState NewSequence() {
    Result<SequenceState> s = cache_->NewSequence();
    CHECK(s.ok(), "{}", s.status().ToString());
    return std::move(*s);
  }
};

TEST_P(ReleasedShapesPurityTest, StepsInAnyCompanyGiveTheSameBits) {
  std::mt19937_64 rng(g_seed);
  std::vector<std::vector<TokenId>> tokens(kLong + kShort);
  std::vector<std::vector<uint64_t>> baseline(tokens.size());
  for (size_t s = 0; s < tokens.size(); ++s) {
    tokens[s].resize(s < kLong ? kLongTokens : kShortTokens);
    for (TokenId& t : tokens[s]) t = static_cast<TokenId>(rng() % model_->config().vocab_size);
    SequenceState state = NewSequence();
    while (state.length() < std::ssize(tokens[s])) {
      const int rows = static_cast<int>(std::min<int64_t>(100, std::ssize(tokens[s]) - state.length()));
      const auto from = tokens[s].begin() + state.length();
      for (uint64_t hash : Step({{.sequence = &state, .num_rows = rows}}, {from, from + rows})) {
        baseline[s].push_back(hash);
      }
    }
  }
  for (int i = 0; i < g_schedules; ++i) {
    std::vector<SequenceState> states;
    for (size_t s = 0; s < tokens.size(); ++s) states.push_back(NewSequence());
    std::vector<int64_t> compared(tokens.size(), 0);
    std::vector<size_t> order(tokens.size());
    std::iota(order.begin(), order.end(), 0);
    while (true) {
      // A crowd of single rows, or rows of drafts, beside chunks of prompts.
      const int rows_max = rng() % 4 == 0 ? 1 << (rng() % 12) : 400 + static_cast<int>(rng() % 400);
      const int each = rng() % 3 == 0 ? 1 + static_cast<int>(rng() % 6) : 1;
      const int crowd = static_cast<int>(rng() % (kShort + 1));
      std::vector<SequenceChunk> chunks;
      std::vector<TokenId> step_tokens;
      std::vector<size_t> who;
      std::string step;
      std::shuffle(order.begin(), order.end(), rng);
      bool any = false;
      for (size_t s : order) {
        const int64_t left = std::ssize(tokens[s]) - states[s].length();
        any |= left > 0;
        const int64_t room = rows_max - std::ssize(step_tokens);
        if (left == 0 || room == 0) continue;
        int64_t rows = 0;
        if (s >= kLong) {
          rows = std::ssize(who) < crowd ? each : 0;
        } else if (rng() % 2 == 0) {
          rows = 1 + static_cast<int64_t>(rng() % rows_max);
        }
        rows = std::min({rows, left, room});
        if (rows == 0) continue;
        const auto from = tokens[s].begin() + states[s].length();
        step += fmt::format(" {}:{}+{}", s, states[s].length(), rows);
        step_tokens.insert(step_tokens.end(), from, from + rows);
        chunks.push_back({.sequence = &states[s], .num_rows = static_cast<int>(rows)});
        who.push_back(s);
      }
      if (!any) break;
      if (chunks.empty()) continue;
      const std::vector<uint64_t> hashes = Step(chunks, step_tokens);
      size_t at = 0;
      for (size_t c = 0; c < who.size(); ++c) {
        const size_t s = who[c];
        for (int64_t p = states[s].length() - chunks[c].num_rows; p < states[s].length(); ++p) {
          if (!IsCompared(p)) continue;
          ASSERT_EQ(hashes[at++], baseline[s][compared[s]++])
              << "schedule " << i << ", sequence " << s << ", position " << p << ", step" << step;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OnAGpu, ReleasedShapesPurityTest, testing::Values("cuda", "cuda-sm80"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

std::vector<Case> LongCases() {
  std::vector<Case> cases;
  for (const char* table : {"cpu-avx2", "cpu-avx512"}) {
    cases.push_back({"nano-s", table, Numerics::kFaithful, 2300});
  }
  for (const char* table : {"cuda", "cuda-sm80"}) {  // whose steps are that long unless told otherwise
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      for (const char* model : {"nano-s", "tiny-a", "tiny-b"}) {
        cases.push_back({model, table, numerics, 2300});
      }
    }
  }
  return cases;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const char* table : {"ref", "cpu-avx2", "cpu-avx512", "cuda", "cuda-sm80"}) {
    const bool ref = std::string_view(table) == "ref";
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      // Past two HCA windows, one allocation block and the small windows' rings.
      cases.push_back({"nano-a", table, numerics, ref ? 140 : 290});
      cases.push_back({"nano-s", table, numerics, ref ? 70 : 160});
      cases.push_back({"tiny-a", table, numerics, ref ? 40 : 280});
      if (!ref) cases.push_back({"tiny-b", table, numerics, 150});
      if (!ref) cases.push_back({"tiny-rnn", table, numerics, 140});
    }
  }
  return cases;
}

std::string NameOf(const testing::TestParamInfo<Case>& param) {
  std::string name = param.param.model + "_" + param.param.table +
                     (param.param.numerics == Numerics::kClean ? "_clean" : "_faithful");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(AllTables, PurityTest, testing::ValuesIn(Cases()), NameOf);
INSTANTIATE_TEST_SUITE_P(AllTables, LongStepsPurityTest, testing::ValuesIn(LongCases()), NameOf);

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  return foresight::RunTests(argc, argv,
                             {{"schedules", &foresight::g_schedules},
                              {"repeats", &foresight::g_repeats},
                              {"seed", &foresight::g_seed}});
}
