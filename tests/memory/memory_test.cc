// What a model takes of memory is what it accounts for, and a decode step in steady state allocates nothing:
// model, caches, sampling. Global operator new is counted, so the latter holds for everything that is linked
// into this program. It has a process of its own for each model (CMakeLists.txt), since what is resident is
// the process's.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/test_engine.h"
#include "tests/allocation_counter.h"
#include "weights/embedded/embedded_model.h"
#include "weights/synthetic.h"

namespace foresight {
namespace {

constexpr int kPromptTokens = 240;
constexpr int kWarmUpTokens = 8;  // buffers have grown to their size by then

// Sanitizers keep shadow memory and freed blocks; what is resident is theirs then.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kOwnResidentMemory = false;
#else
constexpr bool kOwnResidentMemory = true;
#endif
// They cross CSA, HCA and block borders; a state is kept at the last. A few show a sanitizer what it looks
// for, and take it as long.
constexpr int kCountedTokens = kOwnResidentMemory ? 50 : 16;

class CountingSink : public EventSink {
 public:
  void OnOutput(const OutputEvent& event) override { tokens += std::ssize(event.tokens); }
  void OnFinish(const RequestResult&) override {}
  int64_t tokens = 0;
};

SamplingParams Greedy() {
  SamplingParams greedy;
  greedy.temperature = 0;
  return greedy;
}

SamplingParams EveryKindOfSampling() {
  SamplingParams sampling;
  sampling.temperature = 0.8;
  sampling.top_p = 0.9;
  sampling.top_k = 40;
  sampling.min_p = 0.01;
  sampling.repetition_penalty = 1.1;
  sampling.seed = 5;
  return sampling;
}

void ExpectSteadyStepsAllocateNothing(LoopDriver& driver, int num_requests, const SamplingParams& sampling) {
  const auto sink = std::make_shared<CountingSink>();
  for (int i = 0; i < num_requests; ++i) {
    Request request{
        .prompt = std::vector<TokenId>(kPromptTokens, 7 + i), .sampling = sampling, .ignore_eos = true};
    // With drafts a step gives several tokens; none ends while counting.
    request.sampling.max_tokens = 8 * (kWarmUpTokens + kCountedTokens);
    driver.Submit(std::move(request), sink);
  }
  while (sink->tokens < num_requests * kWarmUpTokens) driver.Step();
  const int64_t before = Allocations();
  for (int i = 0; i < kCountedTokens; ++i) driver.Step();
  EXPECT_EQ(Allocations() - before, 0);
  EXPECT_GE(sink->tokens, num_requests * (kWarmUpTokens + kCountedTokens));
  driver.CancelAll();
  driver.Run();
}

// The bounds of resident memory hold after generation, at its peak: caches and step memory keep their pages.
void ExpectResidentIsAccounted(const Runtime& runtime) {
  if (!kOwnResidentMemory) return;
  const int64_t resident = ReadResidentMemory().total_bytes();
  const int64_t accounted = runtime.AccountedBytes();
  testing::Test::RecordProperty("resident_bytes", std::to_string(resident));
  testing::Test::RecordProperty("accounted_bytes", std::to_string(accounted));
  EXPECT_LE(resident, accounted + accounted / 20 + 100'000'000);
  // Neither is the account a guess from above.
  EXPECT_GE(resident + 100'000'000, accounted);
}

const EngineOptions kOptions = {.num_threads = 2, .context_tokens = 1024};

void ExpectMemoryIsAsPromised(Result<std::unique_ptr<Runtime>> runtime) {
  ASSERT_TRUE(runtime.ok()) << runtime.status().ToString();
  LoopDriver driver(std::move(*runtime), kOptions);
  ExpectSteadyStepsAllocateNothing(driver, /*num_requests=*/3, Greedy());
  ExpectSteadyStepsAllocateNothing(driver, /*num_requests=*/1, EveryKindOfSampling());
  ExpectResidentIsAccounted(driver.runtime());
}

TEST(Allocations, AreCounted) {
  const int64_t before = Allocations();
  ::operator delete(::operator new(8));  // unlike a new-expression, a call may not be left out
  EXPECT_EQ(Allocations(), before + 1);
}

TEST(Memory, EveryDrafter) {
  for (const auto& [draft, config] : {std::pair(DraftChoice::kDSpark, SmallestDSparkConfig()),
                                      std::pair(DraftChoice::kMtp, SmallestMtpConfig()),
                                      std::pair(DraftChoice::kNgram, SmallestConfig())}) {
    for (const char* planner : {"static:3", "lookahead", "async"}) {
      EngineOptions options = kOptions;
      options.speculation = {.draft = draft, .planner = planner};
      LoopDriver driver(options, config);
      ExpectSteadyStepsAllocateNothing(driver, /*num_requests=*/3, EveryKindOfSampling());
      EXPECT_GT(driver.loop().statistics().drafts.drafted, 0) << planner;
    }
  }
}

TEST(Memory, TinyA) {
  ExpectMemoryIsAsPromised(Runtime::Synthesize(TinyAConfig(), kOptions));
}

TEST(Memory, DSpark) {
  ExpectMemoryIsAsPromised(Runtime::Synthesize(SmallestDSparkConfig(), kOptions));
}

TEST(Memory, EmbeddedModel) {
  const ModelFiles files = EmbeddedModel();
  if (files.empty()) GTEST_SKIP() << "built without a model";
  ExpectMemoryIsAsPromised(Runtime::Load(files, kOptions));
}

// The released shape of a layer; fewer experts and words, so that 5 % of the weights stay small beside a
// dequantised copy of them.
TEST(Memory, FlashShape) {
  ModelConfig config = FlashConfig(/*num_layers=*/1, /*num_experts=*/4);
  config.vocab_size = 8192;
  ExpectMemoryIsAsPromised(Runtime::Synthesize(config, kOptions));
}

}  // namespace
}  // namespace foresight
