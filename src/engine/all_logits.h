// For what looks at every row of one sequence: calibration, and recording of drafts.
#pragma once

#include <span>

#include "base/status.h"
#include "model/model.h"

namespace foresight {

// Logits [tokens, V] of a step of the target over the sequence's next tokens. Valid until the next step.
// Errors: what Model::Step says.
Result<std::span<const float>> StepWithAllLogits(Model& model, SequenceState& state,
                                                 std::span<const TokenId> tokens);

}  // namespace foresight
