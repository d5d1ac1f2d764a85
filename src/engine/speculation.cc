#include "engine/speculation.h"

#include <algorithm>
#include <utility>

#include "drawing/device_draws.h"
#include "engine/draft_replay.h"
#include "kernels/draft_plan/draft_plan.h"

namespace foresight {
namespace {

AcceptanceRule RuleOf(const Sequence& s, Acceptance engine_default) {
  const Acceptance asked =
      s.request().acceptance != Acceptance::kAuto ? s.request().acceptance : engine_default;
  switch (asked) {
    case Acceptance::kCoupled:
      return AcceptanceRule::kCoupled;
    case Acceptance::kRejection:
      return AcceptanceRule::kRejection;
    case Acceptance::kAuto:
      break;
  }
  return DefaultAcceptanceRule(s.sampling());
}

}  // namespace

Result<std::unique_ptr<Speculation>> Speculation::Create(const SpeculationOptions& options, Runtime& runtime,
                                                         const SpeculationLimits& limits,
                                                         const std::optional<StepCostTable>& costs,
                                                         const std::optional<CalibrationTable>& calibration) {
  ASSIGN_OR_RETURN(Parts parts, MakeParts(runtime, limits, std::make_unique<KeyedChance>()));
  return Assemble(options, runtime, limits, costs, calibration, std::move(parts));
}

Result<std::unique_ptr<Speculation>> Speculation::CreateReplay(const SpeculationOptions& options,
                                                               Runtime& runtime,
                                                               const SpeculationLimits& limits,
                                                               const std::optional<StepCostTable>& costs,
                                                               const DraftTrace& trace) {
  auto replayed = std::make_unique<ReplayedChance>(trace);
  ReplayedChance& chance = *replayed;
  ASSIGN_OR_RETURN(Parts parts, MakeParts(runtime, limits, std::move(replayed)));
  const Drafter& drafter = *parts.drafter;
  const std::string_view method = DraftMethodName(drafter.method());
  if (method != trace.method || drafter.drafts_max() > trace.drafts_max) {
    return InvalidArgument("drafts of {} tokens by {} can't replay those of {} tokens by {}",
                           drafter.drafts_max(), method, trace.drafts_max, trace.method);
  }
  if (drafter.has_confidences() && chance.Confidences(/*seed=*/0, /*position=*/0).empty()) {
    return InvalidArgument("the trace of {} has no confidences to replay", trace.method);
  }
  parts.expected = MeanAcceptance(trace);
  parts.expected.resize(drafter.drafts_max());
  parts.drafter = std::make_unique<ReplayedDrafter>(std::move(parts.drafter), chance);
  return Assemble(options, runtime, limits, costs, /*calibration=*/std::nullopt, std::move(parts));
}

Result<Speculation::Parts> Speculation::MakeParts(Runtime& runtime, const SpeculationLimits& limits,
                                                  std::unique_ptr<Chance> chance) {
  auto speculators = std::make_unique<SpeculatorTeam>(runtime.config().vocab_size, kDraftPositionsMax,
                                                      limits.max_sequences, *chance, runtime.pool());
  ASSIGN_OR_RETURN(std::unique_ptr<Drafter> drafter,
                   MakeDrafter(runtime.draft_method(), runtime.drafts_max(), limits.max_sequences,
                               runtime.model(), *speculators));
  return Parts{std::move(chance), std::move(speculators), std::move(drafter)};
}

Result<std::unique_ptr<Speculation>> Speculation::Assemble(const SpeculationOptions& options,
                                                           Runtime& runtime, const SpeculationLimits& limits,
                                                           const std::optional<StepCostTable>& costs,
                                                           const std::optional<CalibrationTable>& calibration,
                                                           Parts parts) {
  ASSIGN_OR_RETURN(PlannerOptions planner, ParsePlanner(options.planner));
  if (planner.kind == PlannerKind::kGlobal) {
    return InvalidArgument("planner global is not exact with every acceptance rule: it is for benchmarks");
  }
  if (calibration) {
    RETURN_IF_ERROR(CheckCalibration(*calibration, runtime.draft_hash(), runtime.target_hash(),
                                     Runtime::version(), parts.drafter->drafts_max()));
  }
  Calibration confidences =
      calibration ? Calibration(*calibration) : Calibration(parts.drafter->drafts_max());
  std::optional<StepCosts> step_costs;
  if (costs) {
    ASSIGN_OR_RETURN(step_costs, StepCosts::Create(*costs, limits.step_rows_max, limits.max_sequences));
  }
  ASSIGN_OR_RETURN(StepPlanning planning, StepPlanning::Create(planner,
                                                               {.slots_max = limits.max_sequences,
                                                                .drafts_max = parts.drafter->drafts_max(),
                                                                .rows_max = limits.step_rows_max},
                                                               std::move(step_costs)));
  // Other ways of sampling differ by less than requests do.
  const std::span<const float> expected =
      parts.expected.empty() ? confidences.MeanAcceptance(SamplingRegime::kUnit) : parts.expected;
  if (!expected.empty()) planning.Expect(expected);
  std::unique_ptr<Speculation> made(new Speculation(options, runtime, limits, std::move(planning),
                                                    std::move(confidences), std::move(parts)));
  made->is_calibrated_ = calibration.has_value();
  return made;
}

Speculation::Speculation(const SpeculationOptions& options, Runtime& runtime, const SpeculationLimits& limits,
                         StepPlanning planning, Calibration calibration, Parts parts)
    : options_(options),
      vocab_size_(runtime.config().vocab_size),
      device_(runtime.device()),
      chance_(std::move(parts.chance)),
      speculators_(std::move(parts.speculators)),
      drafter_(std::move(parts.drafter)),
      planning_(std::move(planning)),
      calibration_(std::move(calibration)),
      generations_(limits.max_sequences, 0),
      evidence_(static_cast<size_t>(limits.max_sequences) * drafter_->drafts_max()),
      confidences_(drafter_->drafts_max()) {
  for (int slot = limits.max_sequences; slot-- > 0;) free_slots_.push_back(slot);
  loads_.reserve(limits.max_sequences);
  rounds_.reserve(limits.max_sequences);
  round_candidates_.reserve(limits.max_sequences);
  late_rounds_.reserve(limits.max_sequences);
  accepted_.reserve(limits.max_sequences);
  planned_.reserve(limits.max_sequences);
  drafted_.reserve(limits.max_sequences);
}

void Speculation::Begin(Sequence& s) {
  CHECK(!free_slots_.empty() && s.slot < 0);
  s.slot = free_slots_.back();
  free_slots_.pop_back();
  ++generations_[s.slot];
  if (!s.block) {
    const AcceptanceRule rule = RuleOf(s, options_.acceptance);
    s.block.emplace(s.sampling(), rule, vocab_size_, drafter_->drafts_max(),
                    DraftOptions{.on_device = IsDrawnByDevice(s.sampling(), device_)});
    s.regime = RegimeOf(s.sampling(), rule);
  }
  drafter_->Begin(s.slot, s.tokens, s.tokens_max);
}

void Speculation::End(Sequence& s) {
  drafter_->End(s.slot);
  free_slots_.push_back(std::exchange(s.slot, -1));
}

Result<std::span<const int>> Speculation::Draft(std::span<const DraftCandidate> candidates, int other_rows,
                                                const std::function<bool(Sequence&, int rows)>& reserve) {
  candidates_ = candidates;
  const int gamma = drafter_->drafts_max();
  accepted_.assign(candidates.size(), 0);
  drafted_.assign(candidates.size(), 0);
  const std::span<const int> depths = planning_.BeginStep(Load(other_rows));
  rounds_.clear();
  round_candidates_.clear();
  late_rounds_.clear();
  longest_draft_ = 0;
  for (int i = 0; i < std::ssize(candidates); ++i) {
    if (depths[i] == 0) continue;
    Sequence& s = *candidates[i].sequence;
    if (!reserve(s, 1 + depths[i])) {
      ++s.result.drafts.without_room;
      planning_.SetConfidences(i, {});
      continue;
    }
    rounds_.push_back({.slot = s.slot,
                       .state = &*s.state,
                       .tokens = s.tokens,
                       .sampler = &*s.sampler,
                       .block = &*s.block,
                       .depth = depths[i],
                       .depth_max = planning_.LongestDraft(),
                       .evidence = std::span(evidence_).subspan(rounds_.size() * gamma, depths[i])});
    round_candidates_.push_back(i);
    longest_draft_ = std::max(longest_draft_, depths[i]);
  }
  const Status proposed = Propose();
  TellPlanner(proposed.ok());
  if (plan_.count > 0) return std::span<const int>(drafted_);
  lengths_ = planning_.Plan();
  if (!proposed.ok()) {
    EndStep(std::nullopt);
    return proposed;
  }
  return lengths_;
}

StepLoad Speculation::Load(int other_rows) {
  loads_.clear();
  int64_t context = 0;
  for (const DraftCandidate& c : candidates_) {
    Sequence& s = *c.sequence;
    s.block->Begin(s.known());
    // The step draws a token of its own behind the accepted ones.
    const int64_t left = s.tokens_max - s.known() - 1;
    // Not behind the prompt: the first anchor is the first token of the answer, however the prompt was cut.
    const bool may = c.decodes && s.result.completion_tokens > 0;
    const int drafts_max = std::min(drafter_->drafts_max(), s.request().drafts_max);
    loads_.push_back({.id = {.slot = s.slot, .generation = generations_[s.slot]},
                      .drafts_max = may ? static_cast<int>(std::clamp<int64_t>(left, 0, drafts_max)) : 0,
                      .coupled = s.block->rule() == AcceptanceRule::kCoupled});
    context += s.known();
  }
  const int64_t mean_context = candidates_.empty() ? 0 : context / std::ssize(candidates_);
  return {.requests = loads_, .other_rows = other_rows, .context_tokens = mean_context};
}

void Speculation::TellPlanner(bool is_proposed) {
  for (size_t r = 0; r < rounds_.size(); ++r) {
    Sequence& s = *candidates_[round_candidates_[r]].sequence;
    const int i = round_candidates_[r];
    const int drafted = drafted_[i] = is_proposed ? static_cast<int>(s.block->tokens().size()) : 0;
    s.result.drafts.drafted += drafted;
    if (drafted > 0 && s.block->is_pending()) late_rounds_.push_back(r);
    if (drafted == 0) {
      planning_.SetConfidences(i, {});
    } else if (!drafter_->has_confidences()) {
      planning_.SetConfidencesFromHistory(i, drafted);
    } else if (plan_.count > 0) {
      // Known before there is a plan: in Settle.
    } else if (s.block->is_pending()) {
      planning_.ExpectConfidences(i, drafted);
    } else {
      planning_.SetConfidences(i, Confidences(r));
    }
  }
}

Status Speculation::Propose() {
  plan_ = {};
  if (rounds_.empty()) return Status();
  RETURN_IF_ERROR(drafter_->Propose(rounds_));
  const bool reads = drafter_->has_confidences() && planning_.ReadsConfidences() &&
                     std::any_of(rounds_.begin(), rounds_.end(),
                                 [](const DraftRound& round) { return round.block->is_pending(); });
  if (!reads || PlansAhead()) return Status();
  RETURN_IF_ERROR(device_.Synchronize());
  return drafter_->Settle();
}

bool Speculation::PlansAhead() {
  const std::optional<int> capacity = planning_.Capacity();
  if (!capacity) return false;
  int drafts = 0;
  for (const DraftRound& round : rounds_) drafts += static_cast<int>(round.block->tokens().size());
  if (*capacity == 0 || *capacity >= drafts) return true;  // none or all, whatever they are
  const auto has_all = [](const DraftRound& round) {
    return round.block->is_pending() && round.on_device.tokens != nullptr;
  };
  const auto is_drawn = [](const DraftCandidate& c) { return c.sequence->block->on_device(); };
  const size_t sequences_max = generations_.size();
  if (!std::all_of(rounds_.begin(), rounds_.end(), has_all) ||
      !std::all_of(candidates_.begin(), candidates_.end(), is_drawn) ||
      sequences_max > kPlannedSequencesMax ||
      sequences_max * drafter_->drafts_max() > size_t{kPlannedDraftsMax}) {
    return false;
  }
  planned_.assign(candidates_.size(), {});
  for (size_t r = 0; r < rounds_.size(); ++r) {
    const size_t drafted = rounds_[r].block->tokens().size();
    const SamplingRegime regime = candidates_[round_candidates_[r]].sequence->regime;
    planned_[round_candidates_[r]] = {.count = static_cast<int>(drafted),
                                      .drafts = rounds_[r].on_device,
                                      .scales = calibration_.scales(regime).first(drafted)};
  }
  plan_ = {.count = *capacity, .chunks = planned_};
  return true;
}

Status Speculation::Settle(std::span<const int32_t> verified) {
  // What an earlier step left, because it failed, is of sequences that have gone.
  if (rounds_.empty()) return Status();
  RETURN_IF_ERROR(drafter_->Settle());
  if (!drafter_->has_confidences()) return Status();
  const bool is_planned = plan_.count > 0;
  for (const size_t r : late_rounds_) {
    const int i = round_candidates_[r];
    is_planned ? planning_.SetConfidences(i, Confidences(r))
               : planning_.SetLateConfidences(i, Confidences(r));
  }
  if (!is_planned) return Status();
  plan_ = {};
  lengths_ = planning_.Plan();
  if (!std::equal(verified.begin(), verified.end(), lengths_.begin(), lengths_.end())) {
    return Error(StatusCode::kInternal, "the device has verified other drafts than the planner would");
  }
  return Status();
}

std::span<const float> Speculation::Confidences(size_t r) {
  const Sequence& s = *candidates_[round_candidates_[r]].sequence;
  const size_t drafted = s.block->tokens().size();
  for (size_t k = 0; k < drafted; ++k) {
    confidences_[k] = calibration_.Confidence(s.regime, static_cast<int>(k), rounds_[r].evidence[k]);
  }
  return std::span(confidences_).first(drafted);
}

void Speculation::Judged(int i, int accepted) {
  accepted_[i] = accepted;
  DraftCounts& counts = candidates_[i].sequence->result.drafts;
  ++counts.steps;
  for (int k = 0; k < lengths_[i]; ++k) {
    ++counts.verified[k];
    counts.reached[k] += k <= accepted ? 1 : 0;
    counts.accepted[k] += k < accepted ? 1 : 0;
  }
}

void Speculation::EndStep(const std::optional<StepTimes>& times) {
  if (plan_.count > 0) {  // the step has failed before its plan was known
    plan_ = {};
    lengths_ = planning_.Plan();
  }
  planning_.EndStep(accepted_, times);
}

std::string Speculation::Report() const {
  std::string text =
      fmt::format("planner  {}, drafts of {} tokens", options_.planner, drafter_->drafts_max());
  if (drafter_->has_confidences()) {
    text +=
        is_calibrated_ ? ", calibrated confidences" : ", confidences as the head gives them (not calibrated)";
  }
  if (const std::optional<StepCosts>& costs = planning_.costs()) {
    const std::span<const double> ms = costs->VerifyMs(0);
    text += fmt::format("; a step of 1 row {:.2f} ms, of {} {:.2f} ms, a draft {:.2f} ms", ms[1],
                        drafter_->drafts_max() + 1,
                        ms[std::min<size_t>(drafter_->drafts_max() + 1, ms.size() - 1)], costs->DraftMs(1));
  }
  return text + "\n";
}

double Speculation::PlainStepSeconds(int64_t context_tokens) const {
  const std::optional<StepCosts>& costs = planning_.costs();
  if (!costs) return 0;
  return (costs->VerifyMs(context_tokens)[1] + costs->HostMs()) * costs->scale() * 1e-3;
}

}  // namespace foresight
