#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/cuda/device_fixture.h"
#include "kernels/sampling/logit_margins.h"

namespace foresight::logit_margins_cuda_test {
namespace {

constexpr float kInf = INFINITY;

TEST(LogitMargins, AreDistancesOfTheTwoLargest) {
  EXPECT_EQ(LogitMargin(std::vector<float>{1, 4, 2.5f}), 1.5f);
  EXPECT_EQ(LogitMargin(std::vector<float>{4, 4, 2}), 0);
  EXPECT_EQ(LogitMargin(std::vector<float>{-3, -kInf, -5}), 2);
  EXPECT_EQ(LogitMargin(std::vector<float>{-3, -kInf}), kLogitMarginMax);
  EXPECT_EQ(LogitMargin(std::vector<float>{7}), kLogitMarginMax);
  EXPECT_EQ(LogitMargin(std::vector<float>{0, 1000}), kLogitMarginMax);
}

class LogitMarginsCuda : public OnDevice<> {};

TEST_F(LogitMarginsCuda, EqualTheDefinition) {
  std::mt19937_64 rng(3);
  for (const int vocab_size : {1, 2, 31, 512, 513, 8192, 129280}) {
    const int rows = vocab_size > 100'000 ? 3 : 20;
    std::vector<float> logits(static_cast<size_t>(rows) * vocab_size);
    std::normal_distribution<float> normal(0, 3);
    for (int r = 0; r < rows; ++r) {
      const bool rounds = r % 3 == 1;                   // equal ones
      const float masked = r % 4 == 2 ? 0.999f : 0.0f;  // nearly all
      for (int v = 0; v < vocab_size; ++v) {
        float& x = logits[static_cast<size_t>(r) * vocab_size + v];
        x = rounds ? std::round(normal(rng)) : normal(rng);
        if (std::uniform_real_distribution<float>()(rng) < masked) x = -kInf;
      }
    }
    std::vector<float> want(rows);
    LogitMarginsRef({},
                    {.rows = rows, .vocab_size = vocab_size, .logits = logits.data(), .out = want.data()});
    device_->Clear();
    float* const out = device_->Allocate<float>(rows);
    table_->logit_margins(
        device_->context(Numerics::kFaithful),
        {.rows = rows, .vocab_size = vocab_size, .logits = device_->Upload(logits), .out = out});
    EXPECT_EQ(device_->Download(out, rows), want) << vocab_size;
  }
}

}  // namespace
}  // namespace foresight::logit_margins_cuda_test
