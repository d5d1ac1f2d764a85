#include "foresight/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "engine/engine_access.h"
#include "engine/test_engine.h"

namespace foresight {
namespace {

std::unique_ptr<Engine> MakeEngine(EngineOptions options) {
  options.num_threads = 1;
  options.context_tokens = 512;
  Result<std::unique_ptr<Engine>> engine = EngineAccess::Make(TestRuntime(options), options);
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  return std::move(*engine);
}

TEST(Engine, RefusesRequestsItCanNotRun) {
  const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 2});
  for (const std::vector<TokenId>& prompt :
       {std::vector<TokenId>{}, {-1}, {engine->vocab_size()}, TestPrompt(512)}) {
    const Result<RequestResult> result = engine->Generate(GreedyRequest(prompt, 1));
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  }
  Request stopped = GreedyRequest(TestPrompt(10), 3);
  stopped.sampling.stop = {"end"};  // of which text?
  EXPECT_EQ(engine->Generate(stopped).status().code(), StatusCode::kInvalidArgument);
  const Result<RequestResult> good = engine->Generate(GreedyRequest(TestPrompt(10), 3));
  ASSERT_TRUE(good.ok()) << good.status().ToString();
  EXPECT_EQ(good->completion_tokens, 3);
  EXPECT_EQ(engine->Encode("text").status().code(), StatusCode::kInvalidArgument);  // no tokenizer
}

