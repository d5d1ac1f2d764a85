// Records what drafts are like, position by position, for replay (speculative/draft_traces.h).
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "engine/runtime.h"
#include "speculative/calibration.h"
#include "speculative/draft_traces.h"

namespace foresight {

struct RecordDomain {
  std::string name;
  std::vector<std::vector<TokenId>> prompts;
};

struct RecordOptions {
  std::vector<RecordDomain> domains;
  int drafts_max = 5;
  int answer_tokens = 64;
  double temperature = 1;  // of the answers and of the drafts; 0: greedy
};

// Continues every prompt, token by token as without drafts, and drafts anew at each: the
// answer is the same for every head of a model. `calibration` holds for the head's confidences. Errors:
// kInvalidArgument (no head, no domain, an answer without room), what the model says.
Result<DraftTrace> RecordDrafts(Runtime& runtime, const Calibration& calibration,
                                const RecordOptions& options);

}  // namespace foresight
