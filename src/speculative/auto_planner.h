// The default: drafts where history says that it pays, so that speculation is not slower than none.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "speculative/planner.h"
#include "speculative/recorded_steps.h"
#include "speculative/throughput_planners.h"

namespace foresight {

// Waits 1, 2, 4 .. steps between tries of something that did not pay.
class BackOff {
 public:
  // A step passes: whether a try is due.
  bool Due() {
    if (wait_ == 0) return true;
    --wait_;
    return false;
  }
  void Failed(int wait_max) {
    length_ = length_ == 0 ? 1 : std::min(2 * length_, wait_max);
    wait_ = length_;
  }
  void Succeeded() { *this = BackOff(); }
  bool active() const { return length_ > 0; }

 private:
  int length_ = 0;
  int wait_ = 0;
};

// What drafting has won and lost, in milliseconds of plain steps: so that it loses no more than a small share
// of the time, whatever confidences and costs make it believe. Gains count up to a limit, so that old ones
// don't cover what is lost now.
//
// What a device takes more for the first steps of a kind, until it has recorded them, has an account of its
// own: it says nothing of what drafts cost from then on. It may be no more than a small share of the time
// either, what is won beyond the limit, and 50 ms once: an engine takes many times that to load.
class LossGuard {
 public:
  // Drafts of which a gain is expected may be unlucky for some steps; the coins of many requests even out.
  bool AllowsGain(double plain_ms, size_t requests) const {
    const double unlucky_ms = kUnluckySteps * plain_ms / std::sqrt(static_cast<double>(requests));
    return credit_ms_ >= -unlucky_ms;
  }
  // Whether steps may have drafts that the device has yet to record. Others go on: what they win pays for
  // recordings.
  bool AllowsWarmUp() const { return warm_up_ms_ >= 0; }
  bool AllowsTry() const { return credit_ms_ >= 0 && AllowsWarmUp(); }
  // A step passes that takes so long without drafts.
  void Pass(double plain_ms) {
    credit_ms_ += kAllowedShare * plain_ms;
    const double surplus_ms = std::max(0.0, credit_ms_ - kGainSteps * plain_ms);
    credit_ms_ -= surplus_ms;
    warm_up_ms_ = std::min(warm_up_ms_ + kWarmUpShare * plain_ms + surplus_ms, kWarmUpMs);
  }
  // A step with drafts took so much less (more: negative) than plain ones for its tokens.
  void Count(double gain_ms) { credit_ms_ += gain_ms; }
  // Of what a step took, so much was for a recording to come.
  void CountWarmUp(double ms) { warm_up_ms_ -= ms; }
  // Whether what was won makes up for drafts that cost so much and may be worth nothing.
  bool Covers(double cost_ms) const { return credit_ms_ >= cost_ms; }
  // A step with drafts whose cost is only known not to be more took at least so much less. It counts where
  // it has lost; won it has nothing that is known, and what was won before has got older.
  void CountUntimed(double gain_ms) { credit_ms_ += std::min(0.0, gain_ms) - kAging * credit_ms_; }

 private:
  static constexpr double kAllowedShare = 0.005;
  static constexpr double kUnluckySteps = 12;
  static constexpr double kGainSteps = 16;
  static constexpr double kWarmUpShare = 0.005;
  static constexpr double kWarmUpMs = 50;
  static constexpr double kAging = 1.0 / 32;
  double credit_ms_ = 0;
  double warm_up_ms_ = kWarmUpMs;
};

// What steps with rows of prompts take without drafts: what those with drafts are set against.
class PromptSteps {
 public:
  // A step without drafts, with so many rows of prompts, took so many times what the table says.
  void Count(int rows, double times);
  // By how much steps with about so many take longer than the table says; nothing: too few were seen.
  std::optional<double> Times(int rows) const;
  // A step with drafts passes: whether it is time for one without, so that what is known stays true.
  bool IsPlainDue(int rows);

