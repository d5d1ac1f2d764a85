// A decode step in steady state allocates nothing: model, caches, sampling. Global operator new is counted,
// so this holds for everything that is linked into this test program.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/generation.h"
#include "weights/synthetic.h"

namespace {
std::atomic<int64_t> g_allocations{0};

void* CountedAllocate(std::size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t bytes) {
  return CountedAllocate(bytes);
}
void* operator new[](std::size_t bytes) {
  return CountedAllocate(bytes);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace foresight {
namespace {

constexpr int kWarmUpTokens = 8;  // buffers have grown to their size by then
constexpr int kCountedTokens = 50;

// Counts the allocations between two tokens of an answer.
class CountingSink : public GenerationSink {
 public:
  void OnText(std::string_view) override {}
  void OnToken(const SampledToken&) override {
    ++tokens_;
    if (tokens_ == kWarmUpTokens) before_ = g_allocations;
    if (tokens_ == kWarmUpTokens + kCountedTokens) counted_ = g_allocations - before_;
  }
  int64_t counted() const { return counted_; }

 private:
  int tokens_ = 0;
  int64_t before_ = 0;
  int64_t counted_ = -1;  // the answer was too short
};

int64_t AllocationsOfSteadySteps(int num_threads, const SamplingParams& sampling) {
  EngineOptions options{.num_threads = num_threads, .context_tokens = 512};
  Result<std::unique_ptr<Engine>> engine = Engine::Synthesize(TinyAConfig(), options);
  EXPECT_TRUE(engine.ok()) << engine.status().ToString();
  if (!engine.ok()) return -1;
  Result<Session> session = Session::Create(**engine);
  EXPECT_TRUE(session.ok()) << session.status().ToString();
  const std::vector<TokenId> prompt(240, 7);  // the counted steps cross CSA, HCA and block borders
  CountingSink sink;
  GenerationRequest request{.prompt = prompt, .sampling = sampling, .ignore_eos = true};
  request.sampling.max_tokens = kWarmUpTokens + kCountedTokens + 1;
  const Result<GenerationResult> result = session->Generate(request, sink);
  EXPECT_TRUE(result.ok()) << result.status().ToString();
  return sink.counted();
}

TEST(SteadyStep, CountingWorks) {
  const int64_t before = g_allocations;
  ::operator delete(::operator new(8));  // unlike a new-expression, a call may not be left out
  EXPECT_EQ(g_allocations, before + 1);
}

TEST(SteadyStep, GreedyAllocatesNothing) {
  SamplingParams greedy;
  greedy.temperature = 0;
  EXPECT_EQ(AllocationsOfSteadySteps(/*num_threads=*/2, greedy), 0);
}

TEST(SteadyStep, SamplingAllocatesNothing) {
  SamplingParams sampling;
  sampling.temperature = 0.8;
  sampling.top_p = 0.9;
  sampling.top_k = 40;
  sampling.min_p = 0.01;
  sampling.repetition_penalty = 1.1;
  sampling.seed = 5;
  EXPECT_EQ(AllocationsOfSteadySteps(/*num_threads=*/1, sampling), 0);
}

}  // namespace
}  // namespace foresight