TEST(Engine, RefusesOptionsThatContradictThemselves) {
  for (const EngineOptions& bad :
       {EngineOptions{.num_threads = -1}, EngineOptions{.num_threads = 100'000},
        EngineOptions{.max_sequences = 0}, EngineOptions{.max_sequences = 9, .step_rows_max = 8},
        EngineOptions{.step_rows_max = -1}, EngineOptions{.mixed_prefill_rows_max = -1},
        EngineOptions{.kept_prefixes_max = -1}, EngineOptions{.queued_requests_max = 0},
        EngineOptions{.context_tokens = -1}, EngineOptions{.cache_bytes_max = -1},
        EngineOptions{.speculation = {.drafts_max = 1 << 30}},
        // Even where nothing drafts:
        EngineOptions{.speculation = {.draft = DraftChoice::kNone, .planner = "fastest"}},
        EngineOptions{.speculation = {.draft = DraftChoice::kNone, .calibration_file = "x.json"}},
        EngineOptions{.speculation = {.draft = DraftChoice::kNone, .step_costs_file = "x.json"}}}) {
    const Result<std::unique_ptr<Engine>> engine =
        EngineAccess::Make(TestRuntime({.num_threads = 1, .context_tokens = 256}), bad);
    EXPECT_EQ(engine.status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(Engine, StepsAreAsLongAsSuitsTheDevice) {
  class DeviceWithRoom : public DeviceApart {
   public:
    explicit DeviceWithRoom(int64_t bytes) : bytes_(bytes) {}
    int64_t AvailableBytes() const override { return bytes_; }

   private:
    const int64_t bytes_;
  };
  const LoadedModel made = MakeSyntheticModel(SmallestConfig(), {.num_threads = 1});
  struct Rows {
    int step, mixed_prefill;
    bool operator==(const Rows&) const = default;
  };
  const auto rows_of = [&](EngineOptions options, std::unique_ptr<Device> device) {
    options.num_threads = 1;
    options.context_tokens = 256;
    Backend backend{.kernels = *BestCpuKernels(), .device = std::move(device)};
    const Result<std::unique_ptr<Runtime>> runtime =
        Runtime::FromSynthetic(made, options, std::move(backend));
    EXPECT_TRUE(runtime.ok()) << runtime.status().ToString();
    return Rows{(*runtime)->step_rows_max(), (*runtime)->mixed_prefill_rows_max()};
  };
  const auto device = [](int64_t bytes) { return std::make_unique<DeviceWithRoom>(bytes); };
  EXPECT_EQ(rows_of({}, nullptr), (Rows{512, 128}));
  EXPECT_EQ(rows_of({}, device(int64_t{64} << 30)), (Rows{2048, 512}));
  EXPECT_EQ(rows_of({}, device(int64_t{3} << 30)), (Rows{512, 512}));
  EXPECT_EQ(rows_of({.step_rows_max = 48, .mixed_prefill_rows_max = 7}, device(int64_t{64} << 30)),
            (Rows{48, 7}));
  EXPECT_EQ(rows_of({.max_sequences = 600, .kept_prefixes_max = 0}, nullptr), (Rows{600, 128}));
}

TEST(Engine, AFullQueueRefusesAndACancelledRequestLeavesIt) {
  // A sink that holds the engine's thread, so that the queue can't drain.
  class Gate : public EventSink {
   public:
    void OnOutput(const OutputEvent&) override {
      std::unique_lock lock(mutex_);
      reached_ = true;
      changed_.notify_all();
      changed_.wait(lock, [this] { return open_; });
    }
    void OnFinish(const RequestResult&) override {}
    void WaitUntilReached() {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return reached_; });
    }
    void Open() {
      const std::lock_guard lock(mutex_);
      open_ = true;
      changed_.notify_all();
    }

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool reached_ = false;
    bool open_ = false;
  };
  const std::unique_ptr<Engine> engine =
      MakeEngine({.max_sequences = 1, .queued_requests_max = 2, .queued_tokens_max = 100});
  const auto gate = std::make_shared<Gate>();
  ASSERT_TRUE(engine->Submit(GreedyRequest(TestPrompt(5), 50), gate).ok());
  gate->WaitUntilReached();
  const auto sink = std::make_shared<RecordingSink>();
  const Result<RequestNumber> queued = engine->Submit(GreedyRequest(TestPrompt(60), 5), sink);
  ASSERT_TRUE(queued.ok());
  EXPECT_EQ(engine->Submit(GreedyRequest(TestPrompt(60), 5), gate).status().code(),
            StatusCode::kResourceExhausted);
  const auto last = std::make_shared<RecordingSink>();
  ASSERT_TRUE(engine->Submit(GreedyRequest(TestPrompt(5), 5), last).ok());
  EXPECT_EQ(engine->Submit(GreedyRequest(TestPrompt(5), 5), gate).status().code(),
            StatusCode::kResourceExhausted);
  engine->Cancel(*queued);
  gate->Open();
  // Behind everything else: when it ends, so have the others.
  Request patient = GreedyRequest(TestPrompt(5), 5);
  patient.priority = kPriorityMax;
  for (Result<RequestResult> end = engine->Generate(patient);; end = engine->Generate(patient)) {
    if (end.ok()) break;
    ASSERT_EQ(end.status().code(), StatusCode::kResourceExhausted);
    std::this_thread::yield();
  }
  EXPECT_EQ(sink->result.finish, FinishReason::kCancelled);
  EXPECT_TRUE(sink->tokens.empty());
  EXPECT_EQ(last->tokens.size(), 5u);
}

TEST(Engine, ThreadsGetTheSameTextAsOneAfterTheOther) {
  const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 4});
  const auto request = [](int i) {
    Request r = GreedyRequest(TestPrompt(20 + 40 * i, i + 2), 30);
    r.sampling.temperature = 1;
    r.sampling.seed = i;
    return r;
  };
  const auto generate = [&](int i) {
    std::vector<TokenId> tokens;
    const Result<RequestResult> result = engine->Generate(request(i), [&](const OutputEvent& event) {
      for (const OutputToken& t : event.tokens) tokens.push_back(t.token);
    });
    EXPECT_TRUE(result.ok()) << result.status().ToString();
    return tokens;
  };
  std::vector<std::vector<TokenId>> one_by_one, together(6);
  for (int i = 0; i < 6; ++i) one_by_one.push_back(generate(i));
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 6; ++i) threads.emplace_back([&, i] { together[i] = generate(i); });
  }
  EXPECT_EQ(together, one_by_one);
}

TEST(Engine, GenerateCanBeCancelledByAFlag) {
  const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 1});
  std::atomic<bool> cancel{false};
  const Result<RequestResult> result = engine->Generate(
      GreedyRequest(TestPrompt(5), 500),
      [&](const OutputEvent&) {
        cancel = true;
        std::this_thread::yield();
      },
      &cancel);
  ASSERT_TRUE(result.ok());
  // It may have been quicker than the flag.
  EXPECT_TRUE(result->finish == FinishReason::kCancelled || result->completion_tokens == 500);
}

// Their prompts share a step, however long it takes to submit them.
TEST(Engine, BeginsTogetherWhatCameWhileItWasStopped) {
  const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 4, .kept_prefixes_max = 0});
  for (int round = 1; round <= 3; ++round) {
    const EngineStatistics before = engine->statistics();
    EngineAccess::StopAt(*engine, 0);
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(engine->Submit(GreedyRequest(TestPrompt(10), 3), std::make_shared<RecordingSink>()).ok());
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EngineAccess::StopAt(*engine, EngineAccess::kNever);
    while (!EngineAccess::WaitUntilAtRest(*engine, std::chrono::milliseconds(100))) {
    }
    const EngineStatistics after = engine->statistics();
    EXPECT_EQ(after.finished, 4 * round);
    EXPECT_EQ(after.steps - before.steps, 3);
    EXPECT_EQ(after.rows - before.rows, 4 * (10 + 2));
  }
}

