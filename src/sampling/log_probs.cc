#include "sampling/log_probs.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace foresight {

Result<double> TopLogProbs(std::span<const float> logits, TokenId token, std::span<TokenLogProb> top) {
  CHECK(token >= 0 && token < static_cast<int64_t>(logits.size()));
  CHECK(top.size() <= logits.size());
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(double{logit} - double{largest});
  if (!std::isfinite(sum)) {  // -inf - -inf, inf - inf and NaN all end here
    return Error(StatusCode::kInternal, "logits: want finite values or -inf and at least one finite");
  }
  const double normalizer = double{largest} + std::log(sum);

  // Insertion into a short list in order; ids ascend, so that an equal value goes behind.
  size_t num_top = 0;
  for (size_t i = 0; i < logits.size() && !top.empty(); ++i) {
    if (num_top == top.size() && !(logits[i] > top[num_top - 1].logprob)) continue;
    if (num_top < top.size()) ++num_top;
    size_t place = num_top - 1;
    for (; place > 0 && logits[i] > top[place - 1].logprob; --place) top[place] = top[place - 1];
    top[place] = {static_cast<TokenId>(i), logits[i]};
  }
  for (TokenLogProb& entry : top) entry.logprob -= normalizer;
  return double{logits[token]} - normalizer;
}

}  // namespace foresight
