#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/device_fixture.h"
#include "kernels/linear/linear.h"
#include "kernels/weight_fixture.h"

namespace foresight::linear_cuda_test {
namespace {

// Two float32 sums of the same products, of which one splits its inputs (2^-18).
constexpr double kFloat32 = 1e-5;
// Seen through one rounding to bf16, which turns a few of the last bits.
constexpr double kBf16 = 2.5e-3;

class LinearCudaTest : public OnDevice<> {
 protected:
  struct Target {
    MatrixView host;
    MatrixView device;
    LinearNumerics numerics;
  };

  static bool Rounds(Numerics numerics, const Target& target) {
    return numerics == Numerics::kFaithful && target.numerics != LinearNumerics::kFloat32;
  }
  // `packed`: outputs that are rounded come in bf16.
  std::vector<std::vector<float>> RunCuda(Numerics numerics, const std::vector<Target>& targets, int rows,
                                          const float* x, bool packed = false) {
    const int64_t k = targets[0].host.cols;
    std::vector<LinearTarget> args;
    for (const Target& t : targets) {
      const int64_t count = rows * t.host.rows;
      ActivationBuffer out = device_->Allocate<float>(count);
      if (packed && Rounds(numerics, t)) out = device_->Allocate<bf16>(count);
      args.push_back({.w = t.device, .out = out, .numerics = t.numerics});
    }
    const float* at = device_->Upload(std::span(x, static_cast<size_t>(rows * k)));
    table_->linear(device_->context(numerics), {.rows = rows, .x = at, .targets = args});
    std::vector<std::vector<float>> out;
    for (const LinearTarget& t : args) out.push_back(Values(t.out, rows * t.w.rows));
    return out;
  }
  std::vector<float> Values(const ActivationBuffer& x, int64_t count) {
    if (x.dtype == DType::kF32) return device_->Download(x.f32(), count);
    const std::vector<bf16> packed = device_->Download(static_cast<const bf16*>(x.data), count);
    std::vector<float> values(packed.size());
    std::transform(packed.begin(), packed.end(), values.begin(), Bf16ToFloat);
    return values;
  }
  std::vector<float> RunRef(Numerics numerics, const Target& target, int rows, const float* x) {
    std::vector<float> out(static_cast<size_t>(rows * target.host.rows), NAN);
    const LinearTarget args[] = {{.w = target.host, .out = out.data(), .numerics = target.numerics}};
    RefKernels().linear(host_.context(numerics), {.rows = rows, .x = x, .targets = args});
    return out;
  }
  static double L2Distance(const std::vector<float>& got, const std::vector<float>& want) {
    double sum = 0;
    for (size_t i = 0; i < want.size(); ++i) sum += std::pow(double{got[i]} - want[i], 2);
    return std::sqrt(sum);
  }
  // Of the outputs if nothing cancelled more than it does by chance: few of them can be small by chance.
  static double TypicalL2(const MatrixView& w, int rows, const float* x) {
    std::vector<float> row(static_cast<size_t>(w.cols));
    double weights = 0;
    double inputs = 0;
    for (int64_t n = 0; n < w.rows; ++n) {
      w.DecodeRow(n, row.data());
      for (float v : row) weights += double{v} * v;
    }
    for (int64_t i = 0; i < rows * w.cols; ++i) inputs += double{x[i]} * x[i];
    return std::sqrt(weights * inputs / static_cast<double>(w.cols));
  }
  // All targets in one call, each row in a batch, alone, and beside rows of NaN.
  void Check(Numerics numerics, const std::vector<Target>& targets, int rows, std::mt19937& rng) {
    const int64_t k = targets[0].host.cols;
    std::vector<float> x = RandomRows(rows, k, numerics == Numerics::kFaithful, rng);
    const auto got = RunCuda(numerics, targets, rows, x.data());
    const int r = static_cast<int>(rng() % rows);
    const auto alone = RunCuda(numerics, targets, 1, x.data() + r * k, /*packed=*/true);
    for (size_t i = 0; i < targets.size(); ++i) {
      const Target& t = targets[i];
      const std::vector<float> want = RunRef(numerics, t, rows, x.data());
      EXPECT_LE(L2Distance(got[i], want) / TypicalL2(t.host, rows, x.data()),
                Rounds(numerics, t) ? kBf16 : kFloat32)
          << DTypeName(t.host.dtype) << " " << t.host.rows << "x" << k << " rows " << rows << " numerics "
          << static_cast<int>(numerics) << " kind " << static_cast<int>(t.numerics);
    }
    for (int64_t i = 0; i < rows * k; ++i) {
      if (i / k != r) x[i] = NAN;
    }
    const auto beside = RunCuda(numerics, targets, rows, x.data(), /*packed=*/true);
    for (size_t i = 0; i < targets.size(); ++i) {
      const int64_t n = targets[i].host.rows;
      for (const auto* batch : {&got[i], &beside[i]}) {
        EXPECT_EQ(std::memcmp(alone[i].data(), batch->data() + r * n, static_cast<size_t>(n) * sizeof(float)),
                  0)
            << DTypeName(targets[i].host.dtype) << " " << n << "x" << k << " row " << r << " of " << rows;
      }
    }
  }

