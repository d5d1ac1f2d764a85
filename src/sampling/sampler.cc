#include "sampling/sampler.h"

#include "base/rng.h"

namespace foresight {

Sampler::Sampler(const SamplingParams& params, int vocab_size, int choice)
    : params_(params),
      seed_(params.seed ? *params.seed : RandomSeed()),
      choice_(choice),
      builder_(vocab_size) {
  if (params_.has_penalties()) counts_.emplace(vocab_size);
}

void Sampler::AddPrompt(std::span<const TokenId> tokens) {
  if (counts_) counts_->AddPrompt(tokens);
}

void Sampler::AddGenerated(TokenId token) {
  if (counts_) counts_->AddGenerated(token);
}

void Sampler::RemoveGenerated(TokenId token) {
  if (counts_) counts_->RemoveGenerated(token);
}

Result<Distribution> Sampler::Process(std::span<const float> logits) {
  return builder_.Build(logits, params_, counts_ ? &*counts_ : nullptr);
}

Result<SampledToken> Sampler::Sample(std::span<const float> logits, int64_t position) {
  ASSIGN_OR_RETURN(const Distribution distribution, Process(logits));
  SampledToken sampled;
  sampled.token = SampleToken(distribution, {.seed = seed_, .position = position, .choice = choice_});
  if (params_.logprobs) {
    const std::span<TokenLogProb> top(top_.data(), *params_.logprobs);
    ASSIGN_OR_RETURN(sampled.logprob, TopLogProbs(logits, sampled.token, top));
    sampled.top = top;
  }
  return sampled;
}

}  // namespace foresight
