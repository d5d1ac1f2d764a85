#include <algorithm>
#include <cmath>

#include "kernels/sampling/logit_margins.h"

namespace foresight {

float LogitMargin(std::span<const float> logits) {
  float largest = -INFINITY;
  float second = -INFINITY;
  for (const float x : logits) {
    second = std::max(second, std::min(x, largest));
    largest = std::max(largest, x);
  }
  return second == -INFINITY ? kLogitMarginMax : std::min(largest - second, kLogitMarginMax);
}

void LogitMarginsRef(const KernelContext&, const LogitMarginsArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    args.out[r] = LogitMargin({args.logits + r * args.vocab_size, static_cast<size_t>(args.vocab_size)});
  }
}

}  // namespace foresight
