#include "speculative/confidence_correction.h"

#include <algorithm>

#include "base/check.h"

namespace foresight {
namespace {

// Drafts that were as expected, before anything is seen; and how fast drafts are forgotten.
constexpr double kPriorDrafts = 8;
constexpr double kPositionFade = 1.0 / 512;
constexpr double kRequestFade = 1.0 / 128;

}  // namespace

double ConfidenceCorrection::Ratio::value() const {
  return (accepted + kPriorDrafts) / (expected + kPriorDrafts);
}

void ConfidenceCorrection::Ratio::Add(double was_accepted, double was_expected, double fade) {
  accepted += was_accepted - fade * accepted;
  expected += was_expected - fade * expected;
}

ConfidenceCorrection::ConfidenceCorrection(int slots_max, int drafts_max)
    : positions_(drafts_max), factors_(drafts_max, 1.0f), requests_(slots_max) {}

void ConfidenceCorrection::BeginStep() {
  for (size_t j = 0; j < positions_.size(); ++j) factors_[j] = static_cast<float>(positions_[j].value());
}

void ConfidenceCorrection::Apply(RequestId id, std::span<float> confidences) const {
  const Request& request = requests_[id.slot];
  const bool known = request.known && request.generation == id.generation;
  const float own = known ? static_cast<float>(request.ratio.value()) : 1;
  for (size_t j = 0; j < confidences.size(); ++j) {
    confidences[j] = std::min(1.0f, confidences[j] * factors_[j] * own);
  }
}

void ConfidenceCorrection::Learn(RequestId id, std::span<const float> confidences, int verified,
                                 int accepted) {
  CHECK(accepted <= verified && verified <= std::ssize(confidences));
  Request& request = requests_[id.slot];
  if (!request.known || request.generation != id.generation) {
    request = {.generation = id.generation, .known = true, .ratio = {}};
  }
  if (verified == 0 && !confidences.empty()) {
    // Forget, or what looks hopeless would never be tried again.
    request.ratio.Add(0, 0, kRequestFade);
    positions_[0].Add(0, 0, kPositionFade);
  }
  Ratio own = request.ratio;  // which the positions' can't be for the compiler
  for (int j = 0; j < std::min(accepted + 1, verified); ++j) {
    const double was_accepted = j < accepted ? 1 : 0;
    const double of_all = std::min(1.0f, confidences[j] * factors_[j]);
    positions_[j].Add(was_accepted, confidences[j], kPositionFade);
    own.Add(was_accepted, of_all, kRequestFade);
  }
  request.ratio = own;
}

}  // namespace foresight
