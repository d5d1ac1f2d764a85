// What a request may ask of its draws, and where the defaults come from.
#pragma once

#include <string_view>

#include "base/status.h"
#include "foresight/sampling_params.h"  // IWYU pragma: export

namespace foresight {

// The checkpoint's own defaults: temperature, top_p, top_k, min_p and repetition_penalty of a
// generation_config.json; `do_sample: false` is temperature 0. What the file doesn't state keeps the defaults
// above. Errors: kInvalidArgument (not JSON, a wrong type, out of range).
Result<SamplingParams> ParseGenerationConfig(std::string_view json);

}  // namespace foresight
