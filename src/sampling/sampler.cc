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

Result<Distribution> Sampler::Process(std::span<const float> logits, const SamplingParams& params) {
  return builder_.Build(logits, params, counts_ ? &*counts_ : nullptr);
}

RandomKey Sampler::Key(int64_t position, RandomStream stream, int64_t round) const {
  return {.seed = seed_, .position = position, .choice = choice_, .stream = stream, .round = round};
}

Result<SampledToken> Sampler::Report(std::span<const float> logits, TokenId token,
                                     std::span<TokenLogProb> top) const {
  SampledToken sampled;
  sampled.token = token;
  if (params_.logprobs) {
    top = top.first(*params_.logprobs);
    ASSIGN_OR_RETURN(sampled.logprob, TopLogProbs(logits, token, top));
    sampled.top = top;
  }
  return sampled;
}

Result<SampledToken> Sampler::Sample(std::span<const float> logits, int64_t position) {
  ASSIGN_OR_RETURN(const Distribution distribution, Process(logits));
  const TokenId token = SampleToken(distribution, Key(position, RandomStream::kCoupled, 0));
  return Report(logits, token, top_);
}

}  // namespace foresight
