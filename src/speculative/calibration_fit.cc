#include "speculative/calibration_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace foresight {
namespace {

constexpr int kGridSize = 41;
constexpr int kGridOne = 20;  // where the grid's 1 is
constexpr double kShiftMax = 8;
constexpr int kShiftBisections = 24;
// Weights of margins: 0, and powers of the square root of 2 between these.
constexpr double kMarginWeightMin = 1.0 / 8;
constexpr double kMarginWeightMax = 16;

double GridTemperature(int i) {
  return std::pow(10.0, -1 + i / 20.0);
}

int BinOf(double probability, int bins) {
  return std::min(bins - 1, static_cast<int>(probability * bins));
}

// The rounds that have a draft k.
struct Position {
  std::vector<int64_t> rounds;
  std::vector<double> labels;
  std::vector<double> foreseeable;
};

Position PositionOf(const CalibrationRounds& rounds, int k) {
  Position position;
  for (int64_t n = 0; n < rounds.size(); ++n) {
    if (rounds.length(n) <= k) continue;
    position.rounds.push_back(n);
    position.labels.push_back(rounds.label(n, k));
    position.foreseeable.push_back(rounds.foreseeable(n, k));
  }
  return position;
}

// survivals[n] *= the confidence of draft k, for the rounds that have one; those of them to `predicted`.
void Extend(const CalibrationRounds& rounds, const Position& position, int k, ConfidenceScale scale,
            std::vector<double>& survivals, std::vector<double>& predicted) {
  predicted.clear();
  for (int64_t n : position.rounds) {
    survivals[n] *= scale.Confidence(rounds.evidence(n, k));
    predicted.push_back(survivals[n]);
  }
}

// Of the scale's temperature, the shift with which survivals are as large as labels on average: they rise
// with it.
double FitShift(const CalibrationRounds& rounds, const Position& position, int k, ConfidenceScale scale,
                const std::vector<double>& survivals) {
  const double wanted = std::accumulate(position.labels.begin(), position.labels.end(), 0.0);
  double low = -kShiftMax;
  double high = kShiftMax;
  for (int i = 0; i < kShiftBisections; ++i) {
    scale.shift = (low + high) / 2;
    double excess = -wanted;
    for (int64_t n : position.rounds) excess += survivals[n] * scale.Confidence(rounds.evidence(n, k));
    (excess > 0 ? high : low) = scale.shift;
    if (excess == 0) break;
  }
  return scale.shift;
}

// The weight of margins with which draft k's evidence ranks best, among rounds whose drafts before are
// accepted.
double FitMarginWeight(const CalibrationRounds& rounds, const Position& position, int k) {
  std::vector<double> labels;
  std::vector<int64_t> reached;
  bool any = false;
  for (int64_t n : position.rounds) {
    if (k > 0 && rounds.label(n, k - 1) == 0) continue;
    reached.push_back(n);
    labels.push_back(rounds.label(n, k));
    any |= rounds.evidence(n, k).margin > 0;
  }
  if (!any) return 0;
  std::vector<double> values(reached.size());
  const auto area = [&](double weight) {
    for (size_t i = 0; i < reached.size(); ++i) {
      const DraftEvidence& evidence = rounds.evidence(reached[i], k);
      values[i] = double{evidence.logit} + weight * double{evidence.margin};
    }
    return AreaUnderRoc(values, labels);
  };
  double best = area(0);
  double found = 0;
  for (double weight = kMarginWeightMin; weight <= kMarginWeightMax; weight *= M_SQRT2) {
    const double reaches = area(weight);
    if (reaches <= best) continue;
    best = reaches;
    found = weight;
  }
  return found;
}

}  // namespace

void CalibrationRounds::Add(std::span<const DraftEvidence> evidence, int accepted) {
  CHECK(accepted >= 0 && accepted <= std::ssize(evidence));
  std::vector<double> coins(evidence.size(), 0);
  std::fill_n(coins.begin(), accepted, 1);
  Add(evidence, coins);
}

