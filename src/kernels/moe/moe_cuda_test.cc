#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/device_fixture.h"
#include "kernels/moe/moe.h"
#include "kernels/weight_fixture.h"

namespace foresight::moe_cuda_test {
namespace {

// Two products in a row with inputs split into two bf16 (2^-18), and between them an activation that
// multiplies two of them.
constexpr double kClean = 2e-5;
// Besides the last bits of bf16, a value in the activation may round to the next FP8.
constexpr double kFaithful = 2.5e-3;

class RouterCudaTest : public OnDevice<> {
 protected:
  struct Routing {
    std::vector<int32_t> ids;
    std::vector<float> weights;
  };
  // `args` has host pointers.
  Routing RunRef(RouterArgs args) {
    Routing r = Outputs(args);
    args.ids = r.ids.data();
    args.weights = r.weights.data();
    RefKernels().router(host_.context(Numerics::kFaithful), args);
    return r;
  }
  Routing RunCuda(RouterArgs args, int64_t tid2eid_rows) {
    Routing r = Outputs(args);
    const int64_t n = static_cast<int64_t>(r.ids.size());
    args.logits = device_->Upload(std::span(args.logits, static_cast<size_t>(args.rows) * args.num_experts));
    if (args.bias) args.bias = device_->Upload(args.bias);
    if (args.tid2eid != nullptr) {
      args.tid2eid = device_->Upload(
          std::span(args.tid2eid, static_cast<size_t>(tid2eid_rows) * args.experts_per_token));
    }
    if (args.tokens != nullptr)
      args.tokens = device_->Upload(std::span(args.tokens, static_cast<size_t>(args.rows)));
    if (args.forced_ids != nullptr) {
      args.forced_ids = device_->Upload(std::span(args.forced_ids, static_cast<size_t>(n)));
    }
    args.ids = device_->Allocate<int32_t>(n);
    args.weights = device_->Allocate<float>(n);
    table_->router(device_->context(Numerics::kFaithful), args);
    r.ids = device_->Download(args.ids, n);
    r.weights = device_->Download(args.weights, n);
    return r;
  }
  static Routing Outputs(const RouterArgs& args) {
    const size_t n = static_cast<size_t>(args.rows) * args.experts_per_token;
    return {std::vector<int32_t>(n), std::vector<float>(n)};
  }
  void ExpectEqual(const RouterArgs& args, int64_t tid2eid_rows = 0) {
    const Routing want = RunRef(args);
    const Routing got = RunCuda(args, tid2eid_rows);
    EXPECT_EQ(got.ids, want.ids);
    EXPECT_LE(RelativeL2(got.weights, want.weights), 1e-6);
  }

