// The tokens of a step: draws of the sequences that have no drafts to judge, verdicts for the others.
//
//   draws.Begin(outputs, sequences, ..)   the device's part, and waiting for it and for the host's rows
//   draws.DrawOnHost()                    the host's part, spread over its threads
//   draws.Take(i)                         the tokens of sequence i
//
// What is the device's (device_draws.h) takes one to five launches and the download of two numbers a
// sequence.
#pragma once

#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "drawing/logit_rows.h"
#include "model/model.h"
#include "sampling/sampler.h"
#include "speculative/speculator_team.h"

namespace foresight {

// A sequence that draws a token in the step at hand. Everything is borrowed until the next Begin.
struct DrawingSequence {
  Sampler* sampler = nullptr;         // left as it was
  const DraftBlock* block = nullptr;  // null: without speculation, a draw and no more
  int64_t position = 0;               // of the next token
  int num_drafts = 0;                 // the block's first ones, to be judged
};

// One thread at a time; allocates in the constructor only.
class TokenDraws {
 public:
  // All outlive this object. `speculators` and `chance` judge drafts; null: there are none.
  TokenDraws(Model& model, ThreadPool& pool, int sequences_max, int rows_max, SpeculatorTeam* speculators,
             Chance* chance);

  // `outputs` are of a step with keep_logits, whose logit rows are those of the sequences one after the
  // other, num_drafts + 1 each; with a plan, of `planned` drafts, fewer: num_drafts are those that there are,
  // and all sequences are the device's. Errors: kDeviceError (of this step, or before).
  Status Begin(const StepOutputs& outputs, std::span<const DrawingSequence> sequences, int planned = 0);
  // [sequences]: how many drafts the step's plan had verified; without one empty.
  std::span<const int32_t> verified() const { return verified_; }
  void DrawOnHost();
  // Valid until the next Take. Errors: kInternal (NaN or +inf among the logits, everything is masked).
  Result<VerifiedTokens> Take(int i);

 private:
  // Where a sequence's rows are drawn.
  struct Part {
    bool on_device = false;
    int first_row = 0;   // of the step's logits
    int num_drafts = 0;  // whose rows follow it
    int place = 0;       // among those of the device, or those of the host
  };

  // `first_row` < 0: the device finds the logits.
  void AddRows(const DrawingSequence& sequence, int first_row);
  // Once the device has told what was verified.
  void FollowPlan();
  Result<VerifiedTokens> TakeOfDevice(int i);

  Model& model_;
  ThreadPool& pool_;
  SpeculatorTeam* const speculators_;
  Chance* const chance_;
  // Of the step at hand.
  LogitRows logits_;
  std::span<const DrawingSequence> sequences_;
  std::vector<Part> parts_;
  // The device's.
  std::vector<SampleRow> rows_;
  std::vector<PlacedToken> pending_;  // drafts of rows_ that only the device knows
  std::vector<SampleSequence> device_sequences_;
  bool normalize_ = false;
  std::vector<int32_t> results_;  // accepted drafts of each, then tokens, then verified drafts
  std::span<const int32_t> verified_;
  std::vector<SampledToken> taken_;
  // The host's. Without speculators, what was drawn for each.
  std::vector<Verification> host_sequences_;
  std::vector<int64_t> positions_;
  std::vector<SampledToken> drawn_;
  std::vector<Status> draw_errors_;
};

}  // namespace foresight
