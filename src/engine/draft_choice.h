// Which draft head a model is loaded with.
#pragma once

#include <string>

#include "base/status.h"
#include "drafting/drafter.h"
#include "foresight/config.h"
#include "weights/model_files.h"

namespace foresight {

struct ChosenDraft {
  DraftMethod method = DraftMethod::kNone;
  std::string name = {};  // of the head: "own", a name under drafts/, a directory; empty: no head
  bool own_head = false;  // the model's own is used
  ModelFiles head = {};   // another one's files; empty: none
};

// Without a head's name, in this order: the model's own head, then drafts/ dspark, dspark-gated, dspark-rnn,
// mtp; of the wanted kind, if one is wanted. kAuto is kNone when there is none of these. Errors: kNotFound
// (no such head), kInvalidArgument (a head of another kind than wanted, a config that can't be read).
Result<ChosenDraft> ChooseDraft(const ModelFiles& files, const SpeculationOptions& options);

// Tokens of a draft by `method` with a model of this config. What nobody asks for is as the head was made
// for; drafts that can be of any length (MTP-1, prompt look-up) become as long as a fixed number to verify
// (static:K). Errors: kInvalidArgument (a planner that can't be read, or that verifies more than is drafted).
Result<int> ChooseDraftLength(DraftMethod method, const SpeculationOptions& options,
                              const ModelConfig& config);

// For a model made in memory, which has the head of its config: kInvalidArgument when another one is asked
// for.
Result<ChosenDraft> ChooseSyntheticDraft(const ModelConfig& config, const SpeculationOptions& options);

}  // namespace foresight