  KernelHost host_{1};
};

TEST_F(RouterCudaTest, SelectsTheDefinitionsExperts) {
  std::mt19937 rng(1);
  for (const auto& [e, k] : {std::pair{8, 4}, {256, 6}, {384, 8}, {1000, 6}, {1100, 6}, {40, 40}}) {
    const int rows = 33;
    std::vector<float> logits = RandomRows(rows, e, true, rng);  // bf16: many ties
    for (float& x : logits) x *= 8;                              // both branches of softplus
    const RandomMatrix bias(DType::kF32, 1, e, rng);
    RouterArgs args;
    args.rows = rows;
    args.num_experts = e;
    args.experts_per_token = k;
    args.scaling = 2.5f;
    args.logits = logits.data();
    ExpectEqual(args);
    args.bias = {.dtype = DType::kF32, .size = e, .data = bias.view.data};
    ExpectEqual(args);
    std::vector<float> equal(logits.size(), 0.5f);
    args.logits = equal.data();
    args.bias = {};
    ExpectEqual(args);
    std::vector<float> close(logits.size());  // alike but for their last bits
    for (float& x : close) x = 0.5f + 1e-6f * std::uniform_real_distribution<float>(-1, 1)(rng);
    args.logits = close.data();
    ExpectEqual(args);
    std::vector<float> wide = logits;  // where e^z is nothing, and where it is all
    for (float& x : wide) x *= 30;
    args.logits = wide.data();
    ExpectEqual(args);
  }
}

TEST_F(RouterCudaTest, TakesIdsFromTheTableAndFromTheCaller) {
  std::mt19937 rng(2);
  const int e = 16, k = 3, rows = 5, vocabulary = 7;
  const std::vector<float> logits = RandomRows(rows, e, false, rng);
  std::vector<int64_t> table(vocabulary * k);
  for (int64_t& id : table) id = rng() % e;
  std::vector<int32_t> tokens(rows), forced(rows * k);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % vocabulary);
  for (int32_t& id : forced) id = static_cast<int32_t>(rng() % e);
  RouterArgs args;
  args.rows = rows;
  args.num_experts = e;
  args.experts_per_token = k;
  args.logits = logits.data();
  args.tid2eid = table.data();
  args.tokens = tokens.data();
  ExpectEqual(args, vocabulary);
  args.forced_ids = forced.data();
  ExpectEqual(args, vocabulary);
}

// What is unusual about a layer.
enum class LayerKind { kUsual, kNoShared, kWideScales };

class MoeCudaTest : public OnDevice<> {
 protected:
  struct Layer {
    std::vector<RandomMatrix> weights;
    std::vector<ExpertWeights> experts;    // on the host
    std::vector<ExpertWeights> on_device;  // as the host writes it down
    MoeArgs args;                          // of the host
    MoeArgs device_args;
  };

  void Make(DType dtype, int num_experts, int slots, int dim, int intermediate, float limit,
            std::mt19937& rng, Layer& layer, LayerKind kind = LayerKind::kUsual) {
    layer.weights.reserve(3 * (num_experts + 1));
    auto expert = [&](DType type) {
      ExpertWeights w;
      for (MatrixView* view : {&w.w1, &w.w3, &w.w2}) {
        const bool down = view == &w.w2;
        RandomMatrix& matrix =
            layer.weights.emplace_back(type, down ? dim : intermediate, down ? intermediate : dim, rng);
        if (kind == LayerKind::kWideScales) {  // neighbours of one sum far apart, some beyond f16's range
          for (uint8_t& s : matrix.scales) s = static_cast<uint8_t>(122 - rng() % (rng() % 4 == 0 ? 45 : 8));
        }
        *view = matrix.view;
      }
      return w;
    };
    for (int e = 0; e < num_experts; ++e) layer.experts.push_back(expert(dtype));
    layer.args = {.dim = dim,
                  .intermediate = intermediate,
                  .experts_per_token = slots,
                  .swiglu_limit = limit,
                  .experts = layer.experts,
                  .expert_dtype = dtype,
                  .shared = kind == LayerKind::kNoShared ? ExpertWeights{} : expert(DType::kF8E4M3)};
    for (const ExpertWeights& w : layer.experts) layer.on_device.push_back(Upload(w));
    layer.device_args = layer.args;
    if (layer.args.HasShared()) layer.device_args.shared = Upload(layer.args.shared);
    layer.device_args.experts = {device_->Upload(layer.on_device), layer.on_device.size()};
  }
  ExpertWeights Upload(const ExpertWeights& w) {
    return {device_->Upload(w.w1), device_->Upload(w.w3), device_->Upload(w.w2)};
  }
  // What the definition gives for the same rows.
  std::vector<float> RunRef(Numerics numerics, const Layer& layer, int rows, const float* x,
                            const int32_t* ids, const float* weights) {
    std::vector<float> out(static_cast<size_t>(rows) * layer.args.dim);
    MoeArgs args = layer.args;
    args.rows = rows;
    args.x = x;
    args.ids = ids;
    args.weights = weights;
    args.out = out.data();
    RefKernels().moe(host_.context(numerics), args);
    return out;
  }

