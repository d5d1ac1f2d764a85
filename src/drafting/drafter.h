// What proposes tokens to the target, behind one interface (dspark.md 1, 9): nothing, prompt look-up, MTP-1
// chained, DSpark with any head. The engine drives all of them in the same way:
//
//   Begin(slot, tokens)                   a sequence starts to run, or runs again
//   each step:  Propose(rounds)           drafts for some of the sequences, from what Observe has seen
//               Settle()                  once the device has been waited for: what it has drawn
//               Model::Step               the target's rows, those of the drafts among them; Settle may
//               follow
//                                         it where nothing is to be known of the drafts before
//               Observe(rows)             of every sequence of the step, what was kept: used or not, so that
//               what
//                                         a drafter knows of the tokens has no holes
//   End(slot)
//
// A proposal depends on the sequence's own tokens and random numbers alone.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "kv_cache/sequence_state.h"
#include "model/model.h"
#include "sampling/sampler.h"
#include "speculative/calibration.h"
#include "speculative/speculator_team.h"

namespace foresight {

enum class DraftMethod : uint8_t { kNone, kNgram, kMtp, kDSpark };

std::string_view DraftMethodName(DraftMethod method);  // "none", "ngram", "mtp", "dspark"

// One sequence that is to draft. Everything is borrowed for the call.
struct DraftRound {
  int slot = 0;
  SequenceState* state = nullptr;   // has seen all tokens but the last
  std::span<const TokenId> tokens;  // the last one is the anchor
  Sampler* sampler = nullptr;       // left as it was
  DraftBlock* block = nullptr;      // begun, empty; gets the drafts
  int depth = 0;                    // at most so many, 1 or more
  // Of all rounds the same: what drafts of this step may have, if there is room. Heads whose tokens see each
  // other compute so many, so that a draft doesn't hang on how much others have left. 0: all they can.
  int depth_max = 0;
  std::span<DraftEvidence> evidence;  // [depth]: filled as far as there are drafts, by drafters that have it
  // Where the device has pending drafts and what the evidence is made of; no tokens: that isn't to be read.
  DeviceDrafts on_device = {};
};

// What a step of the target has added to a sequence and was kept.
struct ObservedRows {
  int slot = 0;
  SequenceState* state = nullptr;   // truncated to what was kept
  int first_row = 0;                // of the kept ones in the step
  int rows = 0;                     // of `tokens`, those that end before state->length()
  std::span<const TokenId> tokens;  // known by now: one more than the state has seen, or further
  bool drafts_next = false;         // it may be asked for drafts in the next step
};

class Drafter {
 public:
  virtual ~Drafter() = default;

  virtual DraftMethod method() const = 0;
  // The longest draft.
  virtual int drafts_max() const = 0;
  // Whether Propose gives evidence for confidences.
  virtual bool has_confidences() const { return false; }
  // How many of the last tokens of a kept state must be computed again, because what the drafter knows of
  // them depends on the token behind.
  virtual int lag() const { return 0; }

  // Slots are small numbers. May allocate.
  virtual void Begin([[maybe_unused]] int slot, [[maybe_unused]] std::span<const TokenId> tokens,
                     [[maybe_unused]] int64_t tokens_max) {}
  virtual void End([[maybe_unused]] int slot) {}
  // Drafts that the device draws (DraftBlock::on_device) are pending in their blocks, and their evidence
  // isn't there, until Settle; `rounds` is borrowed until then. Errors: kInternal (bad logits), and what the
  // model says.
  virtual Status Propose(std::span<DraftRound> rounds) = 0;
  // After Device::Synchronize. Errors: kInternal (bad logits).
  virtual Status Settle() { return Status(); }
  virtual Status Observe([[maybe_unused]] std::span<const ObservedRows> rows) { return Status(); }
};

// How long drafts by `method` are: `asked` tokens, or, for 0, as many as the head was made for, or a good
// number.
int DraftsMax(DraftMethod method, int asked, const ModelConfig& config);

// Drafts of `drafts_max` tokens; 0: as many as the head was made for, or a good number. The model and the
// speculators outlive the drafter. Errors: kInvalidArgument (drafts_max out of range; no such head in the
// model).
Result<std::unique_ptr<Drafter>> MakeDrafter(DraftMethod method, int drafts_max, int slots_max, Model& model,
                                             SpeculatorTeam& speculators);

}  // namespace foresight
