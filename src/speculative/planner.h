// How many drafts of each request a step verifies (dspark.md 5; docs/speculation.md).
//
// A step of the engine:
//   depths = planning.BeginStep(load)             how many tokens each request drafts: from history
//   draft; planning.SetConfidences(r, c) for each request that drafted, or ExpectConfidences(r, drafted)
//   lengths = planning.Plan()                     how many of them are verified
//   verify, accept; planning.SetLateConfidences(r, c) where they were expected
//   planning.EndStep(accepted, times)             what the next steps may learn from
//
// Everything is host code on numbers, without clocks: it runs under simulation as it serves.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "foresight/request.h"
#include "speculative/confidence_correction.h"
#include "speculative/frontier.h"
#include "speculative/history.h"
#include "speculative/step_costs.h"

namespace foresight {

// One request of a step that samples a token (prefill chunks that don't are rows of StepLoad::other_rows).
struct RequestLoad {
  RequestId id;
  // The longest draft it may have: by its own setting, and by the tokens and the context it has left after
  // the step's own token. Known before drafting.
  int drafts_max = 0;
  bool coupled = false;  // its acceptance rule
};

struct StepLoad {
  std::span<const RequestLoad> requests;  // ties between requests go to the earlier one
  int other_rows = 0;                     // of the same forward
  int64_t context_tokens = 0;             // typical of the step: the mean over the requests
};

enum class PlannerKind : uint8_t {
  kAuto,       // drafts where history says that it pays (5.6), then kLookahead
  kStatic,     // always k
  kThreshold,  // each request up to its first confidence below the threshold
  kSync,       // Algorithm 1: admit while tokens per second rise
  kLookahead,  // the same, but across a dip that history says will be made good
  kAsync,      // how many: from confidences two steps old; which: the most likely of the present ones
  kGlobal,     // the best of all plans for the present confidences; exact with the coupled rule only
};

struct PlannerOptions {
  PlannerKind kind = PlannerKind::kAuto;
  int static_drafts = 0;       // kStatic
  double threshold = 0;        // kThreshold
  double gain_min = 1.01;      // kAuto: drafts when tokens per second would rise by this factor
  int backoff_steps_max = 32;  // kAuto: steps between two probes whether drafting pays again
};

// "auto", "static:3", "threshold:0.6", "sync", "lookahead", "async", "global". Errors: kInvalidArgument.
Result<PlannerOptions> ParsePlanner(std::string_view text);
std::string FormatPlanner(const PlannerOptions& options);

// What became of a step's drafts.
struct StepResult {
  const RoundConfidences& round;  // what was drafted and admitted
  std::span<const int> accepted;  // [requests]: of those admitted
  // What the step took, at the speed of the machine when it was profiled; absent when that isn't known.
  std::optional<double> ms = std::nullopt;
  bool is_warm_up = false;  // as of StepTimes
};

// A rule. It sees what its arguments show, and that is what it may depend on. One thread at a time; allocates
// in its constructor only.
class Planner {
 public:
  virtual ~Planner() = default;
  // Before drafting: how many tokens each request drafts, 0..drafts_max. Rules that decide beforehand how
  // many the step will verify do it here. `costs` is null when the engine has none.
  virtual void Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
                       std::span<int> depths) = 0;
  // After Prepare: whether what it admits in this step should depend on the confidences of the drafts at
  // hand. If not, the step that verifies them need not wait until they are known, and Admit may see what
  // history leads to expect in their place.
  virtual bool ReadsConfidences() const { return true; }
  // After Prepare: no draft of the step is longer, whatever its request has left; at most drafts_max.
  virtual int LongestDraft(int drafts_max) const { return drafts_max; }
  // After Prepare: how many drafts it admits, if those are the likeliest of all whatever their confidences
  // (AdmitMostLikely): then whoever knows the confidences first can tell which ones.
  virtual std::optional<int> Capacity() const { return std::nullopt; }
  // After drafting: which of them are verified.
  virtual void Admit(Frontier& frontier) = 0;
  // After the step.
  virtual void Learn(const StepLoad& load, const StepCosts* costs, const StepResult& result);
};