  std::vector<float> RunCuda(Numerics numerics, const Layer& layer, int rows, const float* x,
                             const int32_t* ids, const float* weights) {
    MoeArgs args = layer.device_args;
    const size_t pairs = static_cast<size_t>(rows) * args.experts_per_token;
    args.rows = rows;
    args.x = device_->Upload(std::span(x, static_cast<size_t>(rows) * args.dim));
    args.ids = device_->Upload(std::span(ids, pairs));
    args.weights = device_->Upload(std::span(weights, pairs));
    args.out = device_->Allocate<float>(int64_t{rows} * args.dim);
    table_->moe(device_->context(numerics), args);
    return device_->Download(args.out, int64_t{rows} * args.dim);
  }

  KernelHost host_{2};
};

struct MoeCase {
  DType dtype;
  int num_experts, slots, dim, intermediate;
  float limit;
  float scale;  // of x, for gates of about 1: where the activation bends, and some beyond the limit
  std::vector<int> rows;
  LayerKind kind = LayerKind::kUsual;
};

class MoeShapesCudaTest : public MoeCudaTest, public testing::WithParamInterface<MoeCase> {};

TEST_P(MoeShapesCudaTest, EqualsTheDefinitionAndIsPure) {
  const MoeCase& c = GetParam();
  std::mt19937 rng(3);
  Layer layer;
  Make(c.dtype, c.num_experts, c.slots, c.dim, c.intermediate, c.limit, rng, layer, c.kind);
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    for (int rows : c.rows) {
      std::vector<float> x = RandomRows(rows, c.dim, numerics == Numerics::kFaithful, rng);
      for (float& v : x) v *= c.scale;
      std::vector<int32_t> ids(rows * c.slots), order(c.num_experts);
      std::vector<float> weights(ids.size());
      for (int e = 0; e < c.num_experts; ++e) order[e] = e;
      for (int t = 0; t < rows; ++t) {
        std::shuffle(order.begin(), order.end(), rng);
        std::copy_n(order.begin(), c.slots, ids.begin() + t * c.slots);
      }
      for (float& w : weights) w = 0.1f + static_cast<float>(rng() % 100) * 0.01f;
      const std::vector<float> got = RunCuda(numerics, layer, rows, x.data(), ids.data(), weights.data());

      const std::vector<float> want = RunRef(numerics, layer, rows, x.data(), ids.data(), weights.data());
      EXPECT_LE(RelativeL2(got, want), numerics == Numerics::kFaithful ? kFaithful : kClean)
          << DTypeName(c.dtype) << " experts " << c.num_experts << " rows " << rows;

      for (int t : {0, rows / 2, rows - 1}) {
        const std::vector<float> alone = RunCuda(numerics, layer, 1, x.data() + t * c.dim,
                                                 ids.data() + t * c.slots, weights.data() + t * c.slots);
        EXPECT_EQ(std::memcmp(alone.data(), got.data() + t * c.dim, alone.size() * sizeof(float)), 0)
            << DTypeName(c.dtype) << " experts " << c.num_experts << " row " << t << " of " << rows;
      }
    }
  }
}

// Few and many rows per expert, so that every shape of tile gets its turn; short and long sums; blocks and
// scales that end anywhere.
INSTANTIATE_TEST_SUITE_P(
    Shapes, MoeShapesCudaTest,
    testing::Values(MoeCase{DType::kI8, 8, 4, 512, 512, 2, 0.25f, {1, 2, 7, 8, 9, 30, 64, 100}},
                    MoeCase{DType::kF8E4M3, 8, 4, 512, 512, 2, 0x1p-8f, {1, 2, 7, 9, 30, 64, 100}},
                    MoeCase{DType::kI8, 8, 4, 256, 128, 2, 0.25f, {1, 9, 30, 100}},
                    MoeCase{DType::kI8, 40, 6, 160, 96, 0, 0.25f, {1, 5, 33, 70}},
                    MoeCase{DType::kF8E4M3, 3, 2, 416, 288, 1, 0x1p-8f, {1, 6, 17, 65}},
                    MoeCase{DType::kI8, 300, 1, 512, 512, 0, 0.25f, {1, 8, 150}},
                    MoeCase{DType::kI8, 9, 2, 4608, 1024, 10, 0.06f, {1, 3, 12}},
                    MoeCase{DType::kI8, 12, 4, 512, 512, 10, 0.25f, {1, 5, 17, 40}, LayerKind::kWideScales},
                    MoeCase{DType::kI8, 12, 4, 1152, 384, 10, 0.25f, {1, 5, 17}, LayerKind::kNoShared},
                    MoeCase{DType::kI8, 6, 2, 160, 96, 10, 0.25f, {1, 20}, LayerKind::kNoShared},
                    MoeCase{DType::kI8, 9, 2, 512, 2560, 10, 0.25f, {1, 8, 20}},
                    MoeCase{DType::kF8E4M3, 9, 2, 2560, 1536, 10, 0x1p-10f, {1, 8, 20}}));

