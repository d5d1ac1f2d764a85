// The text of a request follows from its prompt, parameters and seed: whatever else is in the batch, however
// the prompt is cut into chunks, whether its beginning was kept, and however often it was pushed out of
// memory.
//
//   batching_test [--schedules=N] [--seed=N] [googletest options]
#include <gtest/gtest.h>

#include <random>

#include "engine/test_engine.h"
#include "tests/test_main.h"

namespace foresight {
namespace {

int g_schedules = 6;
uint64_t g_seed = 1;

constexpr int kRequests = 12;
constexpr int64_t kContextTokens = 768;

struct Answer {
  std::vector<TokenId> tokens;
  std::vector<double> logprobs;
  FinishReason finish = FinishReason::kStop;
};

Request RandomRequest(std::mt19937_64& rng) {
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
  Request request = GreedyRequest(TestPrompt(1 + below(below(2) == 0 ? 500 : 40), static_cast<int>(below(2))),
                                  1 + below(below(3) == 0 ? 450 : 30));
  SamplingParams& sampling = request.sampling;
  sampling.temperature = 0.5 * static_cast<double>(below(4));
  sampling.seed = below(1000);
  if (below(3) == 0) sampling.top_p = 0.8;
  if (below(3) == 0) sampling.top_k = 20;
  if (below(4) == 0) sampling.min_p = 0.02;
  if (below(3) == 0) sampling.repetition_penalty = 1.3;
  if (below(4) == 0) sampling.frequency_penalty = 0.5;
  if (below(4) == 0) sampling.logit_bias = {{static_cast<TokenId>(below(250)), 2.0}};
  if (below(4) == 0) sampling.logprobs = static_cast<int>(below(4));
  request.ignore_eos = below(2) == 0;
  request.choice = static_cast<int>(below(2));
  request.priority = static_cast<int>(below(3));
  return request;
}

Answer AnswerOf(const RecordingSink& sink) {
  EXPECT_TRUE(sink.finished);
  EXPECT_TRUE(sink.result.status.ok()) << sink.result.status.ToString();
  return {sink.tokens, sink.logprobs, sink.result.finish};
}

TEST(Batching, TheTextDoesNotDependOnTheSchedule) {
  std::mt19937_64 rng(g_seed);
  std::vector<Request> requests;
  for (int i = 0; i < kRequests; ++i) requests.push_back(RandomRequest(rng));
  std::vector<Answer> alone;
  for (const Request& request : requests) {
    LoopDriver driver({.num_threads = 1,
                       .context_tokens = kContextTokens,
                       .max_sequences = 1,
                       .step_rows_max = 1024,
                       .kept_prefixes_max = 0});
    alone.push_back(AnswerOf(*driver.Generate(request)));
  }
  int64_t preemptions = 0, cached = 0;
  for (int schedule = 0; schedule < g_schedules; ++schedule) {
    const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
    EngineOptions options{.num_threads = 1 + static_cast<int>(below(2)),
                          .context_tokens = kContextTokens,
                          .max_sequences = 2 + static_cast<int>(below(8))};
    options.step_rows_max = options.max_sequences + static_cast<int>(below(200));
    options.mixed_prefill_rows_max = 1 + static_cast<int>(below(100));
    options.kept_prefixes_max = static_cast<int>(below(5));
    options.saved_bytes_max = below(2) * (int64_t{1} << 30);
    options.cache_bytes_max = CacheBytesOf(3 + below(3), options);
    LoopDriver driver(options);
    // Twice, so that the second time finds what the first one kept.
    for (int round = 0; round < 2; ++round) {
      std::vector<std::shared_ptr<RecordingSink>> sinks(kRequests);
      std::vector<int> order(kRequests);
      for (int i = 0; i < kRequests; ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), rng);
      for (int i : order) {
        for (int64_t steps = below(6); steps > 0; --steps) driver.Step();
        sinks[i] = driver.Submit(requests[i]);
      }
      driver.Run();
      for (int i = 0; i < kRequests; ++i) {
        const Answer answer = AnswerOf(*sinks[i]);
        EXPECT_EQ(answer.tokens, alone[i].tokens) << "schedule " << schedule << ", request " << i;
        EXPECT_EQ(answer.logprobs, alone[i].logprobs) << "schedule " << schedule << ", request " << i;
        EXPECT_EQ(answer.finish, alone[i].finish);
        preemptions += sinks[i]->result.preemptions;
        cached += sinks[i]->result.cached_tokens;
      }
    }
    driver.loop().ClearKeptPrefixes();
    EXPECT_EQ(driver.loop().statistics().cache_bytes, 0);
    if (HasFailure()) return;
  }
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(cached, 0);
}

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  return foresight::RunTests(argc, argv,
                             {{"schedules", &foresight::g_schedules}, {"seed", &foresight::g_seed}});
}
