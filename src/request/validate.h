// Whether a request can be served at all, before it is queued.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "foresight/request.h"

namespace foresight {

struct RequestLimits {
  int vocab_size = 0;
  int64_t context_tokens = 0;  // prompt and answer together
};

// Errors: kInvalidArgument, naming what is out of range.
Status ValidateRequest(const Request& request, const RequestLimits& limits);

}  // namespace foresight