// As little as there can be of everything, for each kernel: what racecheck can follow, which looks at every
// access to shared memory.
struct LittleCase {
  const char* name;
  DType dtype;
  int dim, intermediate;
  int rows;
};

class MoeLittleCudaTest : public MoeCudaTest, public testing::WithParamInterface<LittleCase> {};

TEST_P(MoeLittleCudaTest, EqualsTheDefinition) {
  const LittleCase& c = GetParam();
  std::mt19937 rng(9);
  Layer layer;
  Make(c.dtype, 2, 1, c.dim, c.intermediate, 10, rng, layer);
  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    std::vector<float> x = RandomRows(c.rows, c.dim, true, rng);
    for (float& v : x) v *= c.dtype == DType::kI8 ? 0.25f : 0x1p-8f;
    std::vector<int32_t> ids(c.rows, 0);
    std::vector<float> weights(c.rows, 0.5f);
    if (c.rows > 2) ids[1] = 1;
    weights.back() = 1.5f;
    const std::vector<float> got = RunCuda(numerics, layer, c.rows, x.data(), ids.data(), weights.data());
    const std::vector<float> want = RunRef(numerics, layer, c.rows, x.data(), ids.data(), weights.data());
    EXPECT_LE(RelativeL2(got, want), numerics == Numerics::kFaithful ? kFaithful : kClean);
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, MoeLittleCudaTest,
                         testing::Values(LittleCase{"SlabsOfOneRow", DType::kI8, 128, 128, 1},
                                         LittleCase{"SlabsOfTwoRows", DType::kI8, 128, 128, 2},
                                         LittleCase{"Units", DType::kI8, 128, 128, 3},
                                         LittleCase{"UnitsAndBlocks", DType::kI8, 384, 256, 4},
                                         LittleCase{"Wide", DType::kI8, 128, 128, 20},
                                         LittleCase{"WideTiles", DType::kI8, 128, 128, 70},
                                         LittleCase{"Fp8Slabs", DType::kF8E4M3, 128, 128, 2},
                                         LittleCase{"Fp8Units", DType::kF8E4M3, 128, 128, 8},
                                         LittleCase{"Fp8Wide", DType::kF8E4M3, 128, 128, 70},
                                         LittleCase{"ByProduct", DType::kI8, 160, 96, 9},
                                         LittleCase{"ByProductOfManyRows", DType::kI8, 160, 96, 70}),
                         [](const auto& info) { return std::string(info.param.name); });

