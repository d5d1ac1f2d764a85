// Collects what calibration is fitted on: rounds of drafts that are verified in full length (dspark.md 4.2).
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "engine/runtime.h"
#include "foresight/progress.h"
#include "speculative/calibration.h"

namespace foresight {

struct CalibrationOptions {
  std::vector<std::vector<TokenId>> prompts;  // each is continued in turn
  std::string dataset;                        // what they are, in words
  int64_t rounds = 2000;                      // of each regime; half of them fit, half of them judge
  int64_t answer_tokens_max = 200;
  ProgressSink* progress = nullptr;  // borrowed, may be null
};

// A table for every sampling regime of the runtime's draft head. Errors: kInvalidArgument (no prompts, a
// drafter without confidences), what the model says.
Result<CalibrationTable> CalibrateDrafts(Runtime& runtime, const CalibrationOptions& options);

}  // namespace foresight
