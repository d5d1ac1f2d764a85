#include "engine/calibrate.h"

#include <algorithm>
#include <array>

#include "drafting/drafter.h"
#include "engine/all_logits.h"
#include "foresight/request.h"

namespace foresight {
namespace {

constexpr int64_t kGreedyCut = 8;  // tokens

SamplingParams ParamsOf(SamplingRegime regime) {
  SamplingParams params;
  switch (regime) {
    case SamplingRegime::kGreedy:
      params.temperature = 0;
      break;
    case SamplingRegime::kCool:
      params.temperature = 0.7;
      break;
    case SamplingRegime::kTopP:
      params.top_p = 0.95;
      break;
    case SamplingRegime::kUnit:
    case SamplingRegime::kCoupled:
      break;
  }
  return params;
}

// DSpark alone has confidences, and reads what every step of the target has written: nothing to observe.
class Collector {
 public:
  static Result<std::unique_ptr<Collector>> Create(Runtime& runtime, const CalibrationOptions& options);

  Result<CollectedRounds> Collect(SamplingRegime regime);
  int drafts_max() const { return drafter_->drafts_max(); }

 private:
  Collector(Runtime& runtime, const CalibrationOptions& options)
      : runtime_(runtime),
        options_(options),
        speculators_(runtime.config().vocab_size, kDraftPositionsMax, /*sequences_max=*/1, chance_,
                     runtime.pool()) {}

  // Continues a prompt by at most `rounds_max` rounds and adds them.
  Status Continue(std::span<const TokenId> prompt, SamplingRegime regime, int64_t seed, int64_t rounds_max,
                  CalibrationRounds& rounds);

