// What drafts of a model were like, recorded: how sure the head was of each, and how likely the target was to
// accept it. A benchmark replays them on weights whose drafts mean nothing (engine/draft_replay.h).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace foresight {

// One answer. Entry p * drafts_max + k belongs to draft k of a round that begins at position p, whatever the
// rounds of a replay are: there is a draft for every position.
struct TracedAnswer {
  std::vector<float> confidences;  // calibrated; empty when the drafter has none
  std::vector<float> acceptance;   // probability, given that the draft is reached
};

struct TracedDomain {
  std::string name;
  std::vector<TracedAnswer> answers;
};

struct DraftTrace {
  std::string method;  // "dspark", "mtp"
  int drafts_max = 0;
  std::vector<TracedDomain> domains;
};

struct DraftTraces {
  std::string model;       // in words
  double temperature = 1;  // of the answers
  std::vector<DraftTrace> drafters;

  // Null when there is none.
  const DraftTrace* Find(std::string_view method) const;
};

// [drafts_max]: how often draft k is accepted when it is reached, over all rounds.
std::vector<float> MeanAcceptance(const DraftTrace& trace);

// {"format": "foresight-draft-traces", "version": 1, ...}; probabilities as whole parts of a thousand. Errors
// of parsing: kInvalidArgument, saying where. Every domain has an answer, and every answer a position.
std::string FormatDraftTraces(const DraftTraces& traces);
Result<DraftTraces> ParseDraftTraces(std::string_view json);

}  // namespace foresight
