#include "engine/calibrate.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "drafting/drafter.h"
#include "foresight/request.h"
#include "speculative/calibration_fit.h"

namespace foresight {
namespace {

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
  Collector(Runtime& runtime, const CalibrationOptions& options)
      : runtime_(runtime),
        options_(options),
        speculator_(runtime.config().vocab_size, kDraftPositionsMax, chance_) {}

  Result<CalibrationTable> Run();

 private:
  // Continues a prompt and adds its rounds.
  Status Continue(std::span<const TokenId> prompt, SamplingRegime regime, int64_t seed,
                  CalibrationRounds& rounds);
  // Logits [tokens, V] of a step of the target over the next tokens.
  Result<std::span<const float>> Step(SequenceState& state, std::span<const TokenId> tokens);

  Runtime& runtime_;
  const CalibrationOptions& options_;
  KeyedChance chance_;
  Speculator speculator_;
  std::unique_ptr<Drafter> drafter_;
};

Result<std::span<const float>> Collector::Step(SequenceState& state, std::span<const TokenId> tokens) {
  std::vector<int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  const SequenceChunk chunk[] = {{.sequence = &state, .num_rows = static_cast<int>(tokens.size())}};
  ASSIGN_OR_RETURN(const StepOutputs out,
                   runtime_.model().Step({.tokens = tokens, .chunks = chunk, .logit_rows = rows}));
  return out.logits;
}

Status Collector::Continue(std::span<const TokenId> prompt, SamplingRegime regime, int64_t seed,
                           CalibrationRounds& rounds) {
  const int vocab_size = runtime_.config().vocab_size;
  const int gamma = drafter_->drafts_max();
  SamplingParams params = ParamsOf(regime);
  params.seed = seed;
  const bool coupled = regime == SamplingRegime::kGreedy || regime == SamplingRegime::kCoupled;
  const AcceptanceRule rule = coupled ? AcceptanceRule::kCoupled : AcceptanceRule::kRejection;
  Sampler sampler(params, vocab_size);
  DraftBlock block(params, rule, vocab_size, gamma);
  std::vector<TokenId> tokens(prompt.begin(), prompt.end());
  const int64_t end = std::min<int64_t>(std::ssize(prompt) + options_.answer_tokens_max,
                                        runtime_.context_tokens() - gamma - 1);
  ASSIGN_OR_RETURN(SequenceState state, runtime_.cache().NewSequence());
  for (size_t at = 0; at + 1 < prompt.size();) {
    const size_t count = std::min<size_t>(prompt.size() - 1 - at, runtime_.model().max_step_rows());
    ASSIGN_OR_RETURN([[maybe_unused]] const auto logits, Step(state, prompt.subspan(at, count)));
    at += count;
  }
  std::vector<float> confidences(gamma);
  std::vector<double> acceptance(gamma);
  while (std::ssize(tokens) < end && rounds.size() < options_.rounds) {
    block.Begin(std::ssize(tokens));
    DraftRound round[] = {{.state = &state,
                           .tokens = tokens,
                           .sampler = &sampler,
                           .block = &block,
                           .depth = gamma,
                           .confidence_logits = confidences}};
    RETURN_IF_ERROR(drafter_->Propose(round));
    std::vector<TokenId> rows = {tokens.back()};
    rows.insert(rows.end(), block.tokens().begin(), block.tokens().end());
    ASSIGN_OR_RETURN(const std::span<const float> logits, Step(state, rows));
    RETURN_IF_ERROR(speculator_.AcceptanceProbabilities(logits, gamma, sampler, block, acceptance));
    rounds.Add(confidences, std::span<const double>(acceptance));
    ASSIGN_OR_RETURN(const VerifiedTokens verified, speculator_.Verify(logits, gamma, sampler, block));
    for (const SampledToken& token : verified.tokens) {
      tokens.push_back(token.token);
      if (token.token == runtime_.config().eos_token_id) return Status();
    }
    RETURN_IF_ERROR(state.Truncate(std::ssize(tokens) - 1));
  }
  return Status();
}

Result<CalibrationTable> Collector::Run() {
  ASSIGN_OR_RETURN(drafter_, MakeDrafter(runtime_.draft_method(), /*drafts_max=*/0, /*slots_max=*/1,
                                         runtime_.model(), speculator_));
  if (drafter_->method() != DraftMethod::kDSpark || !drafter_->has_confidences()) {
    return InvalidArgument("drafts by {}: there are no confidences to calibrate",
                           DraftMethodName(drafter_->method()));
  }
  if (options_.prompts.empty()) return InvalidArgument("calibration: there are no prompts");
  CalibrationTable table{.draft = runtime_.draft_hash(),
                         .target = runtime_.target_hash(),
                         .drafts_max = drafter_->drafts_max(),
                         .regimes = {}};
  constexpr std::array kRegimes = {SamplingRegime::kGreedy, SamplingRegime::kUnit, SamplingRegime::kCool,
                                   SamplingRegime::kTopP, SamplingRegime::kCoupled};
  for (SamplingRegime regime : kRegimes) {
    CalibrationRounds rounds(table.drafts_max);
    if (options_.progress != nullptr) {
      options_.progress->Begin(SamplingRegimeName(regime), static_cast<uint64_t>(options_.rounds));
    }
    for (int64_t i = 0; rounds.size() < options_.rounds; ++i) {
      const int64_t before = rounds.size();
      const std::vector<TokenId>& prompt = options_.prompts[static_cast<size_t>(i) % options_.prompts.size()];
      RETURN_IF_ERROR(Continue(prompt, regime, /*seed=*/i, rounds));
      if (options_.progress != nullptr) options_.progress->Update(static_cast<uint64_t>(rounds.size()));
      const bool all_seen = i >= std::ssize(options_.prompts);
      // Greedy answers repeat themselves: more of them teach nothing. And some end at once.
      if (all_seen && (regime == SamplingRegime::kGreedy || rounds.size() == before)) break;
    }
    if (rounds.size() < 2) continue;
    table.regimes.push_back(Calibrate(regime, rounds, options_.dataset));
  }
  if (options_.progress != nullptr) options_.progress->End();
  if (table.regimes.empty()) return InvalidArgument("calibration: no answer was long enough for a draft");
  return table;
}

}  // namespace

Result<CalibrationTable> CalibrateDrafts(Runtime& runtime, const CalibrationOptions& options) {
  return Collector(runtime, options).Run();
}

}  // namespace foresight