  KernelHost host_{2};
};

constexpr LinearNumerics kKinds[] = {LinearNumerics::kProjection, LinearNumerics::kUnquantizedInput,
                                     LinearNumerics::kFloat32};

// A test for each dtype of weights.
class LinearDTypesCudaTest : public LinearCudaTest, public testing::WithParamInterface<DType> {};

std::string NameOf(const testing::TestParamInfo<DType>& info) {
  return std::string(DTypeName(info.param));
}

TEST_P(LinearDTypesCudaTest, EqualsTheReferenceAndIsPure) {
  std::mt19937 rng(3);
  for (const auto& [n, k] :
       {std::pair{1, 32}, {7, 64}, {16, 128}, {130, 160}, {257, 384}, {128, 1056}, {40, 8352}}) {
    const RandomMatrix w(GetParam(), n, k, rng);
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      for (LinearNumerics kind : kKinds) {
        for (int rows : {1, 3, 8, 9, 17, 40}) {
          Check(numerics, {{w.view, device_->Upload(w.view), kind}}, rows, rng);
          device_->Clear();
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LinearDTypesCudaTest,
                         testing::Values(DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kI8), NameOf);

// Widths that 16-byte loads can't take.
TEST_F(LinearCudaTest, AnyWidthEqualsTheReferenceAndIsPure) {
  std::mt19937 rng(5);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const auto& [n, k] : {std::pair{3, 5}, {33, 150}, {20, 260}}) {
      const RandomMatrix w(dtype, n, k, rng);
      for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
        for (LinearNumerics kind : kKinds) {
          Check(numerics, {{w.view, device_->Upload(w.view), kind}}, 11, rng);
          device_->Clear();
        }
      }
    }
  }
}

// So many tiles that thread blocks take several, with the next one's weights on their way before one ends.
TEST_F(LinearCudaTest, ManyTilesEqualTheReferenceAndArePure) {
  std::mt19937 rng(8);
  for (DType dtype : {DType::kBF16, DType::kF8E4M3, DType::kI8}) {
    const RandomMatrix w(dtype, 9 * 1024 + 8, 288, rng), v(dtype, 40, 288, rng);
    for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
      for (int rows : {2, 6, 11, 24, 40}) {
        Check(numerics,
              {{w.view, device_->Upload(w.view), LinearNumerics::kProjection},
               {v.view, device_->Upload(v.view), LinearNumerics::kProjection}},
              rows, rng);
        device_->Clear();
      }
    }
  }
}

// K of whole rounds, in one piece or cut among the blocks of a cluster: few tiles and many, tiles and weights
// that end early, and rows on both sides of where other kernels take over.
class StreamedProductsCudaTest : public LinearCudaTest,
                                 public testing::WithParamInterface<std::tuple<DType, std::pair<int, int>>> {
};

TEST_P(StreamedProductsCudaTest, EqualTheReferenceAndArePure) {
  const auto& [dtype, shape] = GetParam();
  const auto& [n, k] = shape;
  std::mt19937 rng(9);
  const RandomMatrix w(dtype, n, k, rng), v(dtype, 35, k, rng);
  for (int rows : {1, 2, 5, 8, 9, 16, 30, 64, 70}) {
    Check(Numerics::kFaithful,
          {{w.view, device_->Upload(w.view), LinearNumerics::kProjection},
           {v.view, device_->Upload(v.view), LinearNumerics::kProjection}},
          rows, rng);
    Check(Numerics::kFaithful, {{w.view, device_->Upload(w.view), LinearNumerics::kFloat32}}, rows, rng);
    device_->Clear();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, StreamedProductsCudaTest,
    testing::Combine(testing::Values(DType::kBF16, DType::kF8E4M3),
                     testing::Values(std::pair{16, 1024}, std::pair{9, 2048}, std::pair{40, 4096},
                                     std::pair{256, 4096}, std::pair{264, 4096}, std::pair{72, 8192},
                                     std::pair{600, 1536}, std::pair{3000, 256}, std::pair{2500, 1024},
                                     std::pair{5000, 512}, std::pair{17000, 256}, std::pair{24, 7168})));

// Long K and more than one tile for every multiprocessor: warps share tiles and have several.
TEST_F(LinearCudaTest, LongRowsEqualTheReferenceAndArePure) {
  std::mt19937 rng(12);
  for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const auto& [n, k] : {std::pair{2200, 8192}, {4300, 4096}, {2400, 2304}}) {
      const RandomMatrix w(dtype, n, k, rng);
      const MatrixView on_device = device_->Upload(w.view);
      for (int rows : {1, 3, 9}) {
        Check(Numerics::kFaithful, {{w.view, on_device, LinearNumerics::kProjection}}, rows, rng);
        Check(Numerics::kFaithful, {{w.view, on_device, LinearNumerics::kFloat32}}, rows, rng);
      }
      device_->Clear();
    }
  }
}

