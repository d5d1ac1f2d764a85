#include "speculative/auto_planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace foresight {
namespace {

constexpr int kFreeRounds = 2;  // before a request is judged
constexpr double kGainShare = 1.0 / 8;
constexpr double kProbeShare = 1.0 / 2;  // rounds are rare while it backs off
constexpr double kSparedShare = 1.0 / 32;
constexpr double kTimesShare = 1.0 / 8;
// Beside prompts drafts may cost so many times what the table says of them.
constexpr double kUntimedCosts = 3;

StepValue ValueOf(const StepLoad& load, const StepCosts& costs, int draft_requests, int draft_tokens) {
  return StepValue(load, costs, draft_requests, draft_tokens, OtherRows::kSunk);
}

// Of rows that are worth less than they cost, the difference.
double SparedMs(const RoundConfidences& round, double row_ms, double token_ms) {
  double ms = 0;
  for (int r = 0; r < round.num_requests(); ++r) {
    double survival = 1;
    for (const float confidence : round.of(r)) {
      ms += std::max(0.0, row_ms - (survival *= confidence) * token_ms);
    }
  }
  return ms;
}

}  // namespace

void PromptSteps::Count(int rows, double times) {
  Class& of = classes_[ClassOf(rows)];
  of.drafted = 0;
  // A pause of the machine is no news.
  if (of.steps > 0) times = std::clamp(times, of.times / 2, of.times * 2);
  of.times += std::max(kTimesShare, 1.0 / ++of.steps) * (times - of.times);
}

std::optional<double> PromptSteps::Times(int rows) const {
  const Class& of = classes_[ClassOf(rows)];
  return of.steps >= kKnownSteps ? std::optional(of.times) : std::nullopt;
}

bool PromptSteps::IsPlainDue(int rows) {
  return ++classes_[ClassOf(rows)].drafted > kDraftedSteps;
}

AutoPlanner::AutoPlanner(const PlannerOptions& options, const PlanningLimits& limits)
    : gain_min_(options.gain_min),
      wait_max_(options.backoff_steps_max),
      requests_(limits.slots_max),
      planner_(limits, SyncPlanner::Dips::kLookAcross, OtherRows::kSunk) {
  CHECK(gain_min_ > 0 && wait_max_ > 0);
  all_depths_.reserve(limits.slots_max);
  one_depths_.reserve(limits.slots_max);
  survivals_.reserve(limits.slots_max);
}

AutoPlanner::Request& AutoPlanner::RequestOf(RequestId id) {
  Request& request = requests_[id.slot];
  if (!request.known || request.generation != id.generation) {
    request = Request();
    request.generation = id.generation;
    request.known = true;
  }
  return request;
}

StepShape AutoPlanner::ShapeOf(const StepLoad& load, std::span<const int> depths, int tokens, int verified) {
  StepShape shape{.requests = static_cast<int>(depths.size()),
                  .tokens = std::min(tokens, Longest(depths)),
                  .verified = verified};
  for (size_t r = 0; r < depths.size(); ++r) {
    if (depths[r] == 0) continue;
    ++shape.drafting;
    shape.unread = std::min(shape.unread + RequestOf(load.requests[r].id).unread, kAllUnread);
  }
  return shape;
}

AutoPlanner::Lengths AutoPlanner::BestLengths(const StepLoad& load, const StepCosts& costs,
                                              std::span<const int> depths) {
  const StepValue plain = ValueOf(load, costs, 0, 0);
  const double token_ms = plain.Ms(0) / plain.requests();
  const StepShape shape = ShapeOf(load, depths, /*tokens=*/0, /*verified=*/0);
  survivals_.assign(depths.size(), 1);
  plan_.Clear();
  Lengths lengths;
  double best_tokens_per_ms = 0;
  double recorded_tokens_per_ms = 0;
  const int longest = Longest(depths);
  int next = 1;
  for (int tokens = 1; tokens <= longest; ++tokens) {
    for (size_t r = 0; r < depths.size(); ++r) {
      survivals_[r] =
          depths[r] < tokens ? 0 : survivals_[r] * planner_.expected(static_cast<int>(r), tokens - 1);
    }
    for (const double survival : survivals_) plan_.Add(survival);
    if (tokens < next && tokens < longest) continue;
    next = tokens + std::max(1, tokens / 2);
    const StepValue step = ValueOf(load, costs, shape.drafting, tokens);
    const CapacityPlan::Best found = plan_.Maximize(step);
    const double ms = step.Ms(found.drafts);
    const double expected = found.tokens_per_ms * ms;
    Length length{
        .tokens = tokens, .gain_ms = expected * token_ms - ms, .cost_ms = ms - plain.Ms(0), .shape = shape};
    length.shape.tokens = tokens;
    length.shape.verified = found.drafts;
    if (found.tokens_per_ms > gain_min_ * best_tokens_per_ms) {
      best_tokens_per_ms = found.tokens_per_ms;
      lengths.best = length;
    }
    if (found.tokens_per_ms > gain_min_ * recorded_tokens_per_ms &&
        recorded_.UnrecordedMs(length.shape) == 0) {
      recorded_tokens_per_ms = found.tokens_per_ms;
      lengths.recorded = length;
    }
  }
  return lengths;
}

