#include "engine/all_logits.h"

#include <numeric>
#include <vector>

namespace foresight {

Result<std::span<const float>> StepWithAllLogits(Model& model, SequenceState& state,
                                                 std::span<const TokenId> tokens) {
  std::vector<int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  const SequenceChunk chunk[] = {{.sequence = &state, .num_rows = static_cast<int>(tokens.size())}};
  ASSIGN_OR_RETURN(const StepOutputs out,
                   model.Step({.tokens = tokens, .chunks = chunk, .logit_rows = rows}));
  return out.logits;
}

}  // namespace foresight