void CalibrationRounds::Add(std::span<const DraftEvidence> evidence, std::span<const double> acceptance,
                            std::span<const double> blind) {
  CHECK(std::ssize(evidence) <= drafts_max_ && evidence.size() == acceptance.size());
  CHECK(blind.empty() || blind.size() == acceptance.size());
  lengths_.push_back(static_cast<int>(evidence.size()));
  double label = 1;
  for (int k = 0; k < drafts_max_; ++k) {
    const bool there = k < std::ssize(evidence);
    foreseeable_.push_back(there ? label * (blind.empty() ? acceptance[k] : blind[k]) : 0);
    if (there) {
      CHECK(acceptance[k] >= 0 && acceptance[k] <= 1);
      label *= acceptance[k];
    }
    evidence_.push_back(there ? evidence[k] : DraftEvidence());
    labels_.push_back(there ? label : 0);
  }
}

double ExpectedCalibrationError(std::span<const double> predicted, std::span<const double> labels, int bins) {
  CHECK(predicted.size() == labels.size() && bins > 0);
  if (predicted.empty()) return 0;
  std::vector<double> gaps(bins);  // sum of predicted - label: |mean - mean| * n_b
  for (size_t i = 0; i < predicted.size(); ++i) gaps[BinOf(predicted[i], bins)] += predicted[i] - labels[i];
  double sum = 0;
  for (double gap : gaps) sum += std::abs(gap);
  return sum / static_cast<double>(predicted.size());
}

double CalibrationErrorByChance(std::span<const double> predicted, std::span<const double> labels, int bins) {
  CHECK(predicted.size() == labels.size() && bins > 0);
  if (predicted.empty()) return 0;
  std::vector<double> variances(bins);  // of the sums above
  for (size_t i = 0; i < predicted.size(); ++i) {
    variances[BinOf(predicted[i], bins)] += (predicted[i] - labels[i]) * (predicted[i] - labels[i]);
  }
  double sum = 0;  // of mean absolute values of normal variables
  for (double variance : variances) sum += std::sqrt(2 / M_PI * variance);
  return sum / static_cast<double>(predicted.size());
}

double AreaUnderRoc(std::span<const double> predicted, std::span<const double> labels) {
  CHECK(predicted.size() == labels.size());
  std::vector<size_t> order(predicted.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return predicted[a] < predicted[b]; });
  double positives = 0;
  double negatives = 0;
  double area = 0;
  for (size_t i = 0; i < order.size();) {
    double tied_positives = 0;
    double tied_negatives = 0;
    const double value = predicted[order[i]];
    for (; i < order.size() && predicted[order[i]] == value; ++i) {
      tied_positives += labels[order[i]];
      tied_negatives += 1 - labels[order[i]];
    }
    area += tied_positives * (negatives + tied_negatives / 2);
    positives += tied_positives;
    negatives += tied_negatives;
  }
  return positives > 0 && negatives > 0 ? area / (positives * negatives) : 0.5;
}

std::vector<ConfidenceScale> FitScales(const CalibrationRounds& rounds) {
  std::vector<ConfidenceScale> scales(rounds.drafts_max());
  std::vector<double> survivals(rounds.size(), 1.0);  // of the positions before, with their scales
  std::vector<double> tried;
  std::vector<double> predicted;
  for (int k = 0; k < rounds.drafts_max(); ++k) {
    const Position position = PositionOf(rounds, k);
    if (position.rounds.empty()) continue;
    const double margin_weight = FitMarginWeight(rounds, position, k);
    double best = INFINITY;
    for (int distance = 0; distance < kGridSize; ++distance) {
      // 1, then alternately below and above it: an equal error doesn't replace a nearer temperature.
      const int i = kGridOne + (distance % 2 == 1 ? -(distance + 1) / 2 : distance / 2);
      ConfidenceScale scale = {.temperature = GridTemperature(i), .shift = 0, .margin_weight = margin_weight};
      scale.shift = FitShift(rounds, position, k, scale, survivals);
      tried = survivals;
      Extend(rounds, position, k, scale, tried, predicted);
      const double error = ExpectedCalibrationError(predicted, position.labels, kFitBins);
      if (error < best) {
        best = error;
        scales[k] = scale;
      }
    }
    Extend(rounds, position, k, scales[k], survivals, predicted);
  }
  return scales;
}