void AutoPlanner::Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
                          std::span<int> depths) {
  CHECK(costs != nullptr);
  reads_confidences_ = true;
  longest_draft_ = 0;
  tries_now_ = false;
  bool any = false;
  for (size_t r = 0; r < depths.size(); ++r) {
    const RequestLoad& request = load.requests[r];
    depths[r] = RequestOf(request.id).back_off.Due() ? request.drafts_max : 0;
    any |= depths[r] > 0;
  }
  if (!any) return;
  if (costs->NeedsPlainStep()) {
    std::fill(depths.begin(), depths.end(), 0);
    return;
  }
  const double plain_ms = ValueOf(load, *costs, 0, 0).Ms(0);
  if (!guard_.AllowsGain(plain_ms, depths.size())) {
    std::fill(depths.begin(), depths.end(), 0);
    return;
  }
  planner_.Start(load, history, *costs, depths);
  const Lengths lengths = BestLengths(load, *costs, depths);
  const Length& best = lengths.best;
  const auto pays = [&](const Length& length) { return length.gain_ms > (gain_min_ - 1) * plain_ms; };
  int tokens = 0;
  if (!pays(best)) {
    if (load.other_rows == 0 && Try(load, history, *costs, best, depths)) return;
  } else if (load.other_rows > 0) {
    tokens = AllowsBesidePrompts(load.other_rows, best) ? best.tokens : 0;
  } else {
    const double other_ms = pays(lengths.recorded)
                                ? lengths.recorded.gain_ms
                                : -recorded_.UnrecordedMs({.requests = static_cast<int>(depths.size())});
    if (AllowsWarmUpOf(best.shape) && recorded_.Allows(best.shape, best.gain_ms - other_ms)) {
      tokens = best.tokens;
    } else if (pays(lengths.recorded)) {
      tokens = lengths.recorded.tokens;
    }
  }
  if (tokens == 0) {
    std::fill(depths.begin(), depths.end(), 0);  // nothing is left to plan
    return;
  }
  longest_draft_ = tokens;
  step_back_off_.Succeeded();
  reads_confidences_ = !spared_ms_ || *spared_ms_ >= costs->WaitMs();
  if (tokens == Longest(depths)) return;
  for (int& depth : depths) depth = std::min(depth, tokens);
  planner_.Start(load, history, *costs, depths);
}

bool AutoPlanner::AllowsWarmUpOf(const StepShape& shape) const {
  return guard_.AllowsWarmUp() || recorded_.UnrecordedMs(shape) == 0;
}

bool AutoPlanner::AllowsBesidePrompts(int prompt_rows, const Length& drafts) {
  if (!AllowsWarmUpOf(drafts.shape)) return false;
  if (prompt_steps_.Times(prompt_rows)) return !prompt_steps_.IsPlainDue(prompt_rows);
  return guard_.Covers(kUntimedCosts * drafts.cost_ms);
}

bool AutoPlanner::AllowsTry(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs,
                            std::span<const int> depths) {
  if (!guard_.AllowsTry()) return false;
  if (!history.is_measured()) return true;
  const int drafts = std::accumulate(depths.begin(), depths.end(), 0);
  const StepShape shape = ShapeOf(load, depths, Longest(depths), drafts);
  const double ms = ValueOf(load, costs, shape.drafting, shape.tokens).Ms(drafts);
  return guard_.Covers(ms - ValueOf(load, costs, 0, 0).Ms(0) + recorded_.UnrecordedMs(shape));
}

bool AutoPlanner::Try(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs,
                      const Length& all, std::span<int> depths) {
  size_t chosen = tries_ % depths.size();
  while (depths[chosen] == 0) chosen = (chosen + 1) % depths.size();
  one_depths_.assign(depths.size(), 0);
  one_depths_[chosen] = depths[chosen];
  if (!AllowsTry(load, history, costs, one_depths_) || !step_back_off_.Due()) return false;
  step_back_off_.Failed(wait_max_);
  tries_now_ = true;
  ++tries_;
  all_depths_.assign(depths.begin(), depths.end());
  std::copy(one_depths_.begin(), one_depths_.end(), depths.begin());
  planner_.Start(load, history, costs, depths);
  if (BestLengths(load, costs, depths).best.gain_ms >= all.gain_ms) return true;
  if (!AllowsTry(load, history, costs, all_depths_)) return true;
  std::copy(all_depths_.begin(), all_depths_.end(), depths.begin());
  planner_.Start(load, history, costs, depths);
  return true;
}

