// DSpark: one block of queries for all sequences, then its sequential head position by position
// (dspark.md 1.1).
#pragma once

#include "drafting/drafter.h"

namespace foresight {

class DSparkDrafter final : public Drafter {
 public:
  DSparkDrafter(int drafts_max, int slots_max, Model& model, SpeculatorTeam& speculators);

  DraftMethod method() const override { return DraftMethod::kDSpark; }
  int drafts_max() const override { return drafts_max_; }
  bool has_confidences() const override {
    return static_cast<bool>(model_.weights().dspark->head.confidence);
  }
  Status Propose(std::span<DraftRound> rounds) override;

 private:
  // As many as a step of the model has rows for.
  Status ProposeGroup(std::span<DraftRound> rounds);

  int drafts_max_;
  Model& model_;
  SpeculatorTeam& speculators_;
  // Of the call at hand; kept for their capacity.
  std::vector<SequenceState*> states_;
  std::vector<TokenId> previous_;
  std::vector<DraftDraw> draws_;
};

}  // namespace foresight
