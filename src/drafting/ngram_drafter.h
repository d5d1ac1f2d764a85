// Prompt look-up as a drafter.
#pragma once

#include <optional>

#include "drafting/drafter.h"
#include "speculative/ngram.h"

namespace foresight {

class NgramLookup final : public Drafter {
 public:
  NgramLookup(int drafts_max, int slots_max)
      : drafts_max_(drafts_max), texts_(slots_max), proposal_(drafts_max) {}

  DraftMethod method() const override { return DraftMethod::kNgram; }
  int drafts_max() const override { return drafts_max_; }
  void Begin(int slot, std::span<const TokenId> tokens, int64_t tokens_max) override {
    texts_[slot].emplace(tokens_max);
    for (TokenId token : tokens) texts_[slot]->Append(token);
  }
  void End(int slot) override { texts_[slot].reset(); }
  Status Propose(std::span<DraftRound> rounds) override {
    for (DraftRound& round : rounds) {
      const NgramDraft draft = texts_[round.slot]->Propose(std::span(proposal_).first(round.depth));
      for (int i = 0; i < draft.num_tokens; ++i) round.block->AppendPoint(proposal_[i]);
    }
    return Status();
  }
  Status Observe(std::span<const ObservedRows> rows) override {
    for (const ObservedRows& r : rows) {
      NgramDrafter& text = *texts_[r.slot];
      while (text.length() < std::ssize(r.tokens)) text.Append(r.tokens[text.length()]);
    }
    return Status();
  }

 private:
  int drafts_max_;
  std::vector<std::optional<NgramDrafter>> texts_;  // by slot
  std::vector<TokenId> proposal_;
};

}  // namespace foresight
