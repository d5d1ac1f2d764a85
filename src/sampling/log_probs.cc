#include "sampling/log_probs.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace foresight {

Result<double> TopLogProbs(std::span<const float> logits, TokenId token, std::span<TokenLogProb> top) {
  double largest = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      return Error(StatusCode::kInternal, "the logit of token {} is {}", i, logits[i]);
    }
    largest = std::max<double>(largest, logits[i]);
  }
  if (std::isinf(largest)) return Error(StatusCode::kInternal, "no token has a finite logit");
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - largest);
  const double normalizer = largest + std::log(sum);

  // A heap would win for long lists; `top` has 20 places at most.
  size_t filled = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double logprob = logits[i] - normalizer;
    if (filled == top.size() && (filled == 0 || logprob <= top[filled - 1].logprob)) continue;
    size_t place = filled < top.size() ? filled++ : filled - 1;
    for (; place > 0 && top[place - 1].logprob < logprob; --place) top[place] = top[place - 1];
    top[place] = {static_cast<TokenId>(i), logprob};
  }
  return logits[token] - normalizer;
}

}  // namespace foresight
