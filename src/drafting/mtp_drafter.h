// The MTP-1 block as a drafter (model spec 2.11), chained to several tokens.
//
// The block's row of position p takes the target's streams at p and the token at p + 1, so it runs right
// after each step of the target, when the next tokens are known and the streams are still there; the row of
// the last kept position gives the first draft of the next round. Row p of its caches depends on token p + 1,
// which another continuation may not have: kept states leave the last row to be computed again (lag).
#pragma once

#include "drafting/drafter.h"
#include "drawing/logit_rows.h"

namespace foresight {

class MtpDrafter final : public Drafter {
 public:
  MtpDrafter(int drafts_max, int slots_max, Model& model, SpeculatorTeam& speculators);

  DraftMethod method() const override { return DraftMethod::kMtp; }
  int drafts_max() const override { return drafts_max_; }
  int lag() const override { return 1; }
  void Begin(int slot, std::span<const TokenId> tokens, int64_t tokens_max) override;
  void End(int slot) override { Begin(slot, {}, 0); }
  Status Propose(std::span<DraftRound> rounds) override;
  Status Settle() override;
  Status Observe(std::span<const ObservedRows> rows) override;

 private:
  // Where the last step of the block has left a sequence.
  struct Last {
    int stream_row = -1;  // of its newest row; -1: none, it can't draft yet
    int logit_row = -1;
  };

  // The chain without the host between positions, for rounds that the device draws.
  Status ProposeOnDevice(std::span<DraftRound> rounds);
  // Of by_depth_, the first ones: those with a draft at position k.
  size_t DeeperThan(int k) const;
  // Draft k of the rounds that have one, from logits_. Where it can be drawn, it is in the round's block.
  Status Draw(std::span<DraftRound> rounds, int k);
  bool Drafts(const DraftRound& round, const Last& last, int k) const {
    return last.stream_row >= 0 && k < round.depth;
  }

  int drafts_max_;
  Model& model_;
  SpeculatorTeam& speculators_;
  std::vector<Last> last_;  // by slot: of the last step from the target's streams
  LogitRows logits_;        // of the block's last step
  StepOutputs first_;       // of its last step from the target's streams
  // Of the call at hand; kept for their capacity.
  std::vector<TokenId> tokens_;
  std::vector<SequenceChunk> chunks_;
  std::vector<int32_t> stream_rows_;
  std::vector<int32_t> logit_rows_;
  std::vector<Last> chain_;  // by round
  // Draws of a position, by the host and by the device.
  std::vector<DraftDraw> host_draws_;
  std::vector<SampleRow> device_draws_;
  std::vector<SampleSequence> device_sequences_;
  std::vector<DraftBlock*> device_blocks_;
  std::vector<int32_t> device_results_;  // by position: errors, then tokens
  std::vector<DraftRound*> by_depth_;    // of the device's, the deepest first
  std::vector<PlacedToken> placed_;      // the tokens of a position on the device
};

}  // namespace foresight
