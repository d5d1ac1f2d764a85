// The draft heads that lie beside the embedded model, against what their training program computed after
// export (recipes/expected/foresight-mini-HEAD.json): one round after each of a few prompts, through every
// table.
//
//   draft_heads_test --heads=DIR --expected=DIR     # heads DIR/NAME/, expectations
//   DIR/foresight-mini-NAME.json

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>

#include "base/json.h"
#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "weights/loader.h"

namespace foresight {
namespace {

std::string g_heads = "models/foresight-mini/drafts";
std::string g_expected = "recipes/expected";

std::vector<TokenId> Ids(const boost::json::value& array) {
  std::vector<TokenId> ids;
  for (const boost::json::value& id : array.as_array()) ids.push_back(static_cast<TokenId>(id.as_int64()));
  return ids;
}

// One slot of a round.
struct Slot {
  std::vector<float> hidden;  // empty for MTP-1
  std::vector<float> base, corrected;
  std::vector<float> confidence;  // one, or none
};

// The round of a DSpark head along the expected drafts.
std::vector<Slot> DSparkRound(Model& model, SequenceState& sequence, std::span<const TokenId> path) {
  const int block = static_cast<int>(path.size()) - 1;
  SequenceState* const sequences[] = {&sequence};
  const Result<DraftBlockOutputs> out =
      model.DraftBlock({.sequences = sequences, .anchors = path.first(1), .block = block});
  CHECK(out.ok(), "{}", out.status().ToString());
  std::vector<Slot> slots(block);
  const size_t dim = model.config().hidden_size, v = model.config().vocab_size;
  for (int k = 0; k < block; ++k) {
    const auto hidden = out->hidden.subspan(k * dim, dim);
    const auto base = out->base_logits.subspan(k * v, v);
    slots[k].hidden.assign(hidden.begin(), hidden.end());
    slots[k].base.assign(base.begin(), base.end());
    const Result<DraftHeadOutputs> head = model.DraftHead(k, path.subspan(k, 1));
    CHECK(head.ok(), "{}", head.status().ToString());
    slots[k].corrected.assign(head->logits.begin(), head->logits.end());
    slots[k].confidence.assign(head->confidence_logits.begin(), head->confidence_logits.end());
  }
  return slots;
}

// The rows of an MTP-1 block over the prompt, then its chain.
std::vector<Slot> MtpRound(Model& model, SequenceState& sequence, std::span<const TokenId> prompt,
                           std::span<const TokenId> path) {
  std::vector<TokenId> tokens(prompt.begin() + 1, prompt.end());
  tokens.push_back(path[0]);
  std::vector<int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<Slot> slots;
  StreamSource source = StreamSource::kStep;
  for (size_t k = 1;; ++k) {
    const int32_t last[] = {static_cast<int32_t>(tokens.size()) - 1};
    const SequenceChunk chunk[] = {{.sequence = &sequence, .num_rows = static_cast<int>(tokens.size())}};
    const Result<StepOutputs> out =
        model.MtpStep({.tokens = tokens, .chunks = chunk, .logit_rows = last}, rows, source);
    CHECK(out.ok(), "{}", out.status().ToString());
    slots.emplace_back();
    slots.back().base.assign(out->logits.begin(), out->logits.end());
    slots.back().corrected = slots.back().base;
    if (k == path.size() - 1) return slots;
    rows = {last[0]};
    tokens = {path[k]};
    source = StreamSource::kMtpStep;
  }
}

// How far the values may be from their records, which have four digits behind the point.
constexpr double kRecord = 2e-3;

double Norm(const std::vector<float>& x) {
  double sum = 0;
  for (float v : x) sum += static_cast<double>(v) * v;
  return std::sqrt(sum);
}

void ExpectBest(const std::vector<float>& logits, const boost::json::value& best, const std::string& what) {
  const std::vector<TokenId> ids = Ids(best.at("ids"));
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_NEAR(logits[ids[i]], best.at("logits").at(i).to_number<double>(), kRecord) << what;
  }
}

void ExpectSlot(const Slot& slot, const boost::json::value& want, const std::string& what) {
  ExpectBest(slot.base, want.at("base"), what + " base");
  ExpectBest(slot.corrected, want.at("corrected"), what + " corrected");
  if (!slot.hidden.empty()) {
    EXPECT_NEAR(Norm(slot.hidden), want.at("hidden_norm").to_number<double>(), kRecord) << what;
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(slot.hidden[i], want.at("hidden_head").at(i).to_number<double>(), kRecord) << what;
    }
  }
  const boost::json::value* confidence = want.as_object().if_contains("confidence_logit");
  ASSERT_EQ(slot.confidence.size(), confidence == nullptr ? 0u : 1u) << what;
  if (confidence == nullptr) return;
  EXPECT_NEAR(slot.confidence[0], confidence->to_number<double>(), kRecord) << what;
}

