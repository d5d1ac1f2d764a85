#include "speculative/acceptance.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace foresight {
namespace {

// Less than this is left of p - q only where the two are equal but for rounding.
constexpr double kResidualMassMin = 1e-12;

// Counts drafts as generated tokens while it lives.
class CountedDrafts {
 public:
  explicit CountedDrafts(Sampler& sampler) : sampler_(sampler) {}
  CountedDrafts(const CountedDrafts&) = delete;
  CountedDrafts& operator=(const CountedDrafts&) = delete;
  ~CountedDrafts() {
    while (num_ > 0) sampler_.RemoveGenerated(tokens_[--num_]);
  }
  // Counts up to the first n of the tokens.
  void CountFirst(std::span<const TokenId> tokens, int n) {
    tokens_ = tokens;
    while (num_ < n) sampler_.AddGenerated(tokens_[num_++]);
  }

 private:
  Sampler& sampler_;
  std::span<const TokenId> tokens_;
  int num_ = 0;
};

// sum min(p, q): the probability that a draw from q is accepted as one from p.
double Overlap(const Distribution& p, const Distribution& q) {
  const double p_normalizer = p.LogNormalizer();
  const double q_normalizer = q.LogNormalizer();
  double sum = 0;
  size_t j = 0;
  for (size_t i = 0; i < p.tokens.size(); ++i) {
    while (j < q.tokens.size() && q.tokens[j] < p.tokens[i]) ++j;
    if (j == q.tokens.size() || q.tokens[j] != p.tokens[i]) continue;
    sum += std::exp(std::min(p.log_weights[i] - p_normalizer, q.log_weights[j] - q_normalizer));
  }
  return std::min(sum, 1.0);
}

}  // namespace

Speculator::Speculator(int vocab_size, int drafts_max, Chance& chance)
    : vocab_size_(vocab_size),
      chance_(chance),
      top_(static_cast<size_t>(drafts_max + 1) * kTopLogProbsMax),
      residual_tokens_(vocab_size),
      residual_log_weights_(vocab_size) {
  CHECK(vocab_size > 0 && drafts_max >= 0);
  verified_.reserve(drafts_max + 1);
}

Result<TokenId> Speculator::Draft(std::span<const float> logits, Sampler& sampler, DraftBlock& block) {
  const int k = static_cast<int>(block.tokens().size());
  CountedDrafts counted(sampler);
  counted.CountFirst(block.tokens(), k);
  ASSIGN_OR_RETURN(const Distribution q, sampler.Process(logits, block.draft_params()));
  const TokenId token = chance_.Draw(DraftKey(sampler, block, k), q);
  block.AppendDrawn(token, q);
  return token;
}

Distribution Speculator::Residual(const Distribution& p, const Distribution& q) {
  const double p_normalizer = p.LogNormalizer();
  const double q_normalizer = q.LogNormalizer();
  size_t kept = 0;
  size_t j = 0;
  double mass = 0;
  double largest = 0;
  for (size_t i = 0; i < p.tokens.size(); ++i) {
    double left = std::exp(p.log_weights[i] - p_normalizer);
    while (j < q.tokens.size() && q.tokens[j] < p.tokens[i]) ++j;
    if (j < q.tokens.size() && q.tokens[j] == p.tokens[i]) left -= std::exp(q.log_weights[j] - q_normalizer);
    if (!(left > 0)) continue;
    mass += left;
    largest = std::max(largest, left);
    residual_tokens_[kept] = p.tokens[i];
    residual_log_weights_[kept++] = left;
  }
  if (mass <= kResidualMassMin) return p;
  for (size_t i = 0; i < kept; ++i) residual_log_weights_[i] = std::log(residual_log_weights_[i] / largest);
  return {{residual_tokens_.data(), kept}, {residual_log_weights_.data(), kept}};
}

Speculator::Judgement Speculator::Judge(const Distribution& p, int k, const Sampler& sampler,
                                        const DraftBlock& block) {
  const TokenId draft = block.tokens()[k];
  const int64_t position = block.position() + k;
  // A position gets one token that is no draft, and gets it once: by rejection nothing else has its noise.
  const RandomKey own = sampler.Key(position, RandomStream::kCoupled, 0);
  if (block.rule() == AcceptanceRule::kCoupled) {
    const TokenId token = chance_.Draw(own, p);
    return {.accepted = token == draft, .token = token};
  }
  const Distribution q = block.q(k);
  const RandomKey accept = sampler.Key(position, RandomStream::kAccept, block.round());
  if (chance_.Accept(accept, p.Probability(draft), q.Probability(draft))) return {true, draft};
  return {.accepted = false, .token = chance_.Draw(own, Residual(p, q))};
}

Result<VerifiedTokens> Speculator::Verify(std::span<const float> logits, int num_drafts, Sampler& sampler,
                                          const DraftBlock& block) {
  CHECK(num_drafts >= 0 && num_drafts <= std::ssize(block.tokens()), "verify {} of {} drafts", num_drafts,
        block.tokens().size());
  CHECK(num_drafts < static_cast<int>(verified_.capacity()));
  CHECK(logits.size() == static_cast<size_t>(num_drafts + 1) * vocab_size_);
  verified_.clear();
  CountedDrafts counted(sampler);
  VerifiedTokens result;
  for (bool done = false; !done;) {
    const int k = result.accepted;
    const std::span<const float> row = logits.subspan(static_cast<size_t>(k) * vocab_size_, vocab_size_);
    counted.CountFirst(block.tokens(), k);
    ASSIGN_OR_RETURN(const Distribution p, sampler.Process(row));
    Judgement judgement;
    if (k < num_drafts) {
      judgement = Judge(p, k, sampler, block);
    } else {  // behind the last draft: the target's own token
      judgement.token = chance_.Draw(sampler.Key(block.position() + k, RandomStream::kCoupled, 0), p);
    }
    const std::span<TokenLogProb> top(top_.data() + static_cast<size_t>(k) * kTopLogProbsMax,
                                      kTopLogProbsMax);
    ASSIGN_OR_RETURN(const SampledToken token, sampler.Report(row, judgement.token, top));
    verified_.push_back(token);
    result.accepted += judgement.accepted;
    done = !judgement.accepted;
  }
  result.tokens = verified_;
  return result;
}

Status Speculator::AcceptanceProbabilities(std::span<const float> logits, int num_drafts, Sampler& sampler,
                                           const DraftBlock& block, std::span<double> out,
                                           std::span<double> blind) {
  CHECK(num_drafts >= 0 && num_drafts <= std::ssize(block.tokens()) && std::ssize(out) >= num_drafts);
  CHECK(blind.empty() || std::ssize(blind) >= num_drafts);
  CHECK(logits.size() >= static_cast<size_t>(num_drafts) * vocab_size_);
  CountedDrafts counted(sampler);
  for (int k = 0; k < num_drafts; ++k) {
    counted.CountFirst(block.tokens(), k);
    const std::span<const float> row = logits.subspan(static_cast<size_t>(k) * vocab_size_, vocab_size_);
    ASSIGN_OR_RETURN(const Distribution p, sampler.Process(row));
    const TokenId draft = block.tokens()[k];
    if (block.rule() == AcceptanceRule::kCoupled) {
      out[k] = Judge(p, k, sampler, block).accepted;
      if (!blind.empty()) blind[k] = out[k];
    } else {
      out[k] = std::min(1.0, p.Probability(draft) / block.q(k).Probability(draft));
      if (!blind.empty()) blind[k] = Overlap(p, block.q(k));
    }
  }
  return Status();
}

}  // namespace foresight
