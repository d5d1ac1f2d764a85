// Planners that need no costs.
#pragma once

#include <algorithm>

#include "speculative/planner.h"

namespace foresight {

// Always k drafts, whatever their confidences.
class StaticPlanner final : public Planner {
 public:
  explicit StaticPlanner(int drafts) : drafts_(drafts) {}

  void Prepare(const StepLoad& load, const SpeculationHistory&, const StepCosts*,
               std::span<int> depths) override {
    for (size_t r = 0; r < depths.size(); ++r) depths[r] = std::min(drafts_, load.requests[r].drafts_max);
  }
  bool ReadsConfidences() const override { return false; }
  int LongestDraft(int drafts_max) const override { return std::clamp(drafts_, 1, drafts_max); }
  void Admit(Frontier& frontier) override {
    for (int r = 0; r < frontier.num_requests(); ++r) {
      while (!frontier.exhausted(r)) frontier.Admit(r);
    }
  }

 private:
  int drafts_;
};

// Each request up to its first confidence below the threshold.
class ThresholdPlanner final : public Planner {
 public:
  explicit ThresholdPlanner(double threshold) : threshold_(threshold) {}

  void Prepare(const StepLoad& load, const SpeculationHistory&, const StepCosts*,
               std::span<int> depths) override {
    for (size_t r = 0; r < depths.size(); ++r) depths[r] = load.requests[r].drafts_max;
  }
  void Admit(Frontier& frontier) override {
    for (int r = 0; r < frontier.num_requests(); ++r) {
      while (!frontier.exhausted(r) && frontier.confidence(r) >= threshold_) frontier.Admit(r);
    }
  }

 private:
  double threshold_;
};

}  // namespace foresight