struct PlanningLimits {
  int slots_max = 1;   // sequences; at most as many requests in a step
  int drafts_max = 1;  // tokens of a draft; at most kDraftPositionsMax
  int rows_max = 1;    // of a step
};

// Errors: kInvalidArgument (limits out of range).
Result<std::unique_ptr<Planner>> MakePlanner(const PlannerOptions& options, const PlanningLimits& limits);

// Runs a planner through the steps of an engine and keeps what it learns. One thread at a time; allocates
// when it is made only. Calls come in the order above (CHECK).
class StepPlanning {
 public:
  // `costs` may be absent for kStatic and kThreshold only (kInvalidArgument).
  static Result<StepPlanning> Create(const PlannerOptions& options, const PlanningLimits& limits,
                                     std::optional<StepCosts> costs);
  // With a planner of the caller's own, which must agree to what is absent.
  static StepPlanning Create(std::unique_ptr<Planner> planner, const PlanningLimits& limits,
                             std::optional<StepCosts> costs);

  // Before the first step, as of SpeculationHistory.
  void Expect(std::span<const float> acceptance) { history_.Expect(acceptance); }
  // [requests]: how many tokens to draft; 0: don't. Drafts are shortened where all of them would not fit into
  // rows_max.
  std::span<const int> BeginStep(const StepLoad& load);
  // Calibrated confidences of request r's drafts (kAuto corrects what the calibration missed), one for each
  // drafted token; fewer than asked shorten the draft (a look-up that found less, known without regard to the
  // tokens).
  void SetConfidences(int r, std::span<const float> confidences);
  // The same for a drafter without a confidence head: the rate at which its drafts were accepted so far.
  void SetConfidencesFromHistory(int r, int drafted);
  // The same for drafts that a device has yet to draw: what history leads to expect of them.
  void ExpectConfidences(int r, int drafted);
  // [requests]: how many drafts to verify.
  std::span<const int> Plan();
  // Behind Plan(): the confidences of request r's drafts, where they were expected.
  void SetLateConfidences(int r, std::span<const float> confidences);
  // `times` absent: what it took isn't known.
  void EndStep(std::span<const int> accepted, const std::optional<StepTimes>& times);

  // As of Planner.
  int LongestDraft() const { return planner_->LongestDraft(limits_.drafts_max); }
  bool ReadsConfidences() const { return planner_->ReadsConfidences(); }
  std::optional<int> Capacity() const { return planner_->Capacity(); }

  const SpeculationHistory& history() const { return history_; }
  const std::optional<StepCosts>& costs() const { return costs_; }

 private:
  enum class Phase : uint8_t { kIdle, kDrafting, kPlanned };
  StepPlanning(std::unique_ptr<Planner> planner, const PlanningLimits& limits,
               std::optional<StepCosts> costs);
  void ShortenToRows();
  // Whether one drafts who didn't in the step before: a draft then reads all that it has left unread since.
  bool Resumes();
  // Keeps them as they are, and gives them as corrected by what was learnt.
  std::span<const float> Corrected(int r, std::span<const float> confidences);

  std::unique_ptr<Planner> planner_;
  PlanningLimits limits_;
  std::optional<StepCosts> costs_;
  SpeculationHistory history_;
  std::optional<ConfidenceCorrection> correction_;
  RoundConfidences round_;
  Phase phase_ = Phase::kIdle;
  StepLoad load_;                      // of requests_
  std::vector<RequestLoad> requests_;  // with drafts_max as the step has room for
  std::vector<int> depths_;
  std::vector<uint8_t> have_confidences_;  // bool
  std::vector<float> uncorrected_;         // [slots_max, drafts_max]
  std::vector<float> corrected_;           // [drafts_max]
  std::vector<RequestId> drafted_last_;    // [slots_max]: who drafted in the last step they took part in
};

}  // namespace foresight
