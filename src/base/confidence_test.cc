#include "base/confidence.h"

#include <gtest/gtest.h>

#include <random>

namespace foresight {
namespace {

TEST(SteadyExp, IsTheExponential) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 100000; ++i) {
    const double x = std::uniform_real_distribution<double>(-700, 700)(rng) / (i % 3 == 0 ? 1000 : 1);
    const double want = std::exp(x);
    ASSERT_NEAR(SteadyExp(x), want, want * 1e-15) << x;
  }
  EXPECT_EQ(SteadyExp(0), 1);
}

TEST(ConfidenceScale, IsASigmoid) {
  const ConfidenceScale scale{.temperature = 2, .shift = -1, .margin_weight = 3};
  EXPECT_NEAR(scale.Confidence({.logit = 2, .margin = 4}), 1 / (1 + std::exp(-6.0)), 1e-15);
  EXPECT_EQ(static_cast<float>(scale.Confidence({.logit = -1e30f})), 0);
  EXPECT_EQ(scale.Confidence({.logit = INFINITY}), 1);
  EXPECT_TRUE(std::isnan(scale.Confidence({.logit = NAN})));
}

}  // namespace
}  // namespace foresight
