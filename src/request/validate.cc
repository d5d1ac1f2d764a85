#include "request/validate.h"

#include <cmath>

namespace foresight {

Status ValidateRequest(const Request& request, const RequestLimits& limits) {
  if (request.prompt.empty()) return InvalidArgument("the prompt has no tokens");
  if (std::ssize(request.prompt) >= limits.context_tokens) {
    return InvalidArgument("the prompt has {} tokens, the context holds {}, answer included",
                           request.prompt.size(), limits.context_tokens);
  }
  for (TokenId token : request.prompt) {
    if (token < 0 || token >= limits.vocab_size) {
      return InvalidArgument("token id {} is outside the vocabulary of {}", token, limits.vocab_size);
    }
  }
  if (request.priority < -kPriorityMax || request.priority > kPriorityMax) {
    return InvalidArgument("priority: want {}..{}, got {}", -kPriorityMax, kPriorityMax, request.priority);
  }
  if (request.drafts_max < 0 || request.drafts_max > kDraftPositionsMax) {
    return InvalidArgument("drafts_max: want 0..{}, got {}", kDraftPositionsMax, request.drafts_max);
  }
  if (!std::isfinite(request.timeout_seconds) || request.timeout_seconds < 0) {
    return InvalidArgument("timeout_seconds: want 0 or more, got {}", request.timeout_seconds);
  }
  if (!request.sampling.stop.empty() && !limits.has_tokenizer) {
    return InvalidArgument("stop: the model has no tokenizer, so there is no text to look for strings in");
  }
  return request.sampling.Validate(limits.vocab_size);
}

}  // namespace foresight
