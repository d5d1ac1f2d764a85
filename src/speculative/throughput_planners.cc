#include "speculative/throughput_planners.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/check.h"

namespace foresight {
namespace {

// How many drafts ahead a dip may be crossed.
constexpr int kLookaheadMax = 32;

// Of a step with drafts of these depths.
StepValue ValueOf(const StepLoad& load, const StepCosts& costs, std::span<const int> depths,
                  OtherRows other_rows = OtherRows::kCount) {
  const auto drafting = std::count_if(depths.begin(), depths.end(), [](int depth) { return depth > 0; });
  return StepValue(load, costs, static_cast<int>(drafting), Longest(depths), other_rows);
}

// All that each request may have.
void DraftAll(const StepLoad& load, std::span<int> depths) {
  for (size_t r = 0; r < depths.size(); ++r) depths[r] = load.requests[r].drafts_max;
}

void Fill(const Frontier& frontier, FrontierQueue& queue) {
  queue.Clear(frontier.num_requests());
  for (int r = 0; r < frontier.num_requests(); ++r) {
    queue.Add({.r = r, .j = frontier.admitted(r), .survival = frontier.survival(r)});
  }
  queue.Order();
}

void AdmitTop(Frontier& frontier, FrontierQueue& queue) {
  const int r = queue.top().r;
  frontier.Admit(r);
  queue.ReplaceTop({.r = r, .j = frontier.admitted(r), .survival = frontier.survival(r)});
}

}  // namespace

int Longest(std::span<const int> depths) {
  return depths.empty() ? 0 : *std::max_element(depths.begin(), depths.end());
}

CapacityPlan::CapacityPlan() : used_(kBins / 64), bins_(kBins) {}

void CapacityPlan::Clear() {
  ForEachBin([this](int bin) { bins_[bin] = {}; });
  std::fill(used_.begin(), used_.end(), 0);
}

template <typename Visit>
void CapacityPlan::ForEachBin(Visit visit) const {
  for (int word = static_cast<int>(used_.size()) - 1; word >= 0; --word) {
    for (uint64_t bits = used_[word]; bits != 0;) {
      const int bit = std::bit_width(bits) - 1;
      bits ^= uint64_t{1} << bit;
      visit(64 * word + bit);
    }
  }
}

CapacityPlan::Best CapacityPlan::Maximize(const StepValue& value) const {
  double tokens = value.requests();
  int drafts = 0;
  int best_drafts = 0;
  double best_tokens = tokens;
  double best_ms = value.Ms(0);
  const auto consider = [&](int more_drafts, double more_tokens) {
    const double ms = value.Ms(drafts + more_drafts);
    if ((tokens + more_tokens) * best_ms <= best_tokens * ms) return;
    best_drafts = drafts + more_drafts;
    best_tokens = tokens + more_tokens;
    best_ms = ms;
  };
  const std::span<const CostPoint> bends = value.Bends();
  size_t bend = 0;
  // Where both tokens and costs are straight lines, Theta is highest at an end.
  ForEachBin([&](int i) {
    const Bin& bin = bins_[i];
    for (; bend < bends.size() && bends[bend].count < value.rows() + drafts + bin.count; ++bend) {
      const int more_drafts = bends[bend].count - value.rows() - drafts;
      consider(more_drafts, bin.sum / bin.count * more_drafts);
    }
    consider(bin.count, bin.sum);
    drafts += bin.count;
    tokens += bin.sum;
  });
  return {.drafts = best_drafts, .tokens_per_ms = best_tokens / best_ms};
}

SyncPlanner::SyncPlanner(const PlanningLimits& limits, Dips dips, OtherRows other_rows)
    : dips_(dips),
      other_rows_(other_rows),
      drafts_max_(limits.drafts_max),
      expected_(static_cast<size_t>(limits.slots_max) * limits.drafts_max),
      queue_(limits.slots_max),
      guess_(limits.slots_max) {}

void SyncPlanner::Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
                          std::span<int> depths) {
  CHECK(costs != nullptr);
  DraftAll(load, depths);
  Start(load, history, *costs, depths);
}

void SyncPlanner::Start(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs,
                        std::span<const int> depths) {
  value_ = ValueOf(load, costs, depths, other_rows_);
  if (dips_ == Dips::kStop) return;
  for (size_t r = 0; r < depths.size(); ++r) {
    for (int j = 0; j < depths[r]; ++j) {
      expected_[r * drafts_max_ + j] = static_cast<float>(history.MeanConfidence(load.requests[r].id, j));
    }
  }
}