// Every row has the same experts, and the same values, so that each row's outputs are to be equal.
TEST_F(MoeCudaTest, RowsOfOneExpertAreEqual) {
  std::mt19937 rng(5);
  for (DType dtype : {DType::kI8, DType::kF8E4M3}) {
    Layer layer;
    const int dim = 2304, slots = 3;  // sums of more blocks than warps multiply at once
    Make(dtype, 16, slots, dim, 1152, 10, rng, layer);
    const std::vector<float> x = RandomRows(1, dim, true, rng);
    const std::vector<float> alone =
        RunCuda(Numerics::kFaithful, layer, 1, x.data(), std::vector<int32_t>{11, 2, 7}.data(),
                std::vector<float>{0.5f, 0.25f, 1.5f}.data());
    for (int rows : {2, 8, 9, 16, 33, 64, 129}) {
      std::vector<float> all;
      std::vector<int32_t> ids;
      std::vector<float> weights;
      for (int t = 0; t < rows; ++t) {
        all.insert(all.end(), x.begin(), x.end());
        ids.insert(ids.end(), {11, 2, 7});
        weights.insert(weights.end(), {0.5f, 0.25f, 1.5f});
      }
      const std::vector<float> got =
          RunCuda(Numerics::kFaithful, layer, rows, all.data(), ids.data(), weights.data());
      for (int t = 0; t < rows; ++t) {
        ASSERT_EQ(std::memcmp(alone.data(), got.data() + t * dim, alone.size() * sizeof(float)), 0)
            << DTypeName(dtype) << " row " << t << " of " << rows;
      }
    }
    device_->Clear();
  }
}

struct RoutedCase {
  const char* name;
  DType dtype;
  int num_experts, slots;
  std::vector<int> rows;
};

class MoeRoutingCudaTest : public MoeCudaTest, public testing::WithParamInterface<RoutedCase> {};

