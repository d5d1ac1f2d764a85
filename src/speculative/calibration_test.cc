#include "speculative/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "speculative/calibration_fit.h"
#include "speculative/file_damage.h"

namespace foresight {
namespace {

std::vector<DraftEvidence> Logits(const std::vector<float>& logits) {
  std::vector<DraftEvidence> evidence;
  for (const float logit : logits) evidence.push_back({.logit = logit});
  return evidence;
}

// dspark.md 4.3.
CalibrationRounds TwoLevels() {
  CalibrationRounds rounds(1);
  for (int n = 0; n < 100; ++n) {
    rounds.Add(Logits({2}), n < 70 ? 1 : 0);
    rounds.Add(Logits({-2}), n < 30 ? 1 : 0);
  }
  return rounds;
}

TEST(FitScales, FindsTheGridPointNextToTheOptimum) {
  const CalibrationRounds rounds = TwoLevels();
  const auto ece = [&](double temperature) {
    return MeasureCalibration(rounds, std::vector<ConfidenceScale>{{.temperature = temperature}}, kFitBins)[0]
        .ece;
  };
  EXPECT_NEAR(ece(1), 0.1808, 5e-5);
  EXPECT_NEAR(ece(2 / std::log(7.0 / 3)), 0, 1e-9);
  EXPECT_NEAR(ece(2.2387), 0.0096, 5e-5);
  EXPECT_NEAR(ece(2.5119), 0.0108, 5e-5);
  const std::vector<ConfidenceScale> fitted = FitScales(rounds);
  ASSERT_EQ(fitted.size(), 1u);
  EXPECT_NEAR(fitted[0].temperature, 2.2387, 5e-5);
  EXPECT_NEAR(fitted[0].shift, 0, 1e-6);  // as many are accepted as not
}

TEST(FitScales, TiesStayAtOne) {
  CalibrationRounds rounds(2);
  for (int n = 0; n < 10; ++n) rounds.Add(Logits({0}), n % 2);  // sigmoid(0 / T) = 1/2 for every T
  for (const ConfidenceScale& scale : FitScales(rounds)) {      // the second has no rounds
    EXPECT_EQ(scale.temperature, 1);
    EXPECT_EQ(scale.shift, 0);
  }
}

// Calibrated on one half of 40,000 rounds and judged on the other. A draft is accepted with the probability
// of a normal logit around `mean`, of which logit_of(k, x) is what the head says at position k.
template <typename LogitOf>
RegimeCalibration CalibratedOnNormals(int positions, double mean, uint64_t seed, SamplingRegime regime,
                                      LogitOf logit_of) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(mean, 1);
  CalibrationRounds halves[] = {CalibrationRounds(positions), CalibrationRounds(positions)};
  for (int n = 0; n < 40'000; ++n) {
    std::vector<float> logits;
    std::vector<double> acceptance;
    for (int k = 0; k < positions; ++k) {
      const double x = normal(random);
      logits.push_back(static_cast<float>(logit_of(k, x)));
      acceptance.push_back(1 / (1 + std::exp(-x)));
    }
    halves[n % 2].Add(Logits(logits), acceptance);
  }
  return Calibrate(regime, halves[0], halves[1], "normal");
}

// Each position's confidences are too sure by a factor of its own; the fit finds all of them although later
// positions are judged by survivals.
TEST(FitScales, UndoesOverconfidencePositionByPosition) {
  const std::vector<double> truth = {std::pow(10, 0.25), 1, std::pow(10, -0.3)};
  const RegimeCalibration fitted = CalibratedOnNormals(3, /*mean=*/0.5, /*seed=*/1, SamplingRegime::kUnit,
                                                       [&](int k, double x) { return x * truth[k]; });
  for (int k = 0; k < 3; ++k) {
    SCOPED_TRACE(k);
    EXPECT_NEAR(std::log10(fitted.scales[k].temperature), std::log10(truth[k]), 0.0501);
    EXPECT_NEAR(fitted.scales[k].shift, 0, 0.1);
    EXPECT_LT(fitted.after[k].ece, 0.01);
    EXPECT_NEAR(fitted.after[k].mean_predicted, fitted.after[k].mean_observed, 0.01);
    EXPECT_GT(fitted.after[k].auroc, 0.65);
    EXPECT_GE(fitted.after[k].auroc_best, fitted.after[k].auroc);
    EXPECT_LT(fitted.after[k].auroc_best, 0.95);
    EXPECT_EQ(fitted.after[k].rounds, 20'000);
  }
  EXPECT_GT(fitted.before[0].ece, 0.05);
}

// Where drafts are accepted more often than the head has learnt, by a constant of its logits.
TEST(FitScales, UndoesAShiftThatNoTemperatureMends) {
  const std::vector<double> truth = {0.8, -0.6};
  const RegimeCalibration fitted = CalibratedOnNormals(2, /*mean=*/0, /*seed=*/2, SamplingRegime::kGreedy,
                                                       [&](int k, double x) { return 2 * (x - truth[k]); });
  for (int k = 0; k < 2; ++k) {
    EXPECT_NEAR(fitted.scales[k].shift, truth[k], 0.05);
    EXPECT_NEAR(std::log10(fitted.scales[k].temperature), std::log10(2), 0.0501);
    EXPECT_LT(fitted.after[k].ece, 0.012);
    EXPECT_GT(fitted.before[k].ece, 0.05);
  }
}

// Where a margin says what the head's logit doesn't, or less of it.
TEST(FitScales, ReadsMarginsAsFarAsTheyRank) {
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  for (const double weight : {0.0, 1.0, 4.0}) {
    CalibrationRounds halves[] = {CalibrationRounds(2), CalibrationRounds(2)};
    for (int n = 0; n < 40'000; ++n) {
      std::vector<DraftEvidence> evidence;
      int accepted = 0;
      for (int k = 0; k < 2; ++k) {
        const DraftEvidence& e =
            evidence.emplace_back(DraftEvidence{.logit = static_cast<float>(normal(random)),
                                                .margin = static_cast<float>(std::abs(normal(random)))});
        const double x = (e.logit + weight * e.margin) / 2 - 0.4;
        if (accepted == k && std::uniform_real_distribution<double>()(random) < 1 / (1 + std::exp(-x)))
          ++accepted;
      }
      halves[n % 2].Add(evidence, accepted);
    }
    const RegimeCalibration fitted = Calibrate(SamplingRegime::kGreedy, halves[0], halves[1], "margins");
    for (int k = 0; k < 2; ++k) {
      EXPECT_NEAR(fitted.scales[k].margin_weight, weight, 0.25 * weight + 0.15) << k;
      EXPECT_LT(fitted.after[k].ece, 0.02) << k;
      if (weight > 0) {
        EXPECT_GT(fitted.after[k].auroc, fitted.before[k].auroc + 0.01) << k;
      }
    }
  }
}

TEST(CalibrationRounds, SoftLabelsAgreeWithCoins) {
  CalibrationRounds coins(3);
  CalibrationRounds soft(3);
  coins.Add(Logits({1, 2, 3}), 2);
  soft.Add(Logits({1, 2, 3}), std::vector<double>{1, 1, 0});
  for (int k = 0; k < 3; ++k) EXPECT_EQ(coins.label(0, k), soft.label(0, k));
  soft.Add(Logits({1, 2}), std::vector<double>{0.5, 0.5});
  EXPECT_EQ(soft.label(1, 1), 0.25);
  EXPECT_EQ(soft.length(1), 2);
}

TEST(AreaUnderRoc, CountsPairs) {
  const std::vector<double> labels = {0, 0, 1, 1};
  EXPECT_EQ(AreaUnderRoc(std::vector<double>{1, 2, 3, 4}, labels), 1);
  EXPECT_EQ(AreaUnderRoc(std::vector<double>{4, 3, 2, 1}, labels), 0);
  EXPECT_EQ(AreaUnderRoc(std::vector<double>{1, 3, 2, 4}, labels), 0.75);
  EXPECT_EQ(AreaUnderRoc(std::vector<double>{1, 1, 1, 1}, labels), 0.5);
  EXPECT_EQ(AreaUnderRoc(std::vector<double>{1, 2}, std::vector<double>{1, 1}), 0.5);
  // Coins of 0.2 and 0.8: a positive of one and a negative of the other in 0.8 * 0.8 of the pairs, and half
  // of those of equal predictions.
  const std::vector<double> coins = {0.2, 0.8};
  EXPECT_NEAR(AreaUnderRoc(coins, coins), 0.64 + 0.5 * (0.16 + 0.16), 1e-12);
}

TEST(ExpectedCalibrationError, OneIsInTheLastBin) {
  EXPECT_EQ(ExpectedCalibrationError(std::vector<double>{1, 1}, std::vector<double>{1, 0}, 15), 0.5);
  EXPECT_EQ(ExpectedCalibrationError({}, {}, 15), 0);
}

TEST(CalibrationErrorByChance, IsWhatCoinsOfThePredictedProbabilityShow) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> uniform;
  double error = 0;
  double by_chance = 0;
  for (int run = 0; run < 200; ++run) {
    std::vector<double> predicted, labels;
    for (int i = 0; i < 1000; ++i) {
      predicted.push_back(uniform(random));
      labels.push_back(uniform(random) < predicted.back() ? 1 : 0);
    }
    error += ExpectedCalibrationError(predicted, labels, kReportBins) / 200;
    by_chance += CalibrationErrorByChance(predicted, labels, kReportBins) / 200;
  }
  EXPECT_GT(error, 0.02);
  EXPECT_NEAR(by_chance, error, 0.1 * error);
}

TEST(MeasureReliability, SortsRoundsBySurvivalAndAgreesWithTheError) {
  const CalibrationRounds rounds = TwoLevels();
  const auto bins = MeasureReliability(rounds, std::vector<ConfidenceScale>{{}});
  ASSERT_EQ(bins.size(), 1u);
  ASSERT_EQ(bins[0].size(), 2u);
  EXPECT_EQ(bins[0][0].rounds, 100);
  EXPECT_NEAR(bins[0][0].mean_predicted, 1 / (1 + std::exp(2)), 1e-12);
  EXPECT_NEAR(bins[0][0].mean_observed, 0.3, 1e-12);
  EXPECT_NEAR(bins[0][1].mean_observed, 0.7, 1e-12);
  double error = 0;
  for (const ReliabilityBin& bin : bins[0]) {
    error += static_cast<double>(bin.rounds) / 200 * std::abs(bin.mean_predicted - bin.mean_observed);
  }
  EXPECT_NEAR(error, MeasureCalibration(rounds, std::vector<ConfidenceScale>{{}})[0].ece, 1e-12);
}

TEST(Regime, FollowsParametersAndRule) {
  SamplingParams params;
  EXPECT_EQ(RegimeOf(params, AcceptanceRule::kRejection), SamplingRegime::kUnit);
  EXPECT_EQ(RegimeOf(params, AcceptanceRule::kCoupled), SamplingRegime::kCoupled);
  params.temperature = 0.7;
  EXPECT_EQ(RegimeOf(params, AcceptanceRule::kRejection), SamplingRegime::kCool);
  params.top_p = 0.9;
  EXPECT_EQ(RegimeOf(params, AcceptanceRule::kRejection), SamplingRegime::kTopP);
  params.temperature = 0;
  EXPECT_EQ(RegimeOf(params, AcceptanceRule::kCoupled), SamplingRegime::kGreedy);
}

CalibrationTable Table() {
  CalibrationTable table{
      .draft = "xxh:1", .target = "xxh:\"2\"", .build = "3", .drafts_max = 1, .regimes = {}};
  table.regimes.push_back(Calibrate(SamplingRegime::kCool, TwoLevels(), TwoLevels(), "two levels"));
  table.regimes.push_back(table.regimes[0]);
  table.regimes[1].regime = SamplingRegime::kCoupled;
  table.regimes[1].scales = {{.temperature = 3, .shift = 0}};
  return table;
}

std::vector<float> ToVector(std::span<const float> values) {
  return {values.begin(), values.end()};
}

TEST(Calibration, UsesTheTableOfTheRegimeOrTheNearest) {
  const Calibration none(2);
  EXPECT_FLOAT_EQ(none.Confidence(SamplingRegime::kGreedy, 1, {.logit = 2}), 1 / (1 + std::exp(-2.0f)));
  const Calibration calibration(Table());
  const double cool = Table().regimes[0].scales[0].temperature;
  EXPECT_EQ(calibration.scales(SamplingRegime::kCool)[0].temperature, cool);
  EXPECT_EQ(calibration.scales(SamplingRegime::kGreedy)[0].temperature, cool);
  EXPECT_EQ(calibration.scales(SamplingRegime::kTopP)[0].temperature, cool);
  EXPECT_EQ(calibration.scales(SamplingRegime::kUnit)[0].temperature, 3);
  EXPECT_FLOAT_EQ(calibration.Confidence(SamplingRegime::kCoupled, 0, {.logit = 6}),
                  1 / (1 + std::exp(-2.0f)));
  EXPECT_FLOAT_EQ(static_cast<float>(ConfidenceScale{.temperature = 2, .shift = -3}.Confidence({.logit = 8})),
                  1 / (1 + std::exp(-1.0f)));
  EXPECT_EQ(calibration.Confidence(SamplingRegime::kCoupled, 0, {.logit = -1e30f}), 0);
  EXPECT_EQ(calibration.Confidence(SamplingRegime::kCoupled, 0, {.logit = 1e30f}), 1);
}

// What was fitted to margins is no measure of drafts without them.
TEST(Calibration, GreedyDraftsStandForNoOthers) {
  CalibrationTable table = Table();
  table.regimes.resize(1);
  table.regimes[0].regime = SamplingRegime::kGreedy;
  table.regimes[0].scales = {{.temperature = 2, .shift = -1, .margin_weight = 3}};
  const Calibration calibration(table);
  EXPECT_FLOAT_EQ(calibration.Confidence(SamplingRegime::kGreedy, 0, {.logit = 2, .margin = 4}),
                  1 / (1 + std::exp(-6.0f)));
  EXPECT_FLOAT_EQ(calibration.Confidence(SamplingRegime::kCool, 0, {.logit = 2}), 1 / (1 + std::exp(-2.0f)));
}

// The file has survivals of whole prefixes.
TEST(Calibration, KnowsHowOftenDraftsAreAcceptedWhereTheyAreReached) {
  CalibrationTable table = Table();
  table.regimes.resize(1);
  RegimeCalibration& regime = table.regimes[0];
  regime.scales.assign(4, {});
  table.drafts_max = 4;
  regime.after = {
      {.rounds = 9, .mean_observed = .75}, {.rounds = 9, .mean_observed = .375}, {}, {.rounds = 9}};
  EXPECT_EQ(std::vector<float>({.75f, .5f, .5f, 0}),
            ToVector(Calibration(table).MeanAcceptance(regime.regime)));
  EXPECT_EQ(ToVector(Calibration(table).MeanAcceptance(SamplingRegime::kUnit)).size(),
            4u);  // the nearest one's
  regime.after[0].rounds = 0;
  EXPECT_TRUE(Calibration(table).MeanAcceptance(regime.regime).empty());
  EXPECT_TRUE(Calibration(4).MeanAcceptance(regime.regime).empty());
}

TEST(CalibrationFile, ComesBack) {
  const CalibrationTable table = Table();
  const Result<CalibrationTable> read = ParseCalibration(FormatCalibration(table));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  EXPECT_EQ(FormatCalibration(*read), FormatCalibration(table));
  EXPECT_EQ(read->target, table.target);
  ASSERT_EQ(read->regimes.size(), 2u);
  EXPECT_EQ(read->regimes[0].after[0].rounds, 200);
  EXPECT_NEAR(read->regimes[0].after[0].ece, table.regimes[0].after[0].ece, 1e-8);
}

TEST(CalibrationFile, IsRefusedForAnotherModelBuildOrLength) {
  const CalibrationTable table = Table();
  const auto refused = [&](std::string_view draft, std::string_view target, std::string_view build,
                           int length, std::string_view what) {
    return CheckCalibration(table, draft, target, build, length).message().find(what) != std::string::npos;
  };
  EXPECT_TRUE(CheckCalibration(table, "xxh:1", "xxh:\"2\"", "3", 1).ok());
  EXPECT_TRUE(refused("other", "xxh:\"2\"", "3", 1, "another draft"));
  EXPECT_TRUE(refused("xxh:1", "other", "3", 1, "another target"));
  EXPECT_TRUE(refused("xxh:1", "xxh:\"2\"", "4", 1, "another build"));
  EXPECT_TRUE(refused("xxh:1", "xxh:\"2\"", "3", 2, "another draft length"));
}

TEST(CalibrationFile, DamageIsAnError) {
  const std::string good = FormatCalibration(Table());
  const auto replaced = [&](std::string_view from, std::string_view to) { return Replaced(good, from, to); };
  for (const std::string& bad :
       {std::string("{"), std::string("[]"), replaced("dspark-sts", "dspark-sps"),
        replaced("version\": 5", "version\": 4"),
        replaced("\"margin_weights\": [0]", "\"margin_weights\": [-1]"), replaced("engine_build", "build"),
        good.substr(0, good.find("\"tables\"")) + "\"tables\": []}", replaced("\"gamma\": 1", "\"gamma\": 2"),
        replaced("\"gamma\": 1", "\"gamma\": 1e9"), replaced("\"cool\"", "\"hot\""),
        replaced("\"cool\"", "\"coupled\""), replaced("[3]", "[0]"), replaced("[3]", "[-1e400]"),
        replaced("[3]", "\"3\""), replaced("\"draft\"", "\"drift\""),
        replaced("\"rounds\": [200]", "\"rounds\": [-1]"),
        replaced("\"mean_obs\": [0.5]", "\"mean_obs\": [0.3e042137]"), replaced("\"auc\"", "\"auk\""),
        replaced("\"auc_best\"", "\"auc_beast\"")}) {
    const Status status = ParseCalibration(bad).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(status.message().rfind("calibration: ", 0), 0u) << status.message();
  }
  for (size_t cut = 0; cut < good.size() - 1; ++cut) EXPECT_FALSE(ParseCalibration(good.substr(0, cut)).ok());
}

}  // namespace
}  // namespace foresight
