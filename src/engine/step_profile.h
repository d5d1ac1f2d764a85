// Measures what steps of a model cost, for planners that weigh them (dspark.md 5.4).
#pragma once

#include "base/status.h"
#include "engine/runtime.h"
#include "speculative/step_costs.h"

namespace foresight {

struct ProfileOptions {
  int drafts_max = 0;     // as in SpeculationOptions
  int max_sequences = 1;  // that draft at a time
  int step_rows_max = 512;
  int64_t context_tokens = 64;  // at which steps are measured
  double seconds_max = 2;       // about; points that would take longer are left to extrapolation
};

// Runs steps of 1, 2, 3, 4, 6, 8, .. rows and drafts of 1 and more sequences with states of their own, which
// are gone afterwards. Errors: what the model says; kResourceExhausted (no room for a state).
Result<StepCostTable> ProfileSteps(Runtime& runtime, const ProfileOptions& options);

}  // namespace foresight
