// A thousand requests of random lengths from several threads, many of them cancelled, with caches so small
// that sequences push each other out: all end, the ones that were not cancelled with the text that they would
// have had alone, and every byte comes back.
//
//   load_test [--requests=N] [--seed=N] [googletest options]
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "engine/engine_access.h"
#include "engine/test_engine.h"
#include "tests/test_main.h"

namespace foresight {
namespace {

int g_requests = 1000;
uint64_t g_seed = 1;

constexpr int kThreads = 4;
constexpr int64_t kContextTokens = 768;  // three blocks

// What happened to all requests.
struct Tally {
  std::mutex mutex;
  std::condition_variable changed;
  int pending = 0;
  int finished = 0;
  int cancelled = 0;
};

class CountingSink : public EventSink {
 public:
  CountingSink(Tally& tally, int64_t max_tokens) : tally_(tally), max_tokens_(max_tokens) {}

  void OnOutput(const OutputEvent& event) override {
    for (const OutputToken& t : event.tokens) tokens.push_back(t.token);
  }
  void OnFinish(const RequestResult& result) override {
    const std::lock_guard lock(tally_.mutex);
    EXPECT_FALSE(std::exchange(ended_, true));
    EXPECT_EQ(result.completion_tokens, std::ssize(tokens));
    if (result.finish == FinishReason::kCancelled) {
      ++tally_.cancelled;
      EXPECT_LE(std::ssize(tokens), max_tokens_);
    } else {
      EXPECT_EQ(result.finish, FinishReason::kLength) << result.status.ToString();
      EXPECT_EQ(std::ssize(tokens), max_tokens_);
      whole = true;
    }
    ++tally_.finished;
    --tally_.pending;
    tally_.changed.notify_all();
  }

  std::vector<TokenId> tokens;  // read when everything has ended
  bool whole = false;

 private:
  Tally& tally_;
  const int64_t max_tokens_;
  bool ended_ = false;
};

Request RandomRequest(std::mt19937_64& rng, int i) {
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % n); };
  // Mostly short ones, some that take every block there is. Long ones begin alike, or what one leaves would
  // rarely be there still when the next of its kind comes.
  const bool is_long = below(8) == 0;
  const int64_t prompt = is_long ? 250 + below(300) : 1 + below(30);
  const int64_t answer = below(8) == 0 ? 1 + below(kContextTokens - prompt - 1) : 1 + below(12);
  Request request = GreedyRequest(TestPrompt(prompt, is_long ? 0 : static_cast<int>(below(3))), answer);
  request.sampling.temperature = static_cast<double>(below(2));
  request.sampling.seed = i;
  request.priority = static_cast<int>(below(3));
  if (below(4) == 0) request.sampling.repetition_penalty = 1.2;
  return request;
}

struct Drafting {
  const char* name;
  DraftChoice draft;
  const char* planner;
  ModelConfig (*config)();
};

class Load : public testing::TestWithParam<Drafting> {};

