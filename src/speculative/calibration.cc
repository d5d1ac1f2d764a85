#include "speculative/calibration.h"

#include "base/check.h"

namespace foresight {

std::string_view SamplingRegimeName(SamplingRegime regime) {
  switch (regime) {
    case SamplingRegime::kGreedy:
      return "greedy";
    case SamplingRegime::kUnit:
      return "unit";
    case SamplingRegime::kCool:
      return "cool";
    case SamplingRegime::kTopP:
      return "top_p";
    case SamplingRegime::kCoupled:
      return "coupled";
  }
  return "";
}

SamplingRegime RegimeOf(const SamplingParams& params, AcceptanceRule rule) {
  if (params.greedy()) return SamplingRegime::kGreedy;
  if (rule == AcceptanceRule::kCoupled) return SamplingRegime::kCoupled;
  if (params.top_p < 1 || params.top_k > 0 || params.min_p > 0) return SamplingRegime::kTopP;
  return params.temperature < kUnitTemperatureMin ? SamplingRegime::kCool : SamplingRegime::kUnit;
}

namespace {

// A position that nobody has seen is as the one before it.
std::vector<float> MeanAcceptanceOf(std::span<const PositionQuality> positions) {
  std::vector<float> means;
  double survival = 1;
  for (const PositionQuality& position : positions) {
    if (position.rounds > 0 && survival > 0) {
      means.push_back(static_cast<float>(std::clamp(position.mean_observed / survival, 0.0, 1.0)));
      survival = position.mean_observed;
    } else if (means.empty()) {
      return {};
    } else {
      means.push_back(means.back());
    }
  }
  return means;
}

}  // namespace

Calibration::Calibration(int drafts_max) {
  scales_.fill(std::vector<ConfidenceScale>(drafts_max));
}

Calibration::Calibration(const CalibrationTable& table) : Calibration(table.drafts_max) {
  // What each regime takes instead, the nearest first: by how peaked the distributions are, and coupled
  // acceptance falls behind rejection's.
  using enum SamplingRegime;
  static const std::vector<SamplingRegime> kNearest[kNumSamplingRegimes] = {
      {kGreedy, kCool, kTopP, kUnit, kCoupled}, {kUnit, kCoupled, kCool, kTopP},
      {kCool, kTopP, kUnit, kCoupled},          {kTopP, kCool, kUnit, kCoupled},
      {kCoupled, kUnit, kCool, kTopP},
  };
  for (int i = 0; i < kNumSamplingRegimes; ++i) {
    const RegimeCalibration* nearest = nullptr;
    for (size_t n = 0; n < kNearest[i].size() && nearest == nullptr; ++n) {
      for (const RegimeCalibration& entry : table.regimes) {
        if (entry.regime == kNearest[i][n]) nearest = &entry;
      }
    }
    if (nearest == nullptr) continue;
    CHECK(std::ssize(nearest->scales) == table.drafts_max);
    scales_[i] = nearest->scales;
    mean_acceptance_[i] = MeanAcceptanceOf(nearest->after);
  }
}

float Calibration::Confidence(SamplingRegime regime, int k, const DraftEvidence& evidence) const {
  const std::vector<ConfidenceScale>& scales = scales_[static_cast<int>(regime)];
  CHECK(k >= 0 && k < std::ssize(scales));
  return static_cast<float>(scales[k].Confidence(evidence));
}

}  // namespace foresight