// Experts found by the call itself are those of the router, to the bit, and so is the output.
TEST_P(MoeRoutingCudaTest, RoutesAsTheRouterDoes) {
  const auto& [name, dtype, num_experts, slots, all_rows] = GetParam();
  std::mt19937 rng(8);
  const int dim = 256;
  Layer layer;
  Make(dtype, num_experts, slots, dim, 128, 10, rng, layer);
  const RandomMatrix bias(DType::kF32, 1, num_experts, rng);
  for (int rows : all_rows) {
    const int64_t pairs = int64_t{rows} * slots;
    MoeArgs args = layer.device_args;
    args.rows = rows;
    args.x = device_->Upload(RandomRows(rows, dim, true, rng));
    RouterArgs router;
    router.rows = rows;
    router.num_experts = num_experts;
    router.experts_per_token = slots;
    router.scaling = 2.5f;
    router.logits = device_->Upload(RandomRows(rows, num_experts, true, rng));
    router.bias = device_->Upload(VectorView{DType::kF32, num_experts, bias.view.data});
    std::vector<int32_t> ids[3];
    std::vector<float> weights[3], out[3];
    for (int i = 0; i < 3; ++i) {  // apart, then in one call, twice
      args.ids = router.ids = device_->Allocate<int32_t>(pairs);
      args.weights = router.weights = device_->Allocate<float>(pairs);
      args.out = device_->Allocate<float>(int64_t{rows} * dim);
      args.router = i == 0 ? nullptr : &router;
      const KernelContext ctx = device_->context(Numerics::kFaithful);
      if (i == 0) table_->router(ctx, router);
      table_->moe(ctx, args);
      ids[i] = device_->Download(router.ids, pairs);
      weights[i] = device_->Download(router.weights, pairs);
      out[i] = device_->Download(args.out, int64_t{rows} * dim);
    }
    for (int i = 1; i < 3; ++i) {
      EXPECT_EQ(ids[i], ids[0]) << "rows " << rows;
      EXPECT_EQ(weights[i], weights[0]) << "rows " << rows;
      EXPECT_EQ(out[i], out[0]) << "rows " << rows;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, MoeRoutingCudaTest,
    testing::Values(RoutedCase{"ManyRows", DType::kI8, 24, 6, {1, 2, 5, 8, 33, 200, 1024, 1025}},
                    RoutedCase{"FewExperts", DType::kI8, 8, 4, {1, 3, 4, 5, 8, 9}},
                    RoutedCase{"Fp8", DType::kF8E4M3, 8, 4, {4, 7, 8, 9}},
                    RoutedCase{"ManyExperts", DType::kF8E4M3, 300, 1, {9, 17, 32, 33}},
                    RoutedCase{"Little", DType::kI8, 2, 1, {1, 3, 9}}),  // for racecheck
    [](const auto& info) { return std::string(info.param.name); });

// Thread blocks hand activations and sums to each other: the bits may not depend on who comes first.
TEST_F(MoeCudaTest, RepeatsItself) {
  std::mt19937 rng(6);
  Layer layer;
  const int dim = 2304, slots = 6;
  Make(DType::kI8, 24, slots, dim, 1152, 10, rng, layer);
  for (int rows : {1, 8, 24, 72}) {
    const std::vector<float> x = RandomRows(rows, dim, true, rng);
    std::vector<int32_t> ids;
    for (int t = 0; t < rows; ++t) {
      for (int k = 0; k < slots; ++k) ids.push_back((t * 5 + k * 4) % 24);
    }
    const std::vector<float> weights(ids.size(), 0.25f);
    MoeArgs args = layer.device_args;
    args.rows = rows;
    args.x = device_->Upload(x);
    args.ids = device_->Upload(ids);
    args.weights = device_->Upload(weights);
    constexpr int kTimes = 40;
    float* out = device_->Allocate<float>(int64_t{kTimes} * rows * dim);
    for (int i = 0; i < kTimes; ++i) {
      args.out = out + int64_t{i} * rows * dim;
      table_->moe(device_->context(Numerics::kFaithful), args);
    }
    const std::vector<float> got = device_->Download(out, int64_t{kTimes} * rows * dim);
    for (int i = 1; i < kTimes; ++i) {
      ASSERT_EQ(std::memcmp(got.data(), got.data() + int64_t{i} * rows * dim, sizeof(float) * rows * dim), 0)
          << i << ", rows " << rows;
    }
  }
}

// Experts whose sums' leading bits cancel, under scales that are far apart, so that bits show in what order
// the sums were made. Blocks of K come in pairs of opposite signs, but for one code in eight; activations do
// because rows of w1 and w3 do.
class MoeCancellingCudaTest : public MoeCudaTest, public testing::WithParamInterface<DType> {
 protected:
  static constexpr int kDim = 1152, kIntermediate = 384;

  void MakeCancelling(int num_experts, int slots, std::mt19937& rng, Layer& layer) {
    Make(GetParam(), num_experts, slots, kDim, kIntermediate, 0, rng, layer, LayerKind::kNoShared);
    const bool fp8 = GetParam() == DType::kF8E4M3;
    for (RandomMatrix& w : layer.weights) {
      const int64_t bytes = w.view.row_bytes(), block = fp8 ? 128 : 64;
      const int64_t scales = w.view.scale_cols(), block_scales = fp8 ? 1 : 4;
      for (int64_t i = 0; i < std::ssize(w.scales); ++i) {
        w.scales[i] = static_cast<uint8_t>((fp8 ? 112 : 120) - rng() % 18);
        if (i % scales / block_scales % 2 == 1) w.scales[i] = w.scales[i - block_scales];
      }
      for (int64_t i = 0; i < std::ssize(w.data); ++i) {
        const bool repeats = w.view.cols == kDim && i / bytes % 256 >= 128;
        if (repeats) {
          w.data[i] = w.data[i - 128 * bytes];
        } else if (i % bytes / block % 2 == 1) {
          w.data[i] = w.data[i - block] ^ (rng() % 4 == 0 ? (fp8 ? 0x81 : 0x89) : (fp8 ? 0x80 : 0x88));
          if (fp8 && (w.data[i] & 0x7f) == 0x7f) w.data[i] ^= 1;  // no NaN
        }
      }
    }
    device_->Clear();
    for (size_t e = 0; e < layer.experts.size(); ++e) layer.on_device[e] = Upload(layer.experts[e]);
    layer.device_args.experts = {device_->Upload(layer.on_device), layer.on_device.size()};
    layer.device_args.shared = {};
  }
  static std::vector<float> CancellingRows(int rows, std::mt19937& rng) {
    std::vector<float> x = RandomRows(rows, kDim, true, rng);
    for (size_t i = 0; i < x.size(); ++i) {
      if (i % kDim / 128 % 2 == 1) x[i] = x[i - 128];
    }
    return x;
  }
  std::vector<float> EachAlone(const Layer& layer, const std::vector<float>& x,
                               const std::vector<int32_t>& ids, const std::vector<float>& weights) {
    const int slots = layer.args.experts_per_token;
    std::vector<float> alone;
    for (size_t t = 0; t * kDim < x.size(); ++t) {
      const std::vector<float> y =
          RunCuda(Numerics::kFaithful, layer, 1, &x[t * kDim], &ids[t * slots], &weights[t * slots]);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    return alone;
  }
};

TEST_P(MoeCancellingCudaTest, RowsAreEqualInEveryCompany) {
  std::mt19937 rng(8);
  Layer layer;
  const int slots = 2, max_rows = 260;
  MakeCancelling(6, slots, rng, layer);
  const std::vector<float> x = CancellingRows(max_rows, rng);
  std::vector<int32_t> ids;
  std::vector<float> weights;
  for (int t = 0; t < max_rows; ++t) {  // most rows of one expert
    ids.insert(ids.end(), {3, t % 4 == 0 ? 1 : t % 37 == 1 ? 0 : 4});
    weights.insert(weights.end(), {0.25f + 0.01f * static_cast<float>(t % 7), 0.5f});
  }
  const std::vector<float> alone = EachAlone(layer, x, ids, weights);
  for (int rows : {2, 8, 9, 13, 15, 16, 17, 24, 25, 32, 33, 47, 64, 65, 95, 97, 128, 129, 260}) {
    const std::vector<float> got =
        RunCuda(Numerics::kFaithful, layer, rows, x.data(), ids.data(), weights.data());
    for (int t = 0; t < rows; ++t) {
      ASSERT_EQ(std::memcmp(&alone[t * kDim], &got[t * kDim], kDim * sizeof(float)), 0)
          << "row " << t << " of " << rows;
    }
  }
}

// Experts without rows and with any number of them, among few experts and many.
TEST_P(MoeCancellingCudaTest, ExpertsMayHaveAnyNumberOfRows) {
  std::mt19937 rng(9);
  std::vector<int32_t> ids;
  for (const auto& [expert, rows] :
       {std::pair{1, 1}, {2, 63}, {3, 64}, {4, 65}, {5, 200}, {6, 7}, {7, 8}, {8, 9}, {9, 129}}) {
    ids.insert(ids.end(), rows, expert);
  }
  std::shuffle(ids.begin(), ids.end(), rng);
  const int rows = static_cast<int>(ids.size());
  const std::vector<float> x = CancellingRows(rows, rng);
  std::vector<float> weights;
  for (int t = 0; t < rows; ++t) weights.push_back(0.1f + 0.01f * static_cast<float>(t % 100));
  for (int num_experts : {10, 45}) {
    Layer layer;
    MakeCancelling(num_experts, 1, rng, layer);
    const std::vector<float> alone = EachAlone(layer, x, ids, weights);
    const std::vector<float> got =
        RunCuda(Numerics::kFaithful, layer, rows, x.data(), ids.data(), weights.data());
    for (int t = 0; t < rows; ++t) {
      ASSERT_EQ(std::memcmp(&alone[t * kDim], &got[t * kDim], kDim * sizeof(float)), 0)
          << "row " << t << " of expert " << ids[t] << " of " << num_experts;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, MoeCancellingCudaTest, testing::Values(DType::kI8, DType::kF8E4M3),
                         [](const auto& info) { return info.param == DType::kI8 ? "Mxfp4" : "Fp8"; });

// One and two rows have a kernel of their own: steps on both sides of the border, with odd numbers of blocks.
TEST_F(MoeCudaTest, FewRowsAreThoseOfOneRow) {
  std::mt19937 rng(11);
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    for (const LayerKind kind : {LayerKind::kUsual, LayerKind::kNoShared}) {
      Layer layer;
      const int experts = 12, slots = 4, dim = 1152, most = 9;
      Make(dtype, experts, slots, dim, 384, 10, rng, layer, kind);
      for (const Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
        std::vector<float> x = RandomRows(most, dim, numerics == Numerics::kFaithful, rng);
        for (float& v : x) v *= dtype == DType::kI8 ? 0.25f : 0x1p-8f;
        std::vector<int32_t> ids;
        std::vector<float> weights;
        for (int t = 0; t < most; ++t) {
          for (int slot = 0; slot < slots; ++slot) {
            ids.push_back((t * 5 + slot * 3) % experts);
            weights.push_back(0.2f + 0.1f * static_cast<float>(slot));
          }
        }
        const std::vector<float> want = RunRef(numerics, layer, most, x.data(), ids.data(), weights.data());
        std::vector<float> alone;
        for (int t = 0; t < most; ++t) {
          const std::vector<float> y =
              RunCuda(numerics, layer, 1, &x[t * dim], &ids[t * slots], &weights[t * slots]);
          alone.insert(alone.end(), y.begin(), y.end());
        }
        EXPECT_LE(RelativeL2(alone, want), numerics == Numerics::kFaithful ? kFaithful : kClean);
        for (int rows : {2, 3, 4, 5, 9}) {
          const std::vector<float> got = RunCuda(numerics, layer, rows, x.data(), ids.data(), weights.data());
          EXPECT_EQ(std::memcmp(got.data(), alone.data(), got.size() * sizeof(float)), 0)
              << DTypeName(dtype) << " rows " << rows;
        }
      }
      device_->Clear();
    }
  }
}

// Few rows of few experts: more pairs than the streaming kernel takes, and few enough to be planned by a
// warp.
TEST_F(MoeCudaTest, FewPairsOfFewExpertsArePure) {
  std::mt19937 rng(9);
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    Layer layer;
    const int experts = 4, slots = 2, dim = 256;
    Make(dtype, experts, slots, dim, 128, 10, rng, layer);
    for (int rows = 7; rows <= 17; ++rows) {
      const std::vector<float> x = RandomRows(rows, dim, true, rng);
      std::vector<int32_t> ids;
      std::vector<float> weights;
      for (int t = 0; t < rows; ++t) {
        const auto first = static_cast<int32_t>(rng() % experts);
        ids.push_back(first);
        ids.push_back(static_cast<int32_t>((first + 1 + rng() % (experts - 1)) % experts));
        weights.push_back(0.7f);
        weights.push_back(0.3f);
      }
      const std::vector<float> got =
          RunCuda(Numerics::kFaithful, layer, rows, x.data(), ids.data(), weights.data());
      for (int t = 0; t < rows; ++t) {
        const std::vector<float> alone = RunCuda(Numerics::kFaithful, layer, 1, x.data() + t * dim,
                                                 ids.data() + t * slots, weights.data() + t * slots);
        EXPECT_EQ(std::memcmp(alone.data(), got.data() + t * dim, alone.size() * sizeof(float)), 0)
            << rows << " rows, row " << t;
      }
    }
  }
}

// More rows than one piece, all of one expert.
TEST_F(MoeCudaTest, LongStepsArePure) {
  std::mt19937 rng(4);
  for (int dim : {64, 128}) {
    Layer layer;
    const int slots = 1, rows = 2050;
    Make(DType::kI8, 5, slots, dim, dim == 64 ? 32 : 128, 10, rng, layer);
    const std::vector<float> x = RandomRows(rows, dim, true, rng);
    const std::vector<int32_t> ids(rows, 3);
    const std::vector<float> weights(rows, 0.5f);
    const std::vector<float> got =
        RunCuda(Numerics::kFaithful, layer, rows, x.data(), ids.data(), weights.data());
    for (int t : {0, 1023, 1024, 2049}) {
      const std::vector<float> alone =
          RunCuda(Numerics::kFaithful, layer, 1, x.data() + t * dim, ids.data(), weights.data());
      EXPECT_EQ(std::memcmp(alone.data(), got.data() + t * dim, alone.size() * sizeof(float)), 0) << t;
    }
  }
}

}  // namespace
}  // namespace foresight::moe_cuda_test
