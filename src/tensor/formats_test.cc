#include "tensor/formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace foresight {
namespace {

TEST(Formats, E4M3RoundTripsEveryCode) {
  for (int b = 0; b < 256; ++b) {
    const float x = E4M3ToFloat(static_cast<uint8_t>(b));
    if ((b & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(x));
    } else {
      EXPECT_EQ(FloatToE4M3(x), b) << x;
    }
  }
  EXPECT_EQ(E4M3ToFloat(0x7e), 448.f);
  EXPECT_EQ(E4M3ToFloat(0x01), std::ldexp(1.f, -9));
}

TEST(Formats, E4M3RoundsToNearestEvenEverywhere) {
  for (int b = 0; b < 0x7e; ++b) {
    const float lo = E4M3ToFloat(static_cast<uint8_t>(b));
    const float hi = E4M3ToFloat(static_cast<uint8_t>(b + 1));
    const float mid = (lo + hi) / 2;
    EXPECT_EQ(FloatToE4M3(mid), b % 2 == 0 ? b : b + 1) << mid;
    EXPECT_EQ(FloatToE4M3(std::nextafter(mid, 0.f)), b);
    EXPECT_EQ(FloatToE4M3(std::nextafter(mid, 500.f)), b + 1);
    EXPECT_EQ(FloatToE4M3(-mid), 0x80 | (b % 2 == 0 ? b : b + 1));
  }
  EXPECT_EQ(FloatToE4M3(1e9f), 0x7e);
}

TEST(Formats, E2M1TiesGoToTheEvenCode) {
  const std::vector<std::pair<float, float>> cases = {{.25f, 0},   {.75f, 1}, {1.25f, 1}, {1.75f, 2},
                                                      {2.5f, 2},   {3.5f, 4}, {5, 4},     {5.01f, 6},
                                                      {-.75f, -1}, {9, 6}};
  for (auto [x, want] : cases) EXPECT_EQ(E2M1ToFloat(FloatToE2M1(x)), want) << x;
  for (uint8_t c = 0; c < 16; ++c) EXPECT_EQ(FloatToE2M1(E2M1ToFloat(c)), c);
}

TEST(Formats, E8M0IsExactAtBothEnds) {
  EXPECT_EQ(E8M0ToFloat(0), std::ldexp(1.f, -127));
  EXPECT_EQ(E8M0ToFloat(1), std::ldexp(1.f, -126));
  EXPECT_EQ(E8M0ToFloat(127), 1.f);
  EXPECT_EQ(E8M0ToFloat(254), std::ldexp(1.f, 127));
  EXPECT_TRUE(std::isnan(E8M0ToFloat(255)));
}

// Model spec, appendix A.
TEST(Formats, ActQuantScalesMatchTheSpecification) {
  const std::vector<std::pair<float, int>> cases = {{0, -22},    {1e-4f, -22},     {1.f, -8},
                                                    {1.75f, -8}, {1.7500001f, -7}, {3.3f, -7},
                                                    {3.5f, -7},  {448.f, 0},       {449.f, 1}};
  for (auto [amax, log2] : cases) EXPECT_EQ(ActQuantScale(amax) - 127, log2) << amax;
  std::vector<float> x = {3.3f, -.77f, .01f, .3f};
  ActQuantRoundTrip(x.data(), 4, 4);
  EXPECT_EQ(x, (std::vector<float>{3.25f, -.75f, .009765625f, .3125f}));
  const std::vector<std::pair<float, int>> fp4 = {{6.f, 0}, {6.1f, 1}, {3.f, -1}, {1.f, -2}, {12.f, 1}};
  for (auto [amax, log2] : fp4) EXPECT_EQ(Fp4QuantScale(amax) - 127, log2) << amax;
}

TEST(Formats, HadamardIsOrthogonalAndSymmetric) {
  std::vector<float> e0(128, 0.f), e1(128, 0.f);
  e0[0] = e1[1] = 1;
  Hadamard(e0.data(), 128);
  Hadamard(e1.data(), 128);
  for (int i = 0; i < 128; ++i) {
    EXPECT_FLOAT_EQ(e0[i], 0.088388348f);
    EXPECT_FLOAT_EQ(e1[i], i % 2 == 0 ? 0.088388348f : -0.088388348f);
  }
  Hadamard(e1.data(), 128);
  for (int i = 0; i < 128; ++i) EXPECT_NEAR(e1[i], i == 1, 1e-6);
}

TEST(Formats, Bf16RoundsToNearestEven) {
  EXPECT_EQ(RoundBf16(1.0f + 1.0f / 256), 1.0f);
  EXPECT_EQ(RoundBf16(1.0f + 3.0f / 256), 1.0f + 4.0f / 256);
  EXPECT_TRUE(std::isnan(RoundBf16(std::nanf(""))));
  EXPECT_TRUE(std::isinf(RoundBf16(3.4e38f)));
}

}  // namespace
}  // namespace foresight