// FP8 and BF16 weights of one input.
TEST_F(LinearCudaTest, StreamedPairsEqualTheReferenceAndArePure) {
  std::mt19937 rng(11);
  for (const auto& [n, k] : {std::pair{16, 256}, {40, 1024}, {700, 4096}, {3000, 512}, {100, 8192}}) {
    const RandomMatrix a(DType::kF8E4M3, n, k, rng), b(DType::kBF16, n + 24, k, rng),
        c(DType::kBF16, 9, k, rng);
    for (int rows : {1, 3, 8, 9, 40}) {
      Check(Numerics::kFaithful,
            {{b.view, device_->Upload(b.view), LinearNumerics::kFloat32},
             {a.view, device_->Upload(a.view), LinearNumerics::kProjection},
             {c.view, device_->Upload(c.view), LinearNumerics::kFloat32}},
            rows, rng);
      device_->Clear();
    }
  }
}

// Several tiles of columns, with rows of the weight for one thread block or many.
TEST_F(LinearCudaTest, ManyRowsEqualTheReferenceAndArePure) {
  std::mt19937 rng(10);
  for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const auto& [n, k] : {std::pair{200, 4096}, {1500, 1024}, {9000, 256}, {13000, 256}}) {
      const RandomMatrix w(dtype, n, k, rng);
      for (int rows : {65, 200, 300}) {
        Check(Numerics::kFaithful, {{w.view, device_->Upload(w.view), LinearNumerics::kFloat32}}, rows, rng);
        device_->Clear();
      }
    }
  }
}

// Outputs whose rows begin at sectors, which are stored many at a time.
TEST_F(LinearCudaTest, ManyRowsOfWholeTilesEqualTheReferenceAndArePure) {
  std::mt19937 rng(13);
  for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const auto& [n, k] : {std::pair{2176, 512}, {2304, 1024}, {144, 16384}}) {
      const RandomMatrix w(dtype, n, k, rng);
      for (int rows : {50, 300}) {
        Check(Numerics::kFaithful, {{w.view, device_->Upload(w.view), LinearNumerics::kProjection}}, rows,
              rng);
        device_->Clear();
      }
    }
  }
}

