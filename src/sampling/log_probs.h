// Log-probabilities for the user (serving.md 8): of the raw model distribution, before masks, penalties and
// temperature. Natural logarithms, normalised in float64.
#pragma once

#include <span>

#include "base/ids.h"
#include "base/status.h"
#include "foresight/sampling_params.h"

namespace foresight {

// log softmax(logits)[token], -inf for a masked one; and the most likely tokens in descending order, equal
// ones by ascending id: fills `top`, which has at most as many places as there are logits. No allocation.
// Errors: kInternal (NaN, +inf, or nothing finite among the logits).
Result<double> TopLogProbs(std::span<const float> logits, TokenId token, std::span<TokenLogProb> top);

}  // namespace foresight
