#include "model/rope.h"

#include <gtest/gtest.h>

namespace foresight {
namespace {

// Check values of model spec 1.3.
TEST(Rope, YarnFrequenciesOfTheReleasedModels) {
  ModelConfig config;
  const std::vector<float> f = CompressedRopeFrequencies(config);
  ASSERT_EQ(f.size(), 32u);
  EXPECT_FLOAT_EQ(f[0], 1.0f);
  EXPECT_NEAR(f[1], 0.68765602, 1e-7);
  EXPECT_NEAR(f[15], 3.6355386e-3, 1e-9);
  EXPECT_NEAR(f[16], 2.265625e-3, 1e-9);
  EXPECT_NEAR(f[17], 1.3968013e-3, 1e-9);
  EXPECT_NEAR(f[20], 2.9697778e-4, 1e-10);
  EXPECT_NEAR(f[24], 1.953125e-5, 1e-11);
  EXPECT_NEAR(f[25], 5.3723127e-6, 1e-12);
  EXPECT_NEAR(f[31], 5.6805290e-7, 1e-13);
}

TEST(Rope, WindowFrequenciesArePlain) {
  ModelConfig config;
  const std::vector<float> f = WindowRopeFrequencies(config);
  EXPECT_FLOAT_EQ(f[0], 1.0f);
  EXPECT_NEAR(f[16], 1e-2, 1e-9);
}

}  // namespace
}  // namespace foresight
