#include "speculative/confidence_correction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace foresight {
namespace {

std::vector<float> Corrected(ConfidenceCorrection& correction, RequestId id, std::vector<float> confidences) {
  correction.BeginStep();
  correction.Apply(id, confidences);
  return confidences;
}

TEST(ConfidenceCorrection, FindsWhatOutcomesSay) {
  ConfidenceCorrection correction(2, 2);
  const RequestId id{.slot = 0, .generation = 1};
  EXPECT_EQ(Corrected(correction, id, {.8f, .6f}), (std::vector<float>{.8f, .6f}));
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform;
  const float truth[] = {.4f, .9f};
  for (int round = 0; round < 5000; ++round) {
    int accepted = 0;
    while (accepted < 2 && uniform(random) < truth[accepted]) ++accepted;
    correction.BeginStep();
    correction.Learn(id, std::vector<float>{.8f, .6f}, 2, accepted);
  }
  const std::vector<float> corrected = Corrected(correction, id, {.8f, .6f});
  EXPECT_NEAR(corrected[0], .4f, .1f);
  EXPECT_NEAR(corrected[1], .9f, .1f);
}

TEST(ConfidenceCorrection, TellsRequestsApart) {
  ConfidenceCorrection correction(2, 1);
  const RequestId easy{.slot = 0, .generation = 1};
  const RequestId hard{.slot = 1, .generation = 1};
  for (int round = 0; round < 500; ++round) {
    correction.BeginStep();
    correction.Learn(easy, std::vector<float>{.5f}, 1, round % 10 != 0);
    correction.Learn(hard, std::vector<float>{.5f}, 1, round % 10 == 0);
  }
  EXPECT_GT(Corrected(correction, easy, {.5f})[0], .75f);
  EXPECT_LT(Corrected(correction, hard, {.5f})[0], .25f);
  EXPECT_NEAR(Corrected(correction, {.slot = 1, .generation = 2}, {.5f})[0], .5f, .1f);  // a new tenant
  EXPECT_LE(Corrected(correction, easy, {1})[0], 1);
}

TEST(ConfidenceCorrection, GivesTheHopelessAnotherTry) {
  ConfidenceCorrection correction(1, 1);
  for (int round = 0; round < 1000; ++round) correction.Learn({}, std::vector<float>{.9f}, 1, 0);
  const float low = Corrected(correction, {}, {.9f})[0];
  EXPECT_LT(low, .1f);
  EXPECT_GT(low, 0);
  for (int round = 0; round < 5000; ++round) correction.Learn({}, std::vector<float>{.9f}, 0, 0);
  EXPECT_GT(Corrected(correction, {}, {.9f})[0], .8f);
}

}  // namespace
}  // namespace foresight
