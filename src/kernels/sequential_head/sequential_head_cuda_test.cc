#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cache_fixture.h"
#include "kernels/cuda/device_fixture.h"
#include "kernels/sequential_head/sequential_head.h"
#include "kernels/weight_fixture.h"

namespace foresight::sequential_head_cuda_test {
namespace {

constexpr double kTolerance = 1e-5;

struct Case {
  MarkovHeadType type;
  int vocabulary, dim, rank;
  bool has_confidence;
};
const Case kCases[] = {
    {MarkovHeadType::kVanilla, 301, 256, 64, true}, {MarkovHeadType::kVanilla, 301, 256, 64, false},
    {MarkovHeadType::kVanilla, 301, 256, 0, true},  {MarkovHeadType::kVanilla, 301, 64, 256, true},
    {MarkovHeadType::kVanilla, 77, 64, 352, false}, {MarkovHeadType::kVanilla, 77, 40, 12, true},
    {MarkovHeadType::kGated, 301, 256, 64, true},   {MarkovHeadType::kGated, 301, 256, 64, false},
    {MarkovHeadType::kRnn, 301, 256, 64, true},     {MarkovHeadType::kGated, 77, 40, 12, true},
    {MarkovHeadType::kRnn, 77, 40, 12, true}};

struct Outputs {
  std::vector<float> logits, confidence, state;
};

class SequentialHeadCudaTest : public OnDevice<testing::TestWithParam<Case>> {
 protected:
  KernelHost host_{1};
};

TEST_P(SequentialHeadCudaTest, EqualsTheDefinitionAndIsPure) {
  const Case& c = GetParam();
  std::mt19937 rng(1);
  std::vector<RandomMatrix> matrices;
  matrices.reserve(5);
  auto matrix = [&](int64_t rows, int64_t cols) {
    return matrices.emplace_back(DType::kBF16, rows, cols, rng).view;
  };
  SequentialHeadWeights host;
  host.type = c.type;
  if (c.rank > 0) {
    host.w1 = matrix(c.vocabulary, c.rank);
    host.w2 = matrix(c.vocabulary, c.rank);
    if (c.type != MarkovHeadType::kVanilla) {
      const bool gated = c.type == MarkovHeadType::kGated;
      host.proj = matrix(gated ? c.rank : 3 * c.rank, c.dim + (gated ? 1 : 2) * c.rank);
      const MatrixView bias = matrix(1, host.proj.rows);
      host.bias = {.dtype = DType::kBF16, .size = host.proj.rows, .data = bias.data};
    }
  }
  if (c.has_confidence) host.confidence = matrix(1, c.dim + c.rank);
  SequentialHeadWeights weights = host;
  for (MatrixView* view : {&weights.w1, &weights.w2, &weights.proj, &weights.confidence}) {
    if (*view) *view = device_->Upload(*view);
  }
  if (weights.bias) weights.bias = device_->Upload(weights.bias);

  const int rows = 11;
  std::vector<int32_t> previous(rows);
  for (int32_t& token : previous) token = static_cast<int32_t>(rng() % c.vocabulary);
  const std::vector<float> hidden = RandomRows(rows, c.dim, false, rng);
  const std::vector<float> logits = RandomRows(rows, c.vocabulary, false, rng);
  const std::vector<float> state = RandomRows(rows, c.rank, false, rng);
  const std::vector<float> confidence(rows, 0.25f);  // stays without a confidence head

  for (Numerics numerics : {Numerics::kClean, Numerics::kFaithful}) {
    Outputs want = {logits, confidence, state};
    RefKernels().sequential_head(host_.context(numerics), {.rows = rows,
                                                           .dim = c.dim,
                                                           .weights = &host,
                                                           .previous = previous.data(),
                                                           .hidden = hidden.data(),
                                                           .state = want.state.data(),
                                                           .logits = want.logits.data(),
                                                           .confidence = want.confidence.data()});
    auto run = [&](int first, int count, bool with_logits = true, bool with_confidence = true) {
      auto part = [&](const auto& all, int64_t width) {
        return device_->Upload(std::span(all.data() + first * width, static_cast<size_t>(count * width)));
      };
      SequentialHeadArgs args = {.rows = count,
                                 .dim = c.dim,
                                 .weights = &weights,
                                 .previous = part(previous, 1),
                                 .hidden = part(hidden, c.dim),
                                 .state = part(state, c.rank),
                                 .logits = part(logits, c.vocabulary),
                                 .confidence = part(confidence, 1)};
      SequentialHeadArgs asked = args;
      if (!with_logits) asked.logits = nullptr;
      if (!with_confidence) asked.confidence = nullptr;
      table_->sequential_head(device_->context(numerics), asked);
      return Outputs{device_->Download(args.logits, count * c.vocabulary),
                     device_->Download(args.confidence, count),
                     device_->Download(args.state, count * c.rank)};
    };
    const Outputs got = run(0, rows);
    EXPECT_LE(RelativeL2(got.logits, want.logits), kTolerance);
    EXPECT_LE(RelativeL2(got.confidence, want.confidence), kTolerance);
    if (c.rank > 0) {
      EXPECT_LE(RelativeL2(got.state, want.state), kTolerance);
    } else {
      EXPECT_EQ(got.logits, logits);
    }
    const Outputs confidences = run(0, rows, /*with_logits=*/false, true);
    EXPECT_EQ(confidences.confidence, got.confidence);
    EXPECT_EQ(confidences.logits, logits);
    EXPECT_EQ(confidences.state, state);
    const Outputs corrected = run(0, rows, true, /*with_confidence=*/false);
    EXPECT_EQ(corrected.confidence, confidence);
    EXPECT_EQ(corrected.logits, got.logits);
    EXPECT_EQ(corrected.state, got.state);
    for (int r = 0; r < rows; r += 3) {
      const Outputs alone = run(r, 1);
      const auto expect_same = [&](const std::vector<float>& row, const std::vector<float>& batch) {
        EXPECT_EQ(std::memcmp(row.data(), batch.data() + r * row.size(), row.size() * sizeof(float)), 0) << r;
      };
      expect_same(alone.logits, got.logits);
      expect_same(alone.confidence, got.confidence);
      expect_same(alone.state, got.state);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, SequentialHeadCudaTest, testing::ValuesIn(kCases));

}  // namespace
}  // namespace foresight::sequential_head_cuda_test
