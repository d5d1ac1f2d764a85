// From confidence logits to probabilities that mean what they say: Sequential Temperature Scaling (dspark.md
// 4), with a shift beside each temperature: a head learns how often drafts are accepted at temperature 1, and
// where they are accepted more often (greedy) or less (coupled) its logits lie too low or too high by about a
// constant, which no temperature mends. Of greedy drafts the margin is read as well: a head learns how often
// a draw from the draft is accepted, and says less about its likeliest token than its own distribution does.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/confidence.h"
#include "base/status.h"
#include "sampling/sampling_params.h"
#include "speculative/draft_block.h"

namespace foresight {

// How a request's tokens are drawn and judged decides how often a draft is accepted; each way has its own
// table.
enum class SamplingRegime : uint8_t {
  kGreedy,
  kUnit,     // rejection, temperature about 1 or above, top_p 1
  kCool,     // rejection, temperature below 0.9, top_p 1
  kTopP,     // rejection, top_p, top_k or min_p cut the distribution
  kCoupled,  // coupled, any temperature above 0
};
inline constexpr int kNumSamplingRegimes = 5;
inline constexpr double kUnitTemperatureMin = 0.9;

std::string_view SamplingRegimeName(SamplingRegime regime);  // "greedy", "unit", "cool", "top_p", "coupled"
SamplingRegime RegimeOf(const SamplingParams& params, AcceptanceRule rule);

// What a position's calibration is worth, on rounds that it was not fitted on.
struct PositionQuality {
  int64_t rounds = 0;
  double ece = 0;        // of the survival against "this draft and those before it are accepted"
  double ece_noise = 0;  // what so few rounds would show as ece if the survivals were right
  double auroc = 0;
  // Of one who knows both models' distributions and every draft before this one, but not what was drawn here:
  // no confidence may know more (planner.h).
  double auroc_best = 0;
  double brier = 0;
  double mean_predicted = 0;
  double mean_observed = 0;
};

struct RegimeCalibration {
  SamplingRegime regime = SamplingRegime::kUnit;
  std::vector<ConfidenceScale> scales;         // [drafts_max]
  int64_t rounds = 0;                          // fitted on
  std::string dataset;                         // in words
  std::vector<PositionQuality> before, after;  // [drafts_max], held out
};

// The file.
struct CalibrationTable {
  std::string draft;  // hashes of tensors, as the engine names them
  std::string target;
  std::string build;   // of the program that fitted
  int drafts_max = 0;  // gamma
  std::vector<RegimeCalibration> regimes;
};

// {"format": "dspark-sts", "version": 5, ...}. Errors of parsing: kInvalidArgument, saying where.
std::string FormatCalibration(const CalibrationTable& table);
Result<CalibrationTable> ParseCalibration(std::string_view json);
// Refuses a table of another draft, target, build or draft length (kInvalidArgument, saying both).
Status CheckCalibration(const CalibrationTable& table, std::string_view draft, std::string_view target,
                        std::string_view build, int drafts_max);

// Confidences. Without a table they are what the head says.
class Calibration {
 public:
  explicit Calibration(int drafts_max);
  // Regimes that the table lacks take the nearest one it has; what is fitted to greedy drafts is for them
  // alone.
  explicit Calibration(const CalibrationTable& table);

  // The probability that draft k (0-based) is accepted when it is reached.
  float Confidence(SamplingRegime regime, int k, const DraftEvidence& evidence) const;
  std::span<const ConfidenceScale> scales(SamplingRegime regime) const {
    return scales_[static_cast<int>(regime)];
  }
  // [drafts_max]: how often draft k was accepted when it was reached, in the table's held-out rounds. Empty:
  // there were none.
  std::span<const float> MeanAcceptance(SamplingRegime regime) const {
    return mean_acceptance_[static_cast<int>(regime)];
  }

 private:
  std::array<std::vector<ConfidenceScale>, kNumSamplingRegimes> scales_;
  std::array<std::vector<float>, kNumSamplingRegimes> mean_acceptance_;
};

}  // namespace foresight
