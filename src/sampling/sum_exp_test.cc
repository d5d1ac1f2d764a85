#include "sampling/sum_exp.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace foresight {
namespace {

TEST(SumExp, EqualsTheSumOfExponentials) {
  std::mt19937 rng(1);
  for (size_t size : {0, 1, 7, 8, 9, 15, 16, 17, 31, 1000, 8192}) {
    for (double scale : {1e-9, 0.3, 5.0, 60.0, 500.0}) {
      std::exponential_distribution<double> values(1 / scale);
      std::vector<double> x(size);
      long double want = 0;
      for (double& v : x) {
        v = -values(rng);
        want += std::exp(static_cast<long double>(v));
      }
      EXPECT_NEAR(SumExp(x), static_cast<double>(want), 1e-14 * static_cast<double>(want))
          << size << " " << scale;
    }
  }
}

TEST(SumExp, EachValueIsExact) {
  for (double x = 0; x > -700; x -= 0.37) {
    const double one[] = {x};
    EXPECT_NEAR(SumExp(one), std::exp(x), 4e-16 * std::exp(x)) << x;
  }
}

TEST(SumExp, WhatIsFarBelowAddsNothing) {
  const double x[] = {0, -INFINITY, -1e308, -745, -709};
  EXPECT_EQ(SumExp(x), 1);
}

}  // namespace
}  // namespace foresight