  Runtime& runtime_;
  const CalibrationOptions& options_;
  KeyedChance chance_;
  SpeculatorTeam speculators_;
  std::unique_ptr<Drafter> drafter_;
};

Status Collector::Continue(std::span<const TokenId> prompt, SamplingRegime regime, int64_t seed,
                           int64_t rounds_max, CalibrationRounds& rounds) {
  const int vocab_size = runtime_.config().vocab_size;
  const int gamma = drafter_->drafts_max();
  SamplingParams params = ParamsOf(regime);
  params.seed = seed;
  const bool coupled = regime == SamplingRegime::kGreedy || regime == SamplingRegime::kCoupled;
  const AcceptanceRule rule = coupled ? AcceptanceRule::kCoupled : AcceptanceRule::kRejection;
  Sampler sampler(params, vocab_size);
  DraftBlock block(params, rule, vocab_size, gamma);
  std::vector<TokenId> tokens(prompt.begin(), prompt.end());
  const int64_t end = runtime_.context_tokens() - gamma - 1;
  ASSIGN_OR_RETURN(SequenceState state, runtime_.cache().NewSequence());
  for (size_t at = 0; at + 1 < prompt.size();) {
    const size_t count = std::min<size_t>(prompt.size() - 1 - at, runtime_.model().max_step_rows());
    ASSIGN_OR_RETURN([[maybe_unused]] const auto logits,
                     StepWithAllLogits(runtime_.model(), state, prompt.subspan(at, count)));
    at += count;
  }
  std::vector<DraftEvidence> evidence(gamma);
  std::vector<double> acceptance(gamma);
  std::vector<double> blind(gamma);
  for (int64_t round_of_answer = 0; round_of_answer < rounds_max && std::ssize(tokens) < end;
       ++round_of_answer) {
    block.Begin(std::ssize(tokens));
    DraftRound round[] = {{.state = &state,
                           .tokens = tokens,
                           .sampler = &sampler,
                           .block = &block,
                           .depth = gamma,
                           .evidence = evidence}};
    RETURN_IF_ERROR(drafter_->Propose(round));
    std::vector<TokenId> rows = {tokens.back()};
    rows.insert(rows.end(), block.tokens().begin(), block.tokens().end());
    ASSIGN_OR_RETURN(const std::span<const float> logits, StepWithAllLogits(runtime_.model(), state, rows));
    RETURN_IF_ERROR(
        speculators_.one().AcceptanceProbabilities(logits, gamma, sampler, block, acceptance, blind));
    rounds.Add(evidence, std::span<const double>(acceptance), blind);
    ASSIGN_OR_RETURN(const VerifiedTokens verified, speculators_.one().Verify(logits, gamma, sampler, block));
    for (const SampledToken& token : verified.tokens) {
      tokens.push_back(token.token);
      if (token.token == runtime_.config().eos_token_id) return Status();
    }
    RETURN_IF_ERROR(state.Truncate(std::ssize(tokens) - 1));
  }
  return Status();
}

Result<std::unique_ptr<Collector>> Collector::Create(Runtime& runtime, const CalibrationOptions& options) {
  if (options.prompts.size() < 2) {
    return InvalidArgument("calibration: want two prompts or more, to fit and to judge on; got {}",
                           options.prompts.size());
  }
  std::unique_ptr<Collector> collector(new Collector(runtime, options));
  ASSIGN_OR_RETURN(collector->drafter_,
                   MakeDrafter(runtime.draft_method(), runtime.drafts_max(), /*slots_max=*/1, runtime.model(),
                               collector->speculators_));
  if (collector->drafter_->method() != DraftMethod::kDSpark || !collector->drafter_->has_confidences()) {
    return InvalidArgument("drafts by {}: there are no confidences to calibrate",
                           DraftMethodName(collector->drafter_->method()));
  }
  return collector;
}

Result<CollectedRounds> Collector::Collect(SamplingRegime regime) {
  const int gamma = drafts_max();
  CollectedRounds collected{CalibrationRounds(gamma), CalibrationRounds(gamma)};
  if (options_.progress != nullptr) {
    options_.progress->Begin(SamplingRegimeName(regime), static_cast<uint64_t>(options_.rounds));
  }
  // Whole passes over the prompts, with as many rounds of each.
  const int64_t prompts = std::ssize(options_.prompts);
  int64_t total = 0;
  for (int64_t pass = 0; total < options_.rounds; ++pass) {
    const int64_t wanted = (options_.rounds - total + prompts - 1) / prompts;
    const int64_t rounds_of_answer = std::min(wanted, options_.rounds_per_answer_max);
    const int64_t before = total;
    for (int64_t i = 0; i < prompts; ++i) {
      std::span<const TokenId> prompt = options_.prompts[i];
      // A greedy answer is always the same: go on from an earlier point of the prompt.
      if (regime == SamplingRegime::kGreedy) {
        if (pass * kGreedyCut >= std::ssize(prompt)) continue;
        prompt = prompt.first(prompt.size() - pass * kGreedyCut);
      }
      CalibrationRounds& rounds = i % 2 == 0 ? collected.fit : collected.held_out;
      RETURN_IF_ERROR(Continue(prompt, regime, /*seed=*/pass * prompts + i, rounds_of_answer, rounds));
      total = collected.fit.size() + collected.held_out.size();
      if (options_.progress != nullptr) options_.progress->Update(static_cast<uint64_t>(total));
    }
    if (total == before) break;  // they all end at once, or there is nothing left of them
  }
  if (options_.progress != nullptr) options_.progress->End();
  return collected;
}

}  // namespace

Result<CollectedRounds> CollectRounds(Runtime& runtime, const CalibrationOptions& options,
                                      SamplingRegime regime) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Collector> collector, Collector::Create(runtime, options));
  return collector->Collect(regime);
}

Result<CalibrationTable> CalibrateDrafts(Runtime& runtime, const CalibrationOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Collector> collector, Collector::Create(runtime, options));
  CalibrationTable table{.draft = runtime.draft_hash(),
                         .target = runtime.target_hash(),
                         .build = Runtime::version(),
                         .drafts_max = collector->drafts_max(),
                         .regimes = {}};
  constexpr std::array kRegimes = {SamplingRegime::kGreedy, SamplingRegime::kUnit, SamplingRegime::kCool,
                                   SamplingRegime::kTopP, SamplingRegime::kCoupled};
  for (SamplingRegime regime : kRegimes) {
    ASSIGN_OR_RETURN(const CollectedRounds rounds, collector->Collect(regime));
    if (rounds.fit.size() == 0 || rounds.held_out.size() == 0) continue;
    table.regimes.push_back(Calibrate(regime, rounds.fit, rounds.held_out, options.dataset));
  }
  if (table.regimes.empty()) return InvalidArgument("calibration: no answer was long enough for a draft");
  return table;
}

}  // namespace foresight