// Enough of both to be cut into large tiles, whose bits are those of a row alone.
class LargeTilesCudaTest : public LinearCudaTest, public testing::WithParamInterface<DType> {};

TEST_P(LargeTilesCudaTest, EqualTheReferenceAndArePure) {
  std::mt19937 rng(6);
  const RandomMatrix w(GetParam(), 8 * 1024 + 40, 416, rng);
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    Check(numerics, {{w.view, device_->Upload(w.view), LinearNumerics::kProjection}}, 650, rng);
    device_->Clear();
  }
}

INSTANTIATE_TEST_SUITE_P(All, LargeTilesCudaTest, testing::Values(DType::kBF16, DType::kF8E4M3, DType::kI8),
                         NameOf);

TEST_F(LinearCudaTest, TargetsOfOneCallAreIndependent) {
  std::mt19937 rng(7);
  const RandomMatrix a(DType::kF8E4M3, 144, 512, rng), b(DType::kBF16, 40, 512, rng),
      c(DType::kF8E4M3, 72, 512, rng), d(DType::kF32, 24, 512, rng), e(DType::kI8, 65, 512, rng);
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    for (int rows : {1, 21}) {
      Check(numerics,
            {{a.view, device_->Upload(a.view), LinearNumerics::kProjection},
             {b.view, device_->Upload(b.view), LinearNumerics::kFloat32},
             {c.view, device_->Upload(c.view), LinearNumerics::kProjection},
             {d.view, device_->Upload(d.view), LinearNumerics::kFloat32},
             {e.view, device_->Upload(e.view), LinearNumerics::kUnquantizedInput},
             {b.view, device_->Upload(b.view), LinearNumerics::kProjection}},
            rows, rng);
      device_->Clear();
    }
  }
}

// As few tiles as choose a kernel, with one that ends early: what racecheck can follow, which looks at every
// access to shared memory.
struct LittleCase {
  const char* name;
  Numerics numerics;
  std::vector<DType> dtypes;  // of weights of one call
  int n, k;
  int rows;
};

class LinearLittleCudaTest : public LinearCudaTest, public testing::WithParamInterface<LittleCase> {};

TEST_P(LinearLittleCudaTest, EqualsTheReferenceAndIsPure) {
  const LittleCase& c = GetParam();
  std::mt19937 rng(12);
  std::vector<RandomMatrix> weights;
  weights.reserve(c.dtypes.size());
  std::vector<Target> targets;
  for (const DType dtype : c.dtypes) {
    const MatrixView w = weights.emplace_back(dtype, c.n, c.k, rng).view;
    targets.push_back({w, device_->Upload(w), LinearNumerics::kProjection});
  }
  Check(c.numerics, targets, c.rows, rng);
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, LinearLittleCudaTest,
    testing::Values(LittleCase{"Stream", Numerics::kFaithful, {DType::kBF16}, 24, 512, 3},
                    LittleCase{"StreamFp8", Numerics::kFaithful, {DType::kF8E4M3}, 24, 1024, 8},
                    LittleCase{"StreamInParts", Numerics::kFaithful, {DType::kF8E4M3}, 24, 4096, 5},
                    LittleCase{"StreamByOneWarp", Numerics::kFaithful, {DType::kBF16}, 24, 4096, 2},
                    // So many tiles that more than eight rows are streamed.
                    LittleCase{"StreamOfMoreRows", Numerics::kFaithful, {DType::kF8E4M3}, 16904, 256, 9},
                    // So many tiles of long rows that warps share tiles and have several.
                    LittleCase{"StreamOfLongRows", Numerics::kFaithful, {DType::kF8E4M3}, 2400, 2304, 3},
                    LittleCase{"StreamPair", Numerics::kFaithful, {DType::kF8E4M3, DType::kBF16}, 24, 512, 3},
                    LittleCase{"Wide", Numerics::kFaithful, {DType::kBF16}, 72, 256, 20},
                    LittleCase{"WideOfMoreRows", Numerics::kFaithful, {DType::kBF16}, 72, 256, 70},
                    LittleCase{"WideFp8", Numerics::kFaithful, {DType::kF8E4M3}, 72, 512, 40},
                    LittleCase{"WideFp8OfMoreRows", Numerics::kFaithful, {DType::kF8E4M3}, 200, 256, 140},
                    LittleCase{"Skinny", Numerics::kClean, {DType::kBF16}, 40, 160, 3},
                    LittleCase{"SkinnyFp8", Numerics::kClean, {DType::kF8E4M3}, 40, 160, 12},
                    LittleCase{"SkinnyOfMoreRows", Numerics::kClean, {DType::kF8E4M3}, 40, 160, 24},
                    // So many tiles that every multiprocessor has one.
                    LittleCase{"SkinnyAndTall", Numerics::kClean, {DType::kF8E4M3}, 4232, 64, 8},
                    LittleCase{"Tiled", Numerics::kClean, {DType::kF8E4M3}, 132 * 128 + 8, 64, 40}),
    [](const auto& info) { return std::string(info.param.name); });

