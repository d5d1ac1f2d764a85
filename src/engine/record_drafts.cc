#include "engine/record_drafts.h"

#include "drafting/drafter.h"
#include "engine/all_logits.h"
#include "foresight/request.h"

namespace foresight {
namespace {

class Recorder {
 public:
  Recorder(Runtime& runtime, const Calibration& calibration, const RecordOptions& options)
      : runtime_(runtime),
        calibration_(calibration),
        options_(options),
        speculators_(runtime.config().vocab_size, kDraftPositionsMax, /*sequences_max=*/1, chance_,
                     runtime.pool()) {}

  Result<DraftTrace> Record();

 private:
  Result<TracedAnswer> RecordAnswer(std::span<const TokenId> prompt, int64_t seed);

  Runtime& runtime_;
  const Calibration& calibration_;
  const RecordOptions& options_;
  KeyedChance chance_;
  SpeculatorTeam speculators_;
  std::unique_ptr<Drafter> drafter_;
};

Result<TracedAnswer> Recorder::RecordAnswer(std::span<const TokenId> prompt, int64_t seed) {
  const int vocab_size = runtime_.config().vocab_size;
  const int gamma = drafter_->drafts_max();
  const int64_t end = std::ssize(prompt) + options_.answer_tokens;
  if (prompt.size() < 2 || end + gamma > runtime_.context_tokens()) {
    return InvalidArgument("a prompt of {} tokens can't be continued by {} in a context of {}", prompt.size(),
                           options_.answer_tokens, runtime_.context_tokens());
  }
  SamplingParams params;
  params.temperature = options_.temperature;
  params.seed = seed;
  Sampler sampler(params, vocab_size);
  const AcceptanceRule rule = AcceptanceRule::kRejection;
  const SamplingRegime regime = RegimeOf(params, rule);
  DraftBlock block(params, rule, vocab_size, gamma);
  std::vector<TokenId> tokens(prompt.begin(), prompt.end());
  ASSIGN_OR_RETURN(SequenceState state, runtime_.cache().NewSequence());
  drafter_->Begin(0, tokens, end);
  const auto observe = [&](int64_t rows) {
    const ObservedRows observed[] = {{.slot = 0,
                                      .state = &state,
                                      .first_row = 0,
                                      .rows = static_cast<int>(rows),
                                      .tokens = tokens,
                                      .drafts_next = true}};
    return drafter_->Observe(observed);
  };
  while (state.length() + 1 < std::ssize(prompt)) {
    const int64_t rows =
        std::min<int64_t>(std::ssize(prompt) - 1 - state.length(), runtime_.model().max_step_rows());
    ASSIGN_OR_RETURN([[maybe_unused]] const auto logits,
                     StepWithAllLogits(runtime_.model(), state, prompt.subspan(state.length(), rows)));
    RETURN_IF_ERROR(observe(rows));
  }
  TracedAnswer answer;
  std::vector<DraftEvidence> evidence(gamma);
  std::vector<double> acceptance(gamma);
  while (std::ssize(tokens) < end) {
    block.Begin(std::ssize(tokens));
    DraftRound round[] = {{.slot = 0,
                           .state = &state,
                           .tokens = tokens,
                           .sampler = &sampler,
                           .block = &block,
                           .depth = gamma,
                           .evidence = evidence}};
    RETURN_IF_ERROR(drafter_->Propose(round));
    std::vector<TokenId> rows = {tokens.back()};
    rows.insert(rows.end(), block.tokens().begin(), block.tokens().end());
    ASSIGN_OR_RETURN(const std::span<const float> logits, StepWithAllLogits(runtime_.model(), state, rows));
    RETURN_IF_ERROR(speculators_.one().AcceptanceProbabilities(logits, gamma, sampler, block, acceptance));
    answer.acceptance.insert(answer.acceptance.end(), acceptance.begin(), acceptance.end());
    for (int k = 0; k < gamma && drafter_->has_confidences(); ++k) {
      answer.confidences.push_back(calibration_.Confidence(regime, k, evidence[k]));
    }
    ASSIGN_OR_RETURN(const SampledToken token, sampler.Sample(logits.first(vocab_size), std::ssize(tokens)));
    RETURN_IF_ERROR(state.Truncate(std::ssize(tokens)));
    tokens.push_back(token.token);
    RETURN_IF_ERROR(observe(1));
  }
  drafter_->End(0);
  return answer;
}

Result<DraftTrace> Recorder::Record() {
  ASSIGN_OR_RETURN(drafter_, MakeDrafter(runtime_.draft_method(), options_.drafts_max, /*slots_max=*/1,
                                         runtime_.model(), speculators_));
  if (drafter_->method() != DraftMethod::kDSpark && drafter_->method() != DraftMethod::kMtp) {
    return InvalidArgument("drafts by {}: there is no head whose drafts could be recorded",
                           DraftMethodName(drafter_->method()));
  }
  DraftTrace trace{.method = std::string(DraftMethodName(drafter_->method())),
                   .drafts_max = drafter_->drafts_max(),
                   .domains = {}};
  int64_t seed = 0;
  for (const RecordDomain& domain : options_.domains) {
    TracedDomain& traced = trace.domains.emplace_back(TracedDomain{domain.name, {}});
    for (const std::vector<TokenId>& prompt : domain.prompts) {
      ASSIGN_OR_RETURN(TracedAnswer answer, RecordAnswer(prompt, seed++));
      traced.answers.push_back(std::move(answer));
    }
    if (traced.answers.empty()) return InvalidArgument("domain {} has no prompts", domain.name);
  }
  if (trace.domains.empty()) return InvalidArgument("there are no prompts");
  return trace;
}

}  // namespace

Result<DraftTrace> RecordDrafts(Runtime& runtime, const Calibration& calibration,
                                const RecordOptions& options) {
  return Recorder(runtime, calibration, options).Record();
}

}  // namespace foresight
