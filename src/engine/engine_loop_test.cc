#include "engine/engine_loop.h"

#include <gtest/gtest.h>

#include "engine/test_engine.h"
#include "model/costs.h"

namespace foresight {
namespace {

EngineOptions Small() {
  return {.num_threads = 1,
          .context_tokens = 1024,
          .max_sequences = 4,
          .step_rows_max = 256,
          .kept_prefixes_max = 4};
}

TEST(EngineLoop, PrefillChunksDoNotChangeTheAnswer) {
  std::vector<std::vector<TokenId>> answers;
  for (const int rows : {512, 37, 1}) {
    EngineOptions options = Small();
    options.max_sequences = 1;
    options.step_rows_max = rows;
    LoopDriver driver(options);
    answers.push_back(driver.Generate(GreedyRequest(TestPrompt(150), 12))->tokens);
  }
  EXPECT_EQ(answers[0].size(), 12u);
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[0], answers[2]);
}

TEST(EngineLoop, ALaterPromptBeginsWithWhatWasKeptAndIsAnsweredAsIfItHadNot) {
  LoopDriver driver(Small());
  std::vector<TokenId> conversation = TestPrompt(300);
  const auto first = driver.Generate(GreedyRequest(conversation, 10));
  EXPECT_EQ(first->result.cached_tokens, 0);
  conversation.insert(conversation.end(), first->tokens.begin(), first->tokens.end());
  conversation.push_back(9);
  const auto hit = driver.Generate(GreedyRequest(conversation, 10));
  EXPECT_EQ(hit->result.cached_tokens, 256);
  EXPECT_EQ(hit->result.prompt_tokens, 311);

  LoopDriver cold(Small());
  const auto miss = cold.Generate(GreedyRequest(conversation, 10));
  EXPECT_EQ(miss->result.cached_tokens, 0);
  EXPECT_EQ(miss->tokens, hit->tokens);
}

TEST(EngineLoop, StatesAreKeptWhileGeneratingToo) {
  LoopDriver driver(Small());
  std::vector<TokenId> conversation = TestPrompt(200);
  const auto first = driver.Generate(GreedyRequest(conversation, 400));  // past 256 and 512
  conversation.insert(conversation.end(), first->tokens.begin(), first->tokens.end());
  const auto hit = driver.Generate(GreedyRequest(conversation, 3));
  EXPECT_EQ(hit->result.cached_tokens, 512);
  LoopDriver cold(Small());
  EXPECT_EQ(cold.Generate(GreedyRequest(conversation, 3))->tokens, hit->tokens);
}

TEST(EngineLoop, ThePlaceWherePromptsPartIsKeptTheSecondTime) {
  LoopDriver driver(Small());
  // 600 tokens in common, then different ones past another border.
  const auto prompt = [](int tail) {
    std::vector<TokenId> tokens = TestPrompt(600);
    const std::vector<TokenId> rest = TestPrompt(300, tail);
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    return tokens;
  };
  EXPECT_EQ(driver.Generate(GreedyRequest(prompt(50), 2))->result.cached_tokens, 0);
  EXPECT_EQ(driver.Generate(GreedyRequest(prompt(60), 2))->result.cached_tokens, 0);
  EXPECT_EQ(driver.Generate(GreedyRequest(prompt(70), 2))->result.cached_tokens, 512);
}

TEST(EngineLoop, PrefixesAreSharedUnderOneSaltAndOnRequestOnly) {
  LoopDriver driver(Small());
  const auto request = [](std::string salt, bool read, bool keep) {
    Request r = GreedyRequest(TestPrompt(300), 2);
    r.cache_salt = std::move(salt);
    r.read_cache = read;
    r.keep_in_cache = keep;
    return r;
  };
  driver.Generate(request("", true, /*keep=*/false));
  EXPECT_EQ(driver.loop().statistics().kept_prefixes, 0);
  driver.Generate(request("a", true, true));
  EXPECT_EQ(driver.Generate(request("b", true, true))->result.cached_tokens, 0);
  EXPECT_EQ(driver.Generate(request("a", /*read=*/false, true))->result.cached_tokens, 0);
  EXPECT_EQ(driver.Generate(request("a", true, true))->result.cached_tokens, 256);
  driver.loop().ClearKeptPrefixes();
  EXPECT_EQ(driver.loop().statistics().cache_bytes, 0);
  EXPECT_EQ(driver.Generate(request("a", true, true))->result.cached_tokens, 0);
}

// Three answers grow past what the blocks hold: the youngest gives way, is saved or computed anew, and says
// the same in the end.
TEST(EngineLoop, PreemptionDoesNotChangeTheAnswers) {
  const auto request = [](int i) { return GreedyRequest(TestPrompt(200 + 10 * i, 3 + i), 450); };
  std::vector<std::vector<TokenId>> alone;
  for (int i = 0; i < 3; ++i) alone.push_back(LoopDriver(Small()).Generate(request(i))->tokens);
  for (const int64_t saved_bytes_max : {int64_t{0}, int64_t{1} << 30}) {
    EngineOptions options = Small();
    options.saved_bytes_max = saved_bytes_max;
    options.cache_bytes_max = CacheBytesOf(/*blocks=*/4, options);
    LoopDriver driver(options);
    ASSERT_EQ(driver.runtime().context_tokens(), 1024);
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (int i = 0; i < 3; ++i) sinks.push_back(driver.Submit(request(i)));
    driver.Run();
    int64_t preemptions = 0;
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(sinks[i]->tokens, alone[i]) << i;
      preemptions += sinks[i]->result.preemptions;
    }
    EXPECT_GT(preemptions, 0);
    const EngineStatistics statistics = driver.loop().statistics();
    EXPECT_EQ(statistics.preempted, preemptions);
    EXPECT_EQ(statistics.saved_bytes, 0);
    EXPECT_TRUE(saved_bytes_max > 0 || statistics.restored == 0);
    driver.loop().ClearKeptPrefixes();
    EXPECT_EQ(driver.loop().statistics().cache_bytes, 0);
  }
}

