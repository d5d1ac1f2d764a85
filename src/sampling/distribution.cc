#include "sampling/distribution.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "sampling/sum_exp.h"

namespace foresight {
namespace {

// NaN and +inf among the logits are the model's or the checkpoint's fault; which one is said.
Status CheckLogits(std::span<const float> logits) {
  bool good = true;
  for (float logit : logits)
    good &= logit < INFINITY;  // false for NaN; no early exit: the loop is vectorised
  if (good) return Status();
  const auto bad =
      std::find_if(logits.begin(), logits.end(), [](float logit) { return !(logit < INFINITY); });
  return Error(StatusCode::kInternal, "logits: want finite values or -inf, got {} for token {}", *bad,
               bad - logits.begin());
}

float ToFiniteFloat(double x) {
  return static_cast<float>(std::clamp(x, -double{FLT_MAX}, double{FLT_MAX}));
}

void AddBias(const SamplingParams& params, std::span<float> logits) {
  for (const auto& [token, bias] : params.logit_bias) {
    if (logits[token] > -INFINITY) logits[token] = ToFiniteFloat(logits[token] + bias);
  }
}

void AddPenalties(const SamplingParams& params, const TokenCounts& counts, std::span<float> logits) {
  for (TokenId token : counts.distinct()) {
    double logit = logits[token];
    if (logit == -INFINITY) continue;
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    const int32_t generated = counts.generated(token);
    logit -= params.frequency_penalty * generated;
    if (generated > 0) logit -= params.presence_penalty;
    logits[token] = ToFiniteFloat(logit);
  }
}

// Exponential variate from 53 random bits: -log(1 - t), t = (bits + 1/2) / 2^53. Small t, where the largest
// noise comes from, keeps all its precision.
double ExponentialNoise(uint64_t bits) {
  return -std::log1p(-(static_cast<double>(bits) + 0.5) * 0x1p-53);
}

double Gumbel(uint64_t bits) {
  return -std::log(ExponentialNoise(bits));
}

// Which random bits can still win: those of a token with log-weight w give w + Gumbel(bits) > best only when
// bits <= limit(w). Computed for steps of w; a token uses the step above its own weight, so that none is
// lost.
class NoiseLimits {
 public:
  NoiseLimits() { limits_.fill(UINT64_MAX); }
  uint64_t operator[](double log_weight) const {
    const double step = std::min(-log_weight * kStepsPerUnit, double{kSteps - 1});
    return limits_[static_cast<size_t>(step)];
  }
  void Update(double best) {
    for (int i = 0; i < kSteps; ++i) {
      // Gumbel(bits) > x  <=>  t < 1 - exp(-exp(-x)).
      const double t = -std::expm1(-std::exp(-(best + i / kStepsPerUnit)));
      limits_[i] = static_cast<uint64_t>(t * (1 + 1e-9) * 0x1p53) + 1;
    }
  }

