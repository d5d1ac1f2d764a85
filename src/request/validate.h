// Whether a request can be served at all, before it is queued.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "foresight/request.h"

namespace foresight {

struct RequestLimits {
  int vocab_size = 0;
  int64_t context_tokens = 0;  // prompt and answer together
  bool has_tokenizer = true;   // without one there is no text in which a stop string could be found
};

// Errors: kInvalidArgument, naming what is out of range.
Status ValidateRequest(const Request& request, const RequestLimits& limits);

}  // namespace foresight