TEST(EngineLoop, EndsAtTheEndOfTheContextAndAtMaxTokens) {
  LoopDriver driver(Small());
  const auto full = driver.Generate(GreedyRequest(TestPrompt(1000), 5000));
  EXPECT_EQ(full->tokens.size(), 24u);
  EXPECT_EQ(full->result.finish, FinishReason::kLength);
  const auto one = driver.Generate(GreedyRequest(TestPrompt(5), 1));
  EXPECT_EQ(one->tokens.size(), 1u);
  EXPECT_EQ(one->result.completion_tokens, 1);
}

TEST(EngineLoop, EndsAtTheEndOfSequenceTokenUnlessTold) {
  LoopDriver driver(Small());
  Request request = GreedyRequest(TestPrompt(20), 8);
  const TokenId eos = driver.runtime().config().eos_token_id;
  request.sampling.logit_bias = {{eos, 100}};
  request.ignore_eos = false;
  const auto stopped = driver.Generate(request);
  EXPECT_EQ(stopped->tokens, std::vector<TokenId>{eos});
  EXPECT_EQ(stopped->result.finish, FinishReason::kStop);
  request.ignore_eos = true;
  EXPECT_EQ(driver.Generate(request)->tokens.size(), 8u);
}

TEST(EngineLoop, CancelledAndLateRequestsEndAndOthersGoOn) {
  LoopDriver driver(Small());
  const auto running = driver.Submit(GreedyRequest(TestPrompt(20), 40));
  const auto cancelled = driver.Submit(GreedyRequest(TestPrompt(30), 40));
  for (int i = 0; i < 6; ++i) driver.Step();
  Request hurried = GreedyRequest(TestPrompt(40), 40);
  hurried.timeout_seconds = 5;
  const auto late = driver.Submit(hurried);
  for (int i = 0; i < 6; ++i) driver.Step();
  driver.Cancel(1);
  const auto too_late = driver.Submit(hurried);
  driver.Wait(10);
  driver.Run();
  EXPECT_EQ(cancelled->result.finish, FinishReason::kCancelled);
  EXPECT_GT(cancelled->tokens.size(), 0u);
  EXPECT_LT(cancelled->tokens.size(), 40u);
  EXPECT_EQ(late->result.finish, FinishReason::kDeadline);
  EXPECT_GT(late->tokens.size(), 0u);
  EXPECT_EQ(too_late->result.finish, FinishReason::kError);
  EXPECT_EQ(too_late->result.status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(running->result.finish, FinishReason::kLength);
  EXPECT_EQ(running->tokens.size(), 40u);
  EXPECT_EQ(driver.queue().requests, 0);
  EXPECT_EQ(driver.queue().tokens, 0);
  std::vector<RequestNumber> finished;
  driver.loop().TakeFinished(finished);
  EXPECT_EQ(finished.size(), 4u);
}

TEST(EngineLoop, LogProbabilitiesComeWithTheirTokens) {
  LoopDriver driver(Small());
  Request request = GreedyRequest(TestPrompt(20), 5);
  request.sampling.logprobs = 2;
  const auto sink = driver.Generate(request);
  ASSERT_EQ(sink->logprobs.size(), 5u);
  for (double logprob : sink->logprobs) EXPECT_LT(logprob, 0);
}

TEST(PlanMemory, RefusesWhatDoesNotFitWithTheFigures) {
  const ModelConfig config = TinyAConfig();
  const CacheLayout layout = MakeCacheLayout(config, CacheFormat::kPacked);
  const Result<MemoryPlan> plan = PlanMemory(config, layout, {.weights_bytes = int64_t{160} << 30}, 16 << 20);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(plan.status().message().find("171.8 GB"), std::string::npos) << plan.status().message();
}

// A device with so much memory.
class SmallDevice : public DeviceApart {
 public:
  explicit SmallDevice(int64_t bytes) : left_(bytes) {}
  int64_t AvailableBytes() const override { return left_; }
  Result<DeviceMemory> Allocate(int64_t bytes, std::string_view what) override {
    if (bytes > left_) return ResourceExhausted("{}: the device has no {} bytes", what, bytes);
    left_ -= bytes;
    return DeviceApart::Allocate(bytes, what);
  }

 private:
  int64_t left_;
};

// However little memory a device has: what doesn't fit is refused before anything is taken.
TEST(PlanMemory, CountsWhatDraftsTakeOfADevice) {
  for (ModelConfig config : {SmallestConfig(), SmallestMtpConfig(), SmallestDSparkConfig()}) {
    config.vocab_size = 50'000;  // drafts keep logits
    const LoadedModel made = MakeSyntheticModel(config, {.num_threads = 1});
    const EngineOptions options{
        .num_threads = 1, .context_tokens = 256, .max_sequences = 4, .kept_prefixes_max = 0};
    const auto load = [&](int64_t bytes) {
      Backend backend{.kernels = *BestCpuKernels(), .device = std::make_unique<SmallDevice>(bytes)};
      return Runtime::FromSynthetic(made, options, std::move(backend));
    };
    int64_t too_little = 0;
    int64_t enough = int64_t{4} << 30;
    const Result<std::unique_ptr<Runtime>> roomy = load(enough);
    ASSERT_TRUE(roomy.ok()) << roomy.status().ToString();
    EXPECT_EQ((*roomy)->memory_plan().draft_bytes > 0, config.num_draft_layers > 0);
    while (enough - too_little > 4096) {
      const int64_t bytes = too_little + (enough - too_little) / 2;
      const Result<std::unique_ptr<Runtime>> runtime = load(bytes);
      (runtime.ok() ? enough : too_little) = bytes;
      if (runtime.ok()) continue;
      const std::string message(runtime.status().message());
      EXPECT_NE(message.find("this model does not fit"), std::string::npos) << message;
      EXPECT_EQ(message.find("drafts") != std::string::npos, config.num_draft_layers > 0) << message;
    }
  }
}

TEST(PlanMemory, AContextLongerThanTheModelAllowsIsRefused) {
  const ModelConfig config = TinyAConfig();
  const CacheLayout layout = MakeCacheLayout(config, CacheFormat::kPacked);
  const Result<MemoryPlan> plan =
      PlanMemory(config, layout, {.context_tokens = config.max_position_embeddings + 1}, int64_t{64} << 30);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), StatusCode::kInvalidArgument);
}

TEST(PlanMemory, ManySequencesShareWhatAFewFullContextsTake) {
  const ModelConfig config = TinyAConfig();
  const CacheLayout layout = MakeCacheLayout(config, CacheFormat::kPacked);
  const int64_t one = CacheBytes(layout, 4096, 40, 1);
  const Result<MemoryPlan> plan =
      PlanMemory(config, layout, {.max_sequences = 32, .kept_prefixes_max = 8}, 2 * one + (64 << 20));
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_EQ(plan->cache.max_sequence_tokens, 4096);
  EXPECT_EQ(plan->cache.max_sequences, 40);
  EXPECT_GE(plan->cache.budget_bytes, one);
  EXPECT_LT(plan->cache.budget_bytes, CacheBytes(layout, 4096, 40, 32));
}

}  // namespace
}  // namespace foresight