std::vector<PositionQuality> MeasureCalibration(const CalibrationRounds& rounds,
                                                std::span<const ConfidenceScale> scales, int bins) {
  CHECK(std::ssize(scales) == rounds.drafts_max());
  std::vector<PositionQuality> all(rounds.drafts_max());
  std::vector<double> survivals(rounds.size(), 1.0);
  std::vector<double> predicted;
  for (int k = 0; k < rounds.drafts_max(); ++k) {
    const Position position = PositionOf(rounds, k);
    const std::vector<double>& labels = position.labels;
    Extend(rounds, position, k, scales[k], survivals, predicted);
    PositionQuality& quality = all[k];
    quality.rounds = std::ssize(predicted);
    quality.auroc = AreaUnderRoc(predicted, labels);
    quality.auroc_best = AreaUnderRoc(position.foreseeable, labels);
    if (predicted.empty()) continue;
    quality.ece = ExpectedCalibrationError(predicted, labels, bins);
    quality.ece_noise = CalibrationErrorByChance(predicted, labels, bins);
    for (size_t i = 0; i < predicted.size(); ++i) {
      // The expectation of (predicted - coin)^2.
      quality.brier += predicted[i] * predicted[i] - 2 * predicted[i] * labels[i] + labels[i];
      quality.mean_predicted += predicted[i];
      quality.mean_observed += labels[i];
    }
    for (double* sum : {&quality.brier, &quality.mean_predicted, &quality.mean_observed}) {
      *sum /= static_cast<double>(predicted.size());
    }
  }
  return all;
}

std::vector<std::vector<ReliabilityBin>> MeasureReliability(const CalibrationRounds& rounds,
                                                            std::span<const ConfidenceScale> scales,
                                                            int bins) {
  CHECK(std::ssize(scales) == rounds.drafts_max() && bins > 0);
  std::vector<std::vector<ReliabilityBin>> all(rounds.drafts_max());
  std::vector<double> survivals(rounds.size(), 1.0);
  std::vector<double> predicted;
  for (int k = 0; k < rounds.drafts_max(); ++k) {
    const Position position = PositionOf(rounds, k);
    Extend(rounds, position, k, scales[k], survivals, predicted);
    std::vector<ReliabilityBin>& found = all[k];
    found.resize(bins);
    for (size_t i = 0; i < predicted.size(); ++i) {
      ReliabilityBin& bin = found[BinOf(predicted[i], bins)];
      ++bin.rounds;
      bin.mean_predicted += predicted[i];
      bin.mean_observed += position.labels[i];
    }
    std::erase_if(found, [](const ReliabilityBin& bin) { return bin.rounds == 0; });
    for (ReliabilityBin& bin : found) {
      bin.mean_predicted /= static_cast<double>(bin.rounds);
      bin.mean_observed /= static_cast<double>(bin.rounds);
    }
  }
  return all;
}

RegimeCalibration Calibrate(SamplingRegime regime, const CalibrationRounds& fit,
                            const CalibrationRounds& held_out, std::string dataset) {
  CHECK(fit.drafts_max() == held_out.drafts_max());
  RegimeCalibration result;
  result.regime = regime;
  result.scales = FitScales(fit);
  result.rounds = fit.size();
  result.dataset = std::move(dataset);
  result.before = MeasureCalibration(held_out, std::vector<ConfidenceScale>(fit.drafts_max()));
  result.after = MeasureCalibration(held_out, result.scales);
  return result;
}

}  // namespace foresight
