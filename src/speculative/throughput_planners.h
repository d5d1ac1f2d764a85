// Planners that maximise tokens per second, Theta = expected tokens / time of the step (dspark.md 5.1).
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "speculative/frontier_queue.h"
#include "speculative/planner.h"

namespace foresight {

// Whether a step's other rows, of prompts, count as part of what its tokens cost.
enum class OtherRows : uint8_t {
  kCount,  // as in the DSpark paper: drafts look cheap beside a long prompt
  kSunk,   // no: they are computed at some time anyway, and drafts pay for what their own rows add to them
};

// What a step is worth by the number of drafts that are verified. Valid as long as the StepCosts stay.
class StepValue {
 public:
  StepValue() = default;
  // `draft_requests` of the load's requests draft, at most `draft_tokens` each.
  StepValue(const StepLoad& load, const StepCosts& costs, int draft_requests, int draft_tokens,
            OtherRows other_rows = OtherRows::kCount)
      : requests_(static_cast<double>(load.requests.size())),
        rows_(load.other_rows + static_cast<int>(load.requests.size())),
        fixed_ms_(costs.HostMs() + costs.DraftMs(draft_requests, draft_tokens)),
        verify_ms_(costs.VerifyMs(load.context_tokens)),
        verify_points_(costs.VerifyPoints(load.context_tokens)) {
    if (other_rows == OtherRows::kSunk) fixed_ms_ -= verify_ms_[rows_] - verify_ms_[load.requests.size()];
  }

  // Tokens of the step without drafts: each request gets one.
  double requests() const { return requests_; }
  // Of the step with `drafts` drafts verified.
  double Ms(int drafts) const { return fixed_ms_ + verify_ms_[rows_ + drafts]; }
  // Where Ms bends: points of more rows than rows().
  std::span<const CostPoint> Bends() const {
    const auto first = std::upper_bound(verify_points_.begin(), verify_points_.end(), rows_,
                                        [](int rows, const CostPoint& p) { return rows < p.count; });
    return {first, verify_points_.end()};
  }
  int rows() const { return rows_; }  // without drafts

 private:
  double requests_ = 0;
  int rows_ = 0;
  double fixed_ms_ = 0;
  std::span<const double> verify_ms_;
  std::span<const CostPoint> verify_points_;
};

// The most tokens that one of the requests drafts.
int Longest(std::span<const int> depths);

// The best number of drafts for survivals known beforehand, and what it would give. In O(bins): survivals are
// sorted into 128 equal bins and taken for the mean of their bin, which is close enough for a guess about the
// future.
class CapacityPlan {
 public:
  CapacityPlan();
  void Clear();
  void Add(double survival) {
    if (!(survival > 0)) return;
    const unsigned i = std::min(static_cast<unsigned>(survival * kBins), kBins - 1);
    Bin& bin = bins_[i];
    if (bin.count++ == 0) used_[i / 64] |= uint64_t{1} << i % 64;
    bin.sum += survival;
  }

  struct Best {
    int drafts = 0;
    double tokens_per_ms = 0;
  };
  Best Maximize(const StepValue& value) const;

 private:
  static constexpr unsigned kBins = 128;
  struct Bin {
    double sum = 0;
    int count = 0;
  };
  // From the highest to the lowest that has any.
  template <typename Visit>
  void ForEachBin(Visit visit) const;

  std::vector<uint64_t> used_;  // a bit for each bin: of few requests most are empty
  std::vector<Bin> bins_;
};

// Algorithm 1 (dspark.md 5.2): drafts in the order of their survivals, as long as each one raises Theta.
class SyncPlanner final : public Planner {
 public:
  enum class Dips : uint8_t {
    kStop,        // at the first draft that lowers Theta
    kLookAcross,  // unless, going by the candidates seen and by history for those behind them, the next few
                  // drafts together raise it
  };
  SyncPlanner(const PlanningLimits& limits, Dips dips, OtherRows other_rows = OtherRows::kCount);

  void Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
               std::span<int> depths) override;
  void Admit(Frontier& frontier) override;
  // Prepare for depths that the caller has chosen.
  void Start(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs,
             std::span<const int> depths);
  // What history says of draft j of request r (look-ahead only).
  double expected(int r, int j) const { return expected_[static_cast<size_t>(r) * drafts_max_ + j]; }

 private:
  bool RisesLater(const Frontier& frontier, double tokens, int admitted);

  Dips dips_;
  OtherRows other_rows_;
  int drafts_max_;
  StepValue value_;
  int candidates_ = 0;
  std::vector<float> expected_;  // [slots_max, drafts_max]: mean confidences of the step's requests
  FrontierQueue queue_;
  FrontierQueue guess_;
};

// The most likely `drafts` of all, or all if there are fewer; the hopeless ones in the order of
// FrontierQueue.
void AdmitMostLikely(Frontier& frontier, int drafts, FrontierQueue& queue);

// How many drafts are verified follows from confidences that are two steps old, by global search; which ones,
// from the present ones (dspark.md 5.3).
class AsyncPlanner final : public Planner {
 public:
  explicit AsyncPlanner(const PlanningLimits& limits) : queue_(limits.slots_max) {}

  void Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
               std::span<int> depths) override;
  std::optional<int> Capacity() const override { return capacity_; }
  void Admit(Frontier& frontier) override { AdmitMostLikely(frontier, capacity_, queue_); }

 private:
  CapacityPlan plan_;
  FrontierQueue queue_;
  int capacity_ = 0;
};

// The best number of drafts for the present confidences. Depends on tokens it must not see: with the coupled
// rule only.
class GlobalPlanner final : public Planner {
 public:
  explicit GlobalPlanner(const PlanningLimits& limits);

  void Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
               std::span<int> depths) override;
  void Admit(Frontier& frontier) override;

 private:
  StepValue value_;
  std::vector<double> survivals_;
  FrontierQueue queue_;
};

}  // namespace foresight
