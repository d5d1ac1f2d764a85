#include "kernels/linear/linear.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "kernels/weight_fixture.h"
#include "tests/tolerances.h"

namespace foresight::linear_test {
namespace {

// The inputs are the reference's; what differs is the order of float32 sums, seen through one bf16 rounding.
constexpr double kFaithful = 3e-3;

double Tolerance(Numerics numerics) {
  return numerics == Numerics::kClean ? tolerances::kSplitBf16 : kFaithful;
}

class LinearTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    Result<const KernelTable*> table = FindKernels(GetParam());
    if (!table.ok()) GTEST_SKIP() << table.status().ToString();
    table_ = *table;
  }
  KernelContext Context(ThreadPool& pool, Numerics numerics) {
    return {.pool = &pool, .scratch = &arena_, .numerics = numerics};
  }
  std::vector<float> Run(const KernelTable& table, const KernelContext& ctx, const MatrixView& w, int rows,
                         const float* x, LinearNumerics numerics) {
    std::vector<float> out(rows * w.rows, NAN);
    const LinearTarget target[] = {{.w = w, .out = out.data(), .numerics = numerics}};
    table.linear(ctx, {.rows = rows, .x = x, .targets = target});
    return out;
  }

  const KernelTable* table_ = nullptr;
  Arena arena_{size_t{1} << 30};
};

TEST_P(LinearTest, EqualsTheReferenceAndIsPure) {
  std::mt19937 rng(3);
  ThreadPool one(1), three(3);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kI8}) {
    for (const auto& [n, k] :
         {std::pair{1, 32}, {7, 64}, {16, 128}, {130, 160}, {257, 384}, {128, 1056}, {40, 2080}}) {
      const RandomMatrix w(dtype, n, k, rng);
      for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
        for (LinearNumerics kind :
             {LinearNumerics::kProjection, LinearNumerics::kUnquantizedInput, LinearNumerics::kFloat32}) {
          const int rows = 1 + static_cast<int>(rng() % 70);
          std::vector<float> x = RandomRows(rows, k, numerics == Numerics::kFaithful, rng);
          const std::vector<float> got = Run(*table_, Context(three, numerics), w.view, rows, x.data(), kind);
          const std::vector<float> want =
              Run(RefKernels(), Context(one, numerics), w.view, rows, x.data(), kind);
          EXPECT_LE(RelativeL2(got, want), Tolerance(numerics))
              << DTypeName(dtype) << " " << n << "x" << k << " rows " << rows;
          // Each row alone, beside rows of NaN, and on one thread.
          const int r = static_cast<int>(rng() % rows);
          const std::vector<float> alone =
              Run(*table_, Context(one, numerics), w.view, 1, x.data() + int64_t{r} * k, kind);
          EXPECT_EQ(std::memcmp(alone.data(), got.data() + int64_t{r} * n, n * sizeof(float)), 0);
          for (int64_t i = 0; i < int64_t{rows} * k; ++i) {
            if (i / k != r) x[i] = NAN;
          }
          const std::vector<float> beside =
              Run(*table_, Context(three, numerics), w.view, rows, x.data(), kind);
          EXPECT_EQ(std::memcmp(alone.data(), beside.data() + int64_t{r} * n, n * sizeof(float)), 0)
              << DTypeName(dtype) << " " << n << "x" << k << " row " << r << " of " << rows;
        }
      }
    }
  }
}

TEST_P(LinearTest, GroupedEqualsTheReferenceAndIsPure) {
  std::mt19937 rng(4);
  ThreadPool pool(2);
  const int groups = 4, n = 128, k = 256, rows = 19;
  const RandomMatrix w(DType::kF8E4M3, groups * n, k, rng);
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    const std::vector<float> x = RandomRows(rows, groups * k, numerics == Numerics::kFaithful, rng);
    auto run = [&](const KernelTable& table, int count, const float* from) {
      std::vector<float> out(count * groups * n, NAN);
      table.grouped_linear(Context(pool, numerics),
                           {.rows = count, .groups = groups, .x = from, .w = w.view, .out = out.data()});
      return out;
    };
    const std::vector<float> got = run(*table_, rows, x.data());
    EXPECT_LE(RelativeL2(got, run(RefKernels(), rows, x.data())), Tolerance(numerics));
    for (int r = 0; r < rows; ++r) {
      const std::vector<float> alone = run(*table_, 1, x.data() + int64_t{r} * groups * k);
      EXPECT_EQ(std::memcmp(alone.data(), got.data() + int64_t{r} * groups * n, alone.size() * sizeof(float)),
                0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, LinearTest, testing::Values("cpu-avx2", "cpu-avx512"),
                         [](const auto& param) { return std::string(param.param + 4); });

}  // namespace
}  // namespace foresight::linear_test