class GroupedLinearCudaTest : public LinearCudaTest {
 protected:
  // All rows, then `counts` of them from every 23rd on.
  void CheckGroups(DType dtype, Numerics numerics, int n, int k, int rows, std::initializer_list<int> counts,
                   std::mt19937& rng) {
    const int groups = 4;
    const RandomMatrix w(dtype, groups * n, k, rng);
    const MatrixView on_device = device_->Upload(w.view);
    const std::vector<float> x = RandomRows(rows, groups * k, numerics == Numerics::kFaithful, rng);
    auto run = [&](int count, const float* from, bool packed) {
      float* out = device_->Allocate<float>(count * groups * n);
      const std::span values(from, static_cast<size_t>(count * groups * k));
      ActivationView at = device_->Upload(values);
      if (packed) {
        std::vector<bf16> in_16_bits(values.size());
        std::transform(values.begin(), values.end(), in_16_bits.begin(), FloatToBf16);
        at = device_->Upload(in_16_bits);
      }
      table_->grouped_linear(device_->context(numerics),
                             {.rows = count, .groups = groups, .x = at, .w = on_device, .out = out});
      return device_->Download(out, count * groups * n);
    };
    const bool packed = numerics == Numerics::kFaithful;
    const std::vector<float> got = run(rows, x.data(), packed);
    std::vector<float> want(got.size());
    RefKernels().grouped_linear(
        host_.context(numerics),
        {.rows = rows, .groups = groups, .x = x.data(), .w = w.view, .out = want.data()});
    EXPECT_LE(RelativeL2(got, want), numerics == Numerics::kFaithful ? kBf16 : kFloat32) << DTypeName(dtype);
    for (int r = 0; r < rows; r += 23) {
      for (int count : counts) {
        for (bool of_fewer : {packed, false}) {
          const std::vector<float> fewer =
              run(std::min(count, rows - r), x.data() + int64_t{r} * groups * k, of_fewer);
          EXPECT_EQ(
              std::memcmp(fewer.data(), got.data() + int64_t{r} * groups * n, fewer.size() * sizeof(float)),
              0)
              << count << " rows of " << n << "x" << k << (of_fewer ? " in bf16" : "");
        }
      }
    }
    device_->Clear();
  }
};

TEST_F(GroupedLinearCudaTest, EqualsTheReferenceAndIsPure) {
  std::mt19937 rng(4);
  for (DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
    for (const auto& [n, k] : {std::pair{128, 256}, {40, 256}, {48, 1024}, {400, 512}}) {
      for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
        CheckGroups(dtype, numerics, n, k, 70, {1, 7, 20, 40}, rng);
      }
    }
  }
}

// What racecheck can follow.
TEST_F(GroupedLinearCudaTest, LittleEqualsTheReferenceAndIsPure) {
  std::mt19937 rng(4);
  for (DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
    CheckGroups(dtype, Numerics::kFaithful, 40, 256, 21, {1, 20}, rng);
  }
  CheckGroups(DType::kF8E4M3, Numerics::kClean, 40, 256, 21, {1}, rng);
}

}  // namespace
}  // namespace foresight::linear_cuda_test
