#include "drafting/dspark_drafter.h"

#include <algorithm>

namespace foresight {

DSparkDrafter::DSparkDrafter(int drafts_max, int slots_max, Model& model, SpeculatorTeam& speculators)
    : drafts_max_(drafts_max), model_(model), speculators_(speculators) {
  states_.reserve(slots_max);
  previous_.reserve(slots_max);
  draws_.reserve(slots_max);
}

Status DSparkDrafter::Propose(std::span<DraftRound> rounds) {
  const size_t group = static_cast<size_t>(model_.max_step_rows() / drafts_max_);
  while (!rounds.empty()) {
    const size_t count = std::min(rounds.size(), group);
    RETURN_IF_ERROR(ProposeGroup(rounds.first(count)));
    rounds = rounds.subspan(count);
  }
  return Status();
}

Status DSparkDrafter::ProposeGroup(std::span<DraftRound> rounds) {
  states_.clear();
  previous_.clear();
  int deepest = 0;
  for (const DraftRound& round : rounds) {
    states_.push_back(round.state);
    previous_.push_back(round.tokens.back());
    deepest = std::max(deepest, round.depth);
  }
  // Always the whole block, since its rows see each other: what is drafted must not depend on how much is
  // asked for.
  ASSIGN_OR_RETURN([[maybe_unused]] const DraftBlockOutputs block,
                   model_.DraftBlock({.sequences = states_, .anchors = previous_, .block = drafts_max_}));
  const int64_t vocab_size = model_.config().vocab_size;
  for (int k = 0; k < deepest; ++k) {
    ASSIGN_OR_RETURN(const DraftHeadOutputs head, model_.DraftHead(k, previous_));
    draws_.clear();
    for (size_t r = 0; r < rounds.size(); ++r) {
      if (k >= rounds[r].depth) continue;
      draws_.push_back({.logits = head.logits.subspan(r * vocab_size, vocab_size),
                        .sampler = rounds[r].sampler,
                        .block = rounds[r].block});
      if (!head.confidence_logits.empty()) rounds[r].confidence_logits[k] = head.confidence_logits[r];
    }
    RETURN_IF_ERROR(speculators_.DraftAll(draws_));
    size_t drawn = 0;
    for (size_t r = 0; r < rounds.size(); ++r) {
      if (k < rounds[r].depth) previous_[r] = draws_[drawn++].token;
    }
  }
  return Status();
}

}  // namespace foresight
