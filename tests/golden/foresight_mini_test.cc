// The embedded model against what its training program computed after export (recipes/expected): through
// every table.

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <tuple>

#include "base/json.h"
#include "engine/engine_access.h"

namespace foresight {
namespace {

std::unique_ptr<Engine> LoadMini(EngineOptions options) {
  options.model = "models/foresight-mini";
  Result<std::unique_ptr<Engine>> engine = Engine::Load(options);
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  return std::move(*engine);
}

std::vector<TokenId> Generate(Engine& engine, std::span<const TokenId> prompt, const SamplingParams& sampling,
                              RequestResult* result = nullptr) {
  std::vector<TokenId> tokens;
  const Result<RequestResult> done =
      engine.Generate({.prompt = {prompt.begin(), prompt.end()}, .sampling = sampling, .ignore_eos = true},
                      [&](const OutputEvent& event) {
                        for (const OutputToken& t : event.tokens) tokens.push_back(t.token);
                      });
  EXPECT_TRUE(done.ok()) << done.status().ToString();
  if (done.ok() && result != nullptr) *result = *done;
  return tokens;
}

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
  const std::unique_ptr<Engine> engine =
      LoadMini({.num_threads = 2, .table = GetParam(), .numerics = Numerics::kClean, .context_tokens = 512});
  int compared = 0;
  for (const boost::json::value& c : cases->as_array()) {
    const std::vector<TokenId> prompt = Ids(c.at("ids"));
    SamplingParams greedy;
    greedy.temperature = 0;
    greedy.max_tokens = 32;
    const std::vector<TokenId> answer = Generate(*engine, prompt, greedy);
    // A choice closer than the CPU tables' rounding may rightly fall the other way; the recorded gaps say
    // where.
    const bool close =
        c.at("smallest_gap").to_number<double>() < (std::string_view(GetParam()) == "ref" ? 1e-3 : 0.03);
    if (close) continue;
    EXPECT_EQ(answer, Ids(c.at("greedy_ids"))) << c.at("prompt").as_string();
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

// One seed, one text: whatever was generated before, and however much of the prompt was kept.
TEST(Generation, ASeedGivesTheSameTextAfterPrefixReuse) {
  const EngineOptions options{.num_threads = 2, .context_tokens = 1024, .step_rows_max = 48};
  const std::unique_ptr<Engine> engine = LoadMini(options);
  SamplingParams params;
  params.temperature = 0.8;
  params.top_p = 0.95;
  params.repetition_penalty = 1.1;
  params.seed = 7;
  params.max_tokens = 40;
  std::vector<TokenId> prompt = *engine->Encode("import os\n\n\ndef remove_empty(folder):\n    \"\"\"Remove");
  while (prompt.size() < 300) prompt.insert(prompt.end(), prompt.begin() + 1, prompt.end());
  RequestResult result;
  const std::vector<TokenId> first = Generate(*engine, prompt, params, &result);
  ASSERT_EQ(first.size(), 40u);
  EXPECT_EQ(result.cached_tokens, 0);
  EXPECT_EQ(Generate(*engine, prompt, params, &result), first);
  EXPECT_GE(result.cached_tokens, 256);
  Generate(*engine, std::vector<TokenId>(200, prompt[1]), params);
  EXPECT_EQ(Generate(*engine, prompt, params), first);
  // A conversation's next turn equals the same timeline prefilled at once.
  std::vector<TokenId> longer = prompt;
  longer.insert(longer.end(), first.begin(), first.end());
  longer.push_back(prompt[3]);
  const std::vector<TokenId> next = Generate(*engine, longer, params, &result);
  EXPECT_GE(result.cached_tokens, 256);
  EXPECT_EQ(Generate(*LoadMini(options), longer, params), next);
}

// Stop strings, ends of sequence and log-probabilities come out of a step that accepted several tokens as
// they come one by one.
TEST(Generation, DraftsDoNotChangeWhereTextStops) {
  const auto answer = [](Engine& engine, int64_t seed, const std::string& stop) {
    Request request{.prompt = *engine.Encode("def main():\n    x = 1\n    x = 1\n    x = 1\n")};
    request.sampling.temperature = seed % 2 == 0 ? 0 : 0.7;
    request.sampling.seed = seed;
    request.sampling.max_tokens = 60;
    request.sampling.logprobs = 1;
    if (!stop.empty()) request.sampling.stop = {stop};
    std::string text;
    std::vector<double> logprobs;
    const Result<RequestResult> result = engine.Generate(request, [&](const OutputEvent& event) {
      text += event.text;
      for (const OutputToken& t : event.tokens) logprobs.push_back(t.logprob);
    });
    EXPECT_TRUE(result.ok()) << result.status().ToString();
    EXPECT_TRUE(result->stop_string < 0 || text.find(stop) == std::string::npos);
    return std::tuple(text, logprobs, result->finish, result->completion_tokens);
  };
  EngineOptions options{.num_threads = 2, .context_tokens = 512};
  options.speculation.draft = DraftChoice::kNone;
  const std::unique_ptr<Engine> plain = LoadMini(options);
  options.speculation.draft = DraftChoice::kNgram;
  options.speculation.planner = "static:5";
  const std::unique_ptr<Engine> drafting = LoadMini(options);
  EXPECT_EQ(drafting->draft_method(), "ngram");
  for (int64_t seed = 0; seed < 6; ++seed) {
    const auto whole = answer(*plain, seed, "");
    EXPECT_EQ(answer(*drafting, seed, ""), whole);
    // Something that the text has, in the middle.
    const std::string& text = std::get<0>(whole);
    ASSERT_GT(text.size(), 12u);
    const std::string stop = text.substr(text.size() / 2, 3);
    EXPECT_EQ(answer(*drafting, seed, stop), answer(*plain, seed, stop)) << stop;
  }
  EXPECT_GT(drafting->statistics().drafts.total_accepted(), 0);
}

}  // namespace
}  // namespace foresight
