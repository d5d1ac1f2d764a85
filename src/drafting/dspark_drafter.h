// DSpark: one block of queries for all sequences, then its sequential head position by position
// (dspark.md 1.1).
//
// Rounds that the device draws (drawing/device_draws.h) go through all positions without the host; the host's
// rounds, which come back to it at every position, are blocks of their own.
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
  Status Settle() override;

 private:
  // Rounds that the device draws together.
  struct DrawnGroup {
    std::span<DraftRound* const> rounds;
    DrawnTokens drawn;
  };

  // Groups of as many as a step of the model has rows for.
  Status ProposeInGroups(std::span<DraftRound* const> rounds, bool on_device);
  // Runs the block of a group and returns the depth of its deepest round.
  Status DrawOnHost(std::span<DraftRound* const> rounds, const DraftBlockInputs& block, int depth);
  Status DrawOnDevice(std::span<DraftRound* const> rounds, const DraftBlockInputs& block, int depth);

  int drafts_max_;
  Model& model_;
  SpeculatorTeam& speculators_;
  // Of the call at hand; kept for their capacity.
  std::vector<DraftRound*> host_rounds_;
  std::vector<DraftRound*> device_rounds_;
  std::vector<SequenceState*> states_;
  std::vector<TokenId> previous_;
  std::vector<DraftDraw> host_draws_;
  std::vector<SampleRow> device_draws_;
  std::vector<DrawnGroup> pending_;
};

}  // namespace foresight