TEST_P(Load, EverythingEndsAndAllMemoryComesBack) {
  const ModelConfig config = GetParam().config();
  EngineOptions options{.num_threads = 1,
                        .context_tokens = kContextTokens,
                        .max_sequences = 6,
                        .step_rows_max = 128,
                        .mixed_prefill_rows_max = 64,
                        .kept_prefixes_max = 3,
                        .speculation = {.draft = GetParam().draft, .planner = GetParam().planner},
                        .queued_requests_max = 64};
  options.cache_bytes_max = CacheBytesOf(/*blocks=*/5, options, config);
  Result<std::unique_ptr<Engine>> made = EngineAccess::Make(TestRuntime(options, config), options);
  ASSERT_TRUE(made.ok()) << made.status().ToString();
  Engine& engine = **made;
  ASSERT_EQ(engine.context_tokens(), kContextTokens);

  Tally tally;
  std::vector<Request> requests;
  std::vector<std::shared_ptr<CountingSink>> sinks;
  std::mt19937_64 rng(g_seed);
  for (int i = 0; i < g_requests; ++i) {
    requests.push_back(RandomRequest(rng, i));
    sinks.push_back(std::make_shared<CountingSink>(tally, *requests.back().sampling.max_tokens));
  }
  std::atomic<int> next{0};
  std::atomic<int> refused{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(g_seed * 100 + t);
        for (int i = next++; i < g_requests; i = next++) {
          {
            const std::lock_guard lock(tally.mutex);
            ++tally.pending;
          }
          for (;;) {
            const int seen = [&] {
              const std::lock_guard lock(tally.mutex);
              return tally.finished;
            }();
            const Result<RequestNumber> number = engine.Submit(requests[i], sinks[i]);
            if (number.ok()) {
              if (random() % 5 == 0) engine.Cancel(*number);
              if (random() % 5 == 0) engine.Cancel(1 + random() % *number);  // anybody's, at any time
              break;
            }
            EXPECT_EQ(number.status().code(), StatusCode::kResourceExhausted);
            ++refused;
            std::unique_lock lock(tally.mutex);  // until there may be room again
            tally.changed.wait(lock, [&] { return tally.finished != seen; });
          }
          if (random() % 50 == 0) engine.ClearKeptPrefixes();
        }
      });
    }
  }
  {
    std::unique_lock lock(tally.mutex);
    tally.changed.wait(lock, [&] { return tally.pending == 0; });
  }
  EXPECT_EQ(tally.finished, g_requests);

  // A request more, so that what follows was written after the last of them ended.
  engine.ClearKeptPrefixes();
  Request last = GreedyRequest({1}, 1);
  last.keep_in_cache = false;
  ASSERT_TRUE(engine.Generate(last).ok());
  EngineStatistics statistics;
  do {
    std::this_thread::yield();
    statistics = engine.statistics();
  } while (statistics.finished < g_requests + 1);
  EXPECT_EQ(statistics.waiting, 0);
  EXPECT_EQ(statistics.running, 0);
  EXPECT_EQ(statistics.cache_bytes, 0);
  EXPECT_EQ(statistics.saved_bytes, 0);
  EXPECT_EQ(statistics.kept_prefixes, 0);
  EXPECT_LE(statistics.cache_bytes_peak, options.cache_bytes_max);
  EXPECT_GT(statistics.preempted, 0);
  EXPECT_GT(statistics.cached_tokens, 0);
  EXPECT_EQ(statistics.drafts.drafted > 0, GetParam().draft != DraftChoice::kNone);
  fmt::print(
      "{} cancelled, {} refused by the full queue, {} preempted ({} restored), {} of {} prompt tokens kept, "
      "{} steps\n",
      tally.cancelled, refused.load(), statistics.preempted, statistics.restored, statistics.cached_tokens,
      statistics.prompt_tokens, statistics.steps);

  // The same one at a time, with room for everything and without drafts.
  const EngineOptions roomy{.num_threads = 1,
                            .context_tokens = kContextTokens,
                            .max_sequences = 1,
                            .kept_prefixes_max = 0,
                            .speculation = {.draft = DraftChoice::kNone}};
  LoopDriver alone(roomy, config);
  int compared = 0;
  for (int i = 0; i < g_requests && compared < 40; i += 7) {
    if (!sinks[i]->whole) continue;
    EXPECT_EQ(alone.Generate(requests[i])->tokens, sinks[i]->tokens) << "request " << i;
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Drafters, Load,
    testing::Values(Drafting{"None", DraftChoice::kNone, "auto", [] { return SmallestConfig(); }},
                    Drafting{"DSpark", DraftChoice::kDSpark, "async", SmallestDSparkConfig},
                    Drafting{"Mtp", DraftChoice::kMtp, "static:3", SmallestMtpConfig},
                    Drafting{"Ngram", DraftChoice::kNgram, "lookahead", [] { return SmallestConfig(); }}),
    [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace foresight

int main(int argc, char** argv) {
  return foresight::RunTests(argc, argv,
                             {{"requests", &foresight::g_requests}, {"seed", &foresight::g_seed}});
}