 private:
  static constexpr int kKnownSteps = 8;
  static constexpr int kDraftedSteps = 31;
  struct Class {
    int steps = 0;
    int drafted = 0;  // since the last one
    double times = 1;
  };
  static size_t ClassOf(int rows) { return std::bit_width(static_cast<unsigned>(rows)); }
  std::array<Class, 32> classes_;  // by the power of two
};

// Two questions before a step, both answered from history (dspark.md 5.6):
// - a request: have the drafts that it could expect to be accepted been worth what they cost? If not, it does
//   without for a growing number of steps, then tries again;
// - the step: would the drafts of the other requests, with their mean confidences, raise tokens per second?
//   If not, it is plain; if so, how many tokens to draft is part of the question. Now and then there is a try
//   all the same, or there would be no history.
// A guard stands over both: when drafting has lost more than it may, steps are plain until they have made up
// for it. In a step with rows of prompts what drafts cost is what it takes beyond such steps without drafts.
// While too few of those were seen it can't be told, and it drafts only where other steps have won enough to
// cover it. What is drafted is planned as SyncPlanner does with look-ahead. Where a device draws and
// confidences have spared the step fewer rows than it costs to wait for them, it goes by what history expects
// of them.
class AutoPlanner final : public Planner {
 public:
  AutoPlanner(const PlannerOptions& options, const PlanningLimits& limits);

  void Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
               std::span<int> depths) override;
  bool ReadsConfidences() const override { return reads_confidences_; }
  int LongestDraft(int drafts_max) const override { return longest_draft_ > 0 ? longest_draft_ : drafts_max; }
  void Admit(Frontier& frontier) override { planner_.Admit(frontier); }
  void Learn(const StepLoad& load, const StepCosts* costs, const StepResult& result) override;

 private:
  // Of a prompt: more than is ever recorded.
  static constexpr int kAllUnread = 1 << 16;
  struct Request {
    uint32_t generation = 0;
    bool known = false;
    int rounds = 0;           // that drafted
    double gain = 0;          // of a round in tokens, a moving average
    int unread = kAllUnread;  // positions, by the drafter
    BackOff back_off;
  };
  Request& RequestOf(RequestId id);
  // A length of drafts, and what a step with them would gain over plain ones for its tokens.
  struct Length {
    int tokens = 0;
    double gain_ms = 0;
    double cost_ms = 0;  // more than a plain step
    StepShape shape;
  };
  struct Lengths {
    Length best;
    Length recorded;  // the best of those whose steps are recorded
  };
  // The best lengths (of 1, 2, 3, 4, 6, 9 .. and all) for drafts of at most these depths, by what planner_
  // expects of them, which has started for these depths. One of them is above 0. A longer one is better only
  // if it is faster by gain_min_.
  Lengths BestLengths(const StepLoad& load, const StepCosts& costs, std::span<const int> depths);
  // Of a step in which these requests draft up to so many tokens, and so many drafts are verified.
  StepShape ShapeOf(const StepLoad& load, std::span<const int> depths, int tokens, int verified);
  // Nothing is to be gained by what is expected: one of the requests drafts all the same, each in turn, or
  // all do if that loses less (`all` says how much; a device may draft for many at the price of one). Whole
  // drafts, so that all positions are seen. Whether there is a try now.
  bool Try(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs, const Length& all,
           std::span<int> depths);

  // Whether whole drafts of these depths may be tried. Where somebody has measured what to expect, only when
  // the guard covers it all: a short run loses nothing then.
  bool AllowsTry(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs,
                 std::span<const int> depths);
  // Whether what such a step takes more, if it isn't recorded yet, may be taken.
  bool AllowsWarmUpOf(const StepShape& shape) const;
  // Whether a step with rows of prompts may have drafts like these.
  bool AllowsBesidePrompts(int prompt_rows, const Length& drafts);

  double gain_min_;
  int wait_max_;
  std::vector<Request> requests_;  // [slots_max]
  BackOff step_back_off_;
  size_t tries_ = 0;
  // What rows would have cost that confidences spared, or could have, beyond what they were worth: of a step,
  // a moving average. Nothing: not known.
  std::optional<double> spared_ms_;
  // Of the step at hand.
  bool reads_confidences_ = true;
  int longest_draft_ = 0;  // 0: as long as may be
  bool tries_now_ = false;
  std::vector<int> all_depths_;
  std::vector<int> one_depths_;
  std::vector<double> survivals_;
  LossGuard guard_;
  PromptSteps prompt_steps_;
  RecordedSteps recorded_;
  CapacityPlan plan_;
  SyncPlanner planner_;
};

}  // namespace foresight
