// The embedded model against what its training program computed after export (recipes/expected): through
// every table.

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "base/json.h"
#include "engine/generation.h"

namespace foresight {
namespace {

class Collect : public GenerationSink {
 public:
  void OnText(std::string_view text) override { text_ += text; }
  void OnToken(const SampledToken& token) override { tokens.push_back(token.token); }
  std::vector<TokenId> tokens;
  std::string text_;
};

std::vector<TokenId> Ids(const boost::json::value& array) {
  std::vector<TokenId> ids;
  for (const boost::json::value& id : array.as_array()) ids.push_back(static_cast<TokenId>(id.as_int64()));
  return ids;
}

class EmbeddedModelTest : public testing::TestWithParam<const char*> {};

TEST_P(EmbeddedModelTest, ContinuesAsTheTrainingProgramDoes) {
  if (Result<const KernelTable*> table = FindKernels(GetParam()); !table.ok())
    GTEST_SKIP() << table.status().ToString();
  std::ifstream file("recipes/expected/foresight-mini.json");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  Result<boost::json::value> cases = ParseJson(text);
  ASSERT_TRUE(cases.ok()) << cases.status().ToString();
  Result<ModelFiles> files = OpenModelDirectory("models/foresight-mini");
  ASSERT_TRUE(files.ok()) << files.status().ToString();
  Result<std::unique_ptr<Engine>> engine = Engine::Load(
      *files, {.num_threads = 2, .table = GetParam(), .numerics = Numerics::kClean, .context_tokens = 512});
  ASSERT_TRUE(engine.ok()) << engine.status().ToString();
  int compared = 0;
  for (const boost::json::value& c : cases->as_array()) {
    const std::vector<TokenId> prompt = Ids(c.at("ids"));
    Result<Session> session = Session::Create(**engine);
    ASSERT_TRUE(session.ok());
    SamplingParams greedy;
    greedy.temperature = 0;
    greedy.max_tokens = 32;
    Collect sink;
    const Result<GenerationResult> result =
        session->Generate({.prompt = prompt, .sampling = greedy, .ignore_eos = true}, sink);
    ASSERT_TRUE(result.ok()) << result.status().ToString();
    // A choice closer than the CPU tables' rounding may rightly fall the other way; the recorded gaps say
    // where.
    const bool close =
        c.at("smallest_gap").to_number<double>() < (std::string_view(GetParam()) == "ref" ? 1e-3 : 0.03);
    if (close) continue;
    EXPECT_EQ(sink.tokens, Ids(c.at("greedy_ids"))) << c.at("prompt").as_string();
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

INSTANTIATE_TEST_SUITE_P(Tables, EmbeddedModelTest, testing::Values("ref", "cpu-avx2", "cpu-avx512"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// One seed, one text: whatever was generated before in the same session, and however the prompt was reused.
TEST(Generation, ASeedGivesTheSameTextAfterPrefixReuse) {
  Result<ModelFiles> files = OpenModelDirectory("models/foresight-mini");
  ASSERT_TRUE(files.ok());
  Result<std::unique_ptr<Engine>> engine =
      Engine::Load(*files, {.num_threads = 2, .context_tokens = 1024, .step_rows_max = 48});
  ASSERT_TRUE(engine.ok()) << engine.status().ToString();
  SamplingParams params;
  params.temperature = 0.8;
  params.top_p = 0.95;
  params.repetition_penalty = 1.1;
  params.seed = 7;
  params.max_tokens = 40;
  const std::vector<TokenId> prompt = *(*engine)->tokenizer()->Encode(
      "import os\n\n\ndef remove_empty(folder):\n    \"\"\"Remove", {.add_bos = true});
  auto generate = [&](Session& session, std::span<const TokenId> p) {
    Collect sink;
    const Result<GenerationResult> r =
        session.Generate({.prompt = p, .sampling = params, .ignore_eos = true}, sink);
    EXPECT_TRUE(r.ok()) << r.status().ToString();
    return sink.tokens;
  };
  Result<Session> fresh = Session::Create(**engine);
  ASSERT_TRUE(fresh.ok());
  const std::vector<TokenId> first = generate(*fresh, prompt);
  ASSERT_EQ(first.size(), 40u);
  // The same state cut back to the prompt, and a state that saw other text before.
  EXPECT_EQ(generate(*fresh, prompt), first);
  std::vector<TokenId> other(200, prompt[1]);
  generate(*fresh, other);
  EXPECT_EQ(generate(*fresh, prompt), first);
  // A conversation's next turn equals the same timeline prefilled at once.
  std::vector<TokenId> longer = prompt;
  longer.insert(longer.end(), first.begin(), first.end());
  longer.push_back(prompt[3]);
  Result<Session> second = Session::Create(**engine);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(generate(*fresh, longer), generate(*second, longer));
}

TEST(Generation, LimitsAreErrors) {
  Result<ModelFiles> files = OpenModelDirectory("models/foresight-mini");
  ASSERT_TRUE(files.ok());
  Result<std::unique_ptr<Engine>> engine = Engine::Load(*files, {.num_threads = 1, .context_tokens = 64});
  ASSERT_TRUE(engine.ok()) << engine.status().ToString();
  Result<Session> session = Session::Create(**engine);
  ASSERT_TRUE(session.ok());
  Collect sink;
  EXPECT_FALSE(session->Generate({.prompt = {}, .sampling = {}}, sink).ok());
  const std::vector<TokenId> outside = {0, 8192};
  EXPECT_FALSE(session->Generate({.prompt = outside, .sampling = {}}, sink).ok());
  const std::vector<TokenId> too_long(64, 5);
  EXPECT_FALSE(session->Generate({.prompt = too_long, .sampling = {}}, sink).ok());
  // The context ends the answer.
  const std::vector<TokenId> fits(60, 5);
  const Result<GenerationResult> r =
      session->Generate({.prompt = fits, .sampling = {}, .ignore_eos = true}, sink);
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_EQ(r->finish, FinishReason::kLength);
  EXPECT_EQ(r->completion_tokens, 4);
}

}  // namespace
}  // namespace foresight
