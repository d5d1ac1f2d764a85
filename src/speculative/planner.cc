#include "speculative/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/check.h"
#include "speculative/auto_planner.h"
#include "speculative/simple_planners.h"
#include "speculative/throughput_planners.h"

namespace foresight {
namespace {

constexpr std::array<std::pair<PlannerKind, std::string_view>, 7> kNames = {{
    {PlannerKind::kAuto, "auto"},
    {PlannerKind::kStatic, "static"},
    {PlannerKind::kThreshold, "threshold"},
    {PlannerKind::kSync, "sync"},
    {PlannerKind::kLookahead, "lookahead"},
    {PlannerKind::kAsync, "async"},
    {PlannerKind::kGlobal, "global"},
}};

constexpr std::string_view kWanted =
    "auto, static:DRAFTS, threshold:PROBABILITY, sync, lookahead, async or global";

template <typename Number>
bool ParseWhole(std::string_view text, Number* number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

Result<PlannerOptions> ParsePlanner(std::string_view text) {
  const size_t colon = std::min(text.find(':'), text.size());
  const std::string_view name = text.substr(0, colon);
  const auto* entry =
      std::find_if(kNames.begin(), kNames.end(), [&](const auto& e) { return e.second == name; });
  if (entry == kNames.end()) return InvalidArgument("planner: want {}, got \"{}\"", kWanted, text);
  PlannerOptions options;
  options.kind = entry->first;
  const std::string_view value = text.substr(std::min(colon + 1, text.size()));
  if (options.kind == PlannerKind::kStatic) {
    if (!ParseWhole(value, &options.static_drafts) || options.static_drafts < 0 ||
        options.static_drafts > kDraftPositionsMax) {
      return InvalidArgument("planner: want static:DRAFTS with 0..{} drafts, got \"{}\"", kDraftPositionsMax,
                             text);
    }
  } else if (options.kind == PlannerKind::kThreshold) {
    if (!ParseWhole(value, &options.threshold) || !(options.threshold >= 0 && options.threshold <= 1)) {
      return InvalidArgument("planner: want threshold:PROBABILITY from 0 to 1, got \"{}\"", text);
    }
  } else if (colon != text.size()) {
    return InvalidArgument("planner: {} takes no value, got \"{}\"", name, text);
  }
  return options;
}

std::string FormatPlanner(const PlannerOptions& options) {
  const std::string_view name = kNames[static_cast<size_t>(options.kind)].second;
  if (options.kind == PlannerKind::kStatic) return fmt::format("{}:{}", name, options.static_drafts);
  if (options.kind == PlannerKind::kThreshold) return fmt::format("{}:{}", name, options.threshold);
  return std::string(name);
}

void Planner::Learn(const StepLoad&, const StepCosts*, const StepResult&) {}

Result<std::unique_ptr<Planner>> MakePlanner(const PlannerOptions& options, const PlanningLimits& limits) {
  if (limits.slots_max < 1 || limits.drafts_max < 1 || limits.drafts_max > kDraftPositionsMax) {
    return InvalidArgument("planner: want 1 sequence or more and 1..{} drafts, got {} and {}",
                           kDraftPositionsMax, limits.slots_max, limits.drafts_max);
  }
  std::unique_ptr<Planner> planner;
  switch (options.kind) {
    case PlannerKind::kAuto:
      planner = std::make_unique<AutoPlanner>(options, limits);
      break;
    case PlannerKind::kStatic:
      planner = std::make_unique<StaticPlanner>(options.static_drafts);
      break;
    case PlannerKind::kThreshold:
      planner = std::make_unique<ThresholdPlanner>(options.threshold);
      break;
    case PlannerKind::kSync:
      planner = std::make_unique<SyncPlanner>(limits, SyncPlanner::Dips::kStop);
      break;
    case PlannerKind::kLookahead:
      planner = std::make_unique<SyncPlanner>(limits, SyncPlanner::Dips::kLookAcross);
      break;
    case PlannerKind::kAsync:
      planner = std::make_unique<AsyncPlanner>(limits);
      break;
    case PlannerKind::kGlobal:
      planner = std::make_unique<GlobalPlanner>(limits);
      break;
  }
  return planner;
}

Result<StepPlanning> StepPlanning::Create(const PlannerOptions& options, const PlanningLimits& limits,
                                          std::optional<StepCosts> costs) {
  const bool needs_costs = options.kind != PlannerKind::kStatic && options.kind != PlannerKind::kThreshold;
  if (needs_costs && !costs) {
    return InvalidArgument("planner {} needs the costs of a step: measure them, or take static or threshold",
                           FormatPlanner(options));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Planner> planner, MakePlanner(options, limits));
  StepPlanning planning = Create(std::move(planner), limits, std::move(costs));
  if (options.kind == PlannerKind::kAuto) planning.correction_.emplace(limits.slots_max, limits.drafts_max);
  return planning;
}

StepPlanning StepPlanning::Create(std::unique_ptr<Planner> planner, const PlanningLimits& limits,
                                  std::optional<StepCosts> costs) {
  return StepPlanning(std::move(planner), limits, std::move(costs));
}

StepPlanning::StepPlanning(std::unique_ptr<Planner> planner, const PlanningLimits& limits,
                           std::optional<StepCosts> costs)
    : planner_(std::move(planner)),
      limits_(limits),
      costs_(std::move(costs)),
      history_(limits.slots_max, limits.drafts_max),
      round_(limits.slots_max, limits.drafts_max),
      uncorrected_(static_cast<size_t>(limits.slots_max) * limits.drafts_max),
      drafted_last_(limits.slots_max, RequestId{.slot = -1}) {
  if (costs_) {
    CHECK(std::ssize(costs_->VerifyMs(1)) > limits.rows_max && costs_->requests_max() >= limits.slots_max,
          "step costs were made for smaller steps");
  }
  requests_.reserve(limits.slots_max);
  depths_.reserve(limits.slots_max);
  have_confidences_.reserve(limits.slots_max);
  corrected_.reserve(limits.drafts_max);
}

std::span<const int> StepPlanning::BeginStep(const StepLoad& load) {
  CHECK(phase_ == Phase::kIdle);
  CHECK(std::ssize(load.requests) <= limits_.slots_max, "{} requests", load.requests.size());
  phase_ = Phase::kDrafting;
  requests_.assign(load.requests.begin(), load.requests.end());
  load_ = load;
  load_.requests = requests_;
  ShortenToRows();
  history_.BeginStep();
  if (correction_) correction_->BeginStep();
  depths_.assign(requests_.size(), 0);
  have_confidences_.assign(requests_.size(), false);
  if (!requests_.empty()) planner_->Prepare(load_, history_, costs_ ? &*costs_ : nullptr, depths_);
  bool all_coupled = true;
  for (size_t r = 0; r < depths_.size(); ++r) {
    CHECK(depths_[r] >= 0 && depths_[r] <= requests_[r].drafts_max);
    all_coupled &= depths_[r] == 0 || requests_[r].coupled;
  }
  round_.Begin(depths_, all_coupled);
  return depths_;
}

// The longest drafts give way first.
void StepPlanning::ShortenToRows() {
  const int left = limits_.rows_max - load_.other_rows - static_cast<int>(requests_.size());
  CHECK(left >= 0, "a step of more than {} rows", limits_.rows_max);
  int sum = 0;
  for (RequestLoad& request : requests_) {
    request.drafts_max = std::clamp(request.drafts_max, 0, limits_.drafts_max);
    sum += request.drafts_max;
  }
  for (int length = limits_.drafts_max; sum > left; --length) {
    for (size_t r = requests_.size(); r-- > 0 && sum > left;) {
      if (requests_[r].drafts_max < length) continue;
      --requests_[r].drafts_max;
      --sum;
    }
  }
}

bool StepPlanning::Resumes() {
  bool resumes = false;
  for (int r = 0; r < std::ssize(depths_); ++r) {
    const RequestId id = requests_[r].id;
    RequestId& last = drafted_last_[id.slot];
    const bool drafts = round_.depth(r) > 0;
    resumes |= drafts && (last.slot != id.slot || last.generation != id.generation);
    last = drafts ? id : RequestId{.slot = -1};
  }
  return resumes;
}

void StepPlanning::SetConfidences(int r, std::span<const float> confidences) {
  CHECK(phase_ == Phase::kDrafting && r >= 0 && r < std::ssize(depths_));
  CHECK(std::ssize(confidences) <= depths_[r], "request {}: {} confidences for {} drafts", r,
        confidences.size(), depths_[r]);
  round_.Set(r, Corrected(r, confidences));
  have_confidences_[r] = true;
}

void StepPlanning::SetLateConfidences(int r, std::span<const float> confidences) {
  CHECK(phase_ == Phase::kPlanned && r >= 0 && r < std::ssize(depths_) && !have_confidences_[r]);
  round_.SetLate(r, Corrected(r, confidences));
  have_confidences_[r] = true;
}

std::span<const float> StepPlanning::Corrected(int r, std::span<const float> confidences) {
  if (!correction_) return confidences;
  std::copy(confidences.begin(), confidences.end(),
            uncorrected_.begin() + static_cast<size_t>(r) * limits_.drafts_max);
  corrected_.assign(confidences.begin(), confidences.end());
  correction_->Apply(requests_[r].id, corrected_);
  return corrected_;
}

void StepPlanning::ExpectConfidences(int r, int drafted) {
  CHECK(phase_ == Phase::kDrafting && drafted >= 0 && drafted <= limits_.drafts_max);
  std::array<float, kDraftPositionsMax> confidences;
  for (int j = 0; j < drafted; ++j) {
    confidences[j] = static_cast<float>(history_.MeanConfidence(requests_[r].id, j));
  }
  round_.Set(r, {confidences.data(), static_cast<size_t>(drafted)});
}

void StepPlanning::SetConfidencesFromHistory(int r, int drafted) {
  CHECK(drafted >= 0 && drafted <= limits_.drafts_max);
  std::array<float, kDraftPositionsMax> confidences;
  for (int j = 0; j < drafted; ++j) {
    confidences[j] = static_cast<float>(history_.AcceptanceRate(load_.requests[r].id, j));
  }
  SetConfidences(r, {confidences.data(), static_cast<size_t>(drafted)});
}

std::span<const int> StepPlanning::Plan() {
  CHECK(phase_ == Phase::kDrafting);
  phase_ = Phase::kPlanned;
  Frontier frontier(round_);
  planner_->Admit(frontier);
  return round_.admitted();
}

void StepPlanning::EndStep(std::span<const int> accepted, const std::optional<StepTimes>& times) {
  CHECK(phase_ == Phase::kPlanned);
  CHECK(accepted.size() == depths_.size());
  phase_ = Phase::kIdle;
  for (int r = 0; r < std::ssize(depths_); ++r) {
    const RequestId id = requests_[r].id;
    const int verified = round_.admitted()[r];
    if (have_confidences_[r]) {
      history_.RecordConfidences(id, round_.of(r));
      const size_t place = static_cast<size_t>(r) * limits_.drafts_max;
      if (correction_) {
        correction_->Learn(id, {&uncorrected_[place], static_cast<size_t>(round_.depth(r))}, verified,
                           accepted[r]);
      }
    }
    history_.RecordOutcome(id, verified, accepted[r]);
  }
  if (!requests_.empty()) {
    std::optional<double> ms;
    if (costs_ && times) ms = (times->draft_ms + times->verify_ms + times->host_ms) / costs_->scale();
    planner_->Learn(
        load_, costs_ ? &*costs_ : nullptr,
        {.round = round_, .accepted = accepted, .ms = ms, .is_warm_up = times && times->is_warm_up});
  }
  const bool is_example = times && !times->has_prompts && !times->is_warm_up;
  if (!Resumes() && costs_ && is_example) costs_->Observe(*times);
}

}  // namespace foresight