 private:
  static constexpr int kSteps = 160;
  static constexpr double kStepsPerUnit = 4;
  std::array<uint64_t, kSteps> limits_;
};

// Below this many candidates the limits cost more than they save.
constexpr size_t kLimitsMin = 1024;

}  // namespace

double Distribution::LogNormalizer() const {
  return std::log(SumExp(log_weights));
}

double Distribution::Probability(TokenId token) const {
  const auto place = std::lower_bound(tokens.begin(), tokens.end(), token);
  if (place == tokens.end() || *place != token) return 0;
  return std::exp(log_weights[place - tokens.begin()] - LogNormalizer());
}

DistributionBuilder::DistributionBuilder(int vocab_size)
    : vocab_size_(vocab_size), logits_(vocab_size), tokens_(vocab_size), log_weights_(vocab_size) {
  CHECK(vocab_size > 0);
  border_.reserve(vocab_size);
}

// One pass sorts the candidates' weights into steps of their log-weight; only the candidates of the step in
// which the target is reached are put in order.
template <typename Weight, typename Target>
void DistributionBuilder::KeepLargest(std::span<const float> logits, Weight weight, Target target_of) {
  constexpr int kSteps = 512;
  constexpr double kStepsPerUnit = 16;
  const auto step_of = [](double log_weight) {
    return static_cast<int>(std::min(-log_weight * kStepsPerUnit, double{kSteps - 1}));
  };
  std::array<double, kSteps> sums{};
  for (size_t i = 0; i < num_kept_; ++i) sums[step_of(log_weights_[i])] += weight(log_weights_[i]);
  const double target = target_of(std::accumulate(sums.begin(), sums.end(), 0.0));
  int border_step = 0;
  double sum = 0;  // of the steps before border_step
  while (border_step < kSteps - 1 && sum + sums[border_step] < target) sum += sums[border_step++];

  border_.clear();
  for (size_t i = 0; i < num_kept_; ++i) {
    if (step_of(log_weights_[i]) == border_step) border_.push_back(static_cast<int32_t>(i));
  }
  // Not by log-weight, whose rounding makes some logits equal.
  std::sort(border_.begin(), border_.end(), [&](int32_t a, int32_t b) {
    const float of_a = logits[tokens_[a]];
    const float of_b = logits[tokens_[b]];
    return of_a != of_b ? of_a > of_b : a < b;
  });
  size_t num_in = 0;
  while (num_in < border_.size() && (sum < target || (border_step == 0 && num_in == 0))) {
    sum += weight(log_weights_[border_[num_in++]]);
  }
  std::sort(border_.begin(), border_.begin() + num_in);

  size_t kept = 0;
  size_t next_in = 0;
  for (size_t i = 0; i < num_kept_; ++i) {
    const int step = step_of(log_weights_[i]);
    bool keep = step < border_step;
    if (next_in < num_in && border_[next_in] == static_cast<int32_t>(i)) {
      keep = true;
      ++next_in;
    }
    if (!keep) continue;
    tokens_[kept] = tokens_[i];
    log_weights_[kept++] = log_weights_[i];
  }
  num_kept_ = kept;
}

Result<Distribution> DistributionBuilder::Build(std::span<const float> logits, const SamplingParams& params,
                                                const TokenCounts* counts) {
  CHECK(static_cast<int>(logits.size()) == vocab_size_, "want {} logits, got {}", vocab_size_, logits.size());
  CHECK(counts != nullptr || !params.has_penalties());
  RETURN_IF_ERROR(CheckLogits(logits));
  if (!params.logit_bias.empty() || params.has_penalties()) {
    std::copy(logits.begin(), logits.end(), logits_.begin());
    AddBias(params, logits_);
    if (params.has_penalties()) AddPenalties(params, *counts, logits_);
    logits = logits_;
  }
  const auto largest = std::max_element(logits.begin(), logits.end());
  if (*largest == -INFINITY) {
    return Error(StatusCode::kInternal, "logits: all {} tokens are masked", logits.size());
  }
  if (params.greedy()) {
    tokens_[0] = static_cast<TokenId>(largest - logits.begin());
    log_weights_[0] = 0;
    num_kept_ = 1;
  } else {
    const double inverse = 1 / params.temperature;
    const double lowest = params.min_p > 0 ? std::log(params.min_p) : -DBL_MAX;  // -inf is below
    num_kept_ = 0;
    for (int i = 0; i < vocab_size_; ++i) {
      const double w = (double{logits[i]} - double{*largest}) * inverse;
      tokens_[num_kept_] = i;
      log_weights_[num_kept_] = w;
      num_kept_ += w >= lowest;
    }
    if (params.top_k > 0 && params.top_k < static_cast<int64_t>(num_kept_)) {
      KeepLargest(
          logits, [](double) { return 1.0; }, [&](double) { return static_cast<double>(params.top_k); });
    }
    if (params.top_p < 1) {
      KeepLargest(
          logits, [](double w) { return std::exp(w); }, [&](double sum) { return params.top_p * sum; });
    }
  }
  return Distribution{{tokens_.data(), num_kept_}, {log_weights_.data(), num_kept_}};
}

double GumbelNoise(const RandomSequence& noise, TokenId token) {
  return Gumbel(noise.Bits53(token));
}

TokenId SampleToken(const Distribution& distribution, const RandomKey& key) {
  const std::span<const TokenId> tokens = distribution.tokens;
  const std::span<const double> log_weights = distribution.log_weights;
  CHECK(!tokens.empty());
  if (tokens.size() == 1) return tokens[0];
  const RandomSequence noise(key);
  // The most likely token first: it sets a bar that lets most others go by their random bits alone.
  size_t winner = std::max_element(log_weights.begin(), log_weights.end()) - log_weights.begin();
  double best = log_weights[winner] + GumbelNoise(noise, tokens[winner]);
  const bool use_limits = tokens.size() >= kLimitsMin;
  NoiseLimits limits;
  if (use_limits) limits.Update(best);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const uint64_t bits = noise.Bits53(tokens[i]);
    if (bits > limits[log_weights[i]]) continue;
    const double sum = log_weights[i] + Gumbel(bits);
    if (sum < best || (sum == best && i >= winner)) continue;
    const bool higher = sum > best;
    winner = i;
    best = sum;
    if (use_limits && higher) limits.Update(best);
  }
  return tokens[winner];
}

}  // namespace foresight
