#include "sampling/distribution.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "base/check.h"

namespace foresight {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

double Distribution::LogNormalizer() const {
  double sum = 0;
  for (double w : log_weights) sum += std::exp(w);
  return std::log(sum);
}

double Distribution::Probability(TokenId token) const {
  const auto it = std::lower_bound(tokens.begin(), tokens.end(), token);
  if (it == tokens.end() || *it != token) return 0;
  return std::exp(log_weights[it - tokens.begin()] - LogNormalizer());
}

DistributionBuilder::DistributionBuilder(int vocab_size)
    : vocab_size_(vocab_size),
      logits_(vocab_size),
      tokens_(vocab_size),
      log_weights_(vocab_size),
      border_(vocab_size) {}

template <typename Weight>
void DistributionBuilder::KeepLargest(double target, Weight weight) {
  const auto before = [&](int32_t a, int32_t b) {
    return log_weights_[a] != log_weights_[b] ? log_weights_[a] > log_weights_[b] : a < b;
  };
  std::iota(border_.begin(), border_.begin() + num_kept_, 0);
  // Sorted piece by piece: the cut is near the top of most distributions.
  size_t sorted = 0;
  size_t kept = 0;
  double sum = 0;
  for (size_t piece = 64; kept < num_kept_ && sum < target; piece *= 4) {
    const size_t end = std::min(num_kept_, sorted + piece);
    if (end < num_kept_) {
      std::nth_element(border_.begin() + sorted, border_.begin() + end, border_.begin() + num_kept_, before);
    }
    std::sort(border_.begin() + sorted, border_.begin() + end, before);
    sorted = end;
    for (; kept < sorted && sum < target; ++kept) sum += weight(log_weights_[border_[kept]]);
  }
  kept = std::max<size_t>(kept, 1);
  std::sort(border_.begin(), border_.begin() + kept);
  for (size_t i = 0; i < kept; ++i) {
    tokens_[i] = tokens_[border_[i]];
    log_weights_[i] = log_weights_[border_[i]];
  }
  num_kept_ = kept;
}

Result<Distribution> DistributionBuilder::Build(std::span<const float> logits, const SamplingParams& params,
                                                const TokenCounts* counts) {
  CHECK(std::ssize(logits) == vocab_size_, "want {} logits, got {}", vocab_size_, logits.size());
  for (int i = 0; i < vocab_size_; ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      return Error(StatusCode::kInternal, "the logit of token {} is {}", i, logits[i]);
    }
  }
  if (!params.logit_bias.empty() || (params.has_penalties() && counts != nullptr)) {
    std::copy(logits.begin(), logits.end(), logits_.begin());
    for (const auto& [id, bias] : params.logit_bias) logits_[id] += static_cast<float>(bias);
    if (params.has_penalties() && counts != nullptr) {
      for (TokenId id : counts->distinct()) {
        const double x = logits_[id];
        const double repeated = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
        const int32_t times = counts->generated(id);
        logits_[id] = static_cast<float>(repeated - params.frequency_penalty * times -
                                         (times > 0 ? params.presence_penalty : 0));
      }
    }
    logits = logits_;
  }

  const auto largest = std::max_element(logits.begin(), logits.end());  // the lowest id among equals
  if (std::isinf(*largest)) return Error(StatusCode::kInternal, "every token is masked");
  if (params.greedy()) {
    tokens_[0] = static_cast<TokenId>(largest - logits.begin());
    log_weights_[0] = 0;
    num_kept_ = 1;
  } else {
    const double top = *largest;
    const double lowest = params.min_p > 0 ? std::log(params.min_p) : -kInfinity;
    num_kept_ = 0;
    for (int i = 0; i < vocab_size_; ++i) {
      const double w = (logits[i] - top) / params.temperature;
      if (std::isinf(w) || w < lowest) continue;
      tokens_[num_kept_] = i;
      log_weights_[num_kept_++] = w;
    }
    if (params.top_k > 0 && static_cast<size_t>(params.top_k) < num_kept_) {
      KeepLargest(static_cast<double>(params.top_k), [](double) { return 1.0; });
    }
    if (params.top_p < 1) {
      double total = 0;
      for (size_t i = 0; i < num_kept_; ++i) total += std::exp(log_weights_[i]);
      KeepLargest(params.top_p * total, [](double w) { return std::exp(w); });
    }
  }
  return Distribution{.tokens = {tokens_.data(), num_kept_}, .log_weights = {log_weights_.data(), num_kept_}};
}

double GumbelNoise(const RandomSequence& noise, TokenId token) {
  return -std::log(-std::log(noise.Uniform(static_cast<uint64_t>(token))));
}

TokenId SampleToken(const Distribution& distribution, const RandomKey& key) {
  const RandomSequence noise(key);
  constexpr uint64_t kOnes = (uint64_t{1} << 53) - 1;
  TokenId best = distribution.tokens.front();
  double best_sum = -kInfinity;
  for (size_t i = 0; i < distribution.tokens.size(); ++i) {
    const TokenId token = distribution.tokens[i];
    const double w = distribution.log_weights[i];
    // Two logarithms for each of 129,280 tokens would take milliseconds. -log(-log U) <= -log(1-U), and the
    // leading zeros z of 1-U bound that by (z+1) log 2: few tokens can win, and only theirs are computed.
    const int zeros = std::countl_zero(kOnes - noise.Bits53(static_cast<uint64_t>(token))) - 11;
    if (w + (zeros + 1) * std::numbers::ln2 + 1e-9 < best_sum) continue;
    const double sum = w + GumbelNoise(noise, token);
    if (sum > best_sum) {
      best_sum = sum;
      best = token;
    }
  }
  return best;
}

}  // namespace foresight
