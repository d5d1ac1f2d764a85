// A drafting round in steady state allocates nothing.
#include "model/draft_fixture.h"
#include "tests/allocation_counter.h"

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
    if (round == 5) before = Allocations();
    ok &= model.DraftBlock({.sequences = sequences, .anchors = anchors, .block = 5}).ok();
    for (int k = 0; k < 5; ++k) ok &= model.DraftHead(k, anchors).ok();
    ok &= model.Step({.tokens = rows, .chunks = chunks, .logit_rows = logit_rows}).ok();
    ok &= a.Truncate(a.length() - 1).ok() && b.Truncate(b.length() - 2).ok();
  }
  const int64_t counted = Allocations() - before;
  EXPECT_TRUE(ok);
  return counted;
}

TEST(SteadyDraft, AllocatesNothing) {
  const int64_t before = Allocations();
  ::operator delete(::operator new(8));
  EXPECT_EQ(Allocations(), before + 1);  // counting works
  for (MarkovHeadType type : {MarkovHeadType::kVanilla, MarkovHeadType::kGated, MarkovHeadType::kRnn}) {
    EXPECT_EQ(AllocationsOfRounds(type), 0) << MarkovHeadTypeName(type);
  }
}

}  // namespace
}  // namespace foresight
