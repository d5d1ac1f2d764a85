// Collects what calibration is fitted on: rounds of drafts that are verified in full length (dspark.md 4.2).
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "engine/runtime.h"
#include "foresight/progress.h"
#include "speculative/calibration.h"
#include "speculative/calibration_fit.h"

namespace foresight {

struct CalibrationOptions {
  std::vector<std::vector<TokenId>> prompts;  // two or more: every second one is held out
  std::string dataset;                        // what they are, in words
  int64_t rounds = 2000;                      // of each regime, about; half of them fit, half of them judge
  int64_t rounds_per_answer_max = 32;         // those of one answer are alike: many prompts say more
  ProgressSink* progress = nullptr;           // borrowed, may be null
};

struct CollectedRounds {
  CalibrationRounds fit;
  CalibrationRounds held_out;  // of other prompts
};

// Rounds of the runtime's draft head: of all prompts alike, as often as it takes. Errors: kInvalidArgument
// (less than two prompts, a drafter without confidences), what the model says.
Result<CollectedRounds> CollectRounds(Runtime& runtime, const CalibrationOptions& options,
                                      SamplingRegime regime);

// A table for every sampling regime. Errors: those of CollectRounds; kInvalidArgument when no answer is long
// enough for a draft.
Result<CalibrationTable> CalibrateDrafts(Runtime& runtime, const CalibrationOptions& options);

}  // namespace foresight
