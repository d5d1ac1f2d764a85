#include "speculative/auto_planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace foresight {
namespace {

constexpr int kFreeRounds = 2;  // before a request is judged
constexpr double kGainShare = 1.0 / 8;
constexpr double kProbeShare = 1.0 / 2;  // rounds are rare while it backs off
constexpr double kSparedShare = 1.0 / 32;
constexpr double kTimesShare = 1.0 / 8;
constexpr double kWarmUpShare = 1.0 / 8;
// Of a kind, until the device has recorded it: what recording takes is in their mean.
constexpr double kUnrecordedSteps = 9;
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

bool RecordedKinds::Allows(int requests, int tokens, double gain_ms) {
  Kind& kind = Of(requests, tokens);
  if (kind.is_recorded || kind.missed_ms >= kUnrecordedSteps * more_ms_) return true;
  kind.missed_ms += gain_ms;
  return false;
}

void RecordedKinds::Count(int requests, int tokens, bool is_warm_up, double more_ms) {
  Of(requests, tokens).is_recorded = !is_warm_up;
  if (is_warm_up) more_ms_ += std::max(kWarmUpShare, 1.0 / ++warm_ups_) * (more_ms - more_ms_);
}

bool PromptSteps::IsPlainDue(int rows) {
  return ++classes_[ClassOf(rows)].drafted > kDraftedSteps;
}

AutoPlanner::AutoPlanner(const PlannerOptions& options, const PlanningLimits& limits)
    : gain_min_(options.gain_min),
      wait_max_(options.backoff_steps_max),
      requests_(limits.slots_max),
      kinds_(limits.slots_max, limits.drafts_max),
      planner_(limits, SyncPlanner::Dips::kLookAcross, OtherRows::kSunk) {
  CHECK(gain_min_ > 0 && wait_max_ > 0);
  all_depths_.reserve(limits.slots_max);
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

AutoPlanner::Length AutoPlanner::BestLength(const StepLoad& load, const StepCosts& costs,
                                            std::span<const int> depths) {
  const StepValue plain = ValueOf(load, costs, 0, 0);
  const auto drafting =
      static_cast<int>(std::count_if(depths.begin(), depths.end(), [](int d) { return d > 0; }));
  survivals_.assign(depths.size(), 1);
  plan_.Clear();
  Length best;
  double best_tokens_per_ms = 0;
  const int longest = Longest(depths);
  int next = 1;
  for (int tokens = 1; tokens <= longest; ++tokens) {
    for (size_t r = 0; r < depths.size(); ++r) {
      if (depths[r] < tokens) continue;
      plan_.Add(survivals_[r] *= planner_.expected(static_cast<int>(r), tokens - 1));
    }
    if (tokens < next && tokens < longest) continue;
    next = tokens + std::max(1, tokens / 2);
    const StepValue step = ValueOf(load, costs, drafting, tokens);
    const CapacityPlan::Best found = plan_.Maximize(step);
    if (found.tokens_per_ms <= best_tokens_per_ms) continue;
    best_tokens_per_ms = found.tokens_per_ms;
    const double ms = step.Ms(found.drafts);
    best = {.tokens = tokens,
            .gain_ms = found.tokens_per_ms * ms * plain.Ms(0) / plain.requests() - ms,
            .cost_ms = ms - plain.Ms(0)};
  }
  return best;
}

void AutoPlanner::Prepare(const StepLoad& load, const SpeculationHistory& history, const StepCosts* costs,
                          std::span<int> depths) {
  CHECK(costs != nullptr);
  reads_confidences_ = true;
  tries_now_ = false;
  bool any = false;
  for (size_t r = 0; r < depths.size(); ++r) {
    const RequestLoad& request = load.requests[r];
    depths[r] = RequestOf(request.id).back_off.Due() ? request.drafts_max : 0;
    any |= depths[r] > 0;
  }
  if (!any) return;
  const double plain_ms = ValueOf(load, *costs, 0, 0).Ms(0);
  if (!guard_.AllowsGain(plain_ms, depths.size())) {
    std::fill(depths.begin(), depths.end(), 0);
    return;
  }
  planner_.Start(load, history, *costs, depths);
  const Length best = BestLength(load, *costs, depths);
  const bool pays = best.gain_ms > (gain_min_ - 1) * plain_ms;
  const auto drafting = std::count_if(depths.begin(), depths.end(), [](int d) { return d > 0; });
  if (pays && (load.other_rows == 0 ? kinds_.Allows(static_cast<int>(drafting), best.tokens, best.gain_ms)
                                    : AllowsBesidePrompts(load.other_rows, best.cost_ms))) {
    step_back_off_.Succeeded();
    reads_confidences_ = !spared_ms_ || *spared_ms_ >= costs->WaitMs();
    if (best.tokens == Longest(depths)) return;
    for (int& depth : depths) depth = std::min(depth, best.tokens);
    planner_.Start(load, history, *costs, depths);
  } else if (!pays && load.other_rows == 0 && AllowsTry(load, history, *costs, 1, Longest(depths)) &&
             step_back_off_.Due()) {
    step_back_off_.Failed(wait_max_);
    tries_now_ = true;
    Try(load, history, *costs, best, depths);
  } else {
    std::fill(depths.begin(), depths.end(), 0);  // nothing is left to plan
  }
}

bool AutoPlanner::AllowsBesidePrompts(int prompt_rows, double cost_ms) {
  if (prompt_steps_.Times(prompt_rows)) return !prompt_steps_.IsPlainDue(prompt_rows);
  return guard_.Covers(kUntimedCosts * cost_ms);
}

bool AutoPlanner::AllowsTry(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs,
                            int requests, int tokens) {
  if (!guard_.AllowsTry()) return false;
  if (!history.is_measured()) return true;
  const double ms = ValueOf(load, costs, requests, tokens).Ms(requests * tokens);
  return guard_.Covers(ms - ValueOf(load, costs, 0, 0).Ms(0) + kinds_.MoreMs(requests, tokens));
}

void AutoPlanner::Try(const StepLoad& load, const SpeculationHistory& history, const StepCosts& costs,
                      const Length& all, std::span<int> depths) {
  size_t chosen = tries_++ % depths.size();
  while (depths[chosen] == 0) chosen = (chosen + 1) % depths.size();
  all_depths_.assign(depths.begin(), depths.end());
  for (size_t r = 0; r < depths.size(); ++r) {
    if (r != chosen) depths[r] = 0;
  }
  planner_.Start(load, history, costs, depths);
  if (BestLength(load, costs, depths).gain_ms >= all.gain_ms) return;
  const auto drafting =
      std::count_if(all_depths_.begin(), all_depths_.end(), [](int depth) { return depth > 0; });
  if (!AllowsTry(load, history, costs, static_cast<int>(drafting), Longest(all_depths_))) return;
  std::copy(all_depths_.begin(), all_depths_.end(), depths.begin());
  planner_.Start(load, history, costs, depths);
}

void AutoPlanner::Learn(const StepLoad& load, const StepCosts* costs, const StepResult& result) {
  CHECK(costs != nullptr);
  const RoundConfidences& round = result.round;
  int drafting = 0;
  int drafted = 0;
  int longest = 0;
  int admitted = 0;
  for (int r = 0; r < round.num_requests(); ++r) {
    drafting += round.depth(r) > 0;
    drafted += round.depth(r);
    longest = std::max(longest, round.depth(r));
    admitted += round.admitted()[r];
  }
  const StepValue plain = ValueOf(load, *costs, 0, 0);
  guard_.Pass(plain.Ms(0));
  if (drafting == 0) {
    if (load.other_rows > 0 && result.ms) {
      prompt_steps_.Count(load.other_rows, *result.ms / StepValue(load, *costs, 0, 0).Ms(0));
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
      kinds_.Count(drafting, longest, result.is_warm_up, more_ms - cost_ms);
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