class DraftHeadsTest : public testing::TestWithParam<const char*> {};

TEST_P(DraftHeadsTest, DraftAsTheirTrainingProgramDoes) {
  const Result<const KernelTable*> table = FindKernels(GetParam());
  if (!table.ok()) GTEST_SKIP() << table.status().ToString();
  if (!std::filesystem::is_directory(g_heads)) GTEST_SKIP() << g_heads << " is not here";
  const bool is_ref = std::string_view(GetParam()) == "ref";
  const Result<ModelFiles> files = OpenModelDirectory("models/foresight-mini");
  ASSERT_TRUE(files.ok()) << files.status().ToString();
  int heads = 0;
  for (const auto& entry : std::filesystem::directory_iterator(g_heads)) {
    const std::string name = entry.path().filename().string();
    std::ifstream file(fmt::format("{}/foresight-mini-{}.json", g_expected, name));
    ASSERT_TRUE(file.good()) << "nothing is expected of " << name;
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const Result<boost::json::value> rounds = ParseJson(text);
    ASSERT_TRUE(rounds.ok()) << rounds.status().ToString();
    const Result<ModelFiles> draft = OpenModelDirectory(entry.path().string());
    ASSERT_TRUE(draft.ok()) << draft.status().ToString();
    const Result<LoadedModel> loaded = LoadModel(*files, {.draft = *draft});
    ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
    ThreadPool pool(1);
    Model model(loaded->weights, **table, pool, {.numerics = Numerics::kClean});
    Result<std::unique_ptr<KvCache>> cache =
        KvCache::Create(model.cache_layout(),
                        {.budget_bytes = int64_t{1} << 28, .max_sequences = 1, .max_sequence_tokens = 1024});
    ASSERT_TRUE(cache.ok()) << cache.status().ToString();
    for (const boost::json::value& round : rounds->as_array()) {
      const std::vector<TokenId> prompt = Ids(round.at("ids"));
      std::vector<TokenId> path = Ids(round.at("drafts"));
      if (is_ref && prompt.size() > 100) continue;  // slow
      path.insert(path.begin(), static_cast<TokenId>(round.at("anchor").as_int64()));
      Result<SequenceState> sequence = (*cache)->NewSequence();
      ASSERT_TRUE(sequence.ok());
      const SequenceChunk chunk[] = {{.sequence = &*sequence, .num_rows = static_cast<int>(prompt.size())}};
      const Result<StepOutputs> step = model.Step({.tokens = prompt, .chunks = chunk, .logit_rows = {}});
      ASSERT_TRUE(step.ok()) << step.status().ToString();
      const std::vector<Slot> slots = loaded->weights.dspark ? DSparkRound(model, *sequence, path)
                                                             : MtpRound(model, *sequence, prompt, path);
      ASSERT_EQ(slots.size(), round.at("slots").as_array().size());
      const bool close = round.at("smallest_gap").to_number<double>() < 2 * kRecord;
      for (size_t k = 0; k < slots.size(); ++k) {
        const std::string what = fmt::format("{} at {}, slot {}", name, prompt.size(), k);
        ExpectSlot(slots[k], round.at("slots").at(k), what);
        if (close) continue;
        const auto best = std::max_element(slots[k].corrected.begin(), slots[k].corrected.end());
        EXPECT_EQ(best - slots[k].corrected.begin(), path[k + 1]) << what;
      }
    }
    ++heads;
  }
  EXPECT_GT(heads, 0);
}

INSTANTIATE_TEST_SUITE_P(Tables, DraftHeadsTest, testing::Values("ref", "cpu-avx2", "cpu-avx512"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.starts_with("--heads=")) {
      foresight::g_heads = arg.substr(8);
    } else if (arg.starts_with("--expected=")) {
      foresight::g_expected = arg.substr(11);
    } else {
      fmt::print(stderr, "usage: draft_heads_test [--heads=DIR] [--expected=DIR] [googletest options]\n");
      return 1;
    }
  }
  return RUN_ALL_TESTS();
}
