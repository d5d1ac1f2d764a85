// Measures what steps of a model cost, for planners that weigh them (dspark.md 5.4).
#pragma once

#include "base/status.h"
#include "engine/runtime.h"
#include "speculative/step_costs.h"

namespace foresight {

struct ProfileOptions {
  int max_sequences = 1;  // that draft at a time
  int step_rows_max = 512;
  double seconds_max = 2;  // about; points that would take longer are left to extrapolation
  // For a file that is kept: steps at several lengths of context, as far as the time allows, and what the
  // host takes. If not, all contexts cost what a short one does, and the host's part is a guess until serving
  // shows it.
  bool is_thorough = false;
};

// Runs steps of 1, 2, 3, 4, 6, 8, .. rows and drafts of 1 and more sequences with states of their own, which
// are gone afterwards. Errors: what the model says; kResourceExhausted (no room for a state).
Result<StepCostTable> ProfileSteps(Runtime& runtime, const ProfileOptions& options);

}  // namespace foresight