void AutoPlanner::Learn(const StepLoad& load, const StepCosts* costs, const StepResult& result) {
  CHECK(costs != nullptr);
  const RoundConfidences& round = result.round;
  StepShape shape{.requests = round.num_requests()};
  int drafted = 0;
  for (int r = 0; r < round.num_requests(); ++r) {
    Request& request = RequestOf(load.requests[r].id);
    if (round.depth(r) > 0) {
      ++shape.drafting;
      shape.unread = std::min(shape.unread + std::exchange(request.unread, 0), kAllUnread);
    }
    request.unread = std::min(request.unread + 1 + result.accepted[r], kAllUnread);
    drafted += round.depth(r);
    shape.tokens = std::max(shape.tokens, round.depth(r));
    shape.verified += round.admitted()[r];
  }
  const int drafting = shape.drafting;
  const int longest = shape.tokens;
  const int admitted = shape.verified;
  const StepValue plain = ValueOf(load, *costs, 0, 0);
  guard_.Pass(plain.Ms(0));
  if (drafting == 0) {
    if (load.other_rows > 0 && result.ms) {
      prompt_steps_.Count(load.other_rows, *result.ms / StepValue(load, *costs, 0, 0).Ms(0));
    } else if (result.ms) {
      recorded_.Count(shape, result.is_warm_up, *result.ms - plain.Ms(0));
    }
    return;
  }
  const double token_ms = plain.Ms(0) / plain.requests();
  const int accepted = std::accumulate(result.accepted.begin(), result.accepted.end(), 0);
  const double cost_ms = ValueOf(load, *costs, drafting, longest).Ms(admitted) - plain.Ms(0);
  const double gain_ms = accepted * token_ms;
  const std::optional<double> times =
      load.other_rows > 0 ? prompt_steps_.Times(load.other_rows) : std::optional(1.0);
  if (times && result.ms) {
    const double without_ms =
        load.other_rows == 0 ? plain.Ms(0) : *times * StepValue(load, *costs, 0, 0).Ms(0);
    const double more_ms = *result.ms - without_ms;
    // Tries have to be worth all that they take.
    const double warm_up_ms = result.is_warm_up && !tries_now_ ? std::max(0.0, more_ms - cost_ms) : 0;
    guard_.CountWarmUp(warm_up_ms);
    if (load.other_rows == 0) {
      recorded_.Count(shape, result.is_warm_up, more_ms - cost_ms);
    }
    guard_.Count(gain_ms - (more_ms - warm_up_ms));
  } else if (load.other_rows == 0) {
    guard_.Count(gain_ms - cost_ms);
  } else {
    // Beside short prompts the whole step tells that it was less.
    guard_.CountUntimed(gain_ms -
                        std::min(kUntimedCosts * cost_ms, result.ms.value_or(HUGE_VAL) - plain.Ms(0)));
  }
  const double draft_tokens =
      (costs->DraftMs(drafting, longest) - costs->DraftMs(1, longest)) / drafting / token_ms;
  const double row_tokens = admitted == 0 ? 0 : (plain.Ms(admitted) - plain.Ms(0)) / admitted / token_ms;
  // Whole drafts, as they are tried, would say nothing of shorter ones.
  if (costs->WaitMs() > 0 && !tries_now_) {
    const double row_ms = (plain.Ms(drafted) - plain.Ms(0)) / drafted;
    const double spared = SparedMs(round, row_ms, token_ms);
    spared_ms_ = spared_ms_ ? *spared_ms_ + kSparedShare * (spared - *spared_ms_) : spared;
  }
  for (int r = 0; r < round.num_requests(); ++r) {
    if (round.depth(r) == 0) continue;
    Request& request = RequestOf(load.requests[r].id);
    // What it could expect: the coins of what it got would send good requests away.
    const double gain = round.expected()[r] - draft_tokens - row_tokens * round.admitted()[r];
    request.gain += (request.back_off.active() ? kProbeShare : kGainShare) * (gain - request.gain);
    if (++request.rounds <= kFreeRounds) continue;
    if (request.gain < 0) {
      request.back_off.Failed(wait_max_);
    } else {
      request.back_off.Succeeded();
    }
  }
}

}  // namespace foresight
