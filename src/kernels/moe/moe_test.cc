#include "kernels/moe/moe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "kernels/weight_fixture.h"
#include "tests/tolerances.h"

namespace foresight::moe_test {
namespace {

// Two products, one behind the other.
constexpr double kClean = 2 * tolerances::kSplitBf16;
// act_quant's values beside a rounding boundary fall to either side.
constexpr double kFaithful = 4e-3;

class MoeTest : public testing::TestWithParam<const char*> {};

TEST_P(MoeTest, EqualsTheDefinitionWithAndWithoutASharedExpert) {
  const Result<const KernelTable*> table = FindKernels(GetParam());
  if (!table.ok()) GTEST_SKIP() << table.status().ToString();
  constexpr int kExperts = 5, kSlots = 2, kRows = 9, kDim = 256, kIntermediate = 160;
  std::mt19937 rng(1);
  ThreadPool pool(2);
  Arena arena(size_t{64} << 20);
  std::vector<RandomMatrix> weights;
  weights.reserve(3 * (kExperts + 1));
  const auto expert = [&](DType dtype) {
    const auto matrix = [&](int rows, int cols) { return weights.emplace_back(dtype, rows, cols, rng).view; };
    return ExpertWeights{matrix(kIntermediate, kDim), matrix(kIntermediate, kDim),
                         matrix(kDim, kIntermediate)};
  };
  std::vector<ExpertWeights> experts;
  for (int e = 0; e < kExperts; ++e) experts.push_back(expert(DType::kI8));
  std::vector<int32_t> ids;
  for (int t = 0; t < kRows; ++t) ids.insert(ids.end(), {t % kExperts, (t + 2) % kExperts});
  const std::vector<float> of_slots(ids.size(), 0.5f);
  for (const ExpertWeights& shared : {expert(DType::kF8E4M3), ExpertWeights{}}) {
    for (const Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      const KernelContext ctx = {.pool = &pool, .scratch = &arena, .numerics = numerics};
      std::vector<float> x = RandomRows(kRows, kDim, numerics == Numerics::kFaithful, rng);
      for (float& v : x) v *= 0.25f;
      MoeArgs args = {.rows = kRows,
                      .dim = kDim,
                      .intermediate = kIntermediate,
                      .experts_per_token = kSlots,
                      .swiglu_limit = 10,
                      .experts = experts,
                      .expert_dtype = DType::kI8,
                      .shared = shared,
                      .x = x.data(),
                      .ids = ids.data(),
                      .weights = of_slots.data()};
      std::vector<float> got(x.size(), NAN), want(x.size(), NAN);
      args.out = got.data();
      (*table)->moe(ctx, args);
      args.out = want.data();
      RefKernels().moe(ctx, args);
      EXPECT_LE(RelativeL2(got, want), numerics == Numerics::kClean ? kClean : kFaithful)
          << (args.HasShared() ? "with" : "without") << " a shared expert";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, MoeTest, testing::Values("cpu-avx2", "cpu-avx512"),
                         [](const auto& param) { return std::string(param.param + 4); });

}  // namespace
}  // namespace foresight::moe_test
