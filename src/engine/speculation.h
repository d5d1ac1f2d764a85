// Drafts, plans and verdicts of the engine's steps: what stands between the scheduler's rows and the model's.
//
//   Begin(s)                              when a sequence gets its state
//   each step:  lengths = Draft(candidates, ..)   drafts are in each sequence's block; verify so many of
//   them.
//                                                 They may be pending there, still being drawn by the device
//                                                 with plan().count > 0 the device decides how many
//               the model's step
//               Settle(verified)                  once the device has been waited for: no draft is pending
//               Judged(i, accepted)        what became of candidate i's drafts (drawing/token_draws.h)
//               Observe(rows)              what was kept
//               EndStep(times)
//   End(s)                                when its state is taken back
//
// One thread: the engine's. Allocates in Create and Begin only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "drafting/drafter.h"
#include "engine/runtime.h"
#include "engine/sequence.h"
#include "speculative/calibration.h"
#include "speculative/draft_traces.h"
#include "speculative/planner.h"
#include "speculative/speculator_team.h"

namespace foresight {

// A sequence that draws a token in the step at hand.
struct DraftCandidate {
  Sequence* sequence = nullptr;
  bool decodes = false;  // the step computes nothing of it but its last token: drafts may follow
};

struct SpeculationLimits {
  int max_sequences = 1;
  int step_rows_max = 1;
};

class Speculation {
 public:
  // `costs` may be absent for planners that need none. Errors: kInvalidArgument (options, no such head).
  static Result<std::unique_ptr<Speculation>> Create(const SpeculationOptions& options, Runtime& runtime,
                                                     const SpeculationLimits& limits,
                                                     const std::optional<StepCostTable>& costs,
                                                     const std::optional<CalibrationTable>& calibration);
  // The same with confidences and outcomes of a trace, for benchmarks (draft_replay.h). `trace` outlives this
  // object. Errors: also kInvalidArgument for a trace of another drafter, or of shorter drafts.
  static Result<std::unique_ptr<Speculation>> CreateReplay(const SpeculationOptions& options,
                                                           Runtime& runtime, const SpeculationLimits& limits,
                                                           const std::optional<StepCostTable>& costs,
                                                           const DraftTrace& trace);

  const Drafter& drafter() const { return *drafter_; }
  Drafter& drafter() { return *drafter_; }
  // What judges its drafts.
  SpeculatorTeam& speculators() { return *speculators_; }
  Chance& chance() { return *chance_; }

  void Begin(Sequence& s);
  void End(Sequence& s);

  // Drafts for candidates, of which each has a block of this object. `other_rows`: of the same step, that
  // draw nothing. `reserve(s, rows)` makes room for a candidate's rows and may fail: then it has no drafts.
  // [candidates]: how many drafts to verify; with a plan for the device how many there are. Errors: kInternal
  // (a head's logits are not numbers).
  Result<std::span<const int>> Draft(std::span<const DraftCandidate> candidates, int other_rows,
                                     const std::function<bool(Sequence&, int rows)>& reserve);
  // Of the step that Draft has begun, up to Settle: how many of all drafts the device is to have verified,
  // and [candidates] their drafts. 0: what Draft says.
  const DraftPlan& plan() const { return plan_; }
  // After Device::Synchronize. `verified` [candidates]: of a step with a plan, what the device made of it.
  // Errors as Draft; kInternal (that isn't what the planner says).
  Status Settle(std::span<const int32_t> verified);
  // [candidates]: how many drafts are verified, behind Settle.
  std::span<const int> lengths() const { return lengths_; }
  // So many of the drafts of candidate `i` that were to be verified were accepted.
  void Judged(int i, int accepted);
  Status Observe(std::span<const ObservedRows> rows) { return drafter_->Observe(rows); }
  // As of StepPlanning.
  void EndStep(const std::optional<StepTimes>& times);

  // Sequences that drafted in this step, and the most tokens that one of them was to draft.
  int num_drafting() const { return static_cast<int>(rounds_.size()); }
  int longest_draft() const { return longest_draft_; }
  // Whether some of them were still being drawn when the step's rows were known.
  bool has_late_drafts() const { return !late_rounds_.empty(); }
  // Seconds that a step of one row takes at this length; 0: not known.
  double PlainStepSeconds(int64_t context_tokens) const;
  // A line for the start-up log.
  std::string Report() const;
  const StepPlanning& planning() const { return planning_; }

 private:
  // Each refers to those above it.
  struct Parts {
    std::unique_ptr<Chance> chance;
    std::unique_ptr<SpeculatorTeam> speculators;
    std::unique_ptr<Drafter> drafter;
    std::vector<float> expected = {};  // as of SpeculationHistory::Expect; empty: what the calibration says
  };
  Speculation(const SpeculationOptions& options, Runtime& runtime, const SpeculationLimits& limits,
              StepPlanning planning, Calibration calibration, Parts parts);
  static Result<Parts> MakeParts(Runtime& runtime, const SpeculationLimits& limits,
                                 std::unique_ptr<Chance> chance);
  static Result<std::unique_ptr<Speculation>> Assemble(const SpeculationOptions& options, Runtime& runtime,
                                                       const SpeculationLimits& limits,
                                                       const std::optional<StepCostTable>& costs,
                                                       const std::optional<CalibrationTable>& calibration,
                                                       Parts parts);

  // What the step's candidates are to planners; begins their blocks.
  StepLoad Load(int other_rows);
  // Drafts of rounds_, pending only where the plan can be made without them.
  Status Propose();
  // Whether it can, while the drafts of rounds_ are pending; sets plan_ where the device is to make it.
  bool PlansAhead();
  // What is known of the drafts of rounds_ before there is a plan.
  void TellPlanner(bool is_proposed);
  // Of what round r has drafted.
  std::span<const float> Confidences(size_t r);

  const SpeculationOptions options_;
  const int vocab_size_;
  Device& device_;
  std::unique_ptr<Chance> chance_;
  std::unique_ptr<SpeculatorTeam> speculators_;
  std::unique_ptr<Drafter> drafter_;
  StepPlanning planning_;
  Calibration calibration_;
  bool is_calibrated_ = false;
  std::vector<int> free_slots_;
  std::vector<uint32_t> generations_;  // by slot

  // Of the step at hand.
  std::span<const DraftCandidate> candidates_;
  std::span<const int> lengths_;
  std::vector<RequestLoad> loads_;
  std::vector<DraftRound> rounds_;
  std::vector<int> round_candidates_;  // [rounds]
  std::vector<size_t> late_rounds_;    // of which drafts were pending when the plan was made
  int longest_draft_ = 0;
  std::vector<DraftEvidence> evidence_;  // [rounds, drafts_max]
  std::vector<float> confidences_;       // [drafts_max]
  std::vector<int> accepted_;            // [candidates]
  std::vector<int> drafted_;             // [candidates]
  std::vector<ChunkDrafts> planned_;     // [candidates]: of plan_
  DraftPlan plan_;
};

}  // namespace foresight
