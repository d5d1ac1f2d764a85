// Fitting and judging a calibration (dspark.md 4.1, 4.2).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "speculative/calibration.h"

namespace foresight {

inline constexpr int kFitBins = 15;
inline constexpr int kReportBins = 20;

// Rounds that were verified in full length, whatever the confidences said (an adaptive planner would hide the
// doubtful ones), with what was known of their drafts.
class CalibrationRounds {
 public:
  explicit CalibrationRounds(int drafts_max) : drafts_max_(drafts_max) {}

  // One round: evidence of the verified drafts (up to an end of sequence), of which the first `accepted` were
  // accepted.
  void Add(std::span<const DraftEvidence> evidence, int accepted);
  // The same with the probability of acceptance of each draft, given that it is reached, instead of the coin
  // (Speculator::AcceptanceProbabilities): the same expectation, less noise.
  // `blind`, unless empty: what it is for one who doesn't know the draft itself.
  void Add(std::span<const DraftEvidence> evidence, std::span<const double> acceptance,
           std::span<const double> blind = {});

  int64_t size() const { return static_cast<int64_t>(lengths_.size()); }
  int drafts_max() const { return drafts_max_; }
  int length(int64_t n) const { return lengths_[n]; }
  const DraftEvidence& evidence(int64_t n, int k) const { return evidence_[n * drafts_max_ + k]; }
  // Probability that drafts 0..k of round n are all accepted.
  double label(int64_t n, int k) const { return labels_[n * drafts_max_ + k]; }
  // The same for one who knows everything but draft k.
  double foreseeable(int64_t n, int k) const { return foreseeable_[n * drafts_max_ + k]; }

 private:
  int drafts_max_;
  std::vector<int> lengths_;             // [rounds]
  std::vector<DraftEvidence> evidence_;  // [rounds, drafts_max]
  std::vector<double> labels_;           // [rounds, drafts_max]
  std::vector<double> foreseeable_;
};

// Expected calibration error with `bins` equal bins on [0, 1].
double ExpectedCalibrationError(std::span<const double> predicted, std::span<const double> labels, int bins);
// What it is expected to be if each label's expectation were what is predicted, for independent labels.
double CalibrationErrorByChance(std::span<const double> predicted, std::span<const double> labels, int bins);
// Area under the ROC curve, ties counted half; labels in [0, 1] are weights. 0.5 when one class is empty.
double AreaUnderRoc(std::span<const double> predicted, std::span<const double> labels);

// [drafts_max], position by position: of the weights 0 and 1/8 .. 16 of margins the one that ranks best which
// drafts are accepted where all before were (the least of equal ones); of 41 temperatures 0.1 .. 10, each
// with the shift that makes the mean survival right (at most 8 either way), the one with the least expected
// calibration error; ties go to the one nearest to 1. A position without rounds keeps temperature 1 and no
// shift.
std::vector<ConfidenceScale> FitScales(const CalibrationRounds& rounds);
// [drafts_max]: survivals against labels with these scales.
std::vector<PositionQuality> MeasureCalibration(const CalibrationRounds& rounds,
                                                std::span<const ConfidenceScale> scales,
                                                int bins = kReportBins);

// Survivals that are nearly equal, and how often such drafts were accepted (the paper's Figure 6).
struct ReliabilityBin {
  int64_t rounds = 0;
  double mean_predicted = 0;
  double mean_observed = 0;
};
// [drafts_max][bins that have rounds, by rising survival].
std::vector<std::vector<ReliabilityBin>> MeasureReliability(const CalibrationRounds& rounds,
                                                            std::span<const ConfidenceScale> scales,
                                                            int bins = kReportBins);

// Fits on some rounds, judges on others. They should come from different texts: rounds of one answer are
// alike.
RegimeCalibration Calibrate(SamplingRegime regime, const CalibrationRounds& fit,
                            const CalibrationRounds& held_out, std::string dataset);

}  // namespace foresight
