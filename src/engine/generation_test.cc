#include "engine/generation.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "weights/synthetic.h"

namespace foresight {
namespace {

class TokenSink : public GenerationSink {
 public:
  void OnText(std::string_view) override {}
  void OnToken(const SampledToken& token) override {
    tokens.push_back(token.token);
    if (cancel != nullptr && std::ssize(tokens) == cancel_after) *cancel = true;
  }
  std::vector<TokenId> tokens;
  std::atomic<bool>* cancel = nullptr;
  int64_t cancel_after = 0;
};

std::unique_ptr<Engine> TinyEngine(int step_rows_max = 512) {
  Result<std::unique_ptr<Engine>> engine = Engine::Synthesize(
      TinyAConfig(), {.num_threads = 1, .context_tokens = 512, .step_rows_max = step_rows_max});
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  return std::move(*engine);
}

std::vector<TokenId> Prompt(int64_t count, int first = 3) {
  std::vector<TokenId> prompt(count);
  for (int64_t i = 0; i < count; ++i) prompt[i] = static_cast<TokenId>((first + 7 * i) % 50 + 2);
  return prompt;
}

std::vector<TokenId> Generate(Session& session, std::span<const TokenId> prompt, int64_t max_tokens,
                              GenerationResult* result = nullptr) {
  TokenSink sink;
  GenerationRequest request{.prompt = prompt, .sampling = {}, .ignore_eos = true};
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  const Result<GenerationResult> done = session.Generate(request, sink);
  EXPECT_TRUE(done.ok()) << done.status().ToString();
  if (result != nullptr) *result = *done;
  return sink.tokens;
}

TEST(Session, PrefillChunksDoNotChangeTheAnswer) {
  const std::vector<TokenId> prompt = Prompt(150);
  std::vector<std::vector<TokenId>> answers;
  for (int rows : {512, 37, 1}) {
    const std::unique_ptr<Engine> engine = TinyEngine(rows);
    Session session = *Session::Create(*engine);
    answers.push_back(Generate(session, prompt, 12));
  }
  EXPECT_EQ(answers[0].size(), 12u);
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[0], answers[2]);
}

TEST(Session, KeepsWhatTheNextPromptBeginsWithAndAnswersAsIfItHadNot) {
  const std::unique_ptr<Engine> engine = TinyEngine();
  std::vector<TokenId> conversation = Prompt(140);
  std::vector<TokenId> continued;
  {
    Session session = *Session::Create(*engine);
    const std::vector<TokenId> answer = Generate(session, conversation, 10);
    conversation.insert(conversation.end(), answer.begin(), answer.end());
    conversation.push_back(9);
    GenerationResult result;
    continued = Generate(session, conversation, 10, &result);
    EXPECT_EQ(result.cached_tokens, 149);  // the answer's last token was never stepped
  }
  Session fresh = *Session::Create(*engine);
  EXPECT_EQ(Generate(fresh, conversation, 10), continued);
}

TEST(Session, ComputesAnewWhenThePromptDiffersFurtherBackThanTheRingsHold) {
  const std::unique_ptr<Engine> engine = TinyEngine();
  Session session = *Session::Create(*engine);
  Generate(session, Prompt(300), 4);
  GenerationResult result;
  const std::vector<TokenId> other = Generate(session, Prompt(300, /*first=*/4), 6, &result);
  EXPECT_EQ(result.cached_tokens, 0);
  Session fresh = *Session::Create(*engine);
  EXPECT_EQ(Generate(fresh, Prompt(300, 4), 6), other);
}

TEST(Session, StopsWhenCancelledAndGoesOnAfterwards) {
  const std::unique_ptr<Engine> engine = TinyEngine();
  Session session = *Session::Create(*engine);
  std::atomic<bool> cancel{false};
  TokenSink sink;
  sink.cancel = &cancel;
  sink.cancel_after = 5;
  const std::vector<TokenId> prompt = Prompt(20);
  GenerationRequest request{.prompt = prompt, .sampling = {}, .ignore_eos = true, .cancel = &cancel};
  request.sampling.temperature = 0;
  const Result<GenerationResult> result = session.Generate(request, sink);
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_EQ(result->finish, FinishReason::kCancelled);
  EXPECT_EQ(result->completion_tokens, 5);
  const std::vector<TokenId> again = Generate(session, prompt, 5);
  EXPECT_EQ(again, sink.tokens);
}

TEST(Session, FillsTheContextAndNoMore) {
  const std::unique_ptr<Engine> engine = TinyEngine();
  Session session = *Session::Create(*engine);
  GenerationResult result;
  EXPECT_EQ(std::ssize(Generate(session, Prompt(500), 1000, &result)), 12);
  EXPECT_EQ(result.finish, FinishReason::kLength);
}

TEST(Session, RefusesPromptsItCanNotRun) {
  const std::unique_ptr<Engine> engine = TinyEngine();
  Session session = *Session::Create(*engine);
  TokenSink sink;
  const std::vector<std::vector<TokenId>> bad = {{}, {-1}, {engine->config().vocab_size}, Prompt(512)};
  for (const std::vector<TokenId>& prompt : bad) {
    const Result<GenerationResult> result = session.Generate({.prompt = prompt, .sampling = {}}, sink);
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(sink.tokens.empty());
  EXPECT_EQ(Generate(session, Prompt(10), 3).size(), 3u);
}

TEST(PlanMemory, RefusesWhatDoesNotFitWithTheFigures) {
  const ModelConfig config = TinyAConfig();
  const CacheLayout layout = MakeCacheLayout(config, CacheFormat::kPacked);
  const Result<MemoryPlan> plan = PlanMemory(config, layout, {.weights_bytes = int64_t{160} << 30}, 16 << 20);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(plan.status().message().find("171.8 GB"), std::string::npos) << plan.status().message();
}

TEST(PlanMemory, AContextLongerThanTheModelAllowsIsRefused) {
  const ModelConfig config = TinyAConfig();
  const CacheLayout layout = MakeCacheLayout(config, CacheFormat::kPacked);
  const Result<MemoryPlan> plan =
      PlanMemory(config, layout, {.context_tokens = config.max_position_embeddings + 1}, int64_t{64} << 30);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace foresight
