// A decode step in steady state allocates nothing: model, caches, sampling. Global operator new is counted,
// so this holds for everything that is linked into this test program.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/test_engine.h"

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

int64_t AllocationsOfSteadySteps(int num_threads, int num_requests, const SamplingParams& sampling) {
  EngineOptions options{.num_threads = num_threads, .context_tokens = 512};
  LoopDriver driver(options, TinyAConfig());
  class Ignore : public EventSink {
   public:
    void OnOutput(const OutputEvent& event) override { tokens += std::ssize(event.tokens); }
    void OnFinish(const RequestResult&) override {}
    int64_t tokens = 0;
  };
  const auto sink = std::make_shared<Ignore>();
  for (int i = 0; i < num_requests; ++i) {
    // The counted steps cross CSA and HCA borders, and the one of a block where a state is kept.
    Request request{.prompt = std::vector<TokenId>(240, 7 + i), .sampling = sampling, .ignore_eos = true};
    request.sampling.max_tokens = 2 * (kWarmUpTokens + kCountedTokens);  // none ends while counting
    driver.Submit(std::move(request), sink);
  }
  while (sink->tokens < num_requests * kWarmUpTokens) driver.Step();
  const int64_t before = g_allocations;
  for (int i = 0; i < kCountedTokens; ++i) driver.Step();
  const int64_t counted = g_allocations - before;
  EXPECT_GE(sink->tokens, num_requests * (kWarmUpTokens + kCountedTokens));
  return counted;
}

TEST(SteadyStep, CountingWorks) {
  const int64_t before = g_allocations;
  ::operator delete(::operator new(8));  // unlike a new-expression, a call may not be left out
  EXPECT_EQ(g_allocations, before + 1);
}

TEST(SteadyStep, GreedyAllocatesNothing) {
  SamplingParams greedy;
  greedy.temperature = 0;
  EXPECT_EQ(AllocationsOfSteadySteps(/*num_threads=*/2, /*num_requests=*/3, greedy), 0);
}

TEST(SteadyStep, SamplingAllocatesNothing) {
  SamplingParams sampling;
  sampling.temperature = 0.8;
  sampling.top_p = 0.9;
  sampling.top_k = 40;
  sampling.min_p = 0.01;
  sampling.repetition_penalty = 1.1;
  sampling.seed = 5;
  EXPECT_EQ(AllocationsOfSteadySteps(/*num_threads=*/1, /*num_requests=*/1, sampling), 0);
}

}  // namespace
}  // namespace foresight