void SyncPlanner::Admit(Frontier& frontier) {
  Fill(frontier, queue_);
  candidates_ = 0;
  for (int r = 0; r < frontier.num_requests(); ++r) candidates_ += frontier.depth(r);
  double tokens = value_.requests();
  for (int admitted = 0; !queue_.empty(); ++admitted) {
    const double more = tokens + queue_.top().survival;
    const bool rises = more * value_.Ms(admitted) > tokens * value_.Ms(admitted + 1);
    if (!rises && (dips_ == Dips::kStop || !RisesLater(frontier, tokens, admitted))) break;
    AdmitTop(frontier, queue_);
    tokens = more;
  }
}

// Is tokens per second higher some drafts further on than now? The next candidate of each request is known;
// those behind them are guessed from history.
bool SyncPlanner::RisesLater(const Frontier& frontier, double tokens, int admitted) {
  const int ahead_max = std::min(kLookaheadMax, candidates_ - admitted);
  const double now_ms = value_.Ms(admitted);
  // None behind it survives more often than the top: most steps end here.
  const double top = queue_.top().survival;
  bool possible = false;
  for (int m = 2; m <= ahead_max && !possible; ++m) {
    possible = (tokens + m * top) * now_ms > tokens * value_.Ms(admitted + m);
  }
  if (!possible) return false;

  guess_ = queue_;
  double later = tokens;
  for (int m = 1; m <= ahead_max && !guess_.empty(); ++m) {
    const FrontierQueue::Candidate candidate = guess_.top();
    later += candidate.survival;
    if (later * now_ms > tokens * value_.Ms(admitted + m)) return true;
    FrontierQueue::Candidate behind{.r = candidate.r, .j = candidate.j + 1};
    if (behind.j < frontier.depth(behind.r)) {
      behind.survival = candidate.survival * expected(behind.r, behind.j);
    }
    guess_.ReplaceTop(behind);
  }
  return false;
}

void AdmitMostLikely(Frontier& frontier, int drafts, FrontierQueue& queue) {
  if (drafts == 0) return;
  Fill(frontier, queue);
  int admitted = 0;
  for (; admitted < drafts && !queue.empty(); ++admitted) AdmitTop(frontier, queue);
  // A step has as many rows as it was given, whatever it may hope for: the rest goes to survivals of 0.
  int longest = 0;
  for (int r = 0; r < frontier.num_requests(); ++r) longest = std::max(longest, frontier.depth(r));
  for (int j = 0; j < longest; ++j) {
    for (int r = 0; r < frontier.num_requests() && admitted < drafts; ++r) {
      if (frontier.admitted(r) != j || frontier.exhausted(r)) continue;
      frontier.Admit(r);
      ++admitted;
    }
  }
}

void AsyncPlanner::Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
                           std::span<int> depths) {
  CHECK(costs != nullptr);
  DraftAll(load, depths);
  plan_.Clear();
  for (size_t r = 0; r < depths.size(); ++r) {
    double survival = 1;
    for (int j = 0; j < depths[r]; ++j) {
      survival *= history.StaleConfidence(load.requests[r].id, j);
      plan_.Add(survival);
    }
  }
  capacity_ = plan_.Maximize(ValueOf(load, *costs, depths)).drafts;
}

GlobalPlanner::GlobalPlanner(const PlanningLimits& limits) : queue_(limits.slots_max) {
  survivals_.reserve(static_cast<size_t>(limits.slots_max) * limits.drafts_max);
}

void GlobalPlanner::Prepare(const StepLoad& load, const SpeculationHistory&, const StepCosts* costs,
                            std::span<int> depths) {
  CHECK(costs != nullptr);
  DraftAll(load, depths);
  value_ = ValueOf(load, *costs, depths);
}

void GlobalPlanner::Admit(Frontier& frontier) {
  const RoundConfidences& round = frontier.Unrestricted();
  survivals_.clear();
  for (int r = 0; r < round.num_requests(); ++r) {
    double survival = 1;
    for (float c : round.of(r)) survivals_.push_back(survival *= c);
  }
  std::sort(survivals_.begin(), survivals_.end(), std::greater<>());
  double tokens = value_.requests();
  double best = tokens / value_.Ms(0);
  int best_drafts = 0;
  for (size_t k = 0; k < survivals_.size() && survivals_[k] > 0; ++k) {
    tokens += survivals_[k];
    const double tokens_per_ms = tokens / value_.Ms(static_cast<int>(k) + 1);
    if (tokens_per_ms > best) {
      best = tokens_per_ms;
      best_drafts = static_cast<int>(k) + 1;
    }
  }
  AdmitMostLikely(frontier, best_drafts, queue_);
}

}  // namespace foresight
