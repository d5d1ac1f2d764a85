// A drafting round in steady state allocates nothing. Global operator new is counted.
#include <atomic>
#include <cstdlib>
#include <new>

#include "model/draft_fixture.h"

namespace {
std::atomic<int64_t> g_allocations{0};
}  // namespace

void* operator new(std::size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](std::size_t bytes) {
  return ::operator new(bytes);
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

// Rounds of draft, verification and truncation for two sequences; allocations of the last ones.
int64_t AllocationsOfRounds(MarkovHeadType type) {
  const Result<const KernelTable*> table = BestCpuKernels();
  if (!table.ok()) return 0;
  DraftHost host(SmallDSparkModel(type).weights, **table, Numerics::kFaithful);
  Model& model = host.model();
  SequenceState a = host.Prefill(RandomTokens(30, 256, 1));
  SequenceState b = host.Prefill(RandomTokens(50, 256, 2));
  SequenceState* const sequences[] = {&a, &b};
  const TokenId anchors[] = {3, 4};
  const TokenId rows[] = {3, 9, 9, 4, 8, 8};
  const int32_t logit_rows[] = {0, 1, 2, 3, 4, 5};
  const SequenceChunk chunks[] = {{.sequence = &a, .num_rows = 3}, {.sequence = &b, .num_rows = 3}};
  int64_t before = 0;
  bool ok = true;
  for (int round = 0; round < 20; ++round) {
    if (round == 5) before = g_allocations;
    ok &= model.DraftBlock({.sequences = sequences, .anchors = anchors, .block = 5}).ok();
    for (int k = 0; k < 5; ++k) ok &= model.DraftHead(k, anchors).ok();
    ok &= model.Step({.tokens = rows, .chunks = chunks, .logit_rows = logit_rows}).ok();
    ok &= a.Truncate(a.length() - 1).ok() && b.Truncate(b.length() - 2).ok();
  }
  const int64_t counted = g_allocations - before;
  EXPECT_TRUE(ok);
  return counted;
}

TEST(SteadyDraft, AllocatesNothing) {
  const int64_t before = g_allocations;
  ::operator delete(::operator new(8));
  EXPECT_EQ(g_allocations, before + 1);  // counting works
  for (MarkovHeadType type : {MarkovHeadType::kVanilla, MarkovHeadType::kGated, MarkovHeadType::kRnn}) {
    EXPECT_EQ(AllocationsOfRounds(type), 0) << MarkovHeadTypeName(type);
  }
}

}  // namespace
}  // namespace foresight