TEST(Engine, RestsWhereItIsToldTo) {
  const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 2});
  const auto go_to = [&](int64_t tokens) {
    EngineAccess::StopAt(*engine, tokens);
    while (!EngineAccess::WaitUntilAtRest(*engine, std::chrono::milliseconds(100))) {
    }
    return engine->statistics();
  };
  go_to(0);
  const Request requests[] = {GreedyRequest(TestPrompt(10), 6), GreedyRequest(TestPrompt(12), 7)};
  std::shared_ptr<RecordingSink> sinks[] = {std::make_shared<RecordingSink>(),
                                            std::make_shared<RecordingSink>()};
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(engine->Submit(requests[i], sinks[i]).ok());
  EXPECT_EQ(go_to(0).steps, 0);
  EXPECT_EQ(go_to(1).generated_tokens, 2);  // of one step
  EXPECT_EQ(go_to(2).steps, 1);
  EXPECT_EQ(go_to(7).generated_tokens, 8);
  const EngineStatistics end = go_to(EngineAccess::kNever);
  EXPECT_EQ(end.generated_tokens, 13);
  EXPECT_EQ(end.finished, 2);
  for (int i = 0; i < 2; ++i) {
    const auto alone = std::make_shared<RecordingSink>();
    ASSERT_TRUE(engine->Submit(requests[i], alone).ok());
    go_to(EngineAccess::kNever);
    EXPECT_EQ(sinks[i]->tokens, alone->tokens);
  }
}

TEST(Engine, IsNotAtRestWithinAStep) {
  struct Held : RecordingSink {
    void OnFinish(const RequestResult&) override {
      begun = true;
      const std::lock_guard lock(held);
    }
    std::atomic<bool> begun = false;
    std::mutex held;
  };
  const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 1});
  const auto sink = std::make_shared<Held>();
  {
    const std::lock_guard lock(sink->held);
    ASSERT_TRUE(engine->Submit(GreedyRequest(TestPrompt(5), 1), sink).ok());
    while (!sink->begun) std::this_thread::yield();
    EngineAccess::StopAt(*engine, 0);
    EXPECT_FALSE(EngineAccess::WaitUntilAtRest(*engine, std::chrono::milliseconds(5)));
  }
  while (!EngineAccess::WaitUntilAtRest(*engine, std::chrono::milliseconds(100))) {
  }
}

TEST(Engine, RefusesARequestWithoutASink) {
  const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 1});
  EXPECT_EQ(engine->Submit(GreedyRequest(TestPrompt(5), 3), nullptr).status().code(),
            StatusCode::kInvalidArgument);
}

// A sink may submit. What it submits while the engine ends is refused: each accepted request gets its end.
TEST(Engine, RefusesWhatSinksSubmitAtItsEnd) {
  struct Again : EventSink {
    void OnOutput(const OutputEvent&) override {}
    void OnFinish(const RequestResult&) override {
      ++*finished;
      const Result<RequestNumber> next =
          engine->Submit(GreedyRequest(TestPrompt(5), 2), std::make_shared<Again>(*this));
      if (next.ok()) {
        ++*accepted;
      } else {
        EXPECT_EQ(next.status().code(), StatusCode::kUnavailable);
      }
    }
    Engine* engine = nullptr;
    std::atomic<int>* accepted = nullptr;
    std::atomic<int>* finished = nullptr;
  };
  std::atomic<int> accepted = 2;
  std::atomic<int> finished = 0;
  std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 1});
  for (int i = 0; i < 2; ++i) {
    const auto sink = std::make_shared<Again>();
    sink->engine = engine.get();
    sink->accepted = &accepted;
    sink->finished = &finished;
    ASSERT_TRUE(engine->Submit(GreedyRequest(TestPrompt(5), 2), sink).ok());
  }
  while (finished < 5) std::this_thread::yield();
  engine.reset();
  EXPECT_EQ(accepted, finished);
}

TEST(Engine, ItsEndCancelsWhatRuns) {
  const auto sink = std::make_shared<RecordingSink>();
  {
    const std::unique_ptr<Engine> engine = MakeEngine({.max_sequences = 1});
    for (int i = 0; i < 3; ++i)
      ASSERT_TRUE(engine->Submit(GreedyRequest(TestPrompt(5), 400), std::make_shared<RecordingSink>()).ok());
    ASSERT_TRUE(engine->Submit(GreedyRequest(TestPrompt(300), 200), sink).ok());
  }
  EXPECT_TRUE(sink->finished);
}

}  // namespace
}  // namespace foresight
